//! The small files that tell the daemon how the process is. Each is whole or not there: a temporary name,
//! then a rename. No fsync: the state directory does not outlive the machine.

use alloc::format;
use alloc::string::ToString;
use contract::process_files::{PID, READY, RUNTIME_PID, START_TIME, STATUS, STATUS_TEMPORARY};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ftruncate, open, rename, unlink};
use rustix::io::{self, Errno};
use rustix::path::Arg;
use rustix::thread::Timespec;

use failpoint::{Point, reach};

use sys::Explained;

use crate::error::{Context, Failure};

/// Does nothing for some seconds.
pub(crate) fn sleep(seconds: u32) {
    let _ = rustix::thread::nanosleep(&Timespec { tv_sec: seconds.into(), tv_nsec: 0 });
}

/// Writes all of `bytes`, to what does not block.
pub(crate) fn write_all(file: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn create(path: impl Arg, flags: OFlags) -> io::Result<OwnedFd> {
    open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | flags, Mode::from_raw_mode(0o666))
}

/// Writes a file, from its begin.
pub(crate) fn write(path: impl Arg, content: &str) -> io::Result<()> {
    write_all(create(path, OFlags::TRUNC)?, content.as_bytes())
}

/// Adds to the end of a file.
pub(crate) fn append(path: impl Arg, content: &[u8]) -> io::Result<()> {
    write_all(create(path, OFlags::APPEND)?, content)
}

/// Writes `name` in the working directory.
pub(crate) fn write_whole(name: &str, content: &str) -> io::Result<()> {
    let temporary = format!(".{name}");
    write(&temporary[..], content)?;
    rename(&temporary[..], name)
}

/// Takes the room for the status while there is some: when the process ends the disk may be full.
pub(crate) fn reserve_status() -> io::Result<()> {
    // As many characters as a status has at most.
    write(STATUS_TEMPORARY, "   ")
}

/// Writes `exitStatus`, in the room that was taken for it.
pub(crate) fn write_status(status: u32) -> io::Result<()> {
    let file = create(STATUS_TEMPORARY, OFlags::empty())?;
    let text = status.to_string();
    write_all(&file, text.as_bytes())?;
    ftruncate(&file, text.len() as u64)?;
    reach(Point::ShimStatusPrepared);
    rename(STATUS_TEMPORARY, STATUS)?;
    reach(Point::ShimStatusWritten);
    Ok(())
}

/// Tells a daemon that `pid` is there, if it has made a FIFO for that because it cannot watch the directory.
fn announce() {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(fifo) = open(READY, flags, Mode::empty()) {
        let _ = write_all(fifo, b"\n");
    }
}

/// Takes over the pid from the runtime, and writes `starttime` and then `pid`.
pub(crate) fn record_process() -> Result<u32, Failure> {
    let text = sys::small_file::read_text(CWD, RUNTIME_PID)
        .map_err(|e| Failure::Runtime(format!("the runtime succeeded but wrote no pid file: {}", Explained(e))))?;
    let pid: u32 = text
        .trim()
        .parse()
        .map_err(|_| Failure::Runtime(format!("the runtime wrote no number as the pid: {:?}", text.trim())))?;
    let stat = sys::procfs::stat(pid)
        .context(|| format!("read /proc/{pid}/stat"))?
        .ok_or_else(|| Failure::Runtime(format!("the runtime wrote the pid {pid}, and there is no such process")))?;
    // Nobody looks at it before `pid` is there.
    write(START_TIME, &stat.starttime.to_string()).context(|| "write starttime".into())?;
    reach(Point::ShimStarttimeWritten);
    if text == pid.to_string() {
        // As whole as it can be: the runtime has ended.
        rename(RUNTIME_PID, PID).context(|| "write pid".into())?;
    } else {
        write_whole(PID, &pid.to_string()).context(|| "write pid".into())?;
        let _ = unlink(RUNTIME_PID);
    }
    reach(Point::ShimPidWritten);
    announce();
    Ok(pid)
}

/// The pid and start time that a shim has recorded in `directory`.
pub(crate) fn recorded_process(directory: &str) -> Option<(u32, u64)> {
    let number = |name: &str| sys::small_file::read_text(CWD, format!("{directory}/{name}")).ok();
    Some((number(PID)?.trim().parse().ok()?, number(START_TIME)?.trim().parse().ok()?))
}
