//! Deleting what the runtime keeps of a container.
//!
//! That is a duty: it is tried until it is done or proved to be needless, with growing pauses, at once when a client asks
//! for the id again or sends SIGKILL, and by the next daemon. Until then the container keeps its id, and its exit is not
//! recorded, because clients rely on a free id once they have seen it. Why it takes so long is in the log, and in the answer to
//! a client that asks for the id.
//!
//! Only what is proved to be this daemon's is deleted. A `delete` is never cut off while it runs a hook, and it
//! outlives this daemon: the next one waits for it.

use cgroup::Cgroup;
use failpoint::{Point, reach};
use oci::{Call, INIT, Oci, OciError, Operation, ProcessDir};
use rustix::process::Pid;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sys::pidfd::PidFd;
use tokio::sync::{Notify, watch};

use crate::container::Container;
use crate::error::Error;
use crate::process::kill_all;
use crate::supervisor::{Shared, Slot};

/// The pause after the first attempt that failed. Each later one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Deletions that do not succeed, and those of an earlier daemon that still run.
#[derive(Debug, Default)]
pub(crate) struct Deletions(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By the container's id.
    stuck: HashMap<String, Arc<Stuck>>,
    /// The runtime that an earlier daemon has started, by the container's id.
    running: HashMap<String, (Pid, PidFd)>,
}

/// A deletion that has failed and will be tried again.
#[derive(Debug)]
struct Stuck {
    /// Try again now.
    again: Notify,
    /// Why the last attempt failed. Nobody sends any more once the id is free.
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
    /// When its creation began, in ticks of the clock that process start times are in, while it is being made.
    pub(crate) begun: Option<u64>,
    /// The container's control groups.
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) by_force: bool,
    /// A runtime may have been killed at its work on this container, and have left something.
    pub(crate) interrupted: bool,
    /// The runtime runs a hook when it deletes the container, however long that takes.
    pub(crate) has_hook: bool,
}

impl Deletions {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for plain look-ups only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an earlier daemon's runtime still deletes a container.
    pub(crate) fn note_running(&self, id: &str, pid: Pid, process: PidFd) {
        self.lock().running.insert(id.to_string(), (pid, process));
    }

    fn take_running(&self, id: &str) -> Option<(Pid, PidFd)> {
        self.lock().running.remove(id)
    }

    fn stuck(&self, id: &str) -> Option<Arc<Stuck>> {
        self.lock().stuck.get(id).cloned()
    }

    fn note_stuck(&self, id: &str, reason: &str) -> Arc<Stuck> {
        let mut state = self.lock();
        let new = || Arc::new(Stuck { again: Notify::new(), reason: watch::Sender::new(String::new()) });
        let stuck = state.stuck.entry(id.to_string()).or_insert_with(new).clone();
        drop(state);
        stuck.reason.send_replace(reason.to_string());
        stuck
    }

    /// The id is free.
    pub(crate) fn forget(&self, id: &str) {
        let mut state = self.lock();
        if !state.stuck.is_empty() {
            state.stuck.remove(id);
        }
    }

    /// Has a deletion tried again now that has failed.
    pub(crate) fn hurry(&self, id: &str) {
        if let Some(stuck) = self.stuck(id) {
            stuck.again.notify_one();
        }
    }

    /// Has a deletion that has failed tried again, and waits until it has failed once more; then the reason. `None` if
    /// nothing is stuck, or the id has become free.
    pub(crate) async fn tried_again(&self, id: &str) -> Option<String> {
        let mut reason = {
            let stuck = self.stuck(id)?;
            let reason = stuck.reason.subscribe();
            stuck.again.notify_one();
            reason
        };
        reason.changed().await.ok()?;
        Some(reason.borrow().clone())
    }
}

/// Whether other containers are in a container's control groups, or below them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    No,
    Yes,
    /// Another container is being made or taken up, of which the groups are not known yet.
    Unknown,
}

