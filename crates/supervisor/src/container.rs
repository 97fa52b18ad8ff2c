//! One container: what it was made from, where in its lifecycle it is, and its processes.

use cgroup::Cgroup;
use oci::{ContainerDir, ContainerRecord, INIT, Oci, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{RwLock, RwLockWriteGuard};

use crate::error::Error;
use crate::lifecycle::{Action, Happened, Request, State, permits, step};
use crate::once::Once;
use crate::oom::OomCount;
use crate::process::Process;
use crate::start::requested;

/// What is asked for when a container is created.
#[derive(Debug, Clone, Default)]
pub struct CreateContainer {
    /// Its name.
    pub id: String,
    /// The OCI bundle; may be relative.
    pub bundle: String,
    /// Init's stdio.
    pub stdio: Stdio,
    /// Kept and given back.
    pub labels: Vec<String>,
    /// An OCI runtime in place of the supervisor's and its arguments.
    pub runtime: Option<String>,
    /// Follow the supervisor's own arguments, or are the only ones if `runtime` is given.
    pub runtime_args: Vec<String>,
    /// Ask the runtime not to use pivot_root.
    pub no_pivot_root: bool,
    /// What becomes of it when its init ends.
    pub on_exit: OnExit,
    /// The checkpoint that it is restored from, in place of being started.
    pub checkpoint: Option<String>,
    /// Where that is; in the bundle's own directory of checkpoints if not given.
    pub checkpoint_dir: Option<std::path::PathBuf>,
    /// The size of its terminal, if it has one; if not given, the bundle's.
    pub terminal_size: Option<oci::TerminalSize>,
}

/// What becomes of a container when its init ends, and of one that was created and never started when its
/// supervisor is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExit {
    /// It is deleted, and its exit is told when it is gone.
    #[default]
    Delete,
    /// It stays until it is deleted.
    Keep,
}

/// What a container was made from: of what `state.json` holds, that which is asked for while the container is there.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) bundle: Box<str>,
    pub(crate) labels: Box<[String]>,
    pub(crate) oci: Oci,
    pub(crate) instance: Box<str>,
    pub(crate) cgroups_path: Box<str>,
    pub(crate) checkpoint: Box<str>,
    pub(crate) no_pivot_root: bool,
    pub(crate) keep: bool,
    pub(crate) theirs: bool,
    pub(crate) has_poststop: bool,
}

impl Origin {
    /// `oci`: the record's runtime, which has been looked up.
    pub(crate) fn new(record: ContainerRecord, oci: Oci) -> Origin {
        let ContainerRecord { bundle, labels, instance, cgroups_path, checkpoint, .. } = record;
        Origin {
            bundle: bundle.into(),
            labels: labels.into(),
            oci,
            instance: instance.into(),
            cgroups_path: cgroups_path.into(),
            checkpoint: checkpoint.into(),
            no_pivot_root: record.no_pivot_root,
            keep: record.keep,
            theirs: record.theirs,
            has_poststop: record.has_poststop,
        }
    }
}

/// A container that this supervisor knows.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) origin: Arc<Origin>,
    pub(crate) dir: ContainerDir,
    /// One call of the runtime creates and starts it.
    pub(crate) runs: bool,
    /// The host's ids of the container's root.
    pub(crate) root: (u32, u32),
    /// Puts calls on this container in order: those that change it hold it for writing, execs for reading, so that
    /// they run side by side. Nothing else waits for it.
    pub(crate) order: Arc<RwLock<()>>,
    inner: Mutex<Inner>,
    cgroup: OnceLock<Option<Cgroup>>,
    /// How many of its processes the kernel has killed for memory.
    pub(crate) oom: Mutex<OomCount>,
    /// Added processes that are being started and have not been told of: what is killed for memory may be one of them.
    pub(crate) starting: AtomicUsize,
    /// The kernel wakes when it has killed for memory, if it can.
    pub(crate) oom_watched: AtomicBool,
    /// Something may have been killed for memory meanwhile.
    pub(crate) oom_waits: AtomicBool,
    /// Its init has been sent SIGKILL: nothing may hold it frozen.
    pub(crate) killed: AtomicBool,
    /// A runtime was killed, or may have been, while it added a process, and may have left something.
    pub(crate) cut_off: AtomicBool,
    /// CRIU works on it, and freezes and thaws it as it needs.
    pub(crate) dumping: AtomicBool,
    /// It has been stopped by its checkpoint, and the runtime has deleted it.
    pub(crate) dumped: AtomicBool,
    /// Its directory has been removed, and whatever has that path now belongs to another one.
    pub(crate) removed: AtomicBool,
    /// Init has ended: whatever is being started in the container will not.
    pub(crate) init_ended: Once,
}

