//! Finding again what an earlier supervisor left: each directory is looked at by itself, all side by side.
//!
//! Evidence decides, never the absence of a record. What has a marker that says that it is being made, and no start in the
//! journal, is half made: no client was told of it, and it is removed. What has its exit in the journal is only cleaned up.
//! Everything else is taken up where it is: if its start is not in the journal, which may be damaged or shortened, the
//! start is recorded again. Directories that no daemon of this API has made are left alone.
//!
//! There are two steps. *Looking* reads files and does nothing else; calls wait for it, all containers together, and
//! never longer than [`LOOK_LIMIT`]. *Taking up* may kill, run the runtime and wait for what does not die; nobody waits
//! for it but whoever wants the same id. What cannot be read is set aside.

use failpoint::{Point, reach};
use oci::{
    Child, ContainerDir, ContainerRecord, Dump, INIT, Oci, PathError, ProcessDir, ProcessRecord, ProcessSpec, Shim,
};
use rustix::process::Pid;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use sys::pidfd::PidFd;
use tokio::sync::{mpsc, watch};

use crate::container::{Container, Origin};
use crate::deletion::under_way;
use crate::disk::on_disk;
use crate::error::Error;
use crate::event::{Event, EventKind};
use crate::exit::{KILLED, UNKNOWN};
use crate::journal::{Told, key_or_name};
use crate::lifecycle::{Happened, State};
use crate::process::{ExitFifo, PAUSE, Process};
use crate::start::may_be_left;
use crate::supervisor::{Shared, Slot, Supervisor};

/// How long calls wait at most for containers that cannot be looked at.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// What is known before any container has been looked at.
#[derive(Debug)]
struct Recovery {
    told: Told,
    /// The state directory, without symbolic links.
    state_dir: PathBuf,
    /// Shims that are children of this process, by their directories.
    kept: Mutex<HashMap<PathBuf, Child>>,
    /// The runtimes of an earlier daemon that still delete a container, looked for when the first container is found that may
    /// have one.
    deletes: OnceLock<Mutex<HashMap<PathBuf, (Pid, PidFd)>>>,
    /// Runtimes that have been looked up.
    runtimes: Mutex<HashMap<(String, Vec<String>), Oci>>,
}

/// Held by whoever looks at a container.
struct Looking {
    /// The journal is not trimmed before it is gone.
    _journal: mpsc::Sender<Infallible>,
    /// Calls wait for it. Goes after the other.
    calls: Option<mpsc::Sender<Infallible>>,
}

/// What was found in a container's directory.
enum Found {
    /// It was being made, and nothing of it runs.
    HardlyBegun,
    /// An empty directory.
    Empty,
    /// Nothing that a daemon of this API has made.
    Foreign,
    /// Its exit is in the journal; the key.
    Told(String),
    /// It was being made, and its start is not in the journal.
    HalfMade(Arc<Container>, Arc<Process>),
    /// It is of an earlier boot; with the processes whose exit is due, and the keys of all.
    Buried(Arc<Container>, Vec<Arc<Process>>, Vec<String>),
    /// It is to be supervised.
    Alive(Box<Adopted>),
}

/// A container that is to be supervised.
struct Adopted {
    container: Arc<Container>,
    init: Left,
    others: Others,
    /// The checkpoint that was being made of it.
    dump: Option<Dump>,
    /// Its start is in the journal.
    told: bool,
}

/// The added processes of a container.
struct Others {
    /// In the order of their starts.
    read: Vec<(Left, Fate)>,
    /// Those whose directories cannot be read, and whether their exit is due.
    unreadable: Vec<(Arc<Process>, bool)>,
}

/// What is to be done about an added process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its exit is in the journal.
    Told,
    /// It was being made, and its start is not in the journal.
    HalfMade,
    /// It is to be supervised. Its start is in the journal, or is to be recorded again.
    Alive { told: bool },
}

/// A process of which the directory has been read.
struct Left {
    process: Arc<Process>,
    /// The host's ids of the container's root.
    root: (u32, u32),
    exit: ExitFifo,
    /// Its shim is gone.
    closed: bool,
    /// Its shim is gone and has left no status.
    orphan: bool,
}

