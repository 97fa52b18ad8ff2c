//! The sockets that clients come to.

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

/// How long to wait when no connection can be taken, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client may take until it has shown its certificate.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// TLS handshakes that are under way at a time.
const HANDSHAKES: usize = 128;

/// After how long a silent client is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Connections that have been taken and not yet been served.
const BACKLOG: usize = 64;

/// Where clients come.
enum Listener {
    Unix(UnixListener),
    /// Without TLS: whoever can connect is trusted.
    Insecure(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

/// All sockets, whose files go when this is dropped.
pub(crate) struct Sockets {
    listeners: Vec<Listener>,
    /// Copies, which keep clients waiting that come when the listeners have gone.
    kept: Vec<OwnedFd>,
    file: Option<SocketFile>,
}

/// A socket's file, if this process made it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode, to tell the file from a successor's.
    file: (u64, u64),
    /// It is another program's as long as this one may go back to that.
    stays: bool,
}

/// Sockets that this process was started with.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// From a service manager. An error matters only if `--listen` asks for them.
    passed: io::Result<Vec<Passed>>,
    /// Those of the program that was here before, which are taken whatever the flags say.
    handed_over: Vec<OwnedFd>,
}

impl Inherited {
    /// Takes them; gives none the second time.
    pub(crate) fn take() -> Inherited {
        Inherited { passed: sys::activation::take(), handed_over: sys::activation::take_handed_over(SOCKETS) }
    }

    /// The program that this one has replaced, to go back to.
    pub(crate) fn previous(&self) -> Option<Previous> {
        Previous::take(self.handed_over.iter())
    }

    /// Whether this program has replaced another one of its kind.
    pub(crate) fn is_handed_over(&self) -> bool {
        !self.handed_over.is_empty()
    }
}

/// Listens as the flags say. A socket file that nobody listens on is replaced; one that somebody does is not.
pub(crate) fn listen(flags: &Flags, inherited: Inherited) -> Result<Sockets> {
    let (listeners, file) = listeners(flags, inherited)?;
    let kept = listeners.iter().map(Listener::copy).collect::<io::Result<_>>().context("copy the socket")?;
    Ok(Sockets { listeners, kept, file })
}

fn listeners(flags: &Flags, inherited: Inherited) -> Result<(Vec<Listener>, Option<SocketFile>)> {
    let Inherited { passed, handed_over } = inherited;
    let address = flags.listen.as_str();
    let cannot = || format!("cannot listen at {address}");
    let tls = tls::acceptor(flags)?;
    if flags.group.is_some() && !address.starts_with("unix://") {
        tracing::warn!("--group is for sockets that this daemon makes, which {address} is not; it is not used");
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
    // The file is born with its mode: there is no moment at which others could connect.
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
        bail!("there is something that is no socket");
    }
    match SocketPath::to_connect(path).and_then(std::os::unix::net::UnixStream::connect) {
        Ok(socket) if is_orphan(&socket) => {}
        Ok(_) => bail!("another process listens there"),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(e) => return Err(e).context("find out whether somebody listens there"),
    }
    std::fs::remove_file(path).context("remove the socket that nobody listens on")
}

/// Whether the process that listened is dead: a daemon that was killed while it started a child, which holds the socket
/// until it has come to its exec. Whose the other end is was noted when it began to listen (unix(7), SO_PEERCRED).
fn is_orphan(socket: &std::os::unix::net::UnixStream) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(socket) else { return false };
    let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
    sys::procfs::stat(pid).is_ok_and(|stat| stat.is_none_or(|stat| stat.is_dead()))
}

/// A TCP socket with TLS, or on loopback if it must be without.
fn tcp(listener: std::net::TcpListener, tls: Option<TlsAcceptor>, insecure: bool) -> Result<Listener> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    tracing::info!(%address, "listening");
    match tls {
        Some(tls) => Ok(Listener::Tls(TcpListener::from_std(listener)?, tls)),
        None if !insecure => bail!(
            "TCP needs --tls-cert, --tls-key and --tls-ca, since whoever can connect is root on this machine; \
             on loopback it can be allowed without, by --insecure-tcp"
        ),
        None if !address.ip().to_canonical().is_loopback() => {
            bail!("--insecure-tcp is for loopback only, and {} is not", address.ip())
        }
        None => {
            tracing::warn!(%address, "listening without TLS: everybody on this machine can be root through it");
            Ok(Listener::Insecure(TcpListener::from_std(listener)?))
        }
    }
}

