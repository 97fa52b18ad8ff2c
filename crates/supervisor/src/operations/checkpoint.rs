//! Checkpoints: CRIU freezes a container's processes to disk.
//!
//! A checkpoint is made under a name that no checkpoint has, and renamed when it is whole. The container's directory notes which
//! checkpoint is being made: if this daemon dies, the runtime goes on, and the next daemon waits for it and does the rest. This
//! matters most if the checkpoint stops the container: then nothing else is left of it.

use failpoint::{Point, reach};
use oci::{Ability, BeginError, Checkpoint, Checkpoints, Dump, Partial};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::container::Container;
use crate::container::killing::has_ended;
use crate::container::lifecycle::Request;
use crate::error::{Error, check_name};
use crate::events::Timestamp;
use crate::host::RETRY_DELAY;
use crate::host::disk::on_clients_disk;
use crate::host::registry::Registry;
use crate::host::runtimes::Runtimes;
use crate::host::tasks::Tasks;
use crate::operations::dump::{Dumping, explain, require_criu, while_dumping};
use crate::operations::freezer::Freezer;

/// The names that a checkpoint's directory cannot have.
const RESERVED: &[&str] = &[];

/// The namespaces that CRIU can leave out of a checkpoint.
const EMPTY: &[&str] = &["network"];

/// Makes checkpoints, lists them and removes them.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    pub(crate) registry: Arc<Registry>,
    pub(crate) runtimes: Arc<Runtimes>,
    pub(crate) freezer: Arc<Freezer>,
    pub(crate) tasks: Tasks,
    pub(crate) call_timeout: Duration,
}

impl Checkpointer {
    /// Refuses a checkpoint that cannot be made, as far as that is known before it is tried.
    pub(crate) async fn check(&self, container: &Container, wanted: &Checkpoint) -> Result<(), Error> {
        check_name("checkpoint name", &wanted.name, RESERVED)?;
        for namespace in &wanted.empty_ns {
            if !EMPTY.contains(&namespace.as_str()) {
                let reason = "is no namespace that can be left out of a checkpoint: \"network\" is the only one";
                return Err(Error::Argument { field: "emptyNS", value: namespace.clone(), reason });
            }
        }
        self.runtimes.check_ability(container.oci(), Ability::Checkpoint).await?;
        for flag in wanted.options().needs() {
            self.runtimes.check_ability(container.oci(), Ability::CheckpointFlag(flag)).await?;
        }
        require_criu()
    }

    /// The checkpoints of a container, or all those in `directory`, by their names.
    pub(crate) async fn list(&self, id: &str, directory: Option<PathBuf>) -> Result<Vec<Checkpoint>, Error> {
        let places = self.places(id, directory)?;
        self.in_time("list the checkpoints", on_clients_disk(move || places.list())).await??.map_err(Error::from)
    }

    /// Removes a checkpoint.
    pub(crate) async fn delete(&self, id: &str, name: &str, directory: Option<PathBuf>) -> Result<(), Error> {
        check_name("checkpoint name", name, RESERVED)?;
        let (places, name) = (self.places(id, directory)?, name.to_string());
        let removed = on_clients_disk(move || match places.remove(&name)? {
            true => Ok(()),
            false => Err(Error::CheckpointNotFound { path: places.path(&name) }),
        });
        self.in_time("remove the checkpoint", removed).await??
    }

    /// Waits for work on a directory that a client has named, up to a limit: its file system may hang.
    async fn in_time<T>(&self, operation: &'static str, work: impl Future<Output = T>) -> Result<T, Error> {
        let limit = self.call_timeout;
        tokio::time::timeout(limit, work).await.map_err(|_| Error::DiskTimeout { operation, limit })
    }

    /// Where the checkpoints of a container are. If they are elsewhere than in its bundle, the container need not exist.
    fn places(&self, id: &str, directory: Option<PathBuf>) -> Result<Checkpoints, Error> {
        let bundle = match &directory {
            Some(_) => String::new(),
            None => self.registry.container(id)?.origin.bundle.to_string(),
        };
        Checkpoints::new(directory.as_deref(), Path::new(&bundle)).map_err(Error::system("find the checkpoints"))
    }