impl Shared {
    /// Deletes what the runtime keeps of a container, however long that takes.
    pub(crate) async fn delete_by_runtime(&self, container: &Container, by_force: bool) {
        self.delete(Shared::deletion_of(container, by_force)).await;
    }

    fn deletion_of(container: &Container, by_force: bool) -> Deletion<'_> {
        // A runtime was killed, by this daemon or by others.
        let interrupted = by_force || container.is_restored() || container.cut_off.load(Ordering::SeqCst);
        Deletion {
            id: &container.id,
            oci: container.oci(),
            dir: container.dir.process(INIT),
            bundle: Some(&container.origin.bundle),
            init: container.init().and_then(|init| init.identity()),
            begun: container.dir.creation_began(),
            cgroup: container.cgroup(),
            by_force,
            interrupted,
            has_hook: container.origin.has_poststop,
        }
    }

    /// Waits for a `delete` of an earlier daemon, if one still runs.
    pub(crate) async fn finish_earlier_delete(&self, container: &Container) {
        self.finish_earlier(&Shared::deletion_of(container, true)).await;
    }

    async fn finish_earlier(&self, deletion: &Deletion<'_>) {
        if let Some((pid, process)) = self.deletions.take_running(deletion.id) {
            tracing::info!(container = %deletion.id, pid = pid.as_raw_nonzero(), "an earlier daemon's runtime deletes it; waiting");
            self.wait_for_running(deletion, pid, process).await;
        }
    }

    /// Whether another container is in the groups of container `id`, or below them: it must not be thawed or killed with them.
    pub(crate) fn sharing(&self, id: &str, cgroup: &Cgroup) -> Sharing {
        let (mut sharing, mut set_aside) = (Sharing::No, Vec::new());
        for (other_id, slot) in self.map().iter().filter(|(other, _)| *other != id) {
            match slot {
                Slot::Here(other) if other.cgroup().is_some_and(|other| other.is_within(cgroup)) => {
                    return Sharing::Yes;
                }
                Slot::Taken | Slot::Left(_) => sharing = Sharing::Unknown,
                Slot::Aside(_) => set_aside.push(other_id.clone()),
                Slot::Here(_) => {}
            }
        }
        // What is set aside may be alive.
        let of_other = |id: &String| self.hierarchies.here().cgroup(&self.container_dir(id).cgroup()?);
        if set_aside.iter().filter_map(of_other).any(|other| other.is_within(cgroup)) {
            return Sharing::Yes;
        }
        sharing
    }

    /// Kills every process in a container's groups, unless another container is known to be there ([`Shared::kill_group`]).
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

    /// See the head of this file.
    pub(crate) async fn delete(&self, mut deletion: Deletion<'_>) {
        let _task = self.tasks.begin_runtime("runtime delete", deletion.id, "");
        self.finish_earlier(&deletion).await;
        let mut pause = FIRST_PAUSE;
        let mut is_stuck = false;
        while let Err(reason) = self.try_delete(&mut deletion).await {
            let stuck = self.deletions.note_stuck(deletion.id, &reason);
            if !std::mem::replace(&mut is_stuck, true) {
                tracing::warn!(container = %deletion.id, "its runtime cannot delete it, which is tried again: {reason}");
            } else {
                tracing::debug!(container = %deletion.id, "its runtime still cannot delete it: {reason}");
            }
            if tokio::time::timeout(pause, stuck.again.notified()).await.is_err() {
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
            // What the runtime has said of this attempt has been read.
            let _ = std::fs::File::options().write(true).truncate(true).open(deletion.dir.runtime_log());
        }
        if is_stuck {
            tracing::info!(container = %deletion.id, "what its runtime kept is deleted");
        }
    }

    /// One attempt. An error says why it has to be tried again.
    async fn try_delete(&self, deletion: &mut Deletion<'_>) -> Result<(), String> {
        let Deletion { id, oci, .. } = *deletion;
        if !self.is_own_root(oci) && is_of_others(deletion)? {
            tracing::warn!(container = %id, "what {} keeps of this id is another program's; it is left", oci.name());
            return Ok(());
        }
        let sharing = deletion.cgroup.map_or(Sharing::No, |cgroup| self.sharing(id, cgroup));
        // runc refuses to delete a paused container, and on cgroup v2 a container can die while frozen.
        if let Some(cgroup) = deletion.cgroup.filter(|_| sharing == Sharing::No) {
            cgroup.thaw().map_err(|e| format!("cannot thaw it: {e}"))?;
        }
        if deletion.interrupted {
            // What is mounted would keep the runtime from removing anything, or have it remove what is mounted.
            oci::unmount_leftovers(oci, id).map_err(|e| format!("its mounts cannot be taken away: {e}"))?;
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

    /// Waits for a `delete`. One that hangs is killed, but not while it runs a hook.
    async fn finish_delete(&self, deletion: &Deletion<'_>, mut call: Call) -> Result<(), OciError> {
        // If this daemon ends meanwhile, the next one waits for it.
        call.set_free();
        if let Some((pid, starttime)) = call.identity() {
            if let Err(e) = deletion.dir.write_deleting(pid, starttime) {
                tracing::debug!(container = %deletion.id, "{e}; the next daemon would look for it by its command line");
            }
        }
        let limit = self.config.call_timeout;
        loop {
            if let Ok(ended) = tokio::time::timeout(limit, call.ended()).await {
                return ended;
            }
            if !(deletion.has_hook && call.has_children()) {
                call.kill();
                let timed_out = call.timed_out(limit);
                // Reaped, so that nothing of it is at work when it is tried again.
                let _ = call.ended().await;
                return Err(timed_out);
            }
            let reason = format!("a hook has been running for more than {limit:?}");
            tracing::warn!(container = %deletion.id, "{reason}; its exit is recorded when the hook has ended");
            self.deletions.note_stuck(deletion.id, &reason);
        }
    }

    /// Waits for the `delete` of an earlier daemon, as for an own one.
    async fn wait_for_running(&self, deletion: &Deletion<'_>, pid: Pid, process: PidFd) {
        let copy = process.try_clone();
        let Ok(ended) = copy.and_then(|copy| sys::watched::readable(copy.into_fd())) else { return };
        let limit = self.config.call_timeout;
        let number = pid.as_raw_nonzero().get().unsigned_abs();
        while tokio::time::timeout(limit, ended.readable()).await.is_err() {
            if !(deletion.has_hook && sys::procfs::has_children(number)) {
                tracing::warn!(container = %deletion.id, "the runtime of an earlier daemon does not end; it is killed");
                return kill_all([(pid, process)]).await;
            }
            let reason = format!("a hook of an earlier daemon's delete has been running for more than {limit:?}");
            tracing::warn!(container = %deletion.id, "{reason}; its exit is recorded when the hook has ended");
            self.deletions.note_stuck(deletion.id, &reason);
        }
    }

    /// Why the id of a container that has ended is not free yet, after another attempt.
    pub(crate) async fn why_taken(&self, id: &str) -> Option<Error> {
        let reason = self.deletions.tried_again(id).await?;
        Some(Error::ContainerLeaving { id: id.to_string(), reason })
    }
}

/// The runtime that still deletes the container whose init's directory this is: the one that was noted, or one that names the
/// container's log, if its daemon ended before it could note it.
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

/// Whether what the runtime keeps of an id in a root that others may use was made by another program. What the runtime has
/// written down decides: this daemon's init, a process that began after the runtime had been asked, or the same bundle.
fn is_of_others(deletion: &Deletion<'_>) -> Result<bool, String> {
    let Some(root) = deletion.oci.root() else { return Ok(deletion.init.is_none()) };
    let kept = oci::kept(root, deletion.id).map_err(|e| format!("its state cannot be read: {e}"))?;
    if kept == oci::Kept::default() {
        // Nothing there, or not written yet.
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
            // While the runtime keeps a container it makes no other one of that id.
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
