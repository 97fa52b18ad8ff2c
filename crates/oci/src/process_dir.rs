//! A process's directory, through which its shim and the daemon talk. The crate `contract` names the files and says what they
//! hold.

use contract::process_files::{
    CONTROL, DELETING, EXIT, OOM_KILLS, PID, REQUEST, RUNTIME_LOG, RUNTIME_PID, SHIM_LOG, START_TIME, STATUS,
    STATUS_TEMPORARY,
};
use contract::{Command, ProcessRecord};
use failpoint::{Point, reach};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mknodat, open};
use serde_json::{Map, Value};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::PathError;
use crate::checksum::seal;
use crate::container_dir::{is_marked, mark_as_creating, remove_all, unmark};
use crate::json::{read_object, write_whole};
use crate::log::{self, LogEntry};
use crate::spec::ProcessSpec;

/// The directory of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessDir(PathBuf);

impl ProcessDir {
    pub(crate) fn new(path: PathBuf) -> ProcessDir {
        ProcessDir(path)
    }

    /// The number of OOM kills in the process's control group, as its shim counted them until the process ended.
    pub fn oom_kills(&self) -> Option<u64> {
        sys::small_file::read_text(CWD, self.0.join(OOM_KILLS)).ok()?.trim().parse().ok()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory with `process.json` and the two FIFOs. If that fails, the directory is removed again.
    pub fn create(&self, mut process: Map<String, Value>, record: &ProcessRecord) -> Result<(), PathError> {
        std::fs::DirBuilder::new().mode(0o700).create(&self.0).map_err(PathError::new("create", &self.0))?;
        reach(Point::ProcessDirectoryMade);
        // For an init the marker is in the container's directory.
        let marked = if record.exec { mark_as_creating(&self.0, &record.instance) } else { Ok(()) };
        record.add_to(&mut process);
        // Every runtime takes null for absent. A shim does not, and the shim may be an older one.
        process.retain(|_, value| !value.is_null());
        // Older daemons, which a user may go back to, read this member without checking that it is there.
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
        let path = self.0.join(REQUEST);
        write_whole(&path, &seal(process.to_string().into_bytes())).map_err(PathError::new("write", &path))?;
        reach(Point::ProcessWritten);
        for name in [EXIT, CONTROL] {
            let path = self.0.join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .map_err(PathError::new("make fifo", &path))?;
        }
        reach(Point::FifosMade);
        Ok(())
    }

    /// Removes the marker of an added process, after the daemon has recorded its start.
    pub fn set_started(&self) -> Result<(), PathError> {
        unmark(&self.0)
    }

    /// Whether an added process has its marker: it is being made, or it was when its daemon ended.
    pub fn is_being_made(&self) -> bool {
        is_marked(&self.0)
    }

    /// Reads `process.json`.
    pub fn read(&self) -> Result<(ProcessSpec, ProcessRecord), PathError> {
        let path = self.0.join(REQUEST);
        let text = sys::small_file::read(CWD, &path).map_err(PathError::new("read", &path))?;
        let parse = || Ok::<_, std::io::Error>((read_object(&text)?, read_object(&text)?));
        parse().map_err(PathError::new("read", &path))
    }

    /// The process object in `process.json`, without the members that a [`ProcessRecord`] adds.
    pub fn read_object(&self) -> Result<Map<String, Value>, PathError> {
        let path = self.0.join(REQUEST);
        let text = sys::small_file::read(CWD, &path).map_err(PathError::new("read", &path))?;
        let mut object: Map<String, Value> = read_object(&text).map_err(PathError::new("read", &path))?;
        object.retain(|name, _| !ProcessRecord::MEMBERS.contains(&name.as_str()));
        Ok(object)
    }

    /// Opens the reading end of `exit`. A read returns 0 bytes once no shim holds the writing end.
    pub fn open_exit(&self) -> Result<OwnedFd, PathError> {
        let path = self.0.join(EXIT);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let exit = open(&path, flags, Mode::empty()).map_err(PathError::new("open", &path))?;
        // Any other file would look like a FIFO whose writing end is closed.
        let kind = fstat(&exit).map_err(PathError::new("look at", &path))?.st_mode;
        if FileType::from_raw_mode(kind) != FileType::Fifo {
            let odd = std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not the FIFO that was made there");
            return Err(PathError::new("open", &path)(odd));
        }
        reach(Point::ExitOpened);
        Ok(exit)
    }

    /// Sends a command to the shim. False if the shim has ended.
    pub fn send(&self, command: Command) -> Result<bool, PathError> {
        let path = self.0.join(CONTROL);
        let failed = |e: rustix::io::Errno| PathError::new("write", &path)(e);
        match open(&path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
            // The line is shorter than PIPE_BUF, so the kernel writes all of it or nothing (pipe(7)).
            Ok(fd) => rustix::io::write(&fd, command.to_line().as_bytes()).map(|_| true).map_err(failed),
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    /// The pid and start time, once the shim has written them.
    pub fn process(&self) -> Result<Option<(u32, u64)>, PathError> {
        let Some(pid) = self.number(PID)? else { return Ok(None) };
        // The shim writes the start time before the pid.
        let starttime = self.number(START_TIME)?;
        let missing = || PathError::new("read", &self.0.join(START_TIME))(std::io::ErrorKind::NotFound);
        starttime.map(|starttime| Some((pid, starttime))).ok_or_else(missing)
    }

    /// The pid and the start time, each if it can be read.
    pub fn legible(&self) -> (Option<u32>, Option<u64>) {
        (self.number(PID).ok().flatten(), self.number(START_TIME).ok().flatten())
    }

    /// Writes down which process deletes the container whose init this is, for a later daemon.
    pub fn write_deleting(&self, pid: u32, starttime: u64) -> Result<(), PathError> {
        let path = self.0.join(DELETING);
        write_whole(&path, format!("{pid} {starttime}\n").as_bytes()).map_err(PathError::new("write", &path))
    }

    /// The pid and start time that [`ProcessDir::write_deleting`] wrote last.
    pub fn deleting(&self) -> Option<(u32, u64)> {
        let text = sys::small_file::read_text(CWD, self.0.join(DELETING)).ok()?;
        let (pid, starttime) = text.trim_end().split_once(' ')?;
        Some((pid.parse().ok()?, starttime.parse().ok()?))
    }

    /// The pid that the runtime has written, while the shim has not renamed the file.
    pub fn unrecorded_pid(&self) -> Option<u32> {
        self.number(RUNTIME_PID).ok()?
    }

    /// How the process ended, once the shim has written it.
    pub fn exit_status(&self) -> Result<Option<u32>, PathError> {
        self.number(STATUS)
    }

    /// Writes down how the process ended, in place of a shim that has died.
    pub fn write_exit_status(&self, status: u32) -> Result<(), PathError> {
        let path = self.0.join(STATUS);
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
        self.0.join(RUNTIME_LOG)
    }

    /// Whether the shim has got so far that the runtime may have been started.
    pub fn has_begun(&self) -> bool {
        [STATUS_TEMPORARY, STATUS, RUNTIME_PID, RUNTIME_LOG].iter().any(|name| self.0.join(name).exists())
    }

    /// The runtime's own error message, if its log has one.
    pub fn runtime_error(&self) -> Option<String> {
        log::reason(&log::read(&self.runtime_log(), 0))
    }

    /// The warnings in the runtime's log.
    pub fn runtime_warnings(&self) -> Vec<LogEntry> {
        log::read(&self.runtime_log(), 0).into_iter().filter(LogEntry::is_warning).collect()
    }

    /// The last error in the shim's log.
    pub fn shim_error(&self) -> Option<LogEntry> {
        self.shim_log().into_iter().rfind(|entry| entry.level == "error")
    }

    /// The shim's log.
    pub fn shim_log(&self) -> Vec<LogEntry> {
        log::read(&self.0.join(SHIM_LOG), 0)
    }

    /// Removes the directory. A missing directory is no error.
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
    fn process_object_is_read_back_without_the_members_of_the_record() {
        let (_directory, process) = made();
        let spec = ProcessSpec { args: vec!["a".into()], ..ProcessSpec::default() };
        assert_eq!(process.read_object().expect("reads"), spec.to_exec(Map::new(), None));
    }

    #[test]
    fn process_object_always_has_capabilities() {
        let directory = tempfile::tempdir().expect("tempdir");
        for (number, object) in [serde_json::json!({}), serde_json::json!({"capabilities": null})].iter().enumerate() {
            let process = ProcessDir::new(directory.path().join(number.to_string()));
            let object = object.as_object().expect("an object").clone();
            process.create(object, &ProcessRecord::default()).expect("creates");
            assert_eq!(process.read_object().expect("reads")["capabilities"], serde_json::json!({}));
        }
    }

    #[test]
    fn command_is_sent_only_if_a_shim_reads_it() {
        let (_directory, process) = made();
        assert!(!process.send(Command::CloseStdin).expect("no error"));
        let path = process.path().join(CONTROL);
        let shim = open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).expect("opens");
        assert!(process.send(Command::Resize { columns: 80, rows: 24 }).expect("sends"));
        let mut line = [0; 32];
        let n = rustix::io::read(&shim, &mut line).expect("reads");
        assert_eq!(&line[..n], b"1 80 24\n");
    }

    #[test]
    fn process_json_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, process) = made();
        let mode = std::fs::metadata(process.path().join(REQUEST)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
