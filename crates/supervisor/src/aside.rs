//! Containers whose files cannot be read: set aside at the start, so that all others are served, and removed when a
//! client says so.
//!
//! Nothing is taken for granted of them. A process is only signalled if something tells that it is the container's and
//! of this boot: a shim that works in its directory, a readable `state.json`, or a state directory on a tmpfs.

use oci::{INIT, Oci};
use std::sync::Arc;
use sys::pidfd::PidFd;
use tokio::sync::OnceCell;

use crate::checkpoint::while_dumping;
use crate::container::Origin;
use crate::deletion::{Deletion, under_way};
use crate::error::Error;
use crate::event::{Event, EventKind, Timestamp};
use crate::exit::{KILLED, UNKNOWN};
use crate::lifecycle::State;
use crate::process::{end_shims_in, kill_and_wait};
use crate::snapshot::ContainerInfo;
use crate::supervisor::{Shared, Slot};

/// A container that has been set aside.
#[derive(Debug)]
pub(crate) struct Aside {
    reason: String,
    /// What it was made from, as far as that can be read.
    origin: Arc<Origin>,
    /// The boot that it is of, if `state.json` can be read.
    boot_id: Option<String>,
    /// Removed once, however many ask for it; all of them wait for that.
    clearing: OnceCell<()>,
}

impl Aside {
    pub(crate) fn error(&self, id: &str) -> Error {
        Error::Aside { id: id.to_string(), reason: self.reason.clone() }
    }

    /// What can be told of it.
    pub(crate) fn info(&self, id: &str) -> ContainerInfo {
        let origin = self.origin.clone();
        ContainerInfo { id: id.to_string(), state: State::Broken, pids: Vec::new(), processes: Vec::new(), origin }
    }
}

impl Shared {
    /// Puts a container aside that cannot be taken up.
    pub(crate) fn set_aside(&self, id: &str, why: &Error) {
        let reason = why.to_string();
        tracing::error!(container = %id, "set aside as broken, SIGKILL to its init removes it: {reason}");
        let record = self.container_dir(id).read().ok();
        for event in self.journal.open_of(id) {
            self.journal.protect(event.key());
        }
        let boot_id = record.as_ref().map(|record| record.boot_id.clone());
        let record = record.unwrap_or_default();
        let oci = Oci::at(record.runtime.clone(), record.runtime_args.clone());
        let origin = Arc::new(Origin::new(record, oci));
        let aside = Aside { reason, origin, boot_id, clearing: OnceCell::new() };
        self.map().insert(id.to_string(), Slot::Aside(Arc::new(aside)));
    }

    /// The container, if it has been set aside.
    pub(crate) fn aside(&self, id: &str) -> Option<Arc<Aside>> {
        match self.map().get(id) {
            Some(Slot::Aside(aside)) => Some(aside.clone()),
            _ => None,
        }
    }

    /// Removes all that there is of a container that was set aside, and tells the exits that are due.
    pub(crate) async fn clear(self: Arc<Self>, id: String, aside: Arc<Aside>) {
        aside.clearing.get_or_init(|| self.clear_now(&id, &aside)).await;
    }

    async fn clear_now(self: &Arc<Self>, id: &str, aside: &Aside) {
        tracing::info!(container = %id, "removing what was set aside");
        let dir = self.container_dir(id);
        let open = self.journal.open_of(id);
        let mut ends = self.end_all(id, aside).await;
        // Otherwise what has its groups, or the id with the runtime, may be somebody else's.
        if ends.alive || self.is_of_this_boot(aside) {
            if let Some(cgroup) = dir.cgroup().and_then(|places| self.hierarchies.cgroup(&places)) {
                self.kill_group(id, &cgroup);
            }
            let known = aside.boot_id.is_some().then(|| aside.origin.oci.clone());
            let oci = known.map_or_else(|| self.runtime_for(None, &[]), Ok);
            match oci {
                Ok(oci) => {
                    let bundle = Some(&*aside.origin.bundle).filter(|bundle| !bundle.is_empty());
                    let init = dir.process(INIT).process().ok().flatten();
                    let init_dir = dir.process(INIT);
                    let by_log = || oci::deletes_under_way().remove(&init_dir.runtime_log());
                    if let Some((pid, process)) = under_way(&init_dir, by_log) {
                        self.deletions.note_running(id, pid, process);
                    }
                    let deletion = Deletion {
                        id,
                        oci: &oci,
                        dir: init_dir,
                        bundle,
                        init,
                        begun: dir.creation_began(),
                        cgroup: None,
                        by_force: true,
                        interrupted: true,
                        has_hook: aside.origin.has_poststop,
                    };
                    self.delete(deletion).await;
                }
                Err(e) => tracing::warn!(container = %id, "what its runtime keeps is left: {e}"),
            }
        } else {
            tracing::warn!(container = %id, "what its runtime keeps, if anything, is left");
        }
        let mut held = Vec::new();
        for start in &open {
            let name = start.name().to_string();
            let status = ends.statuses.remove(&name).unwrap_or(UNKNOWN);
            let exit = Event {
                kind: EventKind::Exit,
                pid: name,
                status,
                timestamp: Timestamp::default(),
                was: None,
                ..start.as_ref().clone()
            };
            held.push(self.record_exit(exit).await);
        }
        self.settle_dead(id).await;
        self.remove_directory(id, &dir).await;
        self.map().remove(id);
        self.deletions.forget(id);
        for start in &open {
            self.journal.release_key(start.key());
        }
        drop(held);
    }

    /// Whether it is known to be of this boot: it says so, or it is where nothing outlives one.
    fn is_of_this_boot(&self, aside: &Aside) -> bool {
        /// `TMPFS_MAGIC` (statfs(2)).
        const TMPFS: i64 = 0x0102_1994;
        match &aside.boot_id {
            Some(boot_id) => *boot_id == self.boot_id,
            None => rustix::fs::statfs(&self.config.state_dir).is_ok_and(|fs| fs.f_type == TMPFS),
        }
    }

    /// Kills the shims and the processes that can be told to be the container's.
    async fn end_all(&self, id: &str, aside: &Aside) -> Ends {
        let dir = self.container_dir(id);
        let mut ends = Ends::default();
        let mut names = dir.processes().unwrap_or_default();
        // With init all others end, and then it is not known how.
        names.sort_by_key(|name| name == INIT);
        let known = self.is_of_this_boot(aside);
        for name in names {
            let process = dir.process(&name);
            if let Ok(Some(status)) = process.exit_status() {
                ends.statuses.insert(name.clone(), status);
            }
            let identity = process.process().ok().flatten();
            let running =
                identity.and_then(|(pid, starttime)| Some((pid, PidFd::open(pid, starttime).ok().flatten()?)));
            // With its shim it ends as well.
            let had_shim = end_shims_in(&process).await;
            ends.alive |= had_shim;
            let Some((pid, running)) = running.filter(|_| known || had_shim) else { continue };
            ends.alive = true;
            ends.statuses.entry(name.clone()).or_insert(KILLED);
            // Nobody else looks after a checkpoint that is being made of it.
            if let Err(e) = while_dumping(id, identity, kill_and_wait(pid, running)).await {
                tracing::warn!(container = %id, process = %name, "cannot kill it: {e}");
            }
        }
        ends
    }
}

/// What was found of the processes of a container.
#[derive(Debug, Default)]
struct Ends {
    /// How those ended that have a status.
    statuses: std::collections::HashMap<String, u32>,
    /// Something of it was alive.
    alive: bool,
}
