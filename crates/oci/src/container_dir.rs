//! A container's directory: `state.json`, and a directory for each process.

use contract::ContainerRecord;
use contract::container_files::{
    CGROUP, CHECKPOINT, CHECKPOINT_LOG, CREATING, INIT, OOM, RESOURCES, STATE, UNFINISHED,
};
use failpoint::{Point, reach};
use rustix::fs::CWD;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::PathError;
use crate::checkpoint::restore_work;
use crate::checksum::{seal, seal_lines, unseal_lines};
use crate::json::{read_object, write_new, write_whole};
use crate::leftovers::unmount_below;
use crate::process_dir::ProcessDir;

/// The largest [`CHECKPOINT`] that is read. It holds one path.
const LARGEST_DUMP: u64 = 64 << 10;

/// A checkpoint that is being made. If this daemon dies, the next one finishes it or removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// The path that it gets when it is whole.
    pub path: PathBuf,
    /// The checkpoint stops the container.
    pub exit: bool,
}

/// The directory of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDir(PathBuf);

impl ContainerDir {
    /// The names that no process may have.
    pub const RESERVED: &[&str] = contract::container_files::RESERVED;

    /// The directory of container `id`, which must have been checked.
    pub fn new(state_dir: &Path, id: &str) -> ContainerDir {
        ContainerDir(state_dir.join(id))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory with its `state.json`, and with a marker that says that the container is being made. Fails if
    /// there is anything of that name.
    pub fn create(&self, record: &ContainerRecord) -> Result<(), PathError> {
        // Under a name of its own until it holds what tells whose it is: no directory without a marker is ever removed.
        let unfinished = self.0.with_file_name(format!("{UNFINISHED}{}", record.instance));
        let made = self.fill(&unfinished, record).and_then(|()| {
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(CWD, &unfinished, CWD, &self.0, flags).map_err(PathError::new("create", &self.0))
        });
        if made.is_err() {
            let _ = crate::state_dir::remove_unfinished(&unfinished);
        }
        made?;
        reach(Point::StateWritten);
        Ok(())
    }

    fn fill(&self, directory: &Path, record: &ContainerRecord) -> Result<(), PathError> {
        std::fs::DirBuilder::new().mode(0o711).create(directory).map_err(PathError::new("create", directory))?;
        reach(Point::DirectoryMade);
        mark_as_creating(directory, &record.instance)?;
        let path = directory.join(STATE);
        // Plain strings always serialize.
        let text = serde_json::to_vec(record).map_err(PathError::new("write", &path))?;
        write_new(&path, &seal(text)).map_err(PathError::new("write", &path))
    }

    /// Notes that the container's start has been recorded.
    pub fn set_started(&self) -> Result<(), PathError> {
        unmark(&self.0)
    }

    /// Whether the container is being made, or was when its daemon ended.
    pub fn is_being_made(&self) -> bool {
        is_marked(&self.0)
    }

    /// When the creation of a container that is being made began, in ticks as [`sys::clock::ticks`] has them.
    pub fn creation_began(&self) -> Option<u64> {
        let text = sys::small_file::read_text(CWD, self.0.join(CREATING)).ok()?;
        text.split_once(' ')?.1.trim_end().parse().ok()
    }

    /// Reads `state.json`. One that a later program wrote is an error.
    pub fn read(&self) -> Result<ContainerRecord, PathError> {
        let path = self.0.join(STATE);
        let text = sys::small_file::read(CWD, &path).map_err(PathError::new("read", &path))?;
        read_object(&text).map_err(PathError::new("read", &path))
    }

    /// Keeps what the kernel says of the groups of its init, which may move into others later.
    pub fn write_cgroup(&self, places: &str) -> Result<(), PathError> {
        let path = self.0.join(CGROUP);
        write_whole(&path, seal_lines(places).as_bytes()).map_err(PathError::new("write", &path))?;
        reach(Point::CgroupKept);
        Ok(())
    }

    /// What [`ContainerDir::write_cgroup`] kept, if all of it is there.
    pub fn cgroup(&self) -> Option<String> {
        let text = sys::small_file::read_text(CWD, self.0.join(CGROUP)).ok()?;
        unseal_lines(&text).map(String::from)
    }

    /// Keeps the count of its processes that were killed for memory.
    pub fn write_oom_kills(&self, kills: u64) -> Result<(), PathError> {
        let path = self.0.join(OOM);
        write_whole(&path, seal_lines(&format!("{kills}\n")).as_bytes()).map_err(PathError::new("write", &path))
    }

    /// What [`ContainerDir::write_oom_kills`] kept last.
    pub fn oom_kills(&self) -> Option<u64> {
        let text = sys::small_file::read_text(CWD, self.0.join(OOM)).ok()?;
        // An older daemon wrote nothing but digits.
        let digits = if text.ends_with('\n') { unseal_lines(&text)? } else { &text };
        digits.trim_end().parse().ok()
    }

    /// Writes resources for the runtime's `update`; the file's path.
    pub fn write_resources(&self, resources: &serde_json::Value) -> Result<PathBuf, PathError> {
        let path = self.0.join(RESOURCES);
        let text = serde_json::to_vec(resources).map_err(PathError::new("write", &path))?;
        write_whole(&path, &text).map_err(PathError::new("write", &path))?;
        Ok(path)
    }

    /// Notes that a checkpoint is being made; none any more without one.
    pub fn set_dump(&self, dump: Option<&Dump>) -> Result<(), PathError> {
        let path = self.0.join(CHECKPOINT);
        let Some(dump) = dump else {
            return match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(PathError::new("remove", &path)(e)),
                _ => Ok(()),
            };
        };
        let text = serde_json::to_vec(dump).map_err(PathError::new("write", &path))?;
        write_whole(&path, &text).map_err(PathError::new("write", &path))
    }

