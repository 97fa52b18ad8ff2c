//! Processes by descriptor, so that a signal never reaches a later process with the same pid.

#[cfg(feature = "std")]
use rustix::fd::AsRawFd;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::procfs;

/// Opens the process that has the number `pid` now. Returns `None` if no process has it.
///
/// The kernel reports that in several ways. `ESRCH`: the number is free. `EINVAL`, up to Linux 6.12: the process is
/// gone, and a process group or a session still has its number. `ENOENT`, in later kernels: a thread that leads no
/// process has it.
pub fn open_number(pid: Pid) -> io::Result<Option<OwnedFd>> {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A descriptor of one certain process, identified by pid and start time.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process `pid` that started at `starttime` (field 22 of `/proc/<pid>/stat`). Returns `None` if that
    /// process is gone or a zombie, even if another process has the pid now.
    pub fn open(pid: u32, starttime: u64) -> io::Result<Option<PidFd>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let Some(fd) = open_number(number)? else { return Ok(None) };
        // Read the start time after opening: if it is right now, the descriptor was opened for the right process.
        match procfs::stat(pid)? {
            Some(stat) if stat.starttime == starttime && !stat.is_dead() => Ok(Some(PidFd(fd))),
            _ => Ok(None),
        }
    }

    /// Sends `signal`. Fails with `ESRCH` once the process has been reaped. A signal to a zombie has no effect.
    #[cfg(feature = "std")]
    pub fn send(&self, signal: u32) -> std::io::Result<()> {
        let null: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: `self` keeps the descriptor open. With a null siginfo the kernel fills in what kill(2) would
        // (pidfd_send_signal(2)), so that it follows no pointer.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, null, 0) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    /// Returns another descriptor of the same process.
    #[cfg(feature = "std")]
    pub fn try_clone(&self) -> std::io::Result<PidFd> {
        Ok(PidFd(self.0.try_clone()?))
    }

    /// Returns the descriptor itself. It becomes readable when the process ends, before the process is reaped.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_opened_only_with_its_start_time() {
        let me = std::process::id();
        let stat = procfs::stat(me).expect("proc is readable").expect("we are alive");
        assert!(PidFd::open(me, stat.starttime).expect("opens").is_some());
        assert!(PidFd::open(me, stat.starttime + 1).expect("opens").is_none());
        assert!(PidFd::open(0, 1).expect("no such process is no error").is_none());
        assert!(PidFd::open(u32::MAX, 1).expect("no such process is no error").is_none());
    }

    #[test]
    fn every_error_that_means_gone_is_understood() {
        for (errno, is_gone) in [(libc::ESRCH, true), (libc::EINVAL, true), (libc::ENOENT, true), (libc::EMFILE, false)]
        {
            // Use a thread of its own, since a filter cannot be removed.
            let opened = std::thread::spawn(move || {
                crate::seccomp::refuse("pidfd_open", errno).expect("filters");
                PidFd::open(std::process::id(), 1).map(|process| process.is_none())
            });
            let opened = opened.join().expect("does not panic");
            assert_eq!(opened.ok(), is_gone.then_some(true), "{errno}");
        }
    }

    #[test]
    fn zombie_is_not_opened() {
        let mut child =
            std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let stat = procfs::stat(child.id()).expect("proc").expect("alive");
        let before = PidFd::open(child.id(), stat.starttime).expect("opens").expect("alive");
        before.send(9).expect("a live child takes signals");
        let mut poll = [rustix::event::PollFd::new(&before, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).expect("poll");
        assert!(PidFd::open(child.id(), stat.starttime).expect("opens").is_none(), "a zombie is not alive");
        child.wait().expect("reaps");
        assert_eq!(before.send(9).expect_err("gone").raw_os_error(), Some(libc::ESRCH));
    }
}
