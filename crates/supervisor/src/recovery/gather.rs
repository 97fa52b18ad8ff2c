//! Reading what an earlier daemon has left of a container. Gathering reads files and looks processes up; it changes nothing.

use cgroup::Hierarchies;
use oci::{
    Child, ContainerDir, ContainerRecord, Dump, INIT, Oci, PathError, ProcessDir, ProcessRecord, ProcessSpec, Shim,
    Stdio,
};
use rustix::process::Pid;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use sys::pidfd::PidFd;

use crate::container::{Begin, Container, ExitFifo, Origin, Process};
use crate::error::Error;
use crate::events::{Event, Held, History, Journal, key_or_name};
use crate::host::registry::Registry;
use crate::operations::delete::under_way;
use crate::recovery::judge::{Facts, Fate, Init, ProcessFacts, Record, judge_process};

/// Reads what an earlier daemon has left. Made once for all containers.
#[derive(Debug)]
pub(super) struct Gatherer {
    pub(super) registry: Arc<Registry>,
    pub(super) journal: Arc<Journal>,
    pub(super) hierarchies: Arc<Hierarchies>,
    pub(super) boot_id: String,
    /// What the journal says.
    pub(super) history: History,
    /// The state directory, without symbolic links.
    pub(super) state_dir: PathBuf,
    /// Shims that are children of this process, by their directories.
    pub(super) kept: Mutex<HashMap<PathBuf, Child>>,
    /// The runtimes of an earlier daemon that still delete a container. Looked for when the first container is found that may have
    /// one.
    pub(super) deletes: OnceLock<Mutex<HashMap<PathBuf, (Pid, PidFd)>>>,
    /// Runtimes that have been looked up.
    pub(super) runtimes: Mutex<HashMap<(String, Vec<String>), Oci>>,
}

/// A process of which the directory has been read.
pub(super) struct Left {
    pub(super) process: Arc<Process>,
    /// The host's user and group id of the container's root.
    root: (u32, u32),
    pub(super) exit: ExitFifo,
    /// Its shim is gone.
    pub(super) is_closed: bool,
    /// Its shim is gone and has left no status.
    pub(super) is_orphan: bool,
    /// Holds its exit, which is recorded, until its directory is removed.
    pub(super) held: Option<Held>,
}

/// A container's files, as far as they have been read.
pub(super) struct Gathered {
    pub(super) facts: Facts,
    pub(super) dir: ContainerDir,
    /// What `state.json` says, and the container's key.
    pub(super) record: Option<(ContainerRecord, String)>,
    pub(super) init: Option<Left>,
    /// Why something cannot be read.
    pub(super) error: Option<Error>,
}

/// The added processes of a container, with what is to be done with them.
pub(super) struct Others {
    /// In the order of their starts.
    pub(super) read: Vec<(Left, Fate)>,
    /// Those whose directories cannot be read.
    pub(super) unreadable: Vec<(Arc<Process>, Fate)>,
}

/// What else is read of a container that is adopted.
pub(super) struct Adopted {
    pub(super) container: Arc<Container>,
    pub(super) init: Left,
    pub(super) others: Others,
    /// The checkpoint that was being made of it.
    pub(super) dump: Option<Dump>,
    pub(super) start_is_recorded: bool,
}

impl Gatherer {
    /// The shim of a process, if it is this program's own child.
    fn take_kept(&self, id: &str, name: &str) -> Option<Child> {
        let directory = self.state_dir.join(id).join(name);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&directory)
    }

    /// The runtime of an earlier daemon that still deletes a container.
    pub(super) fn take_delete(&self, dir: &ContainerDir) -> Option<(Pid, PidFd)> {
        let init = dir.process(INIT);
        under_way(&init, || {
            let deletes = self.deletes.get_or_init(|| Mutex::new(oci::deletes_under_way()));
            deletes.lock().unwrap_or_else(PoisonError::into_inner).remove(&init.runtime_log())
        })
    }

    /// The runtime of a container, looked up once for all containers that have it.
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

    /// Reads the directory of a process. The process matters more than what it was started with: where `process.json` is damaged,
    /// the key that `fallback_key` returns stands for its own, and the rest is unknown.
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
        // The status is read when no shim can write it any more.
        let is_closed = exit.is_closed().map_err(Error::system("read the exit fifo"))?;
        let identity = match dir.process().map_err(Error::from) {
            Err(e) if is_closed || e.is_exhausted() => return Err(e),
            // While it is being made, its shim's child may be the runtime.
            Ok(identity) if is_closed || being_made => identity,
            read => identity_with_shim(&dir, id, name, read),
        };
        let is_orphan = is_closed && dir.exit_status()?.is_none();
        let ProcessRecord { root_uid, root_gid, .. } = record;
        let process = Process::new(name, key, spec, Stdio::of(&record), dir).adopted();
        if let Some(shim) = self.take_kept(id, name) {
            process.keep_shim(shim);
        }
        if let Some(identity) = identity {
            process.set_identity(identity);
        }
        Ok(Left { process: Arc::new(process), root: (root_uid, root_gid), exit, is_closed, is_orphan, held: None })
    }
}

