//! Errors that may go away without a change of what was asked for.

use rustix::io::Errno;

/// Returns whether an error means that this machine or process has run out of something: descriptors, processes, memory
/// or space. The operation may succeed later, when some of it has been freed.
#[cfg(feature = "std")]
pub fn is_exhausted(error: &std::io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(has_run_out)
}

/// Returns whether the same operation may succeed later: something has run out ([`is_exhausted`]), or a file system is
/// read-only at the moment.
#[cfg(feature = "std")]
pub fn may_pass(error: &std::io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(will_pass)
}

/// Does what [`may_pass`] does for an [`Errno`].
pub fn will_pass(error: Errno) -> bool {
    has_run_out(error) || error == Errno::ROFS
}

fn has_run_out(error: Errno) -> bool {
    matches!(
        error,
        // fork(2) fails with EAGAIN when no more processes are allowed. ENOBUFS and ENOLCK mean that a table of the
        // kernel's is full.
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
    fn only_errors_of_scarcity_count_as_exhausted() {
        let is = |number| is_exhausted(&io::Error::from_raw_os_error(number));
        assert!(is(libc::EMFILE) && is(libc::ENOSPC) && is(libc::EAGAIN));
        assert!(!is(libc::ENOENT) && !is(libc::EROFS) && !is_exhausted(&io::ErrorKind::WouldBlock.into()));
        assert!(will_pass(Errno::ROFS) && !will_pass(Errno::NOENT));
    }
}
