//! Deleting what the runtime keeps of a container.
//!
//! That is a duty: the daemon tries it until it is done or proved to be needless. The delays between attempts grow. The daemon
//! tries again at once when a client asks for the id or sends SIGKILL, and so does the next daemon. Until then the container
//! keeps its id, and its exit is not recorded, because clients rely on a free id once they have seen the exit. The log says why
//! it takes so long, and so does the answer to a client that asks for the id.
//!
//! The daemon deletes only what is proved to be its own. It never kills a `delete` that runs a hook. A `delete` outlives its
//! daemon, and the next daemon waits for it.

use cgroup::{Cgroup, Hierarchies};
use failpoint::{Point, reach};
use oci::{Call, INIT, Oci, OciError, Operation, ProcessDir};
use rustix::process::Pid;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sys::pidfd::PidFd;
use tokio::sync::{Notify, watch};

use crate::container::Container;
use crate::container::killing::{kill_all, number};
use crate::error::Error;
use crate::host::registry::{Registry, Slot};
use crate::host::runtimes::Runtimes;
use crate::host::tasks::Tasks;

/// The delay after the first attempt that failed. Each later one is twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// The longest delay between two attempts.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// Has runtimes delete what they keep of containers.
#[derive(Debug)]
pub(crate) struct Deleter {
    registry: Arc<Registry>,
    runtimes: Arc<Runtimes>,
    hierarchies: Arc<Hierarchies>,
    tasks: Tasks,
    call_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Deletions that have failed, by the container's id.
    stuck: HashMap<String, Arc<Stuck>>,
    /// A `delete` that an earlier daemon has started and that still runs, by the container's id.
    running: HashMap<String, (Pid, PidFd)>,
}

/// A deletion that has failed and will be tried again.
#[derive(Debug)]
struct Stuck {
    /// Asks for another attempt now.
    again: Notify,
    /// Why the last attempt failed. The sender is dropped once the id is free.
    reason: watch::Sender<String>,
}

/// What is to be deleted.
pub(crate) struct Deletion<'a> {
    pub(crate) id: &'a str,
    pub(crate) oci: &'a Oci,
    /// The directory of its init, where the runtime writes its log.
    pub(crate) dir: ProcessDir,
    /// The bundle, where it is known.
    pub(crate) bundle: Option<&'a str>,
    /// Pid and start time of its init, where they are known.
    pub(crate) init: Option<(u32, u64)>,
    /// When its creation began, in the clock ticks of process start times, while it is being made.
    pub(crate) begun: Option<u64>,
    /// The container's control groups.
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) by_force: bool,
    /// A runtime may have been killed while it worked on this container, and may have left something.
    pub(crate) interrupted: bool,
    /// The runtime runs a hook when it deletes the container, however long that takes.
    pub(crate) has_hook: bool,
}

impl Deletion<'_> {
    fn of(container: &Container, by_force: bool) -> Deletion<'_> {
        let may_have_leftovers = container.condition(|condition| condition.may_have_leftovers());
        Deletion {
            id: &container.id,
            oci: container.oci(),
            dir: container.dir.process(INIT),
            bundle: Some(&container.origin.bundle),
            init: container.init().and_then(|init| init.identity()),
            begun: container.dir.creation_began(),
            cgroup: container.cgroup(),
            by_force,
            interrupted: by_force || container.is_restored() || may_have_leftovers,
            has_hook: container.origin.has_poststop,
        }
    }
}

/// Whether other containers are in a container's control groups, or below them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    No,
    Yes,
    /// Another container is being created or recovered, and its groups are not known yet.
    Unknown,
}

