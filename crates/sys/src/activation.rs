//! Sockets that somebody else opened for this process: a service manager (sd_listen_fds(3)), or the program that was in
//! its place before.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// The variable that names the listening sockets which the program before this one, in the same process, has left to it.
pub const SOCKETS: &str = "CONTAINERD_SOCKETS";

/// The variable that names a file with what that program had not logged yet.
pub const LOG: &str = "CONTAINERD_LOG";

/// The variable that names that program's own file, to go back to if this one cannot serve.
pub const PREVIOUS: &str = "CONTAINERD_PREVIOUS";

/// Says which descriptors the program that takes this one's place is to have under one of these names: the variable and
/// its value. They stay open over execve(2).
pub fn hand_over(variable: &'static str, descriptors: &[OwnedFd]) -> io::Result<(&'static str, String)> {
    let mut numbers = Vec::new();
    for descriptor in descriptors {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        numbers.push(descriptor.as_raw_fd().to_string());
    }
    Ok((variable, format!("{}:{}", std::process::id(), numbers.join(","))))
}

/// Takes what [`hand_over`] has left under this name. Only the first call gives any.
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
            // SAFETY: it is open, as was looked at; the program before this one left it to this process to own. Each
            // number is taken once, as the list says, so that nobody else owns it.
            found.push(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    found
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
        assert!(take().is_empty() && take_handed_over(SOCKETS).is_empty());
        assert!(is_open(0) && !is_open(-1) && !is_open(1 << 20));
    }
}