/// The sockets that were passed: all of them for an empty `which` or `*`, otherwise those of that number or name.
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
        bail!("none of the sockets that were passed has the number or the name {which:?}");
    }
    Ok(listeners)
}

fn adopt_one(fd: OwnedFd, tls: Option<&TlsAcceptor>, insecure: bool) -> Result<Listener> {
    use rustix::net::{AddressFamily, sockopt};
    let is_listening = sockopt::socket_acceptconn(&fd).context("it is no socket")?;
    if !is_listening {
        bail!("it is not listening (Accept=no is needed)");
    }
    match sockopt::socket_domain(fd.as_fd())? {
        AddressFamily::UNIX => {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            if let Some(path) = address.as_pathname() {
                if std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o002 != 0) {
                    let path = path.display();
                    tracing::warn!(%path, "everybody on this machine can connect, and be root (SocketMode=0660 is safer)");
                }
            }
            Ok(Listener::Unix(UnixListener::from_std(listener)?))
        }
        AddressFamily::INET | AddressFamily::INET6 => tcp(std::net::TcpListener::from(fd), tls.cloned(), insecure),
        _ => bail!("it is neither a unix socket nor one of TCP"),
    }
}

/// A group by its number, or by its name in `/etc/group` (group(5)).
fn find_group(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").context("read /etc/group")?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(name));
    line.and_then(|line| line.split(':').nth(2)?.parse().ok()).with_context(|| format!("there is no group {name}"))
}

impl Listener {
    fn copy(&self) -> io::Result<OwnedFd> {
        match self {
            Listener::Unix(listener) => listener.as_fd().try_clone_to_owned(),
            Listener::Insecure(listener) | Listener::Tls(listener, _) => listener.as_fd().try_clone_to_owned(),
        }
    }
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<SocketFile> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_path_buf(), file: (metadata.dev(), metadata.ino()), stays: false })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.stays && std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Sockets {
    /// Leaves the sockets to the program that takes this one's place: what is to be added to its environment.
    pub(crate) fn hand_over(&self) -> io::Result<(&'static str, String)> {
        sys::activation::hand_over(SOCKETS, &self.kept)
    }

    /// Whether the socket's file is left alone when this program ends.
    pub(crate) fn leave_file(&mut self, stays: bool) {
        if let Some(file) = &mut self.file {
            file.stays = stays;
        }
    }

    /// Nobody is to wait for an answer any more.
    pub(crate) fn close(&mut self) {
        self.kept.clear();
        self.file = None;
    }

    /// The connections that come until this program stops: one that cannot be taken is not the end of the others.
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

/// Takes connections until nobody wants them any more. Those that come later wait for the next program.
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
            let place = handshakes.begin(peer);
            let (acceptor, load, connections) = (acceptor.clone(), load.clone(), connections.clone());
            let handshakes = handshakes.clone();
            // Aside, so that nobody waits for one that is slow.
            tokio::spawn(async move {
                match shake_hands(acceptor, stream, place).await {
                    // Nobody is there any more if it cannot be sent.
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
                // Nobody is there any more if it cannot be sent; the loop ends then.
                Ok(Some(connection)) => drop(connections.send(connection).await),
                Ok(None) => {}
                Err(e) => {
                    tracing::warn!("cannot take a connection: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// As many descriptors as no connection takes: for signals, exits and deletions.
const KEPT_FROM_CONNECTIONS: u64 = 12;

/// Whether there are descriptors for another connection.
pub(crate) fn has_descriptors() -> bool {
    let has = !sys::descriptors::free().is_ok_and(|free| free < KEPT_FROM_CONNECTIONS);
    if !has {
        tracing::debug!("refused a connection: the descriptors that are left are kept for ending what runs");
    }
    has
}

/// A connection, if there are not too many.
fn connection(load: &Load, stream: impl Io + 'static) -> Option<Connection> {
    if !has_descriptors() {
        return None;
    }
    let open = load.connection();
    if open.is_none() {
        tracing::debug!("refused a connection: there are too many");
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
        () = place.lost() => Err("its TLS handshake was not finished, and newer clients needed its place".into()),
    }
}

/// Answers are sent at once, not collected; and a client that has vanished without a word is noticed.
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
        tracing::debug!("cannot set options of a connection: {e}");
    }
}
