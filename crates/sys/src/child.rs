//! Child processes: what std's `Command` lacks, and reaping a child by its pid.

use rustix::io::{self, Errno};
use rustix::process::{Pid, WaitOptions, wait, waitpid};

#[cfg(feature = "std")]
pub use hosted::{die_with_parent, keep_open, spawn, start_no_more};

/// The exit status of a process as shells and this API count it: the exit code, or 128 plus the number of the signal
/// that ended the process.
pub type ExitStatus = u32;

/// Returns a guard to hold while a child is being started ([`start_no_more`]).
#[cfg(feature = "std")]
pub(crate) fn starting() -> std::sync::RwLockReadGuard<'static, ()> {
    hosted::starting()
}

/// Reaps the child `pid` if it has ended. Returns `None` while it runs, and fails with `ECHILD` if it is no child of
/// this process.
pub fn try_reap(pid: Pid) -> io::Result<Option<ExitStatus>> {
    reap(Some(pid)).map(|ended| ended.map(|(_, status)| status))
}

/// Reaps any child that has ended. Only for a program in which no other code reaps children.
pub fn try_reap_any() -> io::Result<Option<(Pid, ExitStatus)>> {
    reap(None)
}

fn reap(pid: Option<Pid>) -> io::Result<Option<(Pid, ExitStatus)>> {
    loop {
        let ended = match pid {
            Some(_) => waitpid(pid, WaitOptions::NOHANG),
            None => wait(WaitOptions::NOHANG),
        };
        match ended {
            Ok(None) => return Ok(None),
            Ok(Some((pid, status))) => {
                if let Some(code) = status.exit_status() {
                    return Ok(Some((pid, code as u32)));
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(Some((pid, 128 + signal as u32)));
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(feature = "std")]
mod hosted {
    use std::io;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::sync::{PoisonError, RwLock, RwLockReadGuard};

    /// Locked for reading while a child is being started, and for writing, forever, by [`start_no_more`].
    static STARTING: RwLock<()> = RwLock::new(());

    pub(crate) fn starting() -> RwLockReadGuard<'static, ()> {
        STARTING.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child. After [`start_no_more`] this never returns.
    pub fn spawn(command: &mut Command) -> io::Result<std::process::Child> {
        let _starting = starting();
        command.spawn()
    }

    /// Waits until no child is being started, and blocks every later [`spawn`] forever. A program calls this before it
    /// replaces itself by another program, so that no child inherits the descriptors that it hands over.
    pub fn start_no_more() {
        std::mem::forget(STARTING.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Makes the kernel kill the child when the thread that starts it ends (prctl(2), `PR_SET_PDEATHSIG`).
    pub fn die_with_parent(command: &mut Command) {
        // SAFETY: between fork and exec the closure makes one system call, prctl(2), which needs no lock and no heap.
        unsafe {
            command.pre_exec(|| {
                let signal = Some(rustix::process::Signal::KILL);
                rustix::process::set_parent_process_death_signal(signal).map_err(Into::into)
            });
        }
    }

    /// Lets the child, and the programs that it starts, inherit the descriptor `fd`, which has close-on-exec here. The
    /// caller keeps `fd` open until the child has been started.
    pub fn keep_open(command: &mut Command, fd: std::os::fd::RawFd) {
        // SAFETY: between fork and exec the closure makes two system calls, both fcntl(2), which need no lock and no
        // heap. It changes a flag of a descriptor of the child alone. If the caller has closed `fd`, the call fails or
        // concerns another file, which the child then inherits; neither is a matter of memory safety.
        unsafe {
            command.pre_exec(move || {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
                Ok(())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[allow(clippy::zombie_processes)] // `try_reap` reaps it
    fn run(script: &str) -> ExitStatus {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().expect("sh starts");
        let pid = Pid::from_raw(child.id() as i32).expect("a pid is not zero");
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd_open");
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).expect("poll");
        try_reap(pid).expect("our child").expect("has ended")
    }

    #[test]
    fn exit_status_is_counted_as_shells_do() {
        assert_eq!(run("exit 0"), 0);
        assert_eq!(run("exit 255"), 255);
        assert_eq!(run("kill -9 $$"), 137);
    }

    #[test]
    fn process_that_is_no_child_is_not_reaped() {
        let init = Pid::from_raw(1).expect("not zero");
        assert_eq!(try_reap(init).expect_err("init is not ours"), Errno::CHILD);
    }
}