impl Left {
    /// Whether something of it is known to have run: its shim lives, it has ended with a status, or it is alive itself.
    fn has_run(&self) -> Result<bool, Error> {
        let alive = || self.process.open().map_err(Error::system("look up a process"));
        Ok(!self.closed || !self.orphan || alive()?.is_some())
    }
}

impl Supervisor {
    /// Takes up all that is in the state directory, and lets those go on that wait for [`Supervisor::recovered`] as
    /// soon as it is known what there is.
    pub async fn recover(&self) -> Result<(), Error> {
        let shared = &self.0;
        let state_dir = shared.config.state_dir.canonicalize().map_err(Error::system("find the state directory"))?;
        // Of another program the children are nothing to this.
        let kept = Mutex::new(if shared.config.replaces { Shim::kept_children() } else { HashMap::new() });
        let recovery = Arc::new(Recovery {
            told: shared.journal.told(),
            state_dir,
            kept,
            deletes: OnceLock::new(),
            runtimes: Mutex::default(),
        });
        reach(Point::RecoveryBegun);
        let (calls, mut calls_wait) = mpsc::channel(1);
        let (journal, mut journal_waits) = mpsc::channel(1);
        let entries = std::fs::read_dir(&shared.config.state_dir).map_err(Error::system("list the state directory"))?;
        let mut left = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::system("list the state directory"))?;
            let Ok(id) = entry.file_name().into_string() else { continue };
            if id.starts_with(oci::UNFINISHED) {
                tracing::info!(directory = %id, "removing a container's directory that was not finished");
                if let Err(e) = oci::remove_unfinished(&entry.path()) {
                    tracing::warn!("{e}");
                }
                continue;
            }
            // What has another kind of name is not ours.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && shared.reserve(&id).is_ok() {
                let looking = Looking { calls: Some(calls.clone()), _journal: journal.clone() };
                let (settled, waits) = watch::channel(());
                shared.map().insert(id.clone(), Slot::Left(waits));
                left.push((id, looking, settled));
            }
        }
        drop((calls, journal));
        let found = left.len();
        let threads = crate::disk::hands();
        let share = found.div_ceil(threads).max(1);
        while !left.is_empty() {
            let part = left.split_off(left.len().saturating_sub(share));
            let (shared, recovery) = (shared.clone(), recovery.clone());
            tokio::spawn(on_disk(move || {
                for (id, looking, settled) in part {
                    let (shared, recovery) = (shared.clone(), recovery.clone());
                    let first = shared.look_at(&id, &recovery);
                    tokio::spawn(async move {
                        shared.recover_container(id, recovery, first, looking).await;
                        drop(settled);
                    });
                }
            }));
        }
        drop(recovery);
        if tokio::time::timeout(LOOK_LIMIT, calls_wait.recv()).await.is_err() {
            tracing::warn!("some containers cannot be looked at yet; the others are served");
        }
        if matches!(journal_waits.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)) {
            // Before anybody sees it.
            shared.journal.recovered();
        } else {
            let waiting = shared.clone();
            tokio::spawn(async move {
                let _ = journal_waits.recv().await;
                waiting.journal.recovered();
            });
        }
        if let Ok(oci) = shared.runtime_for(None, &[]) {
            // Made in the background, before it is needed.
            let _ = oci.copy();
        }
        tracing::info!(containers = found, "recovered");
        shared.recovered.set();
        // What the reading of all those files took.
        tokio::spawn(on_disk(sys::allocator::give_back));
        reach(Point::RecoveryServes);
        Ok(())
    }
}

