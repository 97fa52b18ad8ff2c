//! Sockets that a service manager opened for this process (sd_listen_fds(3)).

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that is passed.
const FIRST: RawFd = 3;

/// A descriptor that was passed, with its number and the name that it was given.
#[derive(Debug)]
pub struct Passed {
    /// As the service manager counts.
    pub number: RawFd,
    /// `FileDescriptorName=`; empty if there is none.
    pub name: String,
    /// The socket itself.
    pub fd: OwnedFd,
}

/// Takes all descriptors that were passed to this process, and not to one that it was started by. Only the first call
/// gives any.
pub fn take() -> Vec<Passed> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| std::env::var(name).unwrap_or_default();
    if variable("LISTEN_PID").parse() != Ok(std::process::id()) || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let count: RawFd = variable("LISTEN_FDS").parse().unwrap_or_default();
    let names = variable("LISTEN_FDNAMES");
    let mut names = names.split(':');
    // No more than any process may have: the number is somebody else's.
    (FIRST..FIRST + count.clamp(0, 1 << 16))
        .map(|number| (number, names.next().unwrap_or_default().to_string()))
        .filter(|(number, _)| is_open(*number))
        .map(|(number, name)| {
            // SAFETY: it is open, as was looked at; the service manager passed it to this process to own, and this is
            // done once, so that nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            Passed { number, name, fd }
        })
        .collect()
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes any number, and changes nothing (fcntl(2)).
    unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_that_was_meant_for_another_process() {
        // Whoever runs the tests passes none to them.
        assert!(take().is_empty());
        assert!(is_open(0) && !is_open(-1) && !is_open(1 << 20));
    }
}