/// Pid and start time of a process whose shim lives: as they are written or, where that is damaged, as the kernel has them.
fn identity_with_shim(
    dir: &ProcessDir,
    id: &str,
    name: &str,
    read: Result<Option<(u32, u64)>, Error>,
) -> Option<(u32, u64)> {
    let written = read.ok().flatten();
    let exists = |(pid, starttime): (u32, u64)| {
        sys::procfs::stat(pid).ok().flatten().is_some_and(|stat| stat.starttime == starttime)
    };
    if written.is_some_and(exists) {
        return written;
    }
    let (pid, starttime) = dir.legible();
    let fits = |(found_pid, found_starttime): &(u32, u64)| {
        // Where both can be read, one of them must be right: otherwise the shim has another process.
        pid.zip(starttime).is_none_or(|(pid, starttime)| pid == *found_pid || starttime == *found_starttime)
    };
    let found = Shim::process_of(dir).filter(fits);
    if let Some((pid, _)) = found {
        tracing::warn!(container = %id, process = %name, pid, "its pid or start time was damaged; found it through its shim");
    }
    found.or(written)
}

/// Whether a file is missing: the daemon died before it wrote it.
fn is_missing(error: &Error) -> bool {
    matches!(error, Error::File(PathError { source, .. }) if source.kind() == io::ErrorKind::NotFound)
}

/// Looks at a directory that has no `state.json`.
fn without_record(dir: &ContainerDir) -> Result<Record, Error> {
    let processes = dir.processes()?;
    let has_exit = |name: &String| dir.process(name).path().join(oci::process_files::EXIT).symlink_metadata().is_ok();
    let mut entries = std::fs::read_dir(dir.path()).map_err(Error::system("list a container's directory"))?;
    Ok(Record::Missing {
        has_processes: !processes.is_empty(),
        has_exit: processes.iter().any(has_exit),
        is_empty: entries.next().is_none(),
    })
}

impl Gatherer {
    /// Reads what judging a container needs. An error says that the machine has run out of something, or that the
    /// container must be set aside.
    pub(super) fn gather(&self, id: &str) -> Result<Gathered, Error> {
        let dir = self.registry.dir(id);
        let being_made = dir.is_being_made();
        let nothing = Facts {
            being_made,
            record: Record::Unreadable,
            start_is_recorded: false,
            exit_is_recorded: false,
            init: Init::Missing,
        };
        let (record, error) = match dir.read().map_err(Error::from) {
            Ok(record) => (Ok(record), None),
            Err(e) if e.is_exhausted() => return Err(e),
            Err(e) if is_missing(&e) => match without_record(&dir) {
                Ok(record) => (Err(record), Some(e)),
                Err(e) if e.is_exhausted() => return Err(e),
                Err(e) => (Err(Record::Unreadable), Some(e)),
            },
            Err(e) => (Err(Record::Unreadable), Some(e)),
        };
        let record = match record {
            Ok(record) => record,
            Err(record) => {
                let facts = Facts { record, ..nothing };
                return Ok(Gathered { facts, dir, record: None, init: None, error });
            }
        };
        let key = key_or_name(&record.instance, id, INIT);
        let (init, found, error) = match self.read(&dir, (id, INIT), being_made, || Some(key.clone())) {
            Ok(left) => (init_facts(&left)?, Some(left), None),
            Err(e) if e.is_exhausted() => return Err(e),
            Err(e) if is_missing(&e) => (Init::Missing, None, Some(e)),
            Err(e) => (Init::Unreadable, None, Some(e)),
        };
        let facts = Facts {
            being_made,
            record: Record::Read {
                has_key: !record.instance.is_empty(),
                has_markers: record.marked,
                is_of_this_boot: record.boot_id.is_empty() || record.boot_id == self.boot_id,
            },
            start_is_recorded: self.history.started.contains(&key),
            exit_is_recorded: self.history.exited.contains(&key),
            init,
        };
        Ok(Gathered { facts, dir, record: Some((record, key)), init: found, error })
    }

