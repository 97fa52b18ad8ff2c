//! The table of open descriptors as a whole.

use rustix::fs::{Mode, OFlags, open};
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

/// Makes the table large enough for `count` descriptors, if so many may be opened at all. To be called while there is one
/// thread: a table that has to grow later, with several threads at it, makes those that open anything wait until all CPUs
/// have let go of the old one, 10 ms and more each time that it doubles (fs/file.c, `expand_fdtable`). It takes the kernel
/// 8 bytes of memory for each.
pub fn make_room(count: u64) -> io::Result<()> {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(i32::MAX as u64);
    let any = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let last = i32::try_from(count.min(most).saturating_sub(1)).unwrap_or(i32::MAX);
    // Closed at once: the table does not shrink.
    rustix::io::fcntl_dupfd_cloexec(&any, last)?;
    Ok(())
}

/// How many descriptors this process may still open, as far as its own limit goes. One system call on Linux 6.2 or later, where the
/// size of `/proc/self/fd` is the number of open descriptors (fs/proc/fd.c, `proc_fd_getattr`).
pub fn free() -> io::Result<u64> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(u64::MAX) };
    let open = match rustix::fs::stat("/proc/self/fd")?.st_size {
        size @ 1.. => size.unsigned_abs(),
        // The listing has one of its own.
        _ => std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64,
    };
    Ok(limit.saturating_sub(open))
}

/// How many descriptors this process may have at all.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_descriptors_are_those_that_are_not_open() {
        // Other tests open and close some meanwhile, but not so many.
        let before = free().expect("looks");
        let files: Vec<_> = (0..300).map(|_| std::fs::File::open("/dev/null").expect("opens")).collect();
        let after = free().expect("looks");
        assert!((250..350).contains(&(before - after)), "{before} {after}");
        drop(files);
    }

    #[test]
    fn room_is_made_within_the_limit() {
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("is there");
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("a size");
            line.trim().parse::<u64>().expect("a number")
        };
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let wanted = (2 * size()).min(limit);
        make_room(wanted).expect("there is room");
        assert!(size() >= wanted);
        make_room(0).expect("nothing to do");
    }
}
