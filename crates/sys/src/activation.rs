//! Descriptors that this process did not open itself: listening sockets from a service manager (sd_listen_fds(3)), and what
//! the program that ran in this process before has handed over across execve(2).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The lowest number that a passed descriptor can have. Those below are standard input, output and error.
const FIRST: RawFd = 3;

/// A descriptor from the service manager.
#[derive(Debug)]
pub struct Passed {
    /// The descriptor's number. The service manager counts from 3.
    pub number: RawFd,
    /// The socket unit's `FileDescriptorName=`, or `unknown` if the service manager sent no names.
    pub name: String,
    /// The descriptor itself.
    pub fd: OwnedFd,
}

/// Takes all descriptors that the service manager passed to this process; none if it passed them to another process, such as a
/// parent of this one. Each call after the first returns none. Call it before anything else opens a descriptor, so that a wrong
/// `LISTEN_FDS` cannot claim that descriptor too.
pub fn take() -> io::Result<Vec<Passed>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    let own = |(number, name)| {
        // SAFETY: the number is open, since sd-notify has set its close-on-exec flag. The service manager gave the descriptor to
        // this very process (LISTEN_PID). `TAKEN` lets one call get here, so no other value owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Passed { number, name, fd }
    };
    Ok(passed.map(own).collect())
}

/// The variable that names the listening sockets which the previous program in this process handed over.
pub const SOCKETS: &str = "CONTAINERD_SOCKETS";

/// The variable that names a file with the log lines which the previous program could not write.
pub const LOG: &str = "CONTAINERD_LOG";

/// The variable that names the previous program's own file, to go back to if this program cannot serve.
pub const PREVIOUS: &str = "CONTAINERD_PREVIOUS";

/// Prepares descriptors for the next program in this process: they stay open across execve(2). Returns the environment
/// variable, with its value, from which [`take_handed_over`] learns their numbers.
pub fn hand_over(variable: &'static str, descriptors: &[OwnedFd]) -> io::Result<(&'static str, String)> {
    let mut numbers = Vec::new();
    for descriptor in descriptors {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        numbers.push(descriptor.as_raw_fd().to_string());
    }
    Ok((variable, format!("{}:{}", std::process::id(), numbers.join(","))))
}

/// Takes the descriptors that [`hand_over`] prepared under this variable. Each is returned once: another call for the same
/// variable returns none.
pub fn take_handed_over(variable: &str) -> Vec<OwnedFd> {
    static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());
    let value = std::env::var(variable).unwrap_or_default();
    let Some((pid, numbers)) = value.split_once(':') else { return Vec::new() };
    if pid.parse() != Ok(std::process::id()) {
        return Vec::new();
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::new();
    for number in numbers.split(',').filter_map(|number| number.parse().ok()) {
        if number >= FIRST && !taken.contains(&number) && is_open(number) {
            taken.push(number);
            // SAFETY: the number is open, as `is_open` has just found. The previous program in this process kept it open for this
            // one and named no other owner. `taken` lets each number get here once, so no other value owns it.
            found.push(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    found
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD accepts any number, reads one flag and changes nothing (fcntl(2)).
    unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_without_passed_descriptors_takes_none() {
        // The tests' own environment has no LISTEN_PID that names them.
        assert!(take().expect("no variable is malformed").is_empty());
        assert!(take_handed_over(SOCKETS).is_empty());
    }

    #[test]
    fn only_open_numbers_are_open() {
        assert!(is_open(0) && !is_open(-1) && !is_open(1 << 20));
    }
}
