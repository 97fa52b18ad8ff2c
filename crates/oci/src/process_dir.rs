//! A process's directory, through which its shim and whoever supervises it speak. The files are a contract.

use failpoint::{Point, reach};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mknodat, open};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::PathError;
use crate::checksum::seal;
use crate::container_dir::{is_marked, mark_as_creating, remove_all, unmark};
use crate::json::{FORMAT, null_as_default, read_object, write_whole};
use crate::log::{self, LogEntry};
use crate::sealed::RuntimeCopy;
use crate::spec::ProcessSpec;
use crate::stdio::Stdio;

/// Written by a shim before `exitStatus`, if there is something to count.
const OOM_KILLS: &str = ".oomKills";

/// What is written to `process.json` beside the OCI process object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProcessRecord {
    /// False for init, true for an added process.
    pub exec: bool,
    /// Client's path.
    pub containerd_stdin: String,
    /// Client's path.
    pub containerd_stdout: String,
    /// Client's path.
    pub containerd_stderr: String,
    /// Put in front of the runtime's subcommand.
    #[serde(deserialize_with = "null_as_default")]
    pub runtime_args: Vec<String>,
    /// Pass `--no-pivot`.
    pub no_pivot_root: bool,
    /// Create and start it by one call of the runtime.
    pub run: bool,
    /// Directory to restore from; empty for a fresh start.
    pub checkpoint: String,
    /// Host ids that the container's root maps to.
    #[serde(rename = "rootUID")]
    pub root_uid: u32,
    /// Host ids that the container's root maps to.
    #[serde(rename = "rootGID")]
    pub root_gid: u32,
    /// Tells this process from others of the same name; empty if an older daemon made it.
    pub instance: String,
    /// The copy of the runtime that its shim runs, if it finds it.
    pub runtime_copy: Option<RuntimeCopy>,
    /// Has the shim of an init count the kills for memory: the v1 controller, or nothing for v2, a colon, and where the
    /// hierarchy is mounted. Empty where nothing is to be counted.
    pub memory_mount: String,
}

impl ProcessRecord {
    /// The stdio paths.
    pub fn stdio(&self) -> Stdio {
        Stdio {
            stdin: self.containerd_stdin.clone(),
            stdout: self.containerd_stdout.clone(),
            stderr: self.containerd_stderr.clone(),
        }
    }

    /// The names of the members that it adds to the process object.
    const MEMBERS: [&str; 15] = [
        "memoryMount",
        "crc",
        "exec",
        "containerdStdin",
        "containerdStdout",
        "containerdStderr",
        "runtimeArgs",
        "noPivotRoot",
        "run",
        "checkpoint",
        "rootUID",
        "rootGID",
        "instance",
        "runtimeCopy",
        "version",
    ];

    fn add_to(&self, object: &mut Map<String, Value>) {
        let mut set = |name: &str, value: Value| object.insert(name.to_string(), value);
        set("exec", self.exec.into());
        set("containerdStdin", self.containerd_stdin.clone().into());
        set("containerdStdout", self.containerd_stdout.clone().into());
        set("containerdStderr", self.containerd_stderr.clone().into());
        set("runtimeArgs", self.runtime_args.clone().into());
        set("noPivotRoot", self.no_pivot_root.into());
        set("run", self.run.into());
        set("checkpoint", self.checkpoint.clone().into());
        set("rootUID", self.root_uid.into());
        set("rootGID", self.root_gid.into());
        set("instance", self.instance.clone().into());
        if let Some(RuntimeCopy { descriptor, device, inode }) = self.runtime_copy {
            let copy = serde_json::json!({ "descriptor": descriptor, "device": device, "inode": inode });
            set("runtimeCopy", copy);
        }
        if !self.memory_mount.is_empty() {
            set("memoryMount", self.memory_mount.clone().into());
        }
        set("version", FORMAT.into());
    }
}

/// A command to a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Pass on end-of-file to the process's stdin.
    CloseStdin,
    /// Resize its terminal, in characters.
    Resize {
        /// Width.
        columns: u16,
        /// Height.
        rows: u16,
    },
}

/// The runtime that deletes the container.
const DELETING: &str = ".deleting";

/// The directory of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessDir(PathBuf);

impl ProcessDir {
    pub(crate) fn new(path: PathBuf) -> ProcessDir {
        ProcessDir(path)
    }

