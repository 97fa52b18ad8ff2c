//! Removing what an earlier daemon has left of containers that are not adopted.

use failpoint::{Point, reach};
use std::io;
use std::sync::Arc;

use crate::container::lifecycle::{Recorded, Silent};
use crate::container::{Container, Process};
use crate::operations::exit::{UNKNOWN, record_exit};
use crate::operations::remove::may_be_left;
use crate::recovery::judge::Verdict;
use crate::recovery::{Looking, Recovery};

impl Recovery {
    /// Deals with a directory in which nothing can run.
    pub(super) async fn deal_with_directory(&self, id: &str, verdict: Verdict) {
        let dir = self.registry.dir(id);
        match verdict {
            Verdict::RemoveUnstarted => {
                tracing::info!(container = %id, "removing a container of which nothing had been started");
                self.remover.remove_directory(id, &dir).await;
            }
            Verdict::RemoveEmpty => {
                if let Err(e) = std::fs::remove_dir(dir.path()) {
                    tracing::warn!(container = %id, "cannot remove its empty directory: {e}");
                }
            }
            _ => tracing::warn!(directory = %id, "no daemon of this API has made it; it is left alone"),
        }
        self.registry.free(id);
    }

    /// Removes a half-made container, which no client was told of.
    pub(super) async fn discard(&self, container: &Container, init: &Process) {
        // It may run a hook.
        self.deleter.finish_earlier_delete(container).await;
        if let Err(e) = init.kill().await {
            tracing::warn!(container = %container.id, "cannot kill init: {e}");
        }
        reach(Point::RecoveryKilledProcess);
        init.kill_shim().await;
        init.kill_runtimes().await;
        reach(Point::RecoveryKilledShim);
        // If the runtime refused to make it because it has a container of that id, that container is another program's.
        let interrupted = init.dir.has_begun() && may_be_left(container, &init.dir);
        if init.identity().is_some() || interrupted {
            self.deleter.delete_container(container, true).await;
            self.deleter.kill_all(container);
            self.remover.remove_left_groups(container).await;
        } else {
            let words = init.dir.runtime_error().or_else(|| init.dir.shim_error().map(|line| line.msg));
            let words = words.unwrap_or_else(|| "it had not been asked".into());
            tracing::info!(container = %container.id, "its runtime has nothing of it: {words}");
            if init.dir.has_begun() {
                self.remover.remove_left_groups(container).await;
            }
        }
        reach(Point::RecoveryDeleted);
        self.remover.remove(container).await;
    }

    /// Records the exits that are due of a container of an earlier boot, and removes it. Nothing is signalled: after a boot no pid
    /// means what it meant.
    pub(super) async fn bury(
        &self,
        container: &Arc<Container>,
        due: &[Arc<Process>],
        exit_is_due: bool,
        keys: &[String],
        looking: Looking,
    ) {
        tracing::info!(container = %container.id, "is of an earlier boot; how it ended is unknown");
        let _ = container.change(Silent::FoundDead);
        let cleared = Recorded::Cleared { status: UNKNOWN };
        let mut held = Vec::new();
        for process in due {
            let _ = process.change(Silent::FoundDead);
            let record = || process.record(container, &self.journal, cleared);
            held.push(record_exit(&container.id, record).await);
        }
        if exit_is_due {
            held.push(record_exit(&container.id, || container.record(&self.journal, cleared)).await);
        }
        drop(looking);
        self.checkpointer.settle_dead(&container.id).await;
        self.forget_in_own_root(container);
        self.remover.remove(container).await;
        for key in keys {
            self.journal.release_key(key);
        }
        drop(held);
    }

    /// Removes what a runtime kept before the machine was booted again. The runtime must not be asked for that, because the pids that
    /// it keeps mean nothing any more. Only the daemon's own root is concerned, which may be on disk as the state directory may be.
    fn forget_in_own_root(&self, container: &Container) {
        let oci = container.oci();
        let Some(root) = oci.root().filter(|_| self.runtimes.has_own_root(oci)) else { return };
        let removed =
            oci::unmount_leftovers(oci, &container.id).and_then(|()| std::fs::remove_dir_all(root.join(&container.id)));
        if let Err(e) = removed {
            if e.kind() != io::ErrorKind::NotFound {
                tracing::warn!(container = %container.id, "what its runtime kept is left in {}: {e}", root.display());
            }
        }
    }
}
