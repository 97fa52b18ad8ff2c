//! Checkpoints: a container's processes frozen to disk by CRIU, and containers that are restored from there.
//!
//! A checkpoint is made under a name that is no checkpoint's, and renamed when it is whole. What is being made is noted
//! in the container's directory: if this supervisor dies, the runtime goes on, and the next supervisor waits for it and
//! does the rest. That matters where the container is stopped by its checkpoint, which is then all that there is of it.

use failpoint::{Point, reach};
use oci::{Ability, BeginError, Checkpoint, Checkpoints, Dump, Oci, Partial, criu_errors};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::container::Container;
use crate::disk::on_clients_disk;
use crate::error::Error;
use crate::event::Timestamp;
use crate::lifecycle::Request;
use crate::process::{PAUSE, Process, has_ended, kill_all};
use crate::start::carried_through;
use crate::supervisor::{Shared, Supervisor, check_name};

/// As much of CRIU's log is kept.
const LARGEST_LOG: u64 = 64 << 20;

/// The names that a checkpoint's directory cannot have.
const RESERVED: &[&str] = &[];

/// The namespaces that CRIU can leave empty.
const EMPTY: &[&str] = &["network"];

impl Supervisor {
    /// Freezes a running container to disk; with `exit` it is gone afterwards, otherwise it goes on. `directory` holds
    /// the checkpoints, in place of the one in the bundle.
    pub async fn checkpoint(&self, id: &str, wanted: Checkpoint, directory: Option<PathBuf>) -> Result<(), Error> {
        let (shared, container) = (self.0.clone(), self.0.container(id)?);
        check_name("checkpoint name", &wanted.name, RESERVED)?;
        for namespace in &wanted.empty_ns {
            if !EMPTY.contains(&namespace.as_str()) {
                let reason = "is no namespace that can be left out of a checkpoint: \"network\" is the only one";
                return Err(Error::Argument { field: "emptyNS", value: namespace.clone(), reason });
            }
        }
        shared.check_ability(container.oci(), Ability::Checkpoint).await?;
        for flag in wanted.needs() {
            shared.check_ability(container.oci(), Ability::CheckpointFlag(flag)).await?;
        }
        require_criu()?;
        let wanted = Checkpoint { created: Timestamp::now().to_string(), ..wanted };
        carried_through(async move { shared.checkpoint(container, wanted, directory).await }).await
    }

    /// The checkpoints of a container, or all those in `directory`, by their names.
    pub async fn checkpoints(&self, id: &str, directory: Option<PathBuf>) -> Result<Vec<Checkpoint>, Error> {
        let found = self.0.find_checkpoints(id, directory)?;
        self.0.in_time("list the checkpoints", on_clients_disk(move || found.list())).await??.map_err(Error::from)
    }

    /// Removes a checkpoint.
    pub async fn delete_checkpoint(&self, id: &str, name: &str, directory: Option<PathBuf>) -> Result<(), Error> {
        check_name("checkpoint name", name, RESERVED)?;
        let (found, name) = (self.0.find_checkpoints(id, directory)?, name.to_string());
        let removed = on_clients_disk(move || match found.remove(&name)? {
            true => Ok(()),
            false => Err(Error::CheckpointNotFound { path: found.path(&name) }),
        });
        self.0.in_time("remove the checkpoint", removed).await??
    }
}

/// Says that CRIU works on a container, until it is dropped. If init has been killed meanwhile, the container is thawed then,
/// where a frozen process would not die.
struct Dumping<'a>(&'a Container);

impl Dumping<'_> {
    fn begin(container: &Container) -> Dumping<'_> {
        container.dumping.store(true, Ordering::SeqCst);
        Dumping(container)
    }
}

impl Drop for Dumping<'_> {
    fn drop(&mut self) {
        let Dumping(container) = self;
        container.dumping.store(false, Ordering::SeqCst);
        if container.killed.load(Ordering::SeqCst) {
            if let Some(Err(e)) = container.cgroup().map(cgroup::Cgroup::thaw_for_kill) {
                tracing::warn!(container = %container.id, "cannot thaw it: {e}");
            }
        }
    }
}