impl Recovery {
    /// The shim of the process in `dir`, if it is this program's own child.
    fn take_kept(&self, id: &str, name: &str) -> Option<Child> {
        let directory = self.state_dir.join(id).join(name);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&directory)
    }

    /// The runtime of an earlier daemon that still deletes the container in `dir`.
    fn take_delete(&self, dir: &ContainerDir) -> Option<(Pid, PidFd)> {
        let init = dir.process(INIT);
        under_way(&init, || {
            let deletes = self.deletes.get_or_init(|| Mutex::new(oci::deletes_under_way()));
            deletes.lock().unwrap_or_else(PoisonError::into_inner).remove(&init.runtime_log())
        })
    }

    /// The runtime of a container, looked up once for all that have it.
    fn runtime(&self, record: &mut ContainerRecord) -> Oci {
        let key = (std::mem::take(&mut record.runtime), std::mem::take(&mut record.runtime_args));
        let mut known = self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(oci) = known.get(&key) {
            return oci.clone();
        }
        let oci = Oci::at(key.0.clone(), key.1.clone());
        known.insert(key, oci.clone());
        oci
    }

    /// Reads the directory of a process. What `process.json` would say does not matter more than the process: where it is
    /// damaged, `fallback_key` stands for the key that it has, and the rest is unknown. `being_made`: its shim may still be
    /// running the runtime.
    fn read(
        &self,
        container: &ContainerDir,
        (id, name): (&str, &str),
        being_made: bool,
        fallback_key: impl FnOnce() -> Option<String>,
    ) -> Result<Left, Error> {
        let dir = container.process(name);
        let exit = ExitFifo::new(dir.open_exit()?).map_err(Error::system("watch the exit fifo"))?;
        let (spec, record) = match dir.read().map_err(Error::from) {
            Ok(read) => read,
            Err(e) if e.is_exhausted() => return Err(e),
            Err(e) => {
                let Some(instance) = fallback_key() else { return Err(e) };
                tracing::error!(container = %id, process = %name, "what it was started with is unknown: {e}");
                (ProcessSpec::default(), ProcessRecord { instance, ..ProcessRecord::default() })
            }
        };
        let key = key_or_name(&record.instance, id, name);
        // The status is looked at when nobody can write it any more.
        let closed = exit.is_closed().map_err(Error::system("read the exit fifo"))?;
        let identity = match dir.process().map_err(Error::from) {
            Err(e) if closed || e.is_exhausted() => return Err(e),
            Ok(identity) if closed || being_made => identity,
            read => identity_with_shim(&dir, id, name, read),
        };
        let orphan = closed && dir.exit_status()?.is_none();
        let ProcessRecord { root_uid, root_gid, .. } = record;
        let process = Process::new(name, key, spec, record.stdio(), dir).adopted();
        if let Some(shim) = self.take_kept(id, name) {
            process.keep_shim(shim);
        }
        if let Some(identity) = identity {
            process.set_identity(identity);
        }
        Ok(Left { process: Arc::new(process), root: (root_uid, root_gid), exit, closed, orphan })
    }
}

/// Pid and start time of a process whose shim lives: as they were written or, where that is damaged, as the kernel has them.
fn identity_with_shim(
    dir: &ProcessDir,
    id: &str,
    name: &str,
    read: Result<Option<(u32, u64)>, Error>,
) -> Option<(u32, u64)> {
    let written = read.ok().flatten();
    let is_there = |(pid, starttime): (u32, u64)| {
        sys::procfs::stat(pid).ok().flatten().is_some_and(|stat| stat.starttime == starttime)
    };
    if written.is_some_and(is_there) {
        return written;
    }
    let (pid, starttime) = dir.legible();
    let fits = |(found_pid, found_starttime): &(u32, u64)| {
        // Where both can be read one of them must be right: another process of that shim's is not meant.
        pid.zip(starttime).is_none_or(|(pid, starttime)| pid == *found_pid || starttime == *found_starttime)
    };
    let found = Shim::process_of(dir).filter(fits);
    if let Some((pid, _)) = found {
        tracing::warn!(container = %id, process = %name, pid, "its pid or start time was damaged; found it through its shim");
    }
    found.or(written)
}

/// Whether a file is missing: what writes it had not got so far.
fn is_missing(error: &Error) -> bool {
    matches!(error, Error::File(PathError { source, .. }) if source.kind() == io::ErrorKind::NotFound)
}

