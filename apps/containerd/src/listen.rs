//! The sockets on which the daemon accepts clients: its own, those that systemd passes, and those that the previous program
//! handed over.

use anyhow::{Context, Result, bail};
use futures_util::Stream;
use rustix::fs::{Gid, Mode, chown};
use rustix::process::umask;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use sys::activation::{Passed, SOCKETS};
use sys::socket_path::SocketPath;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use crate::authority::{Connection, Io};
use crate::flags::Flags;
use crate::load::Load;
use crate::places::{Place, Places};
use crate::replace::Previous;
use crate::tls;

/// How long to wait after accept(2) has failed, for lack of descriptors for example, before it is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long a client may take for the TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// The most TLS handshakes at a time.
const HANDSHAKES: usize = 128;

/// How long a TCP connection may be silent before the kernel probes whether the client still exists.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The most connections that have been accepted and are not served yet.
const BACKLOG: usize = 64;

/// A listening socket.
enum Listener {
    Unix(UnixListener),
    /// TCP without TLS: every client that can connect is trusted.
    Insecure(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

/// All sockets of the daemon. Dropping this value removes the unix socket's file.
pub(crate) struct Sockets {
    listeners: Vec<Listener>,
    /// Duplicates of the listeners' descriptors. They keep the sockets open, with the clients that wait in them, after the
    /// listeners have been dropped.
    kept: Vec<OwnedFd>,
    file: Option<SocketFile>,
}

/// The file of the daemon's own unix socket.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode. They differ if another daemon has replaced the file.
    identity: (u64, u64),
    /// Dropping this value leaves the file. Set while this program may still go back to the previous one, which needs the file.
    stays: bool,
}

/// Sockets that this process was started with.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// From a service manager. An error matters only if `--listen` asks for them.
    passed: io::Result<Vec<Passed>>,
    /// From the previous program in this process. They are used whatever `--listen` says.
    handed_over: Vec<OwnedFd>,
}

impl Inherited {
    /// Takes the sockets. A second call returns none.
    pub(crate) fn take() -> Inherited {
        Inherited { passed: sys::activation::take(), handed_over: sys::activation::take_handed_over(SOCKETS) }
    }

    /// The previous program in this process, if there was one.
    pub(crate) fn previous(&self) -> Option<Previous> {
        Previous::take(self.handed_over.iter())
    }

    /// Whether this program has replaced a previous one in this process.
    pub(crate) fn is_handed_over(&self) -> bool {
        !self.handed_over.is_empty()
    }
}

/// Opens the sockets that the flags ask for. A socket file on which no process listens is replaced.
pub(crate) fn listen(flags: &Flags, inherited: Inherited) -> Result<Sockets> {
    let (listeners, file) = listeners(flags, inherited)?;
    let kept = listeners.iter().map(Listener::duplicate).collect::<io::Result<_>>().context("duplicate the socket")?;
    Ok(Sockets { listeners, kept, file })
}

fn listeners(flags: &Flags, inherited: Inherited) -> Result<(Vec<Listener>, Option<SocketFile>)> {
    let Inherited { passed, handed_over } = inherited;
    let address = flags.listen.as_str();
    let cannot = || format!("cannot listen at {address}");
    let tls = tls::acceptor(flags)?;
    if flags.group.is_some() && !address.starts_with("unix://") {
        tracing::warn!("--group has no effect: it applies to unix:// sockets, and --listen is {address}");
    }
    if !handed_over.is_empty() {
        let adopt = |fd| adopt_one(fd, tls.as_ref(), flags.insecure_tcp);
        let listeners = handed_over.into_iter().map(adopt).collect::<Result<_>>().with_context(cannot)?;
        let path = address.strip_prefix("unix://").map(std::path::absolute).transpose()?;
        return Ok((listeners, path.and_then(|path| SocketFile::at(&path).ok())));
    }
    match address.split_once("://") {
        Some(("unix", path)) if !path.is_empty() => {
            let (listener, file) =
                listen_at(&std::path::absolute(path)?, flags.group.as_deref()).with_context(cannot)?;
            Ok((vec![Listener::Unix(listener)], Some(file)))
        }
        Some(("tcp", host)) if !host.is_empty() => {
            let listener = std::net::TcpListener::bind(host).with_context(cannot)?;
            let listener = tcp(listener, tls, flags.insecure_tcp).with_context(cannot)?;
            Ok((vec![listener], None))
        }
        Some(("fd", which)) => {
            let passed = passed.context("read LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES").with_context(cannot)?;
            let listeners = adopt(passed, which, tls.as_ref(), flags.insecure_tcp).with_context(cannot)?;
            Ok((listeners, None))
        }
        _ => bail!(
            "cannot listen at {address:?}: an address is written as unix:///path/of/the/socket, tcp://host:port or fd://"
        ),
    }
}

