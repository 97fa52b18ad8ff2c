//! Child processes: what std's `Command` lacks, and reaping one by its number.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getppid, set_parent_process_death_signal, wait, waitpid};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{PoisonError, RwLock};

/// How a process ended, as shells and this API count: its exit code, or 128 and the signal's number.
pub type ExitStatus = u32;

/// Held for reading while a child is started.
static STARTING: RwLock<()> = RwLock::new(());

/// Starts a child, unless none may be started any more ([`start_no_more`]): then this never returns.
pub fn spawn(command: &mut Command) -> io::Result<std::process::Child> {
    let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Waits for those that are being started, and lets no other one be started by [`spawn`]. For a program that is about to
/// make way for another one: what it leaves to that one is not for children.
pub fn start_no_more() {
    std::mem::forget(STARTING.write().unwrap_or_else(PoisonError::into_inner));
}

/// Lets every signal reach the child: std's `Command` hands on the mask of this thread, in which all may be blocked.
pub fn with_all_signals(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made, which is async-signal-safe, and nothing is
    // allocated.
    unsafe {
        command.pre_exec(crate::signal::unblock_all);
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

/// Makes the child be killed when the thread that starts it dies (prctl(2), `PR_SET_PDEATHSIG`). The setting
/// outlives the exec and is not passed on to the child's own children.
pub fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only two system calls are made, both async-signal-safe, and nothing is
    // allocated.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the setting took hold.
            if getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
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
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(try_reap(init).expect_err("init is not ours").raw_os_error(), Some(libc::ECHILD));
    }
}