/// Judges a directory that has no `state.json`, which is there before anything else of a container is.
fn judge_without_record(dir: &ContainerDir, being_made: bool, missing: Error) -> Result<Found, Error> {
    let processes = dir.processes()?;
    if processes.is_empty() && being_made {
        return Ok(Found::HardlyBegun);
    }
    let is_ours = |name: &String| dir.process(name).path().join("exit").symlink_metadata().is_ok();
    if processes.iter().any(is_ours) {
        // A container whose file was removed.
        return Err(missing);
    }
    let mut entries = std::fs::read_dir(dir.path()).map_err(Error::system("list a container's directory"))?;
    Ok(if entries.next().is_none() { Found::Empty } else { Found::Foreign })
}

/// Whether a shim lives that has a container's init.
fn has_shim(dir: &ContainerDir) -> Result<bool, Error> {
    let exit = match dir.process(INIT).open_exit().map_err(Error::from) {
        Ok(exit) => ExitFifo::new(exit).map_err(Error::system("watch the exit fifo"))?,
        Err(e) if e.is_exhausted() => return Err(e),
        Err(_) => return Ok(false),
    };
    Ok(!exit.is_closed().map_err(Error::system("read the exit fifo"))?)
}

impl Shared {
    /// `found` is what was found at the first look.
    async fn recover_container(
        self: Arc<Self>,
        id: String,
        recovery: Arc<Recovery>,
        mut found: Result<Found, Error>,
        mut looking: Looking,
    ) {
        let _task = self.tasks.begin("recovery", &id, "");
        loop {
            match found {
                Ok(found) => {
                    reach(Point::RecoveryLooked);
                    return self.take_up(&id, found, looking).await;
                }
                Err(e) if e.is_exhausted() => {
                    if looking.calls.take().is_some() {
                        tracing::error!(container = %id, "cannot be looked at, which is tried again: {e}");
                    }
                    tokio::time::sleep(PAUSE).await;
                    found = self.look_at(&id, &recovery);
                }
                Err(e) => return self.set_aside(&id, &e),
            }
        }
    }

    fn look_at(self: &Arc<Self>, id: &str, recovery: &Recovery) -> Result<Found, Error> {
        let told = &recovery.told;
        let dir = self.container_dir(id);
        let being_made = dir.is_being_made();
        let mut record = match dir.read().map_err(Error::from) {
            Ok(record) => record,
            Err(e) if is_missing(&e) => return judge_without_record(&dir, being_made, e),
            Err(e) => return Err(e),
        };
        // An older daemon wrote no keys; what it left had been started.
        let keyed = !record.instance.is_empty();
        record.instance = key_or_name(&record.instance, id, INIT);
        let key = record.instance.clone();
        let told_start = told.started.contains(&key);
        let started = !being_made || !keyed || record.keep || told_start;
        // Without keys the journal's lines may be about an earlier container of the same id, and the shim knows better.
        let told_exit = told.exited.contains(&key) && !record.keep && (keyed || !has_shim(&dir)?);
        if told_exit {
            self.journal.protect(&key);
            return Ok(Found::Told(key));
        }
        let marked = record.marked;
        let init = match recovery.read(&dir, (id, INIT), being_made, || Some(key.clone())) {
            Ok(init) => init,
            Err(e) if !started && is_missing(&e) => return Ok(Found::HardlyBegun),
            Err(e) => return Err(e),
        };
        if keyed && !told_start && !being_made && !marked && !record.keep && !init.has_run()? {
            // An older daemon, which made no markers, may have been making it, or the journal has lost its start.
            return Err(Error::Unproven { id: id.to_string() });
        }
        let same_boot = record.boot_id.is_empty() || record.boot_id == self.boot_id;
        let oci = recovery.runtime(&mut record);
        let container = Arc::new(Container::new(id, Origin::new(record, oci), dir, init.root, State::Running));
        container.set_init(init.process.clone());
        // Nobody knows what was cut off with the daemon.
        container.cut_off.store(true, Ordering::SeqCst);
        self.journal.protect(&key);
        if !same_boot {
            let Others { read, unreadable } = self.others(&container, recovery)?;
            let of_read = read.iter().map(|(left, _)| &left.process);
            let keys = of_read.chain(unreadable.iter().map(|(process, _)| process)).map(|process| process.key.clone());
            let keys = keys.collect();
            let alive = read.into_iter().filter(|(_, fate)| matches!(fate, Fate::Alive { .. }));
            let alive = alive.map(|(left, _)| left.process);
            let unreadable = unreadable.into_iter().filter(|(_, due)| *due).map(|(process, _)| process);
            let due = alive.chain(unreadable).chain([init.process]).filter(|_| started).collect();
            return Ok(Found::Buried(container, due, keys));
        }
        self.find_cgroup_again(&container, &init.process);
        if init.closed {
            if let Some((pid, process)) = recovery.take_delete(&container.dir) {
                self.deletions.note_running(id, pid, process);
            }
        }
        if !started {
            return Ok(Found::HalfMade(container, init.process));
        }
        let dump = container.dir.dump()?;
        container.recall_oom_kills(told.oom_kills.get(&key).copied());
        let others = self.others(&container, recovery)?;
        Ok(Found::Alive(Box::new(Adopted { container, init, others, dump, told: told_start })))
    }

