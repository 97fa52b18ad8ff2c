//! Errors that go away by themselves.

use rustix::io::Errno;

/// Whether an error says that this machine has run out of something: descriptors, processes, memory, space. What
/// failed may be tried again, once somebody has given it back.
#[cfg(feature = "std")]
pub fn is_exhausted(error: &std::io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(has_run_out)
}

/// Whether what failed may be possible later without anybody changing what was asked for: something has run out, or a
/// file system is read-only for the time being.
#[cfg(feature = "std")]
pub fn may_pass(error: &std::io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(will_pass)
}

/// As [`may_pass`].
pub fn will_pass(error: Errno) -> bool {
    has_run_out(error) || error == Errno::ROFS
}

fn has_run_out(error: Errno) -> bool {
    matches!(
        error,
        // EAGAIN is fork(2)'s for want of processes. ENOBUFS and ENOLCK are the kernel's own tables.
        Errno::MFILE
            | Errno::NFILE
            | Errno::AGAIN
            | Errno::NOMEM
            | Errno::NOSPC
            | Errno::DQUOT
            | Errno::NOBUFS
            | Errno::NOLCK
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn what_is_missing_is_not_exhausted() {
        let is = |number| is_exhausted(&io::Error::from_raw_os_error(number));
        assert!(is(libc::EMFILE) && is(libc::ENOSPC) && is(libc::EAGAIN));
        assert!(!is(libc::ENOENT) && !is(libc::EROFS) && !is_exhausted(&io::ErrorKind::WouldBlock.into()));
        assert!(will_pass(Errno::ROFS) && !will_pass(Errno::NOENT));
    }
}
