//! The small files that tell the daemon how the process is. Each is whole or not there: a temporary name,
//! then a rename. No fsync: the state directory does not outlive the machine.

use std::io::{self, Write};
use std::path::Path;

use failpoint::{Point, reach};
use rustix::fs::CWD;

use crate::error::{Context, Failure};

/// Where the runtime writes the pid; it does so before it has finished.
pub(crate) const RUNTIME_PID: &str = ".runtime-pid";

/// Writes `name` in the working directory.
pub(crate) fn write_whole(name: &str, content: &str) -> io::Result<()> {
    let temporary = format!(".{name}");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, name)
}

/// Where the status is written before it gets its name.
const STATUS: &str = ".exitStatus";

/// Takes the room for the status while there is some: when the process ends the disk may be full.
pub(crate) fn reserve_status() -> io::Result<()> {
    // As many characters as a status has at most.
    std::fs::write(STATUS, "   ")
}

/// Writes `exitStatus`, in the room that was taken for it.
pub(crate) fn write_status(status: u32) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(STATUS)?;
    let text = status.to_string();
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    reach(Point::ShimStatusPrepared);
    std::fs::rename(STATUS, "exitStatus")?;
    reach(Point::ShimStatusWritten);
    Ok(())
}

/// Takes over the pid from the runtime, and writes `starttime` and then `pid`.
pub(crate) fn record_process() -> Result<u32, Failure> {
    let text = sys::small_file::read_text(CWD, RUNTIME_PID)
        .map_err(|e| Failure::Runtime(format!("the runtime succeeded but wrote no pid file: {e}")))?;
    let pid: u32 = text
        .trim()
        .parse()
        .map_err(|_| Failure::Runtime(format!("the runtime wrote no number as the pid: {:?}", text.trim())))?;
    let stat = sys::procfs::stat(pid)
        .context(|| format!("read /proc/{pid}/stat"))?
        .ok_or_else(|| Failure::Runtime(format!("the runtime wrote the pid {pid}, and there is no such process")))?;
    // Nobody looks at it before `pid` is there.
    std::fs::write("starttime", stat.starttime.to_string()).context(|| "write starttime".into())?;
    reach(Point::ShimStarttimeWritten);
    if text == pid.to_string() {
        // As whole as it can be: the runtime has ended.
        std::fs::rename(RUNTIME_PID, "pid").context(|| "write pid".into())?;
    } else {
        write_whole("pid", &pid.to_string()).context(|| "write pid".into())?;
        let _ = std::fs::remove_file(RUNTIME_PID);
    }
    reach(Point::ShimPidWritten);
    Ok(pid)
}

/// The pid and start time that a shim has recorded in `directory`.
pub(crate) fn recorded_process(directory: &Path) -> Option<(u32, u64)> {
    let number = |name: &str| sys::small_file::read_text(CWD, directory.join(name)).ok();
    Some((number("pid")?.trim().parse().ok()?, number("starttime")?.trim().parse().ok()?))
}