    fn others(&self, container: &Container, recovery: &Recovery) -> Result<Others, Error> {
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        for name in container.dir.processes()?.into_iter().filter(|name| name != INIT) {
            let told_key = || self.start_of(container, &name).map(|start| start.process.clone());
            let being_made = container.dir.process(&name).is_being_made();
            match recovery.read(&container.dir, (&container.id, &name), being_made, told_key) {
                Ok(left) => {
                    let key = &left.process.key;
                    self.journal.protect(key);
                    let told = recovery.told.started.contains(key);
                    let keyed = !key.contains('/');
                    let fate = if recovery.told.exited.contains(key) && (keyed || left.closed) {
                        Fate::Told
                    } else if told || !keyed || !being_made {
                        Fate::Alive { told }
                    } else {
                        Fate::HalfMade
                    };
                    read.push((left, fate));
                }
                Err(e) if e.is_exhausted() => return Err(e),
                Err(e) => unreadable.push(self.unreadable(container, &name, &e)),
            }
        }
        read.sort_by_key(|(left, _)| left.process.identity().map(|(pid, starttime)| (starttime, pid)));
        Ok(Others { read, unreadable })
    }

    /// The start of an added process, if the journal has it and not its exit.
    fn start_of(&self, container: &Container, name: &str) -> Option<Arc<Event>> {
        let mut open = self.journal.open_of(&container.id).into_iter();
        open.find(|event| event.name() == name && *event.instance == *container.origin.instance)
    }

    /// An added process whose directory cannot be read, and whether its exit is due.
    fn unreadable(&self, container: &Container, name: &str, why: &Error) -> (Arc<Process>, bool) {
        let started = self.start_of(container, name);
        match &started {
            None => tracing::info!(container = %container.id, process = %name, "cannot be taken up: {why}"),
            Some(_) => tracing::error!(
                container = %container.id, process = %name,
                "cannot be taken up, and is left alone until its container ends: {why}"
            ),
        }
        let key = started.as_ref().map_or_else(|| key_or_name("", &container.id, name), |start| start.process.clone());
        self.journal.protect(&key);
        let (spec, stdio) = (oci::ProcessSpec::default(), oci::Stdio::default());
        let process = Process::new(name, key, spec, stdio, container.dir.process(name)).adopted();
        (Arc::new(process), started.is_some())
    }

    /// Sees to such a process: one that was being made is removed; another one is left alone until its container ends.
    async fn end_unreadable(self: Arc<Self>, container: Arc<Container>, process: Arc<Process>, due: bool) {
        if due || !process.dir.is_being_made() {
            container.init_ended.wait().await;
        }
        process.ended.store(true, Ordering::SeqCst);
        if let Err(e) = process.kill_half_made(container.cgroup()).await {
            tracing::warn!(container = %container.id, process = %process.name, "cannot kill it: {e}");
        }
        let known = process.dir.exit_status().ok().flatten();
        let status = known.unwrap_or(if process.pid().is_some() { KILLED } else { UNKNOWN });
        let event = Shared::event(EventKind::Exit, &container, Some(&process), status);
        let held = if due { Some(self.record_exit(event).await) } else { None };
        self.remove_process(&container, &process);
        drop(held);
        process.over.set();
    }

