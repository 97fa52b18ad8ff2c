//! Child processes: what std's `Command` lacks, and reaping one by its number.

use rustix::io::{self, Errno};
use rustix::process::{Pid, WaitOptions, wait, waitpid};

#[cfg(feature = "std")]
pub use hosted::{die_with_parent, keep_open, spawn, start_no_more};

/// How a process ended, as shells and this API count: its exit code, or 128 and the signal's number.
pub type ExitStatus = u32;

/// Held while a child is started.
#[cfg(feature = "std")]
pub(crate) fn starting() -> std::sync::RwLockReadGuard<'static, ()> {
    hosted::starting()
}

/// Reaps the child `pid` if it has ended; `None` while it runs. `ECHILD` if it is no child of ours.
pub fn try_reap(pid: Pid) -> io::Result<Option<ExitStatus>> {
    reap(Some(pid)).map(|ended| ended.map(|(_, status)| status))
}

/// Reaps any child that has ended. Only for a process that is the single reaper of all its children.
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

    /// Held for reading while a child is started.
    static STARTING: RwLock<()> = RwLock::new(());

    pub(crate) fn starting() -> RwLockReadGuard<'static, ()> {
        STARTING.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child, unless none may be started any more ([`start_no_more`]): then this never returns.
    pub fn spawn(command: &mut Command) -> io::Result<std::process::Child> {
        let _starting = starting();
        command.spawn()
    }

    /// Waits for those that are being started, and lets no other one be started by [`spawn`]. For a program that is about
    /// to make way for another one: what it leaves to that one is not for children.
    pub fn start_no_more() {
        std::mem::forget(STARTING.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Has the child killed when the thread that starts it ends (prctl(2), `PR_SET_PDEATHSIG`).
    pub fn die_with_parent(command: &mut Command) {
        // SAFETY: between fork and exec only one system call is made, which is async-signal-safe, and nothing is
        // allocated.
        unsafe {
            command.pre_exec(|| {
                let signal = Some(rustix::process::Signal::KILL);
                rustix::process::set_parent_process_death_signal(signal).map_err(Into::into)
            });
        }
    }

    /// Lets the child, and what it starts, have a descriptor that is otherwise closed by an exec.
    pub fn keep_open(command: &mut Command, fd: std::os::fd::RawFd) {
        // SAFETY: between fork and exec only one system call is made, which is async-signal-safe, and nothing is
        // allocated. The number may be of another file by then, which the child then keeps: whoever calls this holds it.
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

    #[allow(clippy::zombie_processes)] // reaped by what is tested
    fn run(script: &str) -> ExitStatus {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().expect("sh starts");
        let pid = Pid::from_raw(child.id() as i32).expect("a pid is not zero");
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd_open");
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).expect("poll");
        try_reap(pid).expect("our child").expect("has ended")
    }

    #[test]
    fn statuses_are_told_as_shells_do() {
        assert_eq!(run("exit 0"), 0);
        assert_eq!(run("exit 255"), 255);
        assert_eq!(run("kill -9 $$"), 137);
    }

    #[test]
    fn a_stranger_is_no_child() {
        let init = Pid::from_raw(1).expect("not zero");
        assert_eq!(try_reap(init).expect_err("init is not ours"), Errno::CHILD);
    }
}