    /// Freezes a running container to disk; with `exit` it is gone afterwards, otherwise it goes on. `directory` holds the
    /// checkpoints, in place of the one in the bundle. [`Checkpointer::check`] has accepted `wanted`.
    pub(crate) async fn make(
        &self,
        container: &Container,
        wanted: Checkpoint,
        directory: Option<PathBuf>,
    ) -> Result<(), Error> {
        let wanted = Checkpoint { created: Timestamp::now().to_string(), ..wanted };
        container.check(Request::Checkpoint)?;
        let bundle = Path::new(&*container.origin.bundle);
        let places = Checkpoints::new(directory.as_deref(), bundle).map_err(Error::system("find the checkpoints"))?;
        let to_begin = wanted.clone();
        // Before other operations wait for this one: the client's file system may hang.
        let begun = on_clients_disk(move || places.begin(&to_begin));
        let partial = Arc::new(self.in_time("begin the checkpoint", begun).await???);
        let order = container.order.clone().write_owned().await;
        self.freezer.follow(container);
        let dump = Dump { path: partial.finally().to_path_buf(), exit: wanted.exit };
        let noted = container.check(Request::Checkpoint);
        if let Err(e) = noted.and_then(|()| container.dir.set_dump(Some(&dump)).map_err(Error::from)) {
            self.discard_partial(container, &partial).await;
            return Err(e);
        }
        reach(Point::CheckpointBegun);
        self.dump(container, &wanted, partial).await?;
        tracing::info!(container = %container.id, checkpoint = %wanted.name, exit = wanted.exit, "checkpoint made");
        drop(order);
        if wanted.exit {
            if let Some(init) = container.init() {
                // The container is gone when the caller gets its answer, unless a client is slow to read its output.
                let _ = tokio::time::timeout(self.call_timeout, init.over.wait()).await;
            }
        }
        Ok(())
    }

    /// Runs the runtime's `checkpoint`, and keeps or removes what it has made.
    async fn dump(&self, container: &Container, wanted: &Checkpoint, mut partial: Arc<Partial>) -> Result<(), Error> {
        let others: Vec<String> = container.added().iter().map(|process| process.name.clone()).collect();
        if !others.is_empty() {
            tracing::warn!(container = %container.id, processes = ?others, "added processes are in no checkpoint");
        }
        let task = self.tasks.begin_runtime("runtime checkpoint", &container.id, "");
        let log = container.dir.process(oci::INIT).runtime_log();
        let init = container.init().and_then(|init| init.identity());
        let dumping = Dumping::begin(container);
        let dumped = container.oci().checkpoint(&container.id, &log, wanted, &partial);
        let dumped = while_dumping(&container.id, init, dumped).await;
        drop(task);
        reach(Point::CheckpointDumped);
        let mut failed = None;
        if let Err(e) = dumped {
            let why = explain(e.into(), partial.work().join("dump.log"), container.dir.dump_log()).await;
            // Its CRIU may outlive a runtime that was killed.
            let finally = partial.finally().to_path_buf();
            drop(partial);
            let free = on_clients_disk(move || Partial::wait_for(&finally));
            let Some(free) = while_dumping(&container.id, init, free).await?? else {
                return Err(why);
            };
            partial = Arc::new(free);
            failed = Some(why);
        }
        drop(dumping);
        let settled = self.settle(container, partial, wanted.exit, failed.is_none()).await;
        match (failed, settled) {
            (None, settled) => settled.map(drop),
            // It has stopped the container and is whole all the same.
            (Some(_), Ok(true)) => Ok(()),
            (Some(failed), _) => Err(failed),
        }
    }

