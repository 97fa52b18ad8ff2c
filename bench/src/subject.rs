//! The daemon that is measured: one of our own, or any other one of the same API.

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tests::{Bundle, Client, Fifo, Host, Options};
use tokio::sync::watch;

use crate::figures::Cost;
use crate::group::Group;

type Told = Arc<watch::Sender<HashMap<(String, String), u32>>>;

/// A daemon with a client and what counts the CPU time of both.
pub(crate) struct Subject {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) runtime: String,
    /// Of a daemon that is not ours.
    other: Option<u32>,
    pub(crate) ours: Group,
    pub(crate) bare: Group,
    exits: Told,
    stdio: Connected,
}

/// FIFOs that every process of ours is connected to, and the client's ends.
struct Connected {
    fifos: [Fifo; 3],
    _ends: Vec<File>,
}

impl Connected {
    fn new(host: &Host) -> Result<Connected> {
        let fifos = [host.fifo(), host.fifo(), host.fifo()];
        let open = |fifo: &Fifo| {
            let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            File::options().read(true).write(true).custom_flags(nonblocking).open(fifo.path())
        };
        let ends = fifos.iter().map(open).collect::<Result<_, _>>().context("open a FIFO")?;
        Ok(Connected { fifos, _ends: ends })
    }

    fn paths(&self) -> [String; 3] {
        self.fifos.each_ref().map(Fifo::path)
    }
}

/// A file system in memory, where state directories are on most machines.
fn in_memory() -> Option<PathBuf> {
    const TMPFS: i64 = 0x0102_1994;
    let is_tmpfs = |path: &Path| rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == TMPFS);
    ["/run", "/dev/shm"].into_iter().map(PathBuf::from).find(|path| is_tmpfs(path))
}

impl Subject {
    pub(crate) async fn new(address: Option<&str>, runtime: &str) -> Result<Subject> {
        let options =
            Options { without_debug: true, runtime: Some(runtime.into()), parent: in_memory(), ..Options::default() };
        let mut host = Host::prepare(options);
        let name = host.path().file_name().and_then(|name| name.to_str()).context("a name")?.to_string();
        let (ours, bare) = (Group::cpu(&format!("{name}-ours"))?, Group::cpu(&format!("{name}-bare"))?);
        let (client, other) = match address {
            Some(address) => {
                let Some(path) = address.strip_prefix("unix://") else { bail!("--address must be unix:///path") };
                let socket =
                    std::os::unix::net::UnixStream::connect(path).with_context(|| format!("connect {path}"))?;
                let peer = rustix::net::sockopt::socket_peercred(&socket).context("find the daemon's pid")?;
                (tests::client_at(path), Some(peer.pid.as_raw_nonzero().get() as u32))
            }
            None => {
                host.start().await;
                (host.client().await, None)
            }
        };
        let (exits, stdio) = (Told::default(), Connected::new(&host)?);
        let subject = Subject { host, client, runtime: runtime.into(), other, ours, bare, exits, stdio };
        subject.ours.add(subject.pid())?;
        subject.follow().await?;
        Ok(subject)
    }

    /// Whether it is a daemon of our own, which can be killed.
    pub(crate) fn is_ours(&self) -> bool {
        self.other.is_none()
    }