    async fn take_up(self: &Arc<Self>, id: &str, found: Found, looking: Looking) {
        match found {
            Found::HardlyBegun => {
                tracing::info!(container = %id, "removing what was hardly begun");
                self.remove_directory(id, &self.container_dir(id)).await;
                self.map().remove(id);
            }
            Found::Empty => {
                if let Err(e) = std::fs::remove_dir(self.container_dir(id).path()) {
                    tracing::warn!(container = %id, "cannot remove its empty directory: {e}");
                }
                self.map().remove(id);
            }
            Found::Foreign => {
                tracing::warn!(directory = %id, "no daemon of this API has made it; it is left alone");
                self.map().remove(id);
            }
            Found::Told(key) => {
                tracing::info!(container = %id, "its exit is in the journal; cleaning up");
                drop(looking);
                self.remove_directory(id, &self.container_dir(id)).await;
                self.map().remove(id);
                self.journal.release_key(&key);
            }
            Found::HalfMade(container, init) => {
                drop(looking);
                tracing::info!(container = %id, "was being made when its daemon ended; removing it");
                self.remove_half_made(&container, &init).await;
            }
            Found::Buried(container, due, keys) => {
                self.bury(&container, &due, &keys, looking).await;
            }
            Found::Alive(adopted) => self.adopt(*adopted, looking),
        }
    }

    /// Goes on supervising a container.
    fn adopt(self: &Arc<Self>, adopted: Adopted, looking: Looking) {
        let Adopted { container, init, others, dump, told } = adopted;
        self.confirm_start(&container, None, told);
        // What CRIU has frozen is nobody's pause.
        let is_frozen = if dump.is_some() { None } else { container.cgroup().map(cgroup::Cgroup::is_frozen) };
        if let Some(Ok(frozen)) = is_frozen {
            if frozen {
                container.happened(Happened::Paused);
            }
            self.tell_freezer(&container, &init.process, frozen);
        }
        // All of them are there before init's end can be dealt with, which waits for theirs.
        let Others { mut read, mut unreadable } = others;
        read.retain(|(left, _)| container.add(&left.process).is_ok());
        unreadable.retain(|(process, _)| container.add(process).is_ok());
        // Nobody else has it yet.
        if let (Some(dump), Ok(order)) = (dump, container.order.clone().try_write_owned()) {
            let (shared, container) = (self.clone(), container.clone());
            // Before anything else is done about it, its end included.
            tokio::spawn(async move {
                shared.settle_left(&container, dump).await;
                shared.follow_freezer(&container);
                drop(order);
            });
        }
        self.map().insert(container.id.clone(), Slot::Here(container.clone()));
        // Of what happened while no supervisor was there.
        self.report_oom(&container);
        for (left, fate) in read {
            if let Fate::Alive { told } = fate {
                self.confirm_start(&container, Some(&left.process), told);
            }
            tokio::spawn(self.clone().adopt_process(container.clone(), left, fate));
        }
        for (process, due) in unreadable {
            tokio::spawn(self.clone().end_unreadable(container.clone(), process, due));
        }
        reach(Point::RecoveryAdopted);
        tokio::spawn(self.clone().watch_init(container, init.process, init.exit, init.orphan));
        drop(looking);
    }

    /// Records the start of a container, or of an added process, once more if the journal has lost it, and removes the
    /// marker of a daemon that ended between the two.
    fn confirm_start(self: &Arc<Self>, container: &Container, process: Option<&Process>, told: bool) {
        let name = process.map_or(INIT, |process| process.name.as_str());
        if !told {
            tracing::warn!(container = %container.id, process = %name, "its start is not in the journal; it is recorded again");
            let kind = if process.is_some() { EventKind::StartProcess } else { EventKind::StartContainer };
            if let Err(e) = self.journal.append(Shared::event(kind, container, process, 0)) {
                tracing::error!(container = %container.id, process = %name, "{e}; its start is not recorded");
                return;
            }
        }
        let unmarked = match process {
            Some(process) => process.dir.set_started(),
            None => container.dir.set_started(),
        };
        if let Err(e) = unmarked {
            tracing::warn!(container = %container.id, process = %name, "{e}");
        }
    }

