//! Errors that go away by themselves.

use std::io;

/// Whether an error says that this machine has run out of something: descriptors, processes, memory, space. What
/// failed may be tried again, once somebody has given it back.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        // EAGAIN is fork(2)'s for want of processes. ENOBUFS and ENOLCK are the kernel's own tables.
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::EAGAIN
                | libc::ENOMEM
                | libc::ENOSPC
                | libc::EDQUOT
                | libc::ENOBUFS
                | libc::ENOLCK
        )
    )
}

/// Whether what failed may be possible later without anybody changing what was asked for: something has run out, or a
/// file system is read-only for the time being.
pub fn may_pass(error: &io::Error) -> bool {
    is_exhausted(error) || error.raw_os_error() == Some(libc::EROFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_not_exhausted() {
        let is = |number| is_exhausted(&io::Error::from_raw_os_error(number));
        assert!(is(libc::EMFILE) && is(libc::ENOSPC) && is(libc::EAGAIN));
        assert!(!is(libc::ENOENT) && !is(libc::EROFS) && !is_exhausted(&io::ErrorKind::WouldBlock.into()));
    }
}
