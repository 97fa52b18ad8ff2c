//! A container's directory: `state.json`, and a directory for each process.

use failpoint::{Point, reach};
use rustix::fs::CWD;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::PathError;
use crate::checkpoint::restore_work;
use crate::json::{FORMAT, check_format, null_as_default, read_object, write_whole};
use crate::leftovers::unmount_below;
use crate::process_dir::ProcessDir;

/// The name of a container's first process.
pub const INIT: &str = "init";

const STATE: &str = "state.json";
const CGROUP: &str = ".cgroup";
const OOM: &str = ".oom";
/// The checkpoint that is being made of the container.
const DUMP: &str = ".checkpoint";
/// CRIU's log of the last one that failed.
const DUMP_LOG: &str = ".dump.log";
const RESOURCES: &str = ".resources.json";
const VERSION: &str = ".version";

/// What `state.json` holds. Members beside those of the contract have names of their own and may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerRecord {
    /// The format of the files; 0 if an older daemon wrote them.
    pub version: u32,
    /// The OCI bundle, absolute.
    pub bundle: String,
    /// As the client gave them.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Vec<String>,
    /// Stdio of init.
    pub stdin: String,
    /// Stdio of init.
    pub stdout: String,
    /// Stdio of init.
    pub stderr: String,
    /// The OCI runtime, name or path.
    pub runtime: String,
    /// Put in front of the runtime's subcommand.
    #[serde(deserialize_with = "null_as_default")]
    pub runtime_args: Vec<String>,
    /// The shim.
    pub shim: String,
    /// Pass `--no-pivot`.
    pub no_pivot_root: bool,
    /// `/proc/sys/kernel/random/boot_id` when the container was made.
    #[serde(rename = "boot_id")]
    pub boot_id: String,
    /// Tells this container from others of the same id; empty if an older daemon made it.
    pub instance: String,
    /// The control group that `config.json` asks for; empty if it leaves that to the runtime.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroups_path: String,
    /// The runtime had a container of this id before, which is somebody else's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub theirs: bool,
    /// The checkpoint that it was restored from; empty if it was started.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub checkpoint: String,
    /// The container stays after its init's exit until it is deleted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

/// A checkpoint that is being made, for whoever has to see to it if this supervisor dies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// What it will be called.
    pub path: PathBuf,
    /// The container is stopped with it.
    pub exit: bool,
}

/// The directory of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDir(PathBuf);

impl ContainerDir {
    /// Names of ours that no process may have.
    pub const RESERVED: &[&str] = &[STATE];

    /// The directory of container `id`, which must have been checked.
    pub fn new(state_dir: &Path, id: &str) -> ContainerDir {
        ContainerDir(state_dir.join(id))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory and its `state.json`.
    pub fn create(&self, record: &ContainerRecord) -> Result<(), PathError> {
        std::fs::DirBuilder::new().mode(0o711).create(&self.0).map_err(PathError::new("create", &self.0))?;
        reach(Point::DirectoryMade);
        let path = self.0.join(STATE);
        // Plain strings always serialize.
        let text = serde_json::to_vec(record).map_err(PathError::new("write", &path))?;
        write_whole(&path, &text).map_err(PathError::new("write", &path))?;
        reach(Point::StateWritten);
        Ok(())
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
        std::fs::write(&path, places).map_err(PathError::new("write", &path))?;
        reach(Point::CgroupKept);
        Ok(())
    }

    /// What [`ContainerDir::write_cgroup`] kept, if all of it is there.
    pub fn cgroup(&self) -> Option<String> {
        sys::small_file::read_text(CWD, self.0.join(CGROUP)).ok().filter(|places| places.ends_with('\n'))
    }

    /// Keeps the count of its processes that were killed for memory.
    pub fn write_oom_kills(&self, kills: u64) -> Result<(), PathError> {
        let path = self.0.join(OOM);
        write_whole(&path, kills.to_string().as_bytes()).map_err(PathError::new("write", &path))
    }

    /// What [`ContainerDir::write_oom_kills`] kept last.
    pub fn oom_kills(&self) -> Option<u64> {
        sys::small_file::read_text(CWD, self.0.join(OOM)).ok()?.parse().ok()
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
        let path = self.0.join(DUMP);
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
        let path = self.0.join(DUMP);
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => {
                let dump = text.and_then(|text| Ok(serde_json::from_slice(&text)?));
                dump.map(Some).map_err(PathError::new("read", &path))
            }
        }
    }

    /// Where CRIU's log of a failed checkpoint is kept.
    pub fn dump_log(&self) -> PathBuf {
        self.0.join(DUMP_LOG)
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

/// Makes sure that no later program has used the state directory, and says that this one does.
pub fn claim_format(state_dir: &Path) -> Result<(), PathError> {
    let path = state_dir.join(VERSION);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        result => result.map_err(PathError::new("read", &path))?,
    };
    let found = text.trim().parse().unwrap_or(0);
    check_format(found).map_err(PathError::new("use the state directory, by", &path))?;
    if found == FORMAT {
        return Ok(());
    }
    write_whole(&path, format!("{FORMAT}\n").as_bytes()).map_err(PathError::new("write", &path))
}

/// Removes a directory; what is already gone is no error.
pub(crate) fn remove_all(path: &Path) -> Result<(), PathError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(PathError::new("remove", path)(e)),
        _ => Ok(()),
    }
}