fn listen_at(path: &Path, group: Option<&str>) -> Result<(UnixListener, SocketFile)> {
    let group = group.map(find_group).transpose()?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    remove_stale(path)?;
    // The umask gives the file its mode when bind(2) creates it, so that other users cannot connect even for a moment.
    let before = umask(Mode::from_raw_mode(0o117));
    let bound = SocketPath::to_bind(path).and_then(std::os::unix::net::UnixListener::bind);
    umask(before);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    if let Some(group) = group {
        chown(path, None, Some(Gid::from_raw(group))).context("give the socket to its group")?;
    }
    Ok((UnixListener::from_std(listener)?, SocketFile::at(path)?))
}

fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    if !metadata.file_type().is_socket() {
        bail!("the path exists and is not a socket");
    }
    match SocketPath::to_connect(path).and_then(std::os::unix::net::UnixStream::connect) {
        Ok(socket) if is_orphan(&socket) => {}
        Ok(_) => bail!("another process listens on the socket"),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(e) => return Err(e).context("find out whether a process listens on the socket"),
    }
    std::fs::remove_file(path).context("remove the socket on which no process listens")
}

/// Whether the process that called listen(2) is dead. The kernel noted its pid then (unix(7), SO_PEERCRED). A daemon that is
/// killed while it starts a child leaves the socket open in that child until the child executes its program.
fn is_orphan(socket: &std::os::unix::net::UnixStream) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(socket) else { return false };
    let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
    sys::procfs::stat(pid).is_ok_and(|stat| stat.is_none_or(|stat| stat.is_dead()))
}

/// A TCP listener. Without TLS it must be on loopback, and `--insecure-tcp` must allow it.
fn tcp(listener: std::net::TcpListener, tls: Option<TlsAcceptor>, insecure: bool) -> Result<Listener> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    tracing::info!(%address, "listening");
    match tls {
        Some(tls) => Ok(Listener::Tls(TcpListener::from_std(listener)?, tls)),
        None if !insecure => bail!(
            "TCP needs --tls-cert, --tls-key and --tls-ca, since every client that can connect is root on this machine; \
             on loopback, --insecure-tcp allows it without them"
        ),
        None if !address.ip().to_canonical().is_loopback() => {
            bail!("--insecure-tcp is for loopback only, and {} is not a loopback address", address.ip())
        }
        None => {
            tracing::warn!(%address, "listening without TLS: every user of this machine can become root");
            Ok(Listener::Insecure(TcpListener::from_std(listener)?))
        }
    }
}

/// Listeners for sockets from the service manager: for all of them if `which` is empty or `*`, otherwise for those with that
/// number or name.
fn adopt(passed: Vec<Passed>, which: &str, tls: Option<&TlsAcceptor>, insecure: bool) -> Result<Vec<Listener>> {
    if passed.is_empty() {
        bail!("no socket was passed to this process (LISTEN_FDS and LISTEN_PID, as systemd sets them)");
    }
    let mut listeners = Vec::new();
    for socket in passed {
        let number = socket.number.to_string();
        if matches!(which, "" | "*") || which == number || which == socket.name {
            let listener = adopt_one(socket.fd, tls, insecure);
            listeners.push(listener.with_context(|| format!("descriptor {number}"))?);
        }
    }
    if listeners.is_empty() {
        bail!("none of the sockets that were passed has the number or name {which:?}");
    }
    Ok(listeners)
}

fn adopt_one(fd: OwnedFd, tls: Option<&TlsAcceptor>, insecure: bool) -> Result<Listener> {
    use rustix::net::{AddressFamily, sockopt};
    let is_listening = sockopt::socket_acceptconn(&fd).context("it is not a socket")?;
    if !is_listening {
        bail!("the socket is not listening (the socket unit needs Accept=no)");
    }
    match sockopt::socket_domain(fd.as_fd())? {
        AddressFamily::UNIX => {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            if let Some(path) = address.as_pathname() {
                if std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o002 != 0) {
                    let path = path.display();
                    tracing::warn!(%path, "every user of this machine can connect and become root (SocketMode=0660 is safer)");
                }
            }
            Ok(Listener::Unix(UnixListener::from_std(listener)?))
        }
        AddressFamily::INET | AddressFamily::INET6 => tcp(std::net::TcpListener::from(fd), tls.cloned(), insecure),
        _ => bail!("the socket is neither a unix socket nor a TCP socket"),
    }
}

/// The id of a group that is given by number, or by its name in `/etc/group` (group(5)).
fn find_group(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").context("read /etc/group")?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(name));
    line.and_then(|line| line.split(':').nth(2)?.parse().ok()).with_context(|| format!("there is no group {name}"))
}

