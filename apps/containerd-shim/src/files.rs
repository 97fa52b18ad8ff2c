//! The files in the working directory through which the daemon learns what became of the process: `starttime`, `pid` and
//! `exitStatus`.

use alloc::format;
use alloc::string::ToString;
use contract::container_files::INIT;
use contract::process_files::{PID, READY, RUNTIME_PID, START_TIME, STATUS, STATUS_TEMPORARY};
use failpoint::{Point, reach};
use rustix::fs::{CWD, Mode, OFlags, ftruncate, open, rename, unlink};
use rustix::io;
use shim_core::files::{create, write, write_all, write_whole};
use shim_core::{Context, Error};
use sys::Explained;

use crate::error::Failure;

/// How many seconds to wait before the status is written again. The kernel does not report when a full disk has room.
const STATUS_RETRY_DELAY: i64 = 1;

/// Reserves room for the status. The disk may be full by the time the process ends.
pub(crate) fn reserve_status() -> io::Result<()> {
    // A status has at most three digits.
    write(CWD, STATUS_TEMPORARY, "   ")
}

/// Writes `exitStatus`. Tries until it works where the disk is full or read-only: only this shim knows the status, and `exit` stays
/// open until the status is there.
pub(crate) fn write_status(status: u32) -> Result<(), Error> {
    loop {
        match try_write_status(status) {
            Err(e) if sys::exhausted::will_pass(e) => {
                let delay = rustix::thread::Timespec { tv_sec: STATUS_RETRY_DELAY, tv_nsec: 0 };
                let _ = rustix::thread::nanosleep(&delay);
            }
            result => return result.context(|| "write exitStatus".into()),
        }
    }
}

fn try_write_status(status: u32) -> io::Result<()> {
    // The file has its room since `reserve_status`, so it is not truncated before it is written.
    let file = create(CWD, STATUS_TEMPORARY, OFlags::empty())?;
    let text = status.to_string();
    write_all(&file, text.as_bytes())?;
    ftruncate(&file, text.len() as u64)?;
    reach(Point::ShimStatusPrepared);
    rename(STATUS_TEMPORARY, STATUS)?;
    reach(Point::ShimStatusWritten);
    Ok(())
}

/// Writes `starttime` and `pid` from what the runtime has written. Returns the pid.
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
    // The daemon reads `starttime` only once `pid` is there.
    write(CWD, START_TIME, &stat.starttime.to_string()).context(|| "write starttime".into())?;
    reach(Point::ShimStarttimeWritten);
    if text == pid.to_string() {
        // The runtime has ended, so its file is whole.
        rename(RUNTIME_PID, PID).context(|| "write pid".into())?;
    } else {
        write_whole(CWD, PID, &pid.to_string()).context(|| "write pid".into())?;
        let _ = unlink(RUNTIME_PID);
    }
    reach(Point::ShimPidWritten);
    announce();
    Ok(pid)
}

/// Wakes a daemon that has made the FIFO `.ready` because it cannot watch the directory.
fn announce() {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(fifo) = open(READY, flags, Mode::empty()) {
        let _ = write_all(fifo, b"\n");
    }
}

/// The pid and start time of the container's init, as its shim has recorded them. For the shim of an added process, whose
/// directory is beside that of init.
pub(crate) fn recorded_init() -> Option<(u32, u64)> {
    let text = |name: &str| sys::small_file::read_text(CWD, format!("../{INIT}/{name}")).ok();
    Some((text(PID)?.trim().parse().ok()?, text(START_TIME)?.trim().parse().ok()?))
}
