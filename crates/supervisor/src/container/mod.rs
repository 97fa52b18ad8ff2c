//! One container: what it was made from, its lifecycle, and its processes.

pub(crate) mod aside;
pub(crate) mod condition;
pub(crate) mod info;
pub(crate) mod killing;
pub(crate) mod lifecycle;
pub(crate) mod oom_count;
mod process;
pub(crate) mod transition;

use cgroup::{Cgroup, Requested};
use oci::{ContainerDir, ContainerRecord, INIT, Oci};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{RwLock, RwLockWriteGuard, SetOnce};

use crate::container::condition::Condition;
use crate::container::lifecycle::{Request, State, permits};
use crate::container::oom_count::OomCount;
use crate::error::Error;
pub(crate) use process::{ExitFifo, Process};

/// What a container was made from: those members of `state.json` that the daemon needs while the container exists.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) bundle: Box<str>,
    pub(crate) labels: Box<[String]>,
    pub(crate) oci: Oci,
    pub(crate) instance: Box<str>,
    pub(crate) cgroups_path: Box<str>,
    pub(crate) checkpoint: Box<str>,
    pub(crate) no_pivot_root: bool,
    /// The runtime had a container of this id before: what it keeps of the id may be another program's.
    pub(crate) theirs: bool,
    pub(crate) has_poststop: bool,
}

impl Origin {
    /// `oci`: the record's runtime, which the caller has looked up.
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
            theirs: record.theirs,
            has_poststop: record.has_poststop,
        }
    }
}

/// How many calls of the runtime it takes until the user's program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// One: `run`.
    Run,
    /// Two: `create`, and `start` once the daemon has seen the container's control group.
    CreateThenStart,
    /// One: `restore`, from a checkpoint.
    Restore,
}

/// A container that this supervisor knows.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) origin: Arc<Origin>,
    pub(crate) dir: ContainerDir,
    pub(crate) begin: Begin,
    /// The host's user and group id of the container's root.
    pub(crate) root: (u32, u32),
    /// Puts operations on this container in order: those that change it hold it for writing, execs for reading, so that
    /// several execs run at the same time. Nothing else waits for it.
    pub(crate) order: Arc<RwLock<()>>,
    inner: Mutex<Inner>,
    cgroup: OnceLock<Option<Cgroup>>,
    /// How many of its processes the kernel has killed for memory.
    pub(crate) oom: Mutex<OomCount>,
    /// Set when init has ended: a process that is being started in the container will not run any more.
    pub(crate) init_ended: SetOnce<()>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    condition: Condition,
    init: Option<Arc<Process>>,
    /// In the order of their starts, those that are being started included.
    added: Vec<Arc<Process>>,
}

impl Container {
    /// A container in the state [`State::Creating`].
    pub(crate) fn new(id: &str, origin: Origin, dir: ContainerDir, root: (u32, u32), begin: Begin) -> Container {
        Container {
            id: id.to_string(),
            origin: Arc::new(origin),
            dir,
            begin,
            root,
            order: Arc::default(),
            inner: Mutex::new(Inner {
                state: State::Creating,
                condition: Condition::default(),
                init: None,
                added: Vec::new(),
            }),
            cgroup: OnceLock::new(),
            oom: Mutex::default(),
            init_ended: SetOnce::new(),
        }
    }

    /// Whether it was restored from a checkpoint.
    pub(crate) fn is_restored(&self) -> bool {
        !self.origin.checkpoint.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Held for assignments, and while an event is written.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other operation changes the container, and keeps others from changing it. Fails after `limit`.
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

    /// The control groups that its bundle asks for.
    pub(crate) fn requested(&self) -> Requested<'_> {
        requested_groups(&self.origin.cgroups_path, &self.id, self.oci())
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state
    }

    /// Refuses a request that does not fit the state.
    pub(crate) fn check(&self, request: Request) -> Result<(), Error> {
        let state = self.state();
        if permits(state, request) { Ok(()) } else { Err(self.refused(request, state)) }
    }

