//! The supervisor: the map of containers, and what all operations need.

use cgroup::Hierarchies;
use failpoint::{Point, reach};
use oci::{Abilities, ContainerDir, Oci, ProcessDir, Shim};
use std::collections::HashMap;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::aside::Aside;
use crate::config::Config;
use crate::container::Container;
use crate::deletion::Deletions;
use crate::disk;
use crate::error::{Error, shorten};
use crate::event::{Event, EventKind, Timestamp};
use crate::journal::{self, Journal};
use crate::metrics::Metrics;
use crate::once::Once;
use crate::pid_watch::PidWatcher;
use crate::process::Process;
use crate::subscription::Subscription;
use crate::tasks::Tasks;

/// As many descriptors as nothing is started with: for signals, exits and deletions (some ten at a time), for a connection by
/// which a client asks for them, and for what a start itself opens.
const KEPT_FROM_STARTS: u64 = 24;

/// As many are counted for each other start that is under way.
const FOR_A_START: u64 = 8;

/// A start that is under way.
#[derive(Debug)]
pub(crate) struct StartPlace(Arc<Shared>);

impl Drop for StartPlace {
    fn drop(&mut self) {
        self.0.starting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Supervises the containers of one state directory. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Supervisor(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) shim: Shim,
    pub(crate) journal: Arc<Journal>,
    pub(crate) pids: PidWatcher,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) abilities: Abilities,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    pub(crate) boot_id: String,
    pub(crate) deletions: Deletions,
    /// Where runtimes keep the containers that name no root of their own.
    runtime_root: PathBuf,
    /// How many starts are under way.
    starting: AtomicU64,
    /// Every id that is in use.
    containers: Mutex<HashMap<String, Slot>>,
    /// All that was there has been looked at.
    pub(crate) recovered: Once,
    /// The runtime of the container that was made last.
    last_runtime: Mutex<Option<Oci>>,
    /// Memory will be given back soon.
    pub(crate) trimming: AtomicBool,
}

/// What an id stands for.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    /// A container that is being created.
    Taken,
    /// One that an earlier supervisor left, and that has not been taken up yet. The sender goes when it has been.
    Left(watch::Receiver<()>),
    /// One that is supervised.
    Here(Arc<Container>),
    /// One whose files cannot be read.
    Aside(Arc<Aside>),
}

impl Supervisor {
    /// Takes over a state directory, which nobody else may be using. [`Supervisor::recover`] must follow. Must be
    /// called within a tokio runtime.
    pub fn open(config: Config) -> Result<Supervisor, Error> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&config.state_dir);
        made.map_err(Error::system("create the state directory"))?;
        oci::claim_state_dir(&config.state_dir)?;
        disk::begin().map_err(Error::system("start a thread"))?;
        let shim = Shim::find(&config.shim).map_err(|e| Error::Shim(e.to_string()))?;
        let journal = Journal::open(&config.state_dir, config.retain)?;
        let runtime_root = own_root(&config.state_dir);
        let boot_id =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(Error::system("read boot_id"))?;
        Ok(Supervisor(Arc::new(Shared {
            shim,
            journal,
            pids: PidWatcher::default(),
            hierarchies: Hierarchies::read().map_err(Error::system("read the cgroup mounts"))?,
            abilities: Abilities::default(),
            metrics: Metrics::default(),
            tasks: Tasks::default(),
            boot_id: boot_id.trim().to_string(),
            deletions: Deletions::default(),
            runtime_root,
            starting: AtomicU64::new(0),
            containers: Mutex::default(),
            recovered: Once::default(),
            last_runtime: Mutex::default(),
            trimming: AtomicBool::new(false),
            config,
        })))
    }

    /// Checks, without changing anything, that a state directory may be used: that it is not another program's.
    pub fn check_state_dir(state_dir: &std::path::Path) -> Result<(), Error> {
        Ok(oci::check_state_dir(state_dir)?)
    }

    /// Waits until [`Supervisor::recover`] has finished.
    pub async fn recovered(&self) {
        self.0.recovered.wait().await;
    }

    /// The time one call of the runtime may take.
    pub fn call_timeout(&self) -> Duration {
        self.0.config.call_timeout
    }

    /// What is counted and timed.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What is being done at the moment, for whoever wants to know why something takes so long.
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// How many containers there are; those that are being created are among them.
    pub fn containers(&self) -> usize {
        self.0.map().len()
    }

    /// Events that have been written since this supervisor was opened, and those who are subscribed to them now.
    pub fn events(&self) -> (u64, usize) {
        (self.0.journal.written(), self.0.journal.subscribers())
    }

    /// Subscribes to events: those that are stored and newer than `from`, if that is given, and, unless
    /// `stored_only`, those that come. `id` limits them to one container.
    pub fn subscribe(&self, from: Option<Timestamp>, id: Option<String>, stored_only: bool) -> Subscription {
        Subscription::new(&self.0.journal, from, id, stored_only)
    }
}