    async fn adopt_process(self: Arc<Self>, container: Arc<Container>, left: Left, fate: Fate) {
        let process = &left.process;
        match fate {
            Fate::Alive { .. } => return self.watch_process(container, left.process, left.exit, left.orphan).await,
            Fate::Told => {}
            Fate::HalfMade => {
                tracing::info!(container = %container.id, process = %process.name, "was being made; removing it");
                if let Err(e) = process.kill_half_made(container.cgroup()).await {
                    tracing::warn!(container = %container.id, process = %process.name, "cannot kill it: {e}");
                }
            }
        }
        self.remove_process(&container, process);
        process.over.set();
    }

    /// The groups that were found when the container was made; an older daemon did not keep them.
    fn find_cgroup_again(&self, container: &Container, init: &Process) {
        let of_process = || match (init.identity(), init.open()) {
            (Some((pid, _)), Ok(Some(_))) => cgroup::Hierarchies::places(pid).unwrap_or_default(),
            _ => None,
        };
        let places = container.dir.cgroup().or_else(of_process);
        container.set_cgroup(places.and_then(|places| self.hierarchies.cgroup(&places)));
    }

    /// Removes a container that was never told of.
    async fn remove_half_made(self: &Arc<Self>, container: &Arc<Container>, init: &Arc<Process>) {
        // It may run a hook.
        self.finish_earlier_delete(container).await;
        if let Err(e) = init.kill().await {
            tracing::warn!(container = %container.id, "cannot kill init: {e}");
        }
        reach(Point::RecoveryKilledProcess);
        init.kill_shim().await;
        init.kill_runtimes().await;
        reach(Point::RecoveryKilledShim);
        // What the runtime refused to make, since there is such a container, is somebody else's.
        let interrupted = init.dir.has_begun() && may_be_left(container, &init.dir);
        if init.identity().is_some() || interrupted {
            self.delete_by_runtime(container, true).await;
            self.kill_all(container);
            self.remove_left_groups(container).await;
        } else {
            let words = init.dir.runtime_error().or_else(|| init.dir.shim_error().map(|line| line.msg));
            let words = words.unwrap_or_else(|| "it had not been asked".into());
            tracing::info!(container = %container.id, "its runtime has nothing of it: {words}");
            if init.dir.has_begun() {
                self.remove_left_groups(container).await;
            }
        }
        reach(Point::RecoveryDeleted);
        self.remove(container).await;
    }

    /// For what an earlier boot left: nothing is signalled, since no number means what it meant.
    async fn bury(
        self: &Arc<Self>,
        container: &Arc<Container>,
        due: &[Arc<Process>],
        keys: &[String],
        looking: Looking,
    ) {
        tracing::info!(container = %container.id, "is of an earlier boot; how it ended is unknown");
        let mut held = Vec::new();
        for process in due {
            held.push(self.record_exit(Shared::event(EventKind::Exit, container, Some(process), UNKNOWN)).await);
        }
        drop(looking);
        self.settle_dead(&container.id).await;
        self.forget_in_own_root(container);
        self.remove(container).await;
        for key in keys {
            self.journal.release_key(key);
        }
        drop(held);
    }

    /// Removes what a runtime kept before the machine was started anew: its pids mean nothing any more, so the runtime must
    /// not be asked. Only in the daemon's own root, which may be on disk as the state directory is.
    fn forget_in_own_root(&self, container: &Container) {
        let oci = container.oci();
        let Some(root) = oci.root().filter(|_| self.is_own_root(oci)) else { return };
        let removed =
            oci::unmount_leftovers(oci, &container.id).and_then(|()| std::fs::remove_dir_all(root.join(&container.id)));
        if let Err(e) = removed {
            if e.kind() != io::ErrorKind::NotFound {
                tracing::warn!(container = %container.id, "what its runtime kept is left in {}: {e}", root.display());
            }
        }
    }
}