    fn refused(&self, request: Request, state: State) -> Error {
        Error::State { id: self.id.clone(), operation: request.name(), state: state.name() }
    }

    /// The error for a process that is being started when the container ends.
    pub(crate) fn ended_meanwhile(&self) -> Error {
        self.refused(Request::Exec, State::Stopped)
    }

    /// Reads or changes the container's condition.
    pub(crate) fn condition<T>(&self, change: impl FnOnce(&mut Condition) -> T) -> T {
        change(&mut self.lock().condition)
    }

    pub(crate) fn set_init(&self, process: Arc<Process>) {
        self.lock().init = Some(process);
    }

    pub(crate) fn init(&self) -> Option<Arc<Process>> {
        self.lock().init.clone()
    }

    /// Adds a process, whose name no other one may have. No process is added once the container has ended.
    pub(crate) fn add(&self, process: &Arc<Process>) -> Result<(), Error> {
        let mut inner = self.lock();
        if inner.state.is_over() {
            return Err(self.refused(Request::Exec, inner.state));
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

    /// Thaws what keeps killed processes from dying.
    pub(crate) fn thaw_for_kill(&self) {
        if let Some(Err(e)) = self.cgroup().map(Cgroup::thaw_for_kill) {
            tracing::warn!(container = %self.id, "cannot thaw the container, whose processes were killed: {e}");
        }
    }

    /// Logs the warnings of a process's shim, before its directory is removed.
    pub(crate) fn log_shim_warnings(&self, process: &Process) {
        // The client that asked for the process has had the errors.
        for line in process.dir.shim_log().into_iter().filter(|line| line.level != "error") {
            tracing::warn!(container = %self.id, process = %process.name, "shim: {}", line.msg);
        }
    }
}

/// The control groups that a bundle asks for, with this runtime.
pub(crate) fn requested_groups<'a>(path: &'a str, id: &'a str, oci: &Oci) -> Requested<'a> {
    // runc and newer crun have the first form, crun also the second.
    let systemd = |argument: &String| {
        matches!(argument.as_str(), "--systemd-cgroup" | "--systemd-cgroup=true" | "--cgroup-manager=systemd")
    };
    let manager = |pair: &[String]| pair[0] == "--cgroup-manager" && pair[1] == "systemd";
    let arguments = oci.arguments();
    Requested { path, id, systemd: arguments.iter().any(systemd) || arguments.windows(2).any(manager) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;

    /// A container of which nothing is on disk.
    pub(crate) fn container(state_dir: &Path, id: &str) -> Arc<Container> {
        let record = ContainerRecord { instance: "key".into(), ..ContainerRecord::default() };
        let origin = Origin::new(record, Oci::at("/nonexistent".into(), Vec::new()));
        Arc::new(Container::new(id, origin, ContainerDir::new(state_dir, id), (0, 0), Begin::Run))
    }

    /// An added process of which nothing is on disk.
    pub(crate) fn process(container: &Container, name: &str) -> Arc<Process> {
        let (spec, stdio) = (oci::ProcessSpec::default(), oci::Stdio::default());
        Arc::new(Process::new(name, format!("key-{name}"), spec, stdio, container.dir.process(name)))
    }

    #[test]
    fn process_names_are_unique_and_none_is_added_after_the_end() {
        let container = container(Path::new("/nonexistent"), "c");
        assert!(container.add(&process(&container, "p")).is_ok());
        let taken = container.add(&process(&container, "p"));
        assert!(matches!(taken, Err(Error::ProcessExists { .. })));
        assert!(matches!(container.add(&process(&container, INIT)), Err(Error::ProcessExists { .. })));
        let _ = container.change(lifecycle::Silent::Failed);
        assert!(matches!(container.add(&process(&container, "q")), Err(Error::State { .. })));
    }
}
