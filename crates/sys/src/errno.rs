//! The words for error numbers, for programs without a C library.

use core::fmt;
use rustix::io::Errno;

/// An error number that is displayed as std displays it: the words, then the number.
#[derive(Debug, Clone, Copy)]
pub struct Explained(pub Errno);

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0.raw_os_error();
        match WORDS.iter().find(|(error, _)| *error == self.0) {
            Some((_, words)) => write!(f, "{words} (os error {number})"),
            None => write!(f, "os error {number}"),
        }
    }
}

/// The errors that a program meets when it opens files, moves bytes and starts programs, with the words of strerror(3).
const WORDS: &[(Errno, &str)] = &[
    (Errno::PERM, "Operation not permitted"),
    (Errno::NOENT, "No such file or directory"),
    (Errno::SRCH, "No such process"),
    (Errno::INTR, "Interrupted system call"),
    (Errno::IO, "Input/output error"),
    (Errno::NXIO, "No such device or address"),
    (Errno::TOOBIG, "Argument list too long"),
    (Errno::NOEXEC, "Exec format error"),
    (Errno::BADF, "Bad file descriptor"),
    (Errno::CHILD, "No child processes"),
    (Errno::AGAIN, "Resource temporarily unavailable"),
    (Errno::NOMEM, "Cannot allocate memory"),
    (Errno::ACCESS, "Permission denied"),
    (Errno::FAULT, "Bad address"),
    (Errno::BUSY, "Device or resource busy"),
    (Errno::EXIST, "File exists"),
    (Errno::XDEV, "Invalid cross-device link"),
    (Errno::NODEV, "No such device"),
    (Errno::NOTDIR, "Not a directory"),
    (Errno::ISDIR, "Is a directory"),
    (Errno::INVAL, "Invalid argument"),
    (Errno::NFILE, "Too many open files in system"),
    (Errno::MFILE, "Too many open files"),
    (Errno::NOTTY, "Inappropriate ioctl for device"),
    (Errno::TXTBSY, "Text file busy"),
    (Errno::FBIG, "File too large"),
    (Errno::NOSPC, "No space left on device"),
    (Errno::SPIPE, "Illegal seek"),
    (Errno::ROFS, "Read-only file system"),
    (Errno::PIPE, "Broken pipe"),
    (Errno::NAMETOOLONG, "File name too long"),
    (Errno::NOSYS, "Function not implemented"),
    (Errno::NOTEMPTY, "Directory not empty"),
    (Errno::LOOP, "Too many levels of symbolic links"),
    (Errno::OVERFLOW, "Value too large for defined data type"),
    (Errno::BADMSG, "Bad message"),
    (Errno::OPNOTSUPP, "Operation not supported"),
    (Errno::ADDRINUSE, "Address already in use"),
    (Errno::CONNRESET, "Connection reset by peer"),
    (Errno::NOBUFS, "No buffer space available"),
    (Errno::NOTCONN, "Transport endpoint is not connected"),
    (Errno::TIMEDOUT, "Connection timed out"),
    (Errno::STALE, "Stale file handle"),
    (Errno::DQUOT, "Disk quota exceeded"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_each_error_match_the_c_library() {
        for (error, _) in WORDS {
            assert_eq!(Explained(*error).to_string(), std::io::Error::from(*error).to_string());
        }
        assert_eq!(Explained(Errno::from_raw_os_error(999)).to_string(), "os error 999");
    }
}