    /// Keeps a checkpoint that is whole and removes another one. No CRIU works on it any more. True if it was kept.
    async fn settle(
        &self,
        container: &Container,
        partial: Arc<Partial>,
        exit: bool,
        succeeded: bool,
    ) -> Result<bool, Error> {
        let mut keep = succeeded;
        if !keep && exit {
            let looked_at = partial.clone();
            let is_dumped = on_clients_disk(move || looked_at.is_dumped()).await?;
            // CRIU kills the container last of all, and does not wait until it is dead.
            keep = is_dumped && ends_soon(container).await;
        }
        if keep {
            let finished = partial.clone();
            on_clients_disk(move || finished.finish()).await??;
            if exit {
                container.condition(|condition| condition.checkpoint_stopped_it());
            }
            reach(Point::CheckpointNamed);
        } else {
            // A CRIU that died half-way leaves the container frozen.
            if let Some(cgroup) = container.cgroup() {
                if cgroup.is_frozen().is_ok_and(|frozen| frozen) {
                    if let Err(e) = cgroup.thaw() {
                        tracing::error!(container = %container.id, "cannot thaw it after a failed checkpoint: {e}");
                    }
                }
            }
            self.discard_partial(container, &partial).await;
        }
        if let Err(e) = container.dir.set_dump(None) {
            tracing::warn!(container = %container.id, "{e}");
        }
        Ok(keep)
    }

    async fn discard_partial(&self, container: &Container, partial: &Arc<Partial>) {
        let partial = partial.clone();
        let discarded = on_clients_disk(move || partial.discard());
        if let Err(e) = discarded.await.and_then(|discarded| discarded.map_err(Error::from)) {
            tracing::warn!(container = %container.id, "a failed checkpoint cannot be removed whole: {e}");
        }
    }

    /// Finishes or removes the checkpoint that an earlier daemon was making of a container, once its runtime has ended. To be called
    /// only while no other operation changes the container.
    pub(crate) async fn settle_left(&self, container: &Container, dump: Dump) {
        let path = dump.path.clone();
        tracing::info!(container = %container.id, checkpoint = %path.display(), "waiting for the checkpoint that an earlier daemon began");
        let free = on_clients_disk(move || Partial::wait_for(&path));
        let init = container.init().and_then(|init| init.identity());
        let dumping = Dumping::begin(container);
        let free = while_dumping(&container.id, init, free).await;
        drop(dumping);
        let settled = match free {
            Ok(Ok(Some(partial))) => self.settle(container, Arc::new(partial), dump.exit, false).await,
            // It has its name already, or has been removed.
            Ok(Ok(None)) => container.dir.set_dump(None).map(|()| true).map_err(Error::from),
            Ok(Err(e)) => Err(e.into()),
            Err(e) => Err(e),
        };
        match settled {
            Ok(kept) => {
                tracing::info!(container = %container.id, kept, "the checkpoint that an earlier daemon began is settled")
            }
            Err(e) => tracing::error!(container = %container.id, "its checkpoint is left as it is: {e}"),
        }
    }

    /// Finishes or removes the checkpoint that an earlier daemon was making of a container that is dead: one that was set aside, or is
    /// of an earlier boot.
    pub(crate) async fn settle_dead(&self, id: &str) {
        let Ok(Some(dump)) = self.registry.dir(id).dump() else { return };
        let settled = on_clients_disk(move || match Partial::wait_for(&dump.path)? {
            // It is all that is left of the container.
            Some(partial) if dump.exit && partial.is_dumped() => partial.finish(),
            Some(partial) => partial.discard(),
            None => Ok(()),
        });
        match tokio::time::timeout(self.call_timeout, settled).await {
            Ok(settled) => {
                if let Err(e) = settled.and_then(|settled| settled.map_err(Error::from)) {
                    tracing::warn!(container = %id, "its checkpoint is left as it is: {e}");
                }
            }
            Err(_) => tracing::warn!(container = %id, "its checkpoint is left to the CRIU that works on it"),
        }
    }
}

/// Whether the container's init, which CRIU has killed, ends.
async fn ends_soon(container: &Container) -> bool {
    let Some(init) = container.init() else { return true };
    loop {
        match init.open() {
            Ok(None) => return true,
            Ok(Some(process)) => return has_ended(process).await.unwrap_or(false),
            Err(e) if sys::exhausted::is_exhausted(&e) => tokio::time::sleep(RETRY_DELAY).await,
            Err(e) => {
                tracing::warn!(container = %container.id, "cannot look up its init: {e}");
                return false;
            }
        }
    }
}

impl From<BeginError> for Error {
    fn from(e: BeginError) -> Error {
        match e {
            BeginError::File(e) => Error::File(e),
            e => Error::CheckpointExists(e.to_string()),
        }
    }
}