    /// How many processes the kernel had killed for memory in the group of this one, as its shim counted them until the end.
    pub fn oom_kills(&self) -> Option<u64> {
        sys::small_file::read_text(CWD, self.0.join(OOM_KILLS)).ok()?.trim().parse().ok()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory with `process.json` and the two FIFOs. A half-made one is removed.
    pub fn create(&self, mut process: Map<String, Value>, record: &ProcessRecord) -> Result<(), PathError> {
        std::fs::DirBuilder::new().mode(0o700).create(&self.0).map_err(PathError::new("create", &self.0))?;
        reach(Point::ProcessDirectoryMade);
        // Of an init the container's directory says so.
        let marked = if record.exec { mark_as_creating(&self.0, &record.instance) } else { Ok(()) };
        record.add_to(&mut process);
        // Every runtime takes null for absent; shims, of older daemons too, do not.
        process.retain(|_, value| !value.is_null());
        // Older daemons, which a user may go back to, read it without a look at whether it is there.
        if !process.contains_key("capabilities") {
            process.insert("capabilities".into(), Map::new().into());
        }
        let made = marked.and_then(|()| self.fill(&Value::Object(process)));
        if made.is_err() {
            let _ = self.remove();
        }
        made
    }

    fn fill(&self, process: &Value) -> Result<(), PathError> {
        let path = self.0.join("process.json");
        write_whole(&path, &seal(process.to_string().into_bytes())).map_err(PathError::new("write", &path))?;
        reach(Point::ProcessWritten);
        for name in ["exit", "control"] {
            let path = self.0.join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .map_err(PathError::new("make fifo", &path))?;
        }
        reach(Point::FifosMade);
        Ok(())
    }

    /// Notes that the start of an added process has been recorded.
    pub fn set_started(&self) -> Result<(), PathError> {
        unmark(&self.0)
    }

    /// Whether an added process is being made, or was when its daemon ended.
    pub fn is_being_made(&self) -> bool {
        is_marked(&self.0)
    }

    /// Reads `process.json`.
    pub fn read(&self) -> Result<(ProcessSpec, ProcessRecord), PathError> {
        let path = self.0.join("process.json");
        let text = sys::small_file::read(CWD, &path).map_err(PathError::new("read", &path))?;
        let parse = || Ok::<_, std::io::Error>((read_object(&text)?, read_object(&text)?));
        parse().map_err(PathError::new("read", &path))
    }

    /// The process object in `process.json`, without the members that a [`ProcessRecord`] adds.
    pub fn read_object(&self) -> Result<Map<String, Value>, PathError> {
        let path = self.0.join("process.json");
        let text = sys::small_file::read(CWD, &path).map_err(PathError::new("read", &path))?;
        let mut object: Map<String, Value> = read_object(&text).map_err(PathError::new("read", &path))?;
        object.retain(|name, _| !ProcessRecord::MEMBERS.contains(&name.as_str()));
        Ok(object)
    }

    /// Opens the reading end of `exit`. A read gives 0 bytes once no shim holds the other end.
    pub fn open_exit(&self) -> Result<OwnedFd, PathError> {
        let path = self.0.join("exit");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let exit = open(&path, flags, Mode::empty()).map_err(PathError::new("open", &path))?;
        // Anything else would look like a FIFO whose other side has been closed.
        let kind = fstat(&exit).map_err(PathError::new("look at", &path))?.st_mode;
        if FileType::from_raw_mode(kind) != FileType::Fifo {
            let odd = std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not the FIFO that was made there");
            return Err(PathError::new("open", &path)(odd));
        }
        reach(Point::ExitOpened);
        Ok(exit)
    }

    /// Sends a command to the shim; false if there is none any more.
    pub fn send(&self, command: Command) -> Result<bool, PathError> {
        let path = self.0.join("control");
        let failed = |e: rustix::io::Errno| PathError::new("write", &path)(e);
        let line = match command {
            Command::CloseStdin => "0 0 0\n".to_string(),
            Command::Resize { columns, rows } => format!("1 {columns} {rows}\n"),
        };
        match open(&path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
            // Shorter than PIPE_BUF: whole or not at all (pipe(7)).
            Ok(fd) => rustix::io::write(&fd, line.as_bytes()).map(|_| true).map_err(failed),
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    /// The pid and start time, once the shim has written them.
    pub fn process(&self) -> Result<Option<(u32, u64)>, PathError> {
        let Some(pid) = self.number("pid")? else { return Ok(None) };
        // Written before the pid.
        let starttime = self.number("starttime")?;
        let missing = || PathError::new("read", &self.0.join("starttime"))(std::io::ErrorKind::NotFound);
        starttime.map(|starttime| Some((pid, starttime))).ok_or_else(missing)
    }

    /// Of pid and start time what can be read.
    pub fn legible(&self) -> (Option<u32>, Option<u64>) {
        (self.number("pid").ok().flatten(), self.number("starttime").ok().flatten())
    }

    /// Notes which process deletes the container whose init this is, for a daemon that comes after this one.
    pub fn write_deleting(&self, pid: u32, starttime: u64) -> Result<(), PathError> {
        let path = self.0.join(DELETING);
        write_whole(&path, format!("{pid} {starttime}\n").as_bytes()).map_err(PathError::new("write", &path))
    }

    /// What [`ProcessDir::write_deleting`] noted last: pid and start time.
    pub fn deleting(&self) -> Option<(u32, u64)> {
        let text = sys::small_file::read_text(CWD, self.0.join(DELETING)).ok()?;
        let (pid, starttime) = text.trim_end().split_once(' ')?;
        Some((pid.parse().ok()?, starttime.parse().ok()?))
    }

    /// The pid that the runtime has written and the shim has not taken over.
    pub fn unrecorded_pid(&self) -> Option<u32> {
        self.number(".runtime-pid").ok()?
    }

    /// How the process ended, once the shim has written it.
    pub fn exit_status(&self) -> Result<Option<u32>, PathError> {
        self.number("exitStatus")
    }

    /// Writes down how the process ended, in place of a shim that cannot.
    pub fn write_exit_status(&self, status: u32) -> Result<(), PathError> {
        let path = self.0.join("exitStatus");
        write_whole(&path, status.to_string().as_bytes()).map_err(PathError::new("write", &path))
    }

    /// The number in a file; `None` if the file is not there.
    fn number<N: std::str::FromStr>(&self, name: &str) -> Result<Option<N>, PathError> {
        let path = self.0.join(name);
        let text = match sys::small_file::read_text(CWD, &path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(PathError::new("read", &path))?,
        };
        let none = || std::io::Error::new(std::io::ErrorKind::InvalidData, "it is no number");
        text.trim().parse().map(Some).map_err(|_| PathError::new("read", &path)(none()))
    }

    /// Where the runtime's own log goes.
    pub fn runtime_log(&self) -> PathBuf {
        self.0.join("log.json")
    }

    /// Whether the shim has got so far that the runtime may have been started.
    pub fn has_begun(&self) -> bool {
        [".exitStatus", "exitStatus", ".runtime-pid", "log.json"].iter().any(|name| self.0.join(name).exists())
    }

    /// Why the runtime failed, in its own words, if its log says so.
    pub fn runtime_error(&self) -> Option<String> {
        log::reason(&log::read(&self.runtime_log(), 0))
    }

    /// What the runtime has warned of.
    pub fn runtime_warnings(&self) -> Vec<LogEntry> {
        log::read(&self.runtime_log(), 0).into_iter().filter(LogEntry::is_warning).collect()
    }

    /// The last error that the shim wrote down.
    pub fn shim_error(&self) -> Option<LogEntry> {
        self.shim_log().into_iter().rfind(|entry| entry.level == "error")
    }

    /// Everything that the shim wrote down.
    pub fn shim_log(&self) -> Vec<LogEntry> {
        log::read(&self.0.join("shim-log.json"), 0)
    }

    /// Removes the directory; it not being there is no error.
    pub fn remove(&self) -> Result<(), PathError> {
        remove_all(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (tempfile::TempDir, ProcessDir) {
        let directory = tempfile::tempdir().expect("tempdir");
        let process = ProcessDir::new(directory.path().join("p"));
        let record = ProcessRecord { exec: true, instance: "k".into(), root_uid: 3, ..ProcessRecord::default() };
        let spec = ProcessSpec { args: vec!["a".into()], ..ProcessSpec::default() };
        process.create(spec.to_exec(Map::new(), None), &record).expect("creates");
        assert_eq!(process.read().expect("reads"), (spec, record));
        (directory, process)
    }

    #[test]
    fn the_object_is_read_back_without_the_members_of_the_record() {
        let (_directory, process) = made();
        let spec = ProcessSpec { args: vec!["a".into()], ..ProcessSpec::default() };
        assert_eq!(process.read_object().expect("reads"), spec.to_exec(Map::new(), None));
        let (mut all, copy) = (Map::new(), Some(RuntimeCopy { descriptor: 1, device: 2, inode: 3 }));
        ProcessRecord { runtime_copy: copy, ..ProcessRecord::default() }.add_to(&mut all);
        assert!(all.keys().all(|name| ProcessRecord::MEMBERS.contains(&name.as_str())), "{all:?}");
    }

    #[test]
    fn capabilities_are_always_there() {
        let directory = tempfile::tempdir().expect("tempdir");
        for (number, object) in [serde_json::json!({}), serde_json::json!({"capabilities": null})].iter().enumerate() {
            let process = ProcessDir::new(directory.path().join(number.to_string()));
            let object = object.as_object().expect("an object").clone();
            process.create(object, &ProcessRecord::default()).expect("creates");
            assert_eq!(process.read_object().expect("reads")["capabilities"], serde_json::json!({}));
        }
    }

    #[test]
    fn a_shim_that_is_not_there_takes_no_commands() {
        let (_directory, process) = made();
        assert!(!process.send(Command::CloseStdin).expect("no error"));
        let path = process.path().join("control");
        let shim = open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).expect("opens");
        assert!(process.send(Command::Resize { columns: 80, rows: 24 }).expect("sends"));
        let mut line = [0; 32];
        let n = rustix::io::read(&shim, &mut line).expect("reads");
        assert_eq!(&line[..n], b"1 80 24\n");
    }

    #[test]
    fn secrets_are_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, process) = made();
        let mode = std::fs::metadata(process.path().join("process.json")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