/// A checkpoint that is to be restored.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// What it was made with.
    pub(crate) checkpoint: Checkpoint,
    pub(crate) bytes: u64,
}

/// CRIU is what does it, whatever the runtime.
fn require_criu() -> Result<(), Error> {
    if oci::find_program("criu").is_some() { Ok(()) } else { Err(Error::CriuMissing) }
}

impl Shared {
    /// Waits for what looks at a directory that a client has named, but not without end: its file system may hang.
    async fn in_time<T>(&self, operation: &'static str, work: impl Future<Output = T>) -> Result<T, Error> {
        let limit = self.config.call_timeout;
        tokio::time::timeout(limit, work).await.map_err(|_| Error::DiskTimeout { operation, limit })
    }

    /// Where the checkpoints of a container are. If they are elsewhere than in its bundle, it need not be there.
    fn find_checkpoints(&self, id: &str, directory: Option<PathBuf>) -> Result<Checkpoints, Error> {
        let bundle = match &directory {
            Some(_) => String::new(),
            None => self.container(id)?.origin.bundle.to_string(),
        };
        Checkpoints::new(directory.as_deref(), Path::new(&bundle)).map_err(Error::system("find the checkpoints"))
    }

    async fn checkpoint(
        self: Arc<Self>,
        container: Arc<Container>,
        wanted: Checkpoint,
        directory: Option<PathBuf>,
    ) -> Result<(), Error> {
        container.check(Request::Checkpoint)?;
        let bundle = Path::new(&*container.origin.bundle);
        let places = Checkpoints::new(directory.as_deref(), bundle).map_err(Error::system("find the checkpoints"))?;
        let to_begin = wanted.clone();
        // Before anything waits for this: it may hang.
        let begun = on_clients_disk(move || places.begin(&to_begin));
        let mut partial = Arc::new(self.in_time("begin the checkpoint", begun).await???);
        let order = container.order.clone().write_owned().await;
        self.follow_freezer(&container);
        if let Err(e) = container.check(Request::Checkpoint) {
            self.discard_partial(&container, &partial).await;
            return Err(e);
        }
        let dump = Dump { path: partial.finally().to_path_buf(), exit: wanted.exit };
        if let Err(e) = container.dir.set_dump(Some(&dump)) {
            self.discard_partial(&container, &partial).await;
            return Err(e.into());
        }
        reach(Point::CheckpointBegun);
        let others: Vec<String> = container.added().iter().map(|process| process.name.clone()).collect();
        if !others.is_empty() {
            tracing::warn!(container = %container.id, processes = ?others, "added processes are in no checkpoint");
        }
        let task = self.tasks.begin_runtime("runtime checkpoint", &container.id, "");
        let log = container.dir.process(oci::INIT).runtime_log();
        let init = container.init().and_then(|init| init.identity());
        let dumping = Dumping::begin(&container);
        let dumped = container.oci().checkpoint(&container.id, &log, &wanted, &partial);
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
        let settled = self.settle(&container, partial, wanted.exit, failed.is_none()).await;
        if let Some(failed) = failed {
            // Unless the container has been stopped by it, and it is whole all the same.
            if !settled.is_ok_and(|kept| kept) {
                return Err(failed);
            }
        } else {
            settled?;
        }
        tracing::info!(container = %container.id, checkpoint = %wanted.name, exit = wanted.exit, "checkpoint made");
        drop(order);
        if wanted.exit {
            if let Some(init) = container.init() {
                // It is gone when its caller hears of it, unless somebody is slow to read what it wrote.
                let _ = tokio::time::timeout(self.config.call_timeout, init.over.wait()).await;
            }
        }
        Ok(())
    }