    /// The daemon's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.other.unwrap_or_else(|| self.host.pid())
    }

    /// Notes all exits from now on, of the daemon that is there now.
    pub(crate) async fn follow(&self) -> Result<()> {
        let mut events = self.client.clone().events(api::EventsRequest::default()).await?.into_inner();
        let exits = self.exits.clone();
        tokio::spawn(async move {
            while let Ok(Some(event)) = events.message().await {
                if event.r#type == "exit" {
                    exits.send_modify(|told| {
                        told.insert((event.id, event.pid), event.status);
                    });
                }
            }
        });
        Ok(())
    }

    /// Kills our daemon and starts another one.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.host.restart(rustix::process::Signal::KILL).await;
        self.client = self.host.client().await;
        self.ours.add(self.pid())?;
        Ok(())
    }

    /// Waits for an exit, and forgets it.
    pub(crate) async fn exit(&self, id: &str, process: &str) -> Result<u32> {
        let key = (id.to_string(), process.to_string());
        let mut told = self.exits.subscribe();
        let waited = tokio::time::timeout(tests::LIMIT, told.wait_for(|told| told.contains_key(&key))).await;
        drop(waited.with_context(|| format!("{id} {process} does not exit"))??);
        let mut status = 0;
        self.exits.send_if_modified(|told| {
            status = told.remove(&key).unwrap_or_default();
            false
        });
        Ok(status)
    }

    /// What starts a container with its stdio connected.
    pub(crate) fn request(&self, id: &str, bundle: &str) -> api::CreateContainerRequest {
        let [stdin, stdout, stderr] = self.stdio.paths();
        let (id, bundle_path) = (id.into(), bundle.into());
        api::CreateContainerRequest { id, bundle_path, stdin, stdout, stderr, ..Default::default() }
    }

    pub(crate) async fn create(&self, id: &str, bundle: &str) -> Result<()> {
        let request = self.request(id, bundle);
        self.client.clone().create_container(request).await.with_context(|| format!("create {id}"))?;
        Ok(())
    }

    /// Kills a container and waits until it has gone.
    pub(crate) async fn end(&self, id: &str) -> Result<()> {
        let request = api::SignalRequest { id: id.into(), pid: "init".into(), signal: 9 };
        self.client.clone().signal(request).await?;
        self.exit(id, "init").await.map(drop)
    }

    /// Adds a process that ends at once, and waits for its exit event.
    pub(crate) async fn exec(&self, id: &str) -> Result<()> {
        let (args, pid) = (vec!["true".to_string()], "p".to_string());
        let [stdin, stdout, stderr] = self.stdio.paths();
        let request = api::AddProcessRequest { id: id.into(), pid, args, stdin, stdout, stderr, ..Default::default() };
        self.client.clone().add_process(request).await?;
        self.exit(id, "p").await.map(drop)
    }

    /// The bare runtime's command line.
    pub(crate) fn bare_command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.runtime);
        command.arg(format!("--root={}", self.host.join("root"))).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs the bare runtime.
    pub(crate) async fn bare(&self, arguments: &[&str]) -> Result<()> {
        let status = self.bare_command(arguments).status().await?;
        if !status.success() {
            bail!("{} {arguments:?}: {status}", self.runtime);
        }
        Ok(())
    }

    /// Does something of ours, or of the bare runtime, and adds what it cost: with what this program itself uses.
    pub(crate) async fn cost(&self, ours: bool, cost: &mut Cost, work: impl Future<Output = Result<()>>) -> Result<()> {
        let group = if ours { &self.ours } else { &self.bare };
        group.add(std::process::id())?;
        let (before, begun) = (group.cpu_used()?, std::time::Instant::now());
        work.await?;
        cost.wall.add(begun.elapsed());
        cost.cpu.add(group.cpu_used()?.saturating_sub(before));
        Ok(())
    }

    /// Bundles that run `args`, with an id each.
    pub(crate) fn bundles(&self, number: usize, args: &[&str]) -> Vec<(String, String)> {
        let template: Bundle = self.host.bundle(&[]);
        let prefix = self.host.name("b");
        let one = |n: usize| {
            let id = format!("{prefix}-{n}");
            (id.clone(), template.copy(&id, args).write())
        };
        (0..number).map(one).collect()
    }

    /// Waits until the daemon has gone quiet: its CPU time no longer changes.
    pub(crate) async fn settle(&self) -> Result<()> {
        let mut last = self.ours.cpu_used()?;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = self.ours.cpu_used()?;
            // This program's own asking is in it.
            if now - last < Duration::from_millis(2) {
                return Ok(());
            }
            last = now;
        }
    }

    /// Checks that nothing is left, if the daemon is our own.
    pub(crate) fn finish(self) {
        if self.is_ours() {
            let Subject { host, .. } = self;
            host.finish();
        }
    }
}