#[derive(Debug)]
struct Inner {
    state: State,
    init: Option<Arc<Process>>,
    /// In the order of their starts; those that are being started are among them.
    added: Vec<Arc<Process>>,
}

impl Container {
    pub(crate) fn new(id: &str, origin: Origin, dir: ContainerDir, root: (u32, u32), state: State) -> Container {
        Container {
            id: id.to_string(),
            origin: Arc::new(origin),
            dir,
            runs: false,
            root,
            order: Arc::default(),
            inner: Mutex::new(Inner { state, init: None, added: Vec::new() }),
            cgroup: OnceLock::new(),
            oom: Mutex::default(),
            starting: AtomicUsize::new(0),
            oom_watched: AtomicBool::new(false),
            oom_waits: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            dumping: AtomicBool::new(false),
            dumped: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            init_ended: Once::default(),
        }
    }

    /// Whether it was restored from a checkpoint, so that its init runs as soon as it is there.
    pub(crate) fn is_restored(&self) -> bool {
        !self.origin.checkpoint.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Held for plain assignments only.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other call is changing it, and keeps others from that; but not longer than a call may take.
    pub(crate) async fn turn(
        &self,
        operation: &'static str,
        limit: Duration,
    ) -> Result<RwLockWriteGuard<'_, ()>, Error> {
        let busy = |_| Error::Busy { id: self.id.clone(), operation, limit };
        tokio::time::timeout(limit, self.order.write()).await.map_err(busy)
    }

    /// Its runtime.
    pub(crate) fn oci(&self) -> &Oci {
        &self.origin.oci
    }

    /// What it asks for its control groups.
    pub(crate) fn requested(&self) -> cgroup::Requested<'_> {
        requested(&self.origin.cgroups_path, &self.id, self.oci())
    }

    pub(crate) fn keeps(&self) -> bool {
        self.origin.keep
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state
    }

    /// Whether `request` fits the state.
    pub(crate) fn check(&self, request: Request) -> Result<(), Error> {
        let state = self.state();
        if permits(state, request) {
            return Ok(());
        }
        Err(Error::State { id: self.id.clone(), operation: request.name(), state: state.name() })
    }

    /// Takes the step of the lifecycle's table; `None` if it does not exist, and nothing changes.
    pub(crate) fn happened(&self, what: Happened) -> Option<Option<Action>> {
        let mut inner = self.lock();
        let (next, action) = step(inner.state, what)?;
        inner.state = next;
        Some(action)
    }

    pub(crate) fn set_init(&self, process: Arc<Process>) {
        self.lock().init = Some(process);
    }

    pub(crate) fn init(&self) -> Option<Arc<Process>> {
        self.lock().init.clone()
    }

    /// Adds a process whose name nobody has. Once the container has stopped none is added any more.
    pub(crate) fn add(&self, process: &Arc<Process>) -> Result<(), Error> {
        let mut inner = self.lock();
        if inner.state == State::Stopped {
            let (operation, state) = (Request::Exec.name(), inner.state.name());
            return Err(Error::State { id: self.id.clone(), operation, state });
        }
        if process.name == INIT || inner.added.iter().any(|other| other.name == process.name) {
            return Err(Error::ProcessExists { id: self.id.clone(), process: process.name.clone() });
        }
        inner.added.push(process.clone());
        Ok(())
    }

    pub(crate) fn remove(&self, process: &Arc<Process>) {
        self.lock().added.retain(|other| !Arc::ptr_eq(other, process));
    }

    pub(crate) fn added(&self) -> Vec<Arc<Process>> {
        self.lock().added.clone()
    }

    /// The process of that name, once it runs.
    pub(crate) fn process(&self, name: &str) -> Result<Arc<Process>, Error> {
        let inner = self.lock();
        let found = inner.init.iter().chain(&inner.added).find(|p| p.name == name && p.pid().is_some());
        found.cloned().ok_or_else(|| Error::ProcessNotFound { id: self.id.clone(), process: name.to_string() })
    }

    pub(crate) fn set_cgroup(&self, cgroup: Option<Cgroup>) {
        let _ = self.cgroup.set(cgroup);
    }

    /// Its control groups; `None` if it has none of its own.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.get()?.as_ref()
    }
}