    /// Keeps a checkpoint that is whole or removes it, when nobody is at work on it any more. True if it was kept.
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
            // CRIU kills it last of all, and does not wait until it is dead.
            keep = is_dumped && ends_soon(container).await;
        }
        if keep {
            let finished = partial.clone();
            on_clients_disk(move || finished.finish()).await??;
            container.dumped.store(exit, Ordering::SeqCst);
            reach(Point::CheckpointNamed);
        } else {
            // A CRIU that died in the middle leaves it frozen.
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
            tracing::warn!(container = %container.id, "what there is of a failed checkpoint stays: {e}");
        }
    }

    /// Sees to the checkpoint that an earlier supervisor was making of a container, once its runtime is done with it.
    /// Only while nothing else is done about the container.
    pub(crate) async fn settle_left(&self, container: &Container, dump: Dump) {
        let path = dump.path.clone();
        tracing::info!(container = %container.id, checkpoint = %path.display(), "its checkpoint is waited for");
        let free = on_clients_disk(move || Partial::wait_for(&path));
        let init = container.init().and_then(|init| init.identity());
        let dumping = Dumping::begin(container);
        let free = while_dumping(&container.id, init, free).await;
        drop(dumping);
        let settled = match free {
            Ok(Ok(Some(partial))) => self.settle(container, Arc::new(partial), dump.exit, false).await,
            // It had been named or removed.
            Ok(Ok(None)) => container.dir.set_dump(None).map(|()| true).map_err(Error::from),
            Ok(Err(e)) => Err(e.into()),
            Err(e) => Err(e),
        };
        match settled {
            Ok(kept) => tracing::info!(container = %container.id, kept, "its checkpoint has been seen to"),
            Err(e) => tracing::error!(container = %container.id, "its checkpoint is left as it is: {e}"),
        }
    }

    /// Sees to what was being made of a container that is dead, since it could not be taken up or is of an earlier boot.
    pub(crate) async fn settle_dead(&self, id: &str) {
        let Ok(Some(dump)) = self.container_dir(id).dump() else { return };
        let settled = on_clients_disk(move || match Partial::wait_for(&dump.path)? {
            // All that there is of it.
            Some(partial) if dump.exit && partial.is_dumped() => partial.finish(),
            Some(partial) => partial.discard(),
            None => Ok(()),
        });
        match tokio::time::timeout(self.config.call_timeout, settled).await {
            Ok(settled) => {
                if let Err(e) = settled.and_then(|settled| settled.map_err(Error::from)) {
                    tracing::warn!(container = %id, "its checkpoint is left as it is: {e}");
                }
            }
            Err(_) => tracing::warn!(container = %id, "its checkpoint is left to the CRIU that works on it"),
        }
    }

    /// The checkpoint that a container is to be restored from.
    /// `group` is the host's id of the group of the container's root, if that is another one than the host's.
    pub(crate) fn find_checkpoint(
        name: &str,
        directory: Option<&Path>,
        bundle: &Path,
        group: Option<u32>,
    ) -> Result<Found, Error> {
        check_name("checkpoint", name, RESERVED)?;
        let places = Checkpoints::new(directory, bundle).map_err(Error::system("find the checkpoints"))?;
        let path = places.path(name);
        let Some(checkpoint) = places.find(name).map_err(Error::CheckpointDamaged)? else {
            return Err(Error::CheckpointNotFound { path });
        };
        let bytes = places.check(&checkpoint).map_err(Error::CheckpointDamaged)?;
        if let Some(Err(e)) = group.map(|group| places.share(name, group)) {
            // Where they can be read all the same, on a read-only file system for example, there is no need for it.
            tracing::warn!(checkpoint = %path.display(), "{e}; CRIU may not be able to read it in the user namespace");
        }
        Ok(Found { path, checkpoint, bytes })
    }

    /// Whether the runtime can restore a checkpoint with its flags.
    pub(crate) async fn check_restore(&self, oci: &Oci, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.check_ability(oci, Ability::Restore).await?;
        for flag in checkpoint.needs() {
            self.check_ability(oci, Ability::RestoreFlag(flag)).await?;
        }
        require_criu()
    }
}