impl Shared {
    pub(crate) fn map(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        // Held for plain look-ups only.
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an id for a container that is to be created.
    pub(crate) fn reserve(&self, id: &str) -> Result<(), Error> {
        check_name("id", id, &[journal::FILE])?;
        let mut map = self.map();
        if map.contains_key(id) {
            return Err(Error::ContainerExists { id: id.to_string() });
        }
        map.insert(id.to_string(), Slot::Taken);
        drop(map);
        reach(Point::IdTaken);
        Ok(())
    }

    /// The same; what an earlier supervisor left of that id is waited for.
    pub(crate) async fn reserve_once_free(&self, id: &str, deadline: Instant) -> Result<(), Error> {
        loop {
            let taken = match self.reserve(id) {
                Err(e @ Error::ContainerExists { .. }) => e,
                result => return result,
            };
            let slot = self.map().get(id).cloned();
            let Some(Slot::Left(mut settled)) = slot else {
                let why = tokio::time::timeout_at(deadline, self.why_taken(id));
                match why.await {
                    Ok(Some(why)) => return Err(why),
                    // It was being deleted, and is gone.
                    Ok(None) if !self.map().contains_key(id) => continue,
                    _ => return Err(taken),
                }
            };
            tokio::select! {
                // Nothing is ever sent: this is the sender's end.
                _ = settled.changed() => {}
                () = tokio::time::sleep_until(deadline) => return Err(taken),
            }
        }
    }

    /// Takes a place for a start, as long as the result is held. Refuses what could not be looked after: the descriptors that are
    /// left are for ending what runs.
    pub(crate) fn place_for_start(self: &Arc<Self>) -> Result<StartPlace, Error> {
        let place = StartPlace(self.clone());
        let others = self.starting.fetch_add(1, Ordering::Relaxed);
        let limit = sys::descriptors::limit();
        match sys::descriptors::free() {
            Ok(free) if free < KEPT_FROM_STARTS + FOR_A_START * others => Err(Error::Descriptors { free, limit }),
            // Whatever it needs says so itself.
            _ => Ok(place),
        }
    }

    /// Looks up a container that has been created.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        check_name("id", id, &[journal::FILE])?;
        match self.map().get(id) {
            Some(Slot::Here(container)) => Ok(container.clone()),
            Some(Slot::Aside(aside)) => Err(aside.error(id)),
            Some(Slot::Taken | Slot::Left(_)) => Err(Error::ContainerNotReady { id: id.to_string() }),
            None => Err(Error::ContainerNotFound { id: id.to_string() }),
        }
    }

    pub(crate) fn container_dir(&self, id: &str) -> ContainerDir {
        ContainerDir::new(&self.config.state_dir, id)
    }