impl Deleter {
    pub(crate) fn new(
        registry: Arc<Registry>,
        runtimes: Arc<Runtimes>,
        hierarchies: Arc<Hierarchies>,
        tasks: Tasks,
        call_timeout: Duration,
    ) -> Deleter {
        Deleter { registry, runtimes, hierarchies, tasks, call_timeout, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for look-ups only.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a `delete` of an earlier daemon still runs.
    pub(crate) fn note_running(&self, id: &str, pid: Pid, process: PidFd) {
        self.lock().running.insert(id.to_string(), (pid, process));
    }

    fn note_stuck(&self, id: &str, reason: &str) -> Arc<Stuck> {
        let mut state = self.lock();
        let new = || Arc::new(Stuck { again: Notify::new(), reason: watch::Sender::new(String::new()) });
        let stuck = state.stuck.entry(id.to_string()).or_insert_with(new).clone();
        drop(state);
        stuck.reason.send_replace(reason.to_string());
        stuck
    }

    fn stuck(&self, id: &str) -> Option<Arc<Stuck>> {
        self.lock().stuck.get(id).cloned()
    }

    /// Notes that the id is free.
    pub(crate) fn forget(&self, id: &str) {
        let mut state = self.lock();
        if !state.stuck.is_empty() {
            state.stuck.remove(id);
        }
    }

    /// Has a deletion that failed tried again now.
    pub(crate) fn hurry(&self, id: &str) {
        if let Some(stuck) = self.stuck(id) {
            stuck.again.notify_one();
        }
    }

    /// Has a deletion that failed tried again now, waits until it has failed once more, and returns why the id is not free. `None` if
    /// no deletion of that id has failed, or if the id has become free.
    pub(crate) async fn why_taken(&self, id: &str) -> Option<Error> {
        let mut reason = {
            let stuck = self.stuck(id)?;
            let reason = stuck.reason.subscribe();
            stuck.again.notify_one();
            reason
        };
        reason.changed().await.ok()?;
        let reason = reason.borrow().clone();
        Some(Error::ContainerLeaving { id: id.to_string(), reason })
    }

    /// Deletes what the runtime keeps of a container, however long that takes.
    pub(crate) async fn delete_container(&self, container: &Container, by_force: bool) {
        self.delete(Deletion::of(container, by_force)).await;
    }

    /// Waits for a `delete` of an earlier daemon, if one still runs.
    pub(crate) async fn finish_earlier_delete(&self, container: &Container) {
        self.finish_earlier(&Deletion::of(container, true)).await;
    }

    async fn finish_earlier(&self, deletion: &Deletion<'_>) {
        let running = self.lock().running.remove(deletion.id);
        if let Some((pid, process)) = running {
            let pid_number = number(pid);
            tracing::info!(container = %deletion.id, pid = pid_number, "an earlier daemon's runtime deletes it; waiting");
            self.wait_for_earlier(deletion, pid, process).await;
        }
    }

    /// Whether another container is in the groups of container `id`, or below them: then it must not be thawed or killed with
    /// container `id`.
    fn sharing(&self, id: &str, cgroup: &Cgroup) -> Sharing {
        let (mut is_shared, mut is_unknown, mut set_aside) = (false, false, Vec::new());
        self.registry.any_other(id, |other_id, slot| {
            is_unknown |= slot.is_unsettled();
            match slot {
                Slot::Here(other) => is_shared = other.cgroup().is_some_and(|other| other.is_within(cgroup)),
                // It may be alive.
                Slot::Aside(_) => set_aside.push(other_id.to_string()),
                Slot::Taken | Slot::Left(_) => {}
            }
            is_shared
        });
        let of_aside = |id: &String| self.hierarchies.here().cgroup(&self.registry.dir(id).cgroup()?);
        if is_shared || set_aside.iter().filter_map(of_aside).any(|other| other.is_within(cgroup)) {
            Sharing::Yes
        } else if is_unknown {
            Sharing::Unknown
        } else {
            Sharing::No
        }
    }

    /// Kills every process in a container's groups, unless another container is known to be there.
    pub(crate) fn kill_all(&self, container: &Container) {
        if let Some(cgroup) = container.cgroup() {
            self.kill_group(&container.id, cgroup);
        }
    }

    /// Kills every process in the groups of container `id`, unless another container is known to be there.
    pub(crate) fn kill_group(&self, id: &str, cgroup: &Cgroup) {
        if self.sharing(id, cgroup) == Sharing::Yes {
            return;
        }
        if let Err(e) = cgroup.kill() {
            tracing::warn!(container = %id, "cannot kill the processes in its cgroup: {e}");
        }
    }

    /// Deletes what a runtime keeps, however long that takes. See the module's head.
    pub(crate) async fn delete(&self, mut deletion: Deletion<'_>) {
        let _task = self.tasks.begin_runtime("runtime delete", deletion.id, "");
        self.finish_earlier(&deletion).await;
        let mut delay = FIRST_DELAY;
        let mut is_stuck = false;
        while let Err(reason) = self.try_delete(&mut deletion).await {
            let stuck = self.note_stuck(deletion.id, &reason);
            if !std::mem::replace(&mut is_stuck, true) {
                tracing::warn!(container = %deletion.id, "its runtime cannot delete it, which is tried again: {reason}");
            } else {
                tracing::debug!(container = %deletion.id, "its runtime still cannot delete it: {reason}");
            }
            if tokio::time::timeout(delay, stuck.again.notified()).await.is_err() {
                delay = (2 * delay).min(LONGEST_DELAY);
            }
            // The daemon has read what the runtime logged about this attempt.
            let _ = std::fs::File::options().write(true).truncate(true).open(deletion.dir.runtime_log());
        }
        if is_stuck {
            tracing::info!(container = %deletion.id, "the runtime has deleted the container");
        }
    }

    /// Makes one attempt. An error says why another one is needed.
    async fn try_delete(&self, deletion: &mut Deletion<'_>) -> Result<(), String> {
        let Deletion { id, oci, .. } = *deletion;
        if !self.runtimes.has_own_root(oci) && is_of_others(deletion)? {
            tracing::warn!(container = %id, "what {} keeps of this id is another program's; it is left", oci.name());
            return Ok(());
        }
        let sharing = deletion.cgroup.map_or(Sharing::No, |cgroup| self.sharing(id, cgroup));
        // runc refuses to delete a paused container, and on cgroup v2 a container can die while frozen.
        if let Some(cgroup) = deletion.cgroup.filter(|_| sharing == Sharing::No) {
            cgroup.thaw().map_err(|e| format!("cannot thaw it: {e}"))?;
        }
        if deletion.interrupted {
            // A mount would keep the runtime from removing anything, or have it remove the files of the mounted file system.
            oci::unmount_leftovers(oci, id).map_err(|e| format!("its mounts cannot be removed: {e}"))?;
        }
        let operation = if deletion.by_force { Operation::ForceDelete } else { Operation::Delete };
        let ended = match oci.start(operation, id, &deletion.dir.runtime_log()) {
            Ok(call) => self.finish_delete(deletion, call).await,
            Err(e) => Err(e),
        };
        let keeps = keeps(oci, id);
        match ended {
            Ok(()) if keeps == Some(true) => Err(format!("{} delete succeeded, and left {}", oci.name(), at(oci, id))),
            Ok(()) => {
                reach(Point::Deleted);
                Ok(())
            }
            Err(e) if keeps == Some(false) || (keeps.is_none() && is_unknown(&e)) => {
                // An earlier attempt, an earlier daemon or the runtime itself has deleted it.
                tracing::debug!(container = %id, "{} keeps nothing of it: {e}", oci.name());
                if sharing == Sharing::Unknown {
                    return Err("its groups may be those of a container that is being made".into());
                }
                if let Some(cgroup) = deletion.cgroup.filter(|_| sharing == Sharing::No) {
                    let removed = cgroup.kill().and_then(|()| cgroup.remove());
                    removed.map_err(|e| format!("its cgroup cannot be removed: {e}"))?;
                }
                reach(Point::Deleted);
                Ok(())
            }
            Err(e) => {
                if matches!(e, OciError::Crashed(_) | OciError::Timeout { .. }) {
                    // It may have got half-way.
                    (deletion.by_force, deletion.interrupted) = (true, true);
                }
                Err(format!("{} delete: {e}", oci.name()))
            }
        }
    }

    /// Waits for a `delete` and kills one that hangs, but not while it runs a hook.
    async fn finish_delete(&self, deletion: &Deletion<'_>, mut call: Call) -> Result<(), OciError> {
        // If this daemon ends meanwhile, the next one waits for the runtime.
        call.set_free();
        if let Some((pid, starttime)) = call.identity() {
            if let Err(e) = deletion.dir.write_deleting(pid, starttime) {
                tracing::debug!(container = %deletion.id, "{e}; the next daemon would look for it by its command line");
            }
        }
        let limit = self.call_timeout;
        loop {
            if let Ok(ended) = tokio::time::timeout(limit, call.ended()).await {
                return ended;
            }
            if !(deletion.has_hook && call.has_children()) {
                call.kill();
                let timed_out = call.timed_out(limit);
                // The daemon reaps it, so that nothing of it is at work at the next attempt.
                let _ = call.ended().await;
                return Err(timed_out);
            }
            self.note_hook(deletion, "a hook");
        }
    }

    /// Waits for the `delete` of an earlier daemon, as [`Deleter::finish_delete`] waits for this daemon's.
    async fn wait_for_earlier(&self, deletion: &Deletion<'_>, pid: Pid, process: PidFd) {
        let copy = process.try_clone();
        let Ok(ended) = copy.and_then(|copy| sys::watched::readable(copy.into_fd())) else { return };
        while tokio::time::timeout(self.call_timeout, ended.readable()).await.is_err() {
            if !(deletion.has_hook && sys::procfs::has_children(number(pid))) {
                tracing::warn!(container = %deletion.id, "the runtime of an earlier daemon does not end; it is killed");
                return kill_all([(pid, process)]).await;
            }
            self.note_hook(deletion, "a hook of an earlier daemon's delete");
        }
    }

    /// Says why the exit of a container is not recorded yet.
    fn note_hook(&self, deletion: &Deletion<'_>, what: &str) {
        let reason = format!("{what} has been running for more than {:?}", self.call_timeout);
        tracing::warn!(container = %deletion.id, "{reason}; the exit is recorded when the hook has ended");
        self.note_stuck(deletion.id, &reason);
    }
}

/// The runtime that still deletes a container, given the directory of its init: the one that an earlier daemon has noted there, or
/// one that names the container's log, if that daemon ended before it could note it.
pub(crate) fn under_way(dir: &ProcessDir, by_log: impl FnOnce() -> Option<(Pid, PidFd)>) -> Option<(Pid, PidFd)> {
    let noted = dir.deleting().and_then(|(pid, starttime)| {
        let process = PidFd::open(pid, starttime).ok().flatten()?;
        Some((Pid::from_raw(i32::try_from(pid).ok()?)?, process))
    });
    noted.or_else(by_log)
}

/// Where a runtime keeps a container, for a message.
fn at(oci: &Oci, id: &str) -> String {
    oci.root().map_or_else(|| "something".into(), |root| root.join(id).display().to_string())
}

/// Whether the runtime keeps anything of a container; `None` if it is not known where.
fn keeps(oci: &Oci, id: &str) -> Option<bool> {
    match oci.root()?.join(id).symlink_metadata() {
        Ok(_) => Some(true),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Some(false),
        Err(_) => None,
    }
}

/// Whether a runtime says that it knows no such container.
fn is_unknown(error: &OciError) -> bool {
    matches!(error, OciError::Failed(words) if words.contains("does not exist"))
}

/// Whether another program made what the runtime keeps of an id, in a root that other programs may use. What the runtime has
/// written down decides: this daemon's init, a process that began after the daemon had asked the runtime, or the same bundle.
fn is_of_others(deletion: &Deletion<'_>) -> Result<bool, String> {
    let Some(root) = deletion.oci.root() else { return Ok(deletion.init.is_none()) };
    let kept = oci::kept(root, deletion.id).map_err(|e| format!("its state cannot be read: {e}"))?;
    if kept == oci::Kept::default() {
        // There is nothing, or the runtime has not written it yet.
        return Ok(deletion.begun.is_none() && deletion.init.is_none());
    }
    if kept.init.is_some() && kept.init == deletion.init {
        return Ok(false);
    }
    let same_bundle = match (&kept.bundle, deletion.bundle) {
        (Some(theirs), Some(ours)) => Some(is_same_directory(Path::new(theirs), Path::new(ours))),
        _ => None,
    };
    if same_bundle == Some(false) {
        return Ok(true);
    }
    if let Some((pid, starttime)) = kept.init {
        if deletion.begun.is_some_and(|begun| begun <= starttime) {
            // While a runtime keeps a container, it makes no other one of that id.
            return Ok(false);
        }
        if PidFd::open(pid, starttime).map_err(|e| format!("cannot look up process {pid}: {e}"))?.is_some() {
            return Ok(true);
        }
    }
    Ok(same_bundle.is_none() && deletion.begun.is_none())
}

fn is_same_directory(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