/// Waits for what does not end before CRIU does, which never ends if the container's init is killed while it works, by
/// whomever: CRIU waits for what it has init do, and init, before it is dead, for the others in its PID namespace, which
/// CRIU traces (pid_namespaces(7): the end of its init ends them all). Such a CRIU is killed. Nothing tells when that
/// begins, so it is looked at.
pub(crate) async fn while_dumping<T>(id: &str, init: Option<(u32, u64)>, work: impl Future<Output = T>) -> T {
    const LOOK: Duration = Duration::from_millis(500);
    let mut work = std::pin::pin!(work);
    let mut was_ending = false;
    loop {
        if let Ok(done) = tokio::time::timeout(LOOK, &mut work).await {
            return done;
        }
        let Some((pid, starttime)) = init else { continue };
        let stat = sys::procfs::stat(pid).ok().flatten();
        let is_ending = stat.is_some_and(|stat| stat.starttime == starttime && stat.is_ending());
        // A CRIU that stops the container kills init itself, last of all, and ends soon after.
        if !std::mem::replace(&mut was_ending, is_ending) || !is_ending {
            continue;
        }
        match oci::criu_at(pid) {
            Ok(Some(criu)) => {
                tracing::warn!(container = %id, "it is killed; so is the CRIU that makes its checkpoint");
                kill_all([criu]).await;
            }
            Ok(None) => {}
            Err(e) => tracing::warn!(container = %id, "cannot look for its CRIU: {e}"),
        }
    }
}

/// How long a restore may take for its size: what a slow disk gives.
pub(crate) fn time_for(bytes: u64) -> Duration {
    const BYTES_A_SECOND: u64 = 20 << 20;
    Duration::from_secs(bytes / BYTES_A_SECOND)
}

/// Whether the container's init ends by itself, having been killed.
async fn ends_soon(container: &Container) -> bool {
    let Some(init) = container.init() else { return true };
    loop {
        match init.open() {
            Ok(None) => return true,
            Ok(Some(process)) => return has_ended(process).await.unwrap_or(false),
            Err(e) if sys::exhausted::is_exhausted(&e) => tokio::time::sleep(PAUSE).await,
            Err(e) => {
                tracing::warn!(container = %container.id, "cannot look up its init: {e}");
                return false;
            }
        }
    }
}

/// What a failed restore is told as. CRIU's log is kept beside the checkpoint's own.
pub(crate) async fn why_restore_failed(container: &Container, init: &Process, failed: Error) -> Error {
    let log = oci::restore_work(init.dir.path()).join("restore.log");
    explain(failed, log, Path::new(&*container.origin.checkpoint).join("criu.work").join("restore.log")).await
}

/// Adds CRIU's reasons to the runtime's words, and keeps its log.
async fn explain(failed: Error, log: PathBuf, kept: PathBuf) -> Error {
    let Error::Runtime(words) = failed else { return failed };
    let own = words.clone();
    on_clients_disk(move || Error::Runtime(explained(words, &log, &kept))).await.unwrap_or(Error::Runtime(own))
}

fn explained(words: String, log: &Path, kept: &Path) -> String {
    let Some(reasons) = criu_errors(log) else { return words };
    // The runtime names a log that will not be there.
    let words = words.lines().filter(|line| !line.contains(&log.display().to_string())).collect::<Vec<_>>().join("; ");
    match keep(log, kept) {
        Ok(()) => format!("{words}: {reasons} (CRIU's log: {})", kept.display()),
        Err(e) => format!("{words}: {reasons} (CRIU's log cannot be kept in {}: {e})", kept.display()),
    }
}

fn keep(log: &Path, kept: &Path) -> std::io::Result<()> {
    let new = kept.with_extension("log.new");
    // An imported checkpoint has no such directory.
    match kept.parent().map(std::fs::create_dir) {
        Some(Err(e)) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let copied = sys::foreign_file::open_regular(log).and_then(|log| {
        // Of a log without end, the begin is kept.
        std::io::copy(&mut log.take(LARGEST_LOG), &mut File::create(&new)?)?;
        std::fs::rename(&new, kept)
    });
    copied.inspect_err(|_| drop(std::fs::remove_file(&new)))
}

impl From<BeginError> for Error {
    fn from(e: BeginError) -> Error {
        match e {
            BeginError::File(e) => Error::File(e),
            e => Error::CheckpointExists(e.to_string()),
        }
    }
}
