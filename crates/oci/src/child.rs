//! Child processes that are waited for through a pidfd: no signal handler, no thread, and no `waitpid(-1)`.

use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;
use sys::activation::{LOG, PREVIOUS, SOCKETS};
use sys::child::ExitStatus;
use sys::exhausted::is_exhausted;
use sys::pidfd::open_number;
use tokio::io::unix::AsyncFd;

/// What systemd means for the daemon alone, and what the daemon means for its successor.
pub(crate) const NOT_FOR_CHILDREN: [&str; 7] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", SOCKETS, LOG, PREVIOUS];

/// How long to wait before a child is looked at again, when there is no descriptor to wait for it with.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A child in a process group of its own. Dropped before it has been reaped, it is killed with its group, unless it
/// has been [set free](Child::set_free), and reaped in the background.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: Option<AsyncFd<OwnedFd>>,
    reaped: bool,
    free: bool,
}

impl Child {
    /// Starts `command`. What systemd means for the daemon alone is taken out of its environment, unless the command sets
    /// it.
    pub fn spawn(command: &mut Command) -> io::Result<Child> {
        command.process_group(0);
        for name in NOT_FOR_CHILDREN {
            if !command.get_envs().any(|(set, value)| set == name && value.is_some()) {
                command.env_remove(name);
            }
        }
        let child = sys::child::spawn(command)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Child::started(pid))
    }

    /// A child that has been started in a process group of its own.
    pub(crate) fn started(pid: Pid) -> Child {
        Child { pid, pidfd: None, reaped: false, free: false }
    }

    /// A child that this program started before it replaced itself by another: execve(2) keeps children. It is free.
    pub fn kept(pid: Pid) -> Child {
        let mut child = Child::started(pid);
        child.set_free();
        child
    }

    /// The child's pid, which stays its own until it is reaped.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end without reaping it: its number and its process group stay its own.
    pub async fn ended(&mut self) -> io::Result<()> {
        match watched(self.pid, &mut self.pidfd).await? {
            Some(child) => child.readable().await.map(drop),
            None => Ok(()),
        }
    }

    /// Waits for its end and reaps it.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = reap(self.pid, &mut self.pidfd).await?;
        self.reaped = true;
        Ok(status)
    }

    /// Lets it outlive this value and this process. The descriptor that [`Child::wait`] used is given back, as such a
    /// child lives long and is watched otherwise.
    pub fn set_free(&mut self) {
        self.pidfd = None;
        self.free = true;
    }

    /// Stops it alone, as SIGSTOP does.
    pub fn stop(&self) {
        if !self.reaped {
            let _ = rustix::process::kill_process(self.pid, Signal::STOP);
        }
    }

    /// Lets it go on that was stopped.
    pub fn go_on(&self) {
        if !self.reaped {
            let _ = rustix::process::kill_process(self.pid, Signal::CONT);
        }
    }

    /// Kills it and all of its process group.
    pub fn kill(&self) {
        if !self.reaped {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    fn reap_in_background(&mut self) {
        self.reaped = true;
        let (pid, mut pidfd) = (self.pid, self.pidfd.take());
        // Without a runtime this process is about to end, and its children get another parent.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(e) = reap(pid, &mut pidfd).await {
                    tracing::warn!(pid = pid.as_raw_nonzero(), "cannot reap a child: {e}");
                }
            });
        }
    }
}

async fn reap(pid: Pid, pidfd: &mut Option<AsyncFd<OwnedFd>>) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = sys::child::try_reap(pid)? {
            return Ok(status);
        }
        // Not reaped, so that the number is still this child's. If it is gone all the same, the next look says so.
        if let Some(child) = watched(pid, pidfd).await? {
            child.readable().await?.clear_ready();
        }
    }
}

/// The descriptor that tells of the end of a child; `None` if the child is gone.
async fn watched(pid: Pid, pidfd: &mut Option<AsyncFd<OwnedFd>>) -> io::Result<Option<&AsyncFd<OwnedFd>>> {
    while pidfd.is_none() {
        let opened = open_number(pid).map_err(io::Error::from);
        match opened.and_then(|child| child.map(sys::watched::readable).transpose()) {
            Ok(Some(watched)) => *pidfd = Some(watched),
            Ok(None) => return Ok(None),
            // Nothing tells when there is a descriptor to be had again.
            Err(e) if is_exhausted(&e) => tokio::time::sleep(EXHAUSTED_PAUSE).await,
            Err(e) => return Err(e),
        }
    }
    Ok(pidfd.as_ref())
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            if !self.free {
                self.kill();
            }
            self.reap_in_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_one_that_was_set_free_outlives_its_value() {
        for free in [true, false] {
            let mut child = Child::spawn(Command::new("sleep").arg("1000")).expect("sleep starts");
            let pid = child.pid();
            if free {
                child.set_free();
            }
            // Held by this test, it tells of the end whoever reaps.
            let watched = open_number(pid).expect("opens").expect("our child");
            let ended = sys::watched::readable(watched.try_clone().expect("a copy")).expect("watches");
            drop(child);
            let limit = std::time::Duration::from_millis(if free { 200 } else { 20_000 });
            let ends = tokio::time::timeout(limit, ended.readable()).await.is_ok();
            assert_eq!(ends, !free);
            if free {
                rustix::process::pidfd_send_signal(&watched, Signal::KILL).expect("it is alive");
            }
        }
    }
}
