//! The process's table of open descriptors as a whole.

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// Sets close-on-exec on every descriptor from `first` up, so that children inherit nothing that this process inherited
/// itself (close_range(2), `CLOSE_RANGE_CLOEXEC`, Linux 5.11).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing and only sets a flag, so that each descriptor stays
    // valid for its owner. The call takes plain numbers and no pointer.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the soft limit of open descriptors to the hard limit. Returns the limit now in force; `None` means unlimited.
pub fn raise_limit() -> io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum)
}

/// Makes the table large enough for `count` descriptors, or for as many as the limit allows. Costs the kernel 8 bytes
/// of memory for each descriptor.
///
/// Call this while the process has one thread. When the table of a process with several threads grows, the thread that
/// opens a file waits until no CPU uses the old table: 10 ms and more each time that the table doubles (fs/file.c,
/// `expand_fdtable`).
pub fn make_room(count: u64) -> io::Result<()> {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(i32::MAX as u64);
    let any = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let last = i32::try_from(count.min(most).saturating_sub(1)).unwrap_or(i32::MAX);
    // The new descriptor is closed at once. The table does not shrink.
    rustix::io::fcntl_dupfd_cloexec(&any, last)?;
    Ok(())
}

/// Returns how many more descriptors this process's own limit allows. Takes one stat(2) on Linux 6.2 or later, where
/// the size of `/proc/self/fd` is the number of open descriptors (fs/proc/fd.c, `proc_fd_getattr`).
pub fn free() -> io::Result<u64> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(u64::MAX) };
    let open = match rustix::fs::stat("/proc/self/fd")?.st_size {
        size @ 1.. => size.unsigned_abs(),
        // Listing the directory opens one descriptor itself.
        _ => std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64,
    };
    Ok(limit.saturating_sub(open))
}

/// Returns how many descriptors this process may have open.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_descriptors_reduce_the_number_of_free_ones() {
        // Other tests open and close descriptors at the same time, but only a few.
        let before = free().expect("looks");
        let files: Vec<_> = (0..300).map(|_| std::fs::File::open("/dev/null").expect("opens")).collect();
        let after = free().expect("looks");
        assert!((250..350).contains(&(before - after)), "{before} {after}");
        drop(files);
    }

    #[test]
    fn descriptor_table_grows_to_the_requested_size() {
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
