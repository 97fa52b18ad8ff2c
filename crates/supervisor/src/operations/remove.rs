//! Removing containers and processes: everything that is left of them, and at last their directories, which frees their names.

use cgroup::{Hierarchies, Survey};
use failpoint::{Point, reach};
use oci::{ContainerDir, FailureKind, ProcessDir};
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;

use crate::container::killing::{DEATH_LIMIT, kill_all};
use crate::container::{Container, Process};
use crate::error::Error;
use crate::events::Journal;
use crate::host::RETRY_DELAY;
use crate::host::registry::Registry;
use crate::operations::delete::Deleter;

/// How long the answer to a call that exceeded its time limit may wait for the clean-up, which otherwise goes on behind it.
pub(crate) const CLEANUP_LIMIT: Duration = Duration::from_secs(1);

/// Removes containers and processes.
#[derive(Debug)]
pub(crate) struct Remover {
    pub(crate) registry: Arc<Registry>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) deleter: Arc<Deleter>,
    pub(crate) hierarchies: Arc<Hierarchies>,
    pub(crate) call_timeout: Duration,
}

impl Remover {
    /// Removes everything that there is of a container that no client has been told of: its shim, its processes, what the runtime
    /// keeps, and its directory, which frees the id. If that takes very long it goes on in the background.
    pub(crate) async fn discard(self: &Arc<Self>, container: &Arc<Container>) {
        self.discard_within(container, self.call_timeout.saturating_add(DEATH_LIMIT)).await;
    }

    /// Does what [`Remover::discard`] does after a start that failed: a caller whose time limit has passed does not wait longer.
    pub(crate) async fn discard_after(self: &Arc<Self>, container: &Arc<Container>, error: &Error) {
        match error {
            Error::StartTimeout { .. } => self.discard_within(container, CLEANUP_LIMIT).await,
            _ => self.discard(container).await,
        }
    }

    async fn discard_within(self: &Arc<Self>, container: &Arc<Container>, limit: Duration) {
        let (remover, container) = (self.clone(), container.clone());
        let discarded = tokio::spawn(async move { remover.discard_now(&container).await }.in_current_span());
        let _ = tokio::time::timeout(limit, discarded).await;
    }

    async fn discard_now(&self, container: &Container) {
        if let Some(init) = container.init() {
            let mut identity = init.find_identity().await;
            if identity.is_none() {
                // The start exceeded its time limit. The shim may have written the pid meanwhile.
                init.kill_shim().await;
                identity = init.find_identity().await;
            }
            // The process dies first: its shim then reaps it and ends by itself.
            if let Err(e) = init.kill().await {
                tracing::warn!(container = %container.id, "cannot kill init: {e}");
            }
            let interrupted = init.has_shim() && may_be_left(container, &init.dir);
            if interrupted {
                init.kill_runtimes().await;
            }
            if identity.is_some() || interrupted {
                self.deleter.delete_container(container, true).await;
            }
            self.deleter.kill_all(container);
            init.kill_shim().await;
            if init.has_shim() {
                self.remove_left_groups(container).await;
            }
            container.log_shim_warnings(&init);
        }
        self.remove(container).await;
    }

    /// Removes the groups that a runtime has left of a container that was not started. The processes in them are about to end by
    /// themselves, and nothing tells when they have.
    pub(crate) async fn remove_left_groups(&self, container: &Container) {
        if container.origin.theirs {
            return;
        }
        // An older daemon has noted nothing; then only the path that the bundle names is known to be the container's.
        let noted = container.dir.read().ok().and_then(|record| record.groups);
        let before = noted.map(|text| Survey::from_text(&text)).unwrap_or_default();
        let requested = container.requested();
        let mut delay = Duration::from_millis(1);
        while delay < DEATH_LIMIT {
            // Another container may be created in one of the groups above at this moment.
            let is_alone = !self.registry.any_other(&container.id, |_, slot| slot.is_unsettled());
            if self.hierarchies.remove_left(requested, &before, is_alone) {
                return;
            }
            for pid in self.hierarchies.members_of(requested, &before) {
                // A daemon that died while it killed a runtime has left the runtime stopped.
                if let Some(process) = oci::Shim::stopped_half_made(pid) {
                    kill_all([process]).await;
                }
            }
            tokio::time::sleep(delay).await;
            delay *= 2;
        }
        tracing::warn!(container = %container.id, "processes are left in the cgroup that the container was to have");
    }

    /// Removes the directory and frees the id.
    pub(crate) async fn remove(&self, container: &Container) {
        self.remove_directory(&container.id, &container.dir).await;
        self.free(&container.id);
        self.journal.release_key(&container.origin.instance);
    }

    /// Frees an id of which nothing is left.
    pub(crate) fn free(&self, id: &str) {
        self.registry.free(id);
        self.deleter.forget(id);
    }

    /// Removes a container's directory, however long that takes if the machine lacks something for it.
    pub(crate) async fn remove_directory(&self, id: &str, dir: &ContainerDir) {
        while let Err(e) = dir.remove() {
            if !sys::exhausted::may_pass(&e.source) {
                tracing::error!(container = %id, "{e}; remove it by hand");
                return;
            }
            tracing::warn!(container = %id, "{e}; it is tried again");
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Removes the directory of an added process and frees its name.
    pub(crate) fn remove_process(self: &Arc<Self>, container: &Arc<Container>, process: &Arc<Process>) {
        // Once the container is removed, another container may have a directory of the same path.
        match if container.state().is_gone() { Ok(()) } else { process.dir.remove() } {
            Err(e) if sys::exhausted::may_pass(&e.source) => {
                tracing::warn!(container = %container.id, process = %process.name, "{e}; it is tried again");
                let (remover, container, process) = (self.clone(), container.clone(), process.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(RETRY_DELAY).await;
                    remover.remove_process(&container, &process);
                });
                return;
            }
            Err(e) => {
                tracing::error!(container = %container.id, process = %process.name, "{e}; remove it by hand");
            }
            Ok(()) => reach(Point::ProcessDirectoryRemoved),
        }
        container.remove(process);
        self.journal.release_key(&process.key);
    }
}

/// Whether the runtime may have left something of a container that it was making: it was killed half-way or while it cleaned up,
/// or it was restoring, where it cleans up less.
pub(crate) fn may_be_left(container: &Container, init: &ProcessDir) -> bool {
    let keeps = || container.oci().root().is_some_and(|root| root.join(&container.id).symlink_metadata().is_ok());
    // Another program may have made a container of that id just before.
    let refused = || init.runtime_error().is_some_and(|words| says_that_id_is_taken(&words));
    !container.origin.theirs && (was_interrupted(init) || container.is_restored() || (keeps() && !refused()))
}

/// Whether a runtime refused to make a container because it has one of that id: crun and runc since 1.0 say "already exists",
/// older runc "container with id exists".
fn says_that_id_is_taken(words: &str) -> bool {
    ["already exists", "with id exists"].iter().any(|text| words.contains(text))
}

/// Whether the runtime may have been killed half-way. A runtime that failed by itself has said why; then another program may own
/// what has the id.
fn was_interrupted(dir: &ProcessDir) -> bool {
    let may_be = |line: oci::LogEntry| matches!(line.failure(), Some(FailureKind::Runtime | FailureKind::System));
    dir.runtime_error().is_none() && dir.shim_error().is_none_or(may_be)
}