    /// The container that a directory describes, in the state [`State::Creating`](crate::State::Creating).
    pub(super) fn container(
        &self,
        id: &str,
        dir: ContainerDir,
        (mut record, key): (ContainerRecord, String),
        init: &Left,
    ) -> Arc<Container> {
        record.instance = key;
        let begin = if record.checkpoint.is_empty() { Begin::CreateThenStart } else { Begin::Restore };
        let oci = self.runtime(&mut record);
        let container = Arc::new(Container::new(id, Origin::new(record, oci), dir, init.root, begin));
        container.set_init(init.process.clone());
        // An exec may have been killed with the earlier daemon.
        container.condition(|condition| condition.exec_was_aborted());
        container
    }

    /// Reads the directories of the added processes and judges them.
    pub(super) fn others(&self, container: &Container) -> Result<Others, Error> {
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        for name in container.dir.processes()?.into_iter().filter(|name| name != INIT) {
            let recorded_key = || self.start_of(container, &name).map(|start| start.process.clone());
            let being_made = container.dir.process(&name).is_being_made();
            match self.read(&container.dir, (&container.id, &name), being_made, recorded_key) {
                Ok(left) => {
                    let key = &left.process.key;
                    let facts = ProcessFacts {
                        being_made,
                        is_readable: true,
                        // A name that stands for a key has a slash.
                        has_key: !key.contains('/'),
                        has_shim: !left.is_closed,
                        start_is_recorded: self.history.started.contains(key),
                        exit_is_recorded: self.history.exited.contains(key),
                    };
                    read.push((left, judge_process(&facts)));
                }
                Err(e) if e.is_exhausted() => return Err(e),
                Err(e) => unreadable.push(self.unreadable(container, &name, being_made, &e)),
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

    /// Judges an added process whose directory cannot be read.
    fn unreadable(&self, container: &Container, name: &str, being_made: bool, why: &Error) -> (Arc<Process>, Fate) {
        let started = self.start_of(container, name);
        let facts = ProcessFacts {
            being_made,
            is_readable: false,
            has_key: false,
            has_shim: false,
            start_is_recorded: started.is_some(),
            exit_is_recorded: false,
        };
        match &started {
            None => tracing::info!(container = %container.id, process = %name, "cannot be adopted: {why}"),
            Some(_) => tracing::error!(
                container = %container.id, process = %name,
                "cannot be adopted, and is left alone until its container ends: {why}"
            ),
        }
        let key = started.as_ref().map_or_else(|| key_or_name("", &container.id, name), |start| start.process.clone());
        let (spec, stdio) = (ProcessSpec::default(), Stdio::default());
        let process = Process::new(name, key, spec, stdio, container.dir.process(name)).adopted();
        (Arc::new(process), judge_process(&facts))
    }

    /// Finds the groups of a container: those that were written down when it was made. An older daemon did not write them down.
    pub(super) fn find_cgroup_again(&self, container: &Container, init: &Process) {
        let of_process = || match init.identity() {
            Some((pid, _)) if init.is_alive() => Hierarchies::places(pid).unwrap_or_default(),
            _ => None,
        };
        let places = container.dir.cgroup().or_else(of_process);
        container.set_cgroup(places.and_then(|places| self.hierarchies.cgroup(&places)));
    }
}

/// What there is of an init whose directory has been read.
fn init_facts(left: &Left) -> Result<Init, Error> {
    if !left.is_closed {
        return Ok(Init::HasShim);
    }
    // Only where no status says that it has run does it matter whether it is alive.
    let is_alive = left.is_orphan && left.process.open().map_err(Error::system("look up a process"))?.is_some();
    Ok(Init::NoShim { has_status: !left.is_orphan, is_alive })
}