    /// The checkpoint that was being made. Renamed into place when it was noted, so that it is whole.
    pub fn dump(&self) -> Result<Option<Dump>, PathError> {
        let path = self.0.join(CHECKPOINT);
        match sys::foreign_file::read(&path, LARGEST_DUMP) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => {
                let dump = text.and_then(|text| Ok(serde_json::from_slice(&text)?));
                dump.map(Some).map_err(PathError::new("read", &path))
            }
        }
    }

    /// Where CRIU's log of a failed checkpoint is kept.
    pub fn dump_log(&self) -> PathBuf {
        self.0.join(CHECKPOINT_LOG)
    }

    /// The directory of the process `name`, which must have been checked.
    pub fn process(&self, name: &str) -> ProcessDir {
        ProcessDir::new(self.0.join(name))
    }

    /// The processes that have a directory.
    pub fn processes(&self) -> Result<Vec<String>, PathError> {
        let failed = || PathError::new("list", &self.0);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if entry.file_type().map_err(failed())?.is_dir() {
                if let Ok(name) = entry.file_name().into_string() {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    /// Removes the directory with all that is in it; it not being there is no error.
    /// `state.json` goes last, so that whatever is left of an interrupted removal is recognised.
    pub fn remove(&self) -> Result<(), PathError> {
        let work = restore_work(self.process(INIT).path());
        if work.is_dir() {
            // A restore that was cut off leaves mounts of the control groups, which are not to be gone into.
            unmount_below(&work).map_err(PathError::new("unmount what is in", &work))?;
        }
        if self.0.is_dir() {
            for name in self.processes()? {
                remove_all(&self.0.join(name))?;
                reach(Point::ProcessDirectoryRemoved);
            }
        }
        remove_all(&self.0)?;
        reach(Point::DirectoryRemoved);
        Ok(())
    }
}

/// Says that what a directory is for is being made, and since when; `key` tells it from others of the same name.
pub(crate) fn mark_as_creating(directory: &Path, key: &str) -> Result<(), PathError> {
    let path = directory.join(CREATING);
    write_new(&path, format!("{key} {}\n", sys::clock::ticks()).as_bytes()).map_err(PathError::new("write", &path))
}

/// Says that it has been made.
pub(crate) fn unmark(directory: &Path) -> Result<(), PathError> {
    let path = directory.join(CREATING);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(PathError::new("remove", &path)(e)),
        _ => {
            reach(Point::MarkerRemoved);
            Ok(())
        }
    }
}

/// Whether what a directory is for is being made. What cannot be looked at is taken for made: then nothing is removed.
pub(crate) fn is_marked(directory: &Path) -> bool {
    std::fs::symlink_metadata(directory.join(CREATING)).is_ok()
}

/// Removes a directory; what is already gone is no error.
pub(crate) fn remove_all(path: &Path) -> Result<(), PathError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(PathError::new("remove", path)(e)),
        _ => Ok(()),
    }
}