impl Listener {
    fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Listener::Unix(listener) => listener.as_fd().try_clone_to_owned(),
            Listener::Insecure(listener) | Listener::Tls(listener, _) => listener.as_fd().try_clone_to_owned(),
        }
    }
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<SocketFile> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_path_buf(), identity: (metadata.dev(), metadata.ino()), stays: false })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.stays && std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Sockets {
    /// Keeps the sockets open for the next program in this process. Returns the variable, with its value, that names them in
    /// that program's environment.
    pub(crate) fn hand_over(&self) -> io::Result<(&'static str, String)> {
        sys::activation::hand_over(SOCKETS, &self.kept)
    }

    /// Sets whether the socket's file stays when this program ends.
    pub(crate) fn leave_file(&mut self, stays: bool) {
        if let Some(file) = &mut self.file {
            file.stays = stays;
        }
    }

    /// Closes the sockets once their listeners are dropped, so that no client waits for a daemon that is ending.
    pub(crate) fn close(&mut self) {
        self.kept.clear();
        self.file = None;
    }

    /// The connections that clients open, until the daemon stops. Starts a task for each listener; a connection that cannot be
    /// accepted does not end the stream.
    pub(crate) fn connections(
        &mut self,
        load: &Load,
        stopping: &watch::Receiver<bool>,
    ) -> impl Stream<Item = io::Result<Connection>> + use<> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        for listener in self.listeners.drain(..) {
            tokio::spawn(accept_all(listener, load.clone(), sender.clone(), stopping.clone()));
        }
        futures_util::stream::unfold(receiver, |mut receiver| async {
            let connection = receiver.recv().await?;
            Some((Ok(connection), receiver))
        })
    }
}

/// Accepts connections until the daemon stops or the server no longer takes them. Later connections wait in the socket for
/// the next program.
async fn accept_all(
    listener: Listener,
    load: Load,
    connections: mpsc::Sender<Connection>,
    mut stopping: watch::Receiver<bool>,
) {
    let handshakes = Places::new(HANDSHAKES);
    let accept = async || match &listener {
        Listener::Unix(unix) => unix.accept().await.map(|(stream, _)| connection(&load, stream)),
        Listener::Insecure(tcp) => tcp.accept().await.map(|(stream, _)| {
            prepare(&stream);
            connection(&load, stream)
        }),
        Listener::Tls(tcp, acceptor) => {
            let (stream, peer) = tcp.accept().await?;
            if !has_descriptors() {
                return Ok(None);
            }
            let place = handshakes.take(peer);
            let (acceptor, load, connections) = (acceptor.clone(), load.clone(), connections.clone());
            let handshakes = handshakes.clone();
            // In a task of its own, so that a slow client does not hold up others.
            tokio::spawn(async move {
                match shake_hands(acceptor, stream, place).await {
                    // Sending fails only once the server has ended.
                    Ok(stream) => drop(connections.send(connection(&load, stream)?).await),
                    Err(reason) => handshakes.refused(peer, reason),
                }
                Some(())
            });
            Ok(None)
        }
    };
    loop {
        tokio::select! {
            () = connections.closed() => return,
            () = async { drop(stopping.wait_for(|stop| *stop).await) } => return,
            accepted = accept() => match accepted {
                // Sending fails only once the server has ended. Then this loop ends, too.
                Ok(Some(connection)) => drop(connections.send(connection).await),
                Ok(None) => {}
                Err(e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }
}

/// Descriptors that connections may not use. The daemon needs them to signal processes, watch for exits and delete containers.
const RESERVED_DESCRIPTORS: u64 = 12;

/// Whether enough descriptors are free for another connection.
pub(crate) fn has_descriptors() -> bool {
    let has = !sys::descriptors::free().is_ok_and(|free| free < RESERVED_DESCRIPTORS);
    if !has {
        tracing::debug!("refused a connection: the last free descriptors are reserved for stopping containers");
    }
    has
}

/// Counts a connection. Returns `None`, which closes it, if too many are open.
fn connection(load: &Load, stream: impl Io + 'static) -> Option<Connection> {
    if !has_descriptors() {
        return None;
    }
    let open = load.connection();
    if open.is_none() {
        tracing::debug!("refused a connection: too many are open");
    }
    Some(Connection::new(stream, open?))
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    mut place: Place,
) -> Result<tokio_rustls::server::TlsStream<TcpStream>, String> {
    prepare(&stream);
    tokio::select! {
        result = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)) => match result {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err(format!("its TLS handshake took longer than {HANDSHAKE_LIMIT:?}")),
        },
        () = place.lost() => Err("its TLS handshake was not finished when newer clients needed its place".into()),
    }
}

/// Sets a TCP connection's options: the kernel sends answers without delay, and notices a client that has vanished.
fn prepare(stream: &TcpStream) {
    use rustix::net::sockopt;
    let set = || {
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
        sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE / 4)?;
        sockopt::set_tcp_keepcnt(stream, 4)
    };
    if let Err(e) = set().map_err(io::Error::from) {
        tracing::debug!("cannot set the options of a connection: {e}");
    }
}
