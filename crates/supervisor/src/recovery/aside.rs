//! Containers that are set aside because their directories cannot be read. All others are served; each of these stays as it is until a
//! client sends SIGKILL to its init, and is then removed.
//!
//! The daemon assumes nothing about them. It signals a process only if something proves that the process is the container's and of
//! this boot: a shim that works in the process's directory, a readable `state.json`, or a state directory on a tmpfs.

use cgroup::Hierarchies;
use oci::{ContainerDir, INIT, Oci};
use std::collections::HashMap;
use std::sync::Arc;
use sys::pidfd::PidFd;
use tokio::sync::OnceCell;

use crate::container::Origin;
use crate::container::aside::Aside;
use crate::container::killing::{end_shims_in, kill_and_wait};
use crate::container::transition::record_exit_of_broken;
use crate::error::Error;
use crate::events::Journal;
use crate::host::registry::{Registry, Slot};
use crate::host::runtimes::Runtimes;
use crate::operations::checkpoint::Checkpointer;
use crate::operations::delete::{Deleter, Deletion, under_way};
use crate::operations::dump::while_dumping;
use crate::operations::exit::{KILLED, UNKNOWN, record_exit};
use crate::operations::remove::Remover;

/// Sets containers aside, and removes those that were.
#[derive(Debug)]
pub(crate) struct Asides {
    pub(crate) registry: Arc<Registry>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) runtimes: Arc<Runtimes>,
    pub(crate) hierarchies: Arc<Hierarchies>,
    pub(crate) deleter: Arc<Deleter>,
    pub(crate) remover: Arc<Remover>,
    pub(crate) checkpointer: Arc<Checkpointer>,
    pub(crate) boot_id: String,
}

/// What was found of the processes of a container that was set aside.
#[derive(Debug, Default)]
struct Ends {
    /// The exit statuses that are known, by the names of the processes.
    statuses: HashMap<String, u32>,
    /// Something of the container was alive.
    some_alive: bool,
}

impl Asides {
    /// Sets a container aside.
    pub(crate) fn set_aside(&self, id: &str, why: &Error) {
        let reason = why.to_string();
        tracing::error!(container = %id, "set aside as broken, SIGKILL to its init removes it: {reason}");
        let record = self.registry.dir(id).read().ok();
        for event in self.journal.open_of(id) {
            self.journal.protect(event.key());
        }
        let boot_id = record.as_ref().map(|record| record.boot_id.clone());
        let record = record.unwrap_or_default();
        let oci = Oci::at(record.runtime.clone(), record.runtime_args.clone());
        let origin = Arc::new(Origin::new(record, oci));
        let aside = Aside { reason, origin, boot_id, removal: OnceCell::new() };
        self.registry.set(id, Slot::Aside(Arc::new(aside)));
    }

    /// Removes everything that there is of a container that was set aside, and records the exits that are due.
    pub(crate) async fn remove(self: Arc<Self>, id: String, aside: Arc<Aside>) {
        aside.removal.get_or_init(|| self.remove_now(&id, &aside)).await;
    }

    async fn remove_now(&self, id: &str, aside: &Aside) {
        tracing::info!(container = %id, "removing what was set aside");
        let dir = self.registry.dir(id);
        let open = self.journal.open_of(id);
        let mut ends = self.end_processes(id, aside).await;
        // Otherwise its groups, and what the runtime has of its id, may be another program's.
        if ends.some_alive || self.is_of_this_boot(aside) {
            if let Some(cgroup) = dir.cgroup().and_then(|places| self.hierarchies.cgroup(&places)) {
                self.deleter.kill_group(id, &cgroup);
            }
            self.delete(id, aside, &dir).await;
        } else {
            tracing::warn!(container = %id, "what its runtime keeps, if anything, is left");
        }
        let mut held = Vec::new();
        for start in &open {
            let status = ends.statuses.remove(start.name()).unwrap_or(UNKNOWN);
            held.push(record_exit(id, || record_exit_of_broken(start, &self.journal, status)).await);
        }
        self.checkpointer.settle_dead(id).await;
        self.remover.remove_directory(id, &dir).await;
        self.remover.free(id);
        for start in &open {
            self.journal.release_key(start.key());
        }
        drop(held);
    }

    /// Has the runtime delete what it keeps.
    async fn delete(&self, id: &str, aside: &Aside, dir: &ContainerDir) {
        let known = aside.boot_id.is_some().then(|| aside.origin.oci.clone());
        let oci = match known.map_or_else(|| self.runtimes.find(None, &[]), Ok) {
            Ok(oci) => oci,
            Err(e) => return tracing::warn!(container = %id, "what its runtime keeps is left: {e}"),
        };
        let init_dir = dir.process(INIT);
        let by_log = || oci::deletes_under_way().remove(&init_dir.runtime_log());
        if let Some((pid, process)) = under_way(&init_dir, by_log) {
            self.deleter.note_running(id, pid, process);
        }
        let deletion = Deletion {
            id,
            oci: &oci,
            bundle: Some(&*aside.origin.bundle).filter(|bundle| !bundle.is_empty()),
            init: init_dir.process().ok().flatten(),
            dir: init_dir,
            begun: dir.creation_began(),
            cgroup: None,
            by_force: true,
            interrupted: true,
            has_hook: aside.origin.has_poststop,
        };
        self.deleter.delete(deletion).await;
    }

    /// Whether a container is known to be of this boot: its `state.json` says so, or its directory cannot outlive a boot.
    fn is_of_this_boot(&self, aside: &Aside) -> bool {
        /// `TMPFS_MAGIC` (statfs(2)).
        const TMPFS: i64 = 0x0102_1994;
        match &aside.boot_id {
            Some(boot_id) => *boot_id == self.boot_id,
            None => rustix::fs::statfs(self.registry.state_dir()).is_ok_and(|fs| fs.f_type == TMPFS),
        }
    }

    /// Kills the shims and the processes that are proved to be the container's.
    async fn end_processes(&self, id: &str, aside: &Aside) -> Ends {
        let dir = self.registry.dir(id);
        let mut ends = Ends::default();
        let mut names = dir.processes().unwrap_or_default();
        // Init is the last: when it dies all others die, and how they ended is then unknown.
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
            // The process may end with its shim.
            let had_shim = end_shims_in(&process).await;
            ends.some_alive |= had_shim;
            let Some((pid, running)) = running.filter(|_| known || had_shim) else { continue };
            ends.some_alive = true;
            ends.statuses.entry(name.clone()).or_insert(KILLED);
            // No other task looks after a checkpoint that is being made of it.
            if let Err(e) = while_dumping(id, identity, kill_and_wait(pid, running)).await {
                tracing::warn!(container = %id, process = %name, "cannot kill it: {e}");
            }
        }
        ends
    }
}
