//! The table of open descriptors as a whole.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// Sets close-on-exec on every descriptor from `first` up, so that nothing that this process was started with
/// reaches its children (close_range(2), `CLOSE_RANGE_CLOEXEC`, Linux 5.11).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call closes nothing, it only sets a flag; descriptors stay valid for whoever owns them.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the soft limit of open descriptors to the hard one; returns the limit now in force (`None`: no limit).
pub fn raise_limit() -> io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum)
}