    /// The runtime that a new container is to use.
    pub(crate) fn runtime_for(&self, runtime: Option<&str>, arguments: &[String]) -> Result<Oci, Error> {
        let (name, arguments) = match runtime {
            Some(runtime) => (runtime, arguments.to_vec()),
            None => {
                let own = self.config.runtime_args.iter().chain(arguments);
                (self.config.runtime.as_str(), own.cloned().collect())
            }
        };
        if name.contains('/') && !name.starts_with('/') && runtime.is_some() {
            // It would be looked for in the daemon's working directory, which the client does not know.
            let (field, value) = ("runtime", shorten(name));
            return Err(Error::Argument { field, value, reason: "must be a name or an absolute path" });
        }
        // Runtimes that share a root do not understand each other's containers there.
        let directory = Path::new(name).file_name().unwrap_or_default();
        let found = Oci::find(name, oci::with_root(arguments, &self.runtime_root.join(directory)))?;
        if self.is_own_root(&found) {
            self.make_own_root()?;
        }
        // One copy for all containers that have the same.
        let mut last = self.last_runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = last.as_ref().filter(|last| **last == found) {
            return Ok(same.clone());
        }
        *last = Some(found.clone());
        Ok(found)
    }

    /// Whether a runtime keeps its containers where no other program has any.
    pub(crate) fn is_own_root(&self, oci: &Oci) -> bool {
        oci.root().is_some_and(|root| root.starts_with(&self.runtime_root))
    }

    /// Makes the runtimes' own root, if it is not there. A directory of another user's is not taken.
    fn make_own_root(&self) -> Result<(), Error> {
        let failed = || Error::system("make the runtimes' root beside the state directory");
        match std::fs::DirBuilder::new().mode(0o700).create(&self.runtime_root) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => return result.map_err(failed()),
        }
        let found = std::fs::symlink_metadata(&self.runtime_root).map_err(failed())?;
        if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        let odd = format!("{} is not a directory of this user's", self.runtime_root.display());
        Err(failed()(std::io::Error::other(odd)))
    }

    /// An event about the container, or about one of its processes.
    pub(crate) fn event(kind: EventKind, container: &Container, process: Option<&Process>, status: u32) -> Event {
        let added = process.filter(|process| process.name != oci::INIT);
        let named = process.filter(|_| matches!(kind, EventKind::StartProcess | EventKind::Exit));
        Event {
            id: container.id.clone(),
            kind,
            timestamp: Timestamp::default(),
            pid: named.map(|process| process.name.clone()).unwrap_or_default(),
            status,
            instance: container.origin.instance.to_string(),
            oom_kills: 0,
            process: added.map(|process| process.key.clone()).unwrap_or_default(),
            was: None,
        }
    }

    /// Hands on what a shim warned of, before its directory goes.
    pub(crate) fn log_shim_warnings(container: &str, process: &str, dir: &ProcessDir) {
        // Its errors have been given to whoever asked for the process.
        for line in dir.shim_log().into_iter().filter(|line| line.level != "error") {
            tracing::warn!(container, process, "shim: {}", line.msg);
        }
    }
}

/// The directory that runtimes keep containers in that name no root: beside the state directory, where older daemons would take
/// each directory for a container, and of this daemon alone.
fn own_root(state_dir: &Path) -> PathBuf {
    let mut name = state_dir.file_name().unwrap_or_default().to_os_string();
    name.push("-runtime");
    state_dir.with_file_name(name)
}

/// Checks a name that a client gave.
pub(crate) fn check_name(field: &'static str, name: &str, reserved: &[&str]) -> Result<(), Error> {
    oci::check_name(name, reserved).map_err(|reason| Error::Name { field, value: shorten(name), reason })
}

/// A key that no other process instance has, on this machine or another.
pub(crate) fn new_key() -> String {
    let mut bytes = [0; 12];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            // Only on kernels without the call; the clock tells instances apart as well.
            Err(_) => return format!("{:x}", Timestamp::now().0),
        }
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
