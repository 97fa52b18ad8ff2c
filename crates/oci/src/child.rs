//! Child processes. The daemon waits for each through a pidfd, without a signal handler, a thread or `waitpid(-1)`.

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

/// The environment variables that children do not inherit: systemd sets them for the daemon, or a daemon for its
/// successor.
pub(crate) const NOT_FOR_CHILDREN: [&str; 7] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", SOCKETS, LOG, PREVIOUS];

/// How long to wait before trying again to open a pidfd when the process has no free descriptor.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A child in a process group of its own. If the value is dropped before the child has been reaped, it kills the group,
/// unless the child has been [set free](Child::set_free), and reaps the child in the background.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: Option<AsyncFd<OwnedFd>>,
    reaped: bool,
    free: bool,
}

impl Child {
    /// Starts `command`. Removes the variables that systemd has set for the daemon alone from its environment, unless
    /// the command sets them itself.
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

    /// Wraps a child that has been started in a process group of its own.
    pub(crate) fn started(pid: Pid) -> Child {
        Child { pid, pidfd: None, reaped: false, free: false }
    }

    /// Wraps a child that the previous program in this process started: execve(2) keeps children. The child is set
    /// free.
    pub fn kept(pid: Pid) -> Child {
        let mut child = Child::started(pid);
        child.set_free();
        child
    }

    /// Returns the child's pid, which no other process gets before the child is reaped.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until the child has ended, without reaping it, so that no other process gets its pid.
    pub async fn ended(&mut self) -> io::Result<()> {
        match watched(self.pid, &mut self.pidfd).await? {
            Some(child) => child.readable().await.map(drop),
            None => Ok(()),
        }
    }

    /// Waits until the child has ended and reaps it.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = reap(self.pid, &mut self.pidfd).await?;
        self.reaped = true;
        Ok(status)
    }

    /// Lets the child outlive this value and this process. Closes the descriptor that [`Child::wait`] uses: such a
    /// child lives long, and the supervisor watches it in another way.
    pub fn set_free(&mut self) {
        self.pidfd = None;
        self.free = true;
    }

    /// Stops the child by SIGSTOP, without its process group.
    pub fn stop(&self) {
        if !self.reaped {
            let _ = rustix::process::kill_process(self.pid, Signal::STOP);
        }
    }

    /// Continues the stopped child.
    pub fn go_on(&self) {
        if !self.reaped {
            let _ = rustix::process::kill_process(self.pid, Signal::CONT);
        }
    }

    /// Kills the child and its process group.
    pub fn kill(&self) {
        if !self.reaped {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    fn reap_in_background(&mut self) {
        self.reaped = true;
        let (pid, mut pidfd) = (self.pid, self.pidfd.take());
        // Without a tokio runtime this process is about to end. Its children then get another parent, which reaps them.
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
        // The child has not been reaped, so that it still has its pid. If it is gone nevertheless, `try_reap` fails
        // next.
        if let Some(child) = watched(pid, pidfd).await? {
            child.readable().await?.clear_ready();
        }
    }
}

/// Returns the descriptor that becomes readable when the child ends. Returns `None` if the child is gone.
async fn watched(pid: Pid, pidfd: &mut Option<AsyncFd<OwnedFd>>) -> io::Result<Option<&AsyncFd<OwnedFd>>> {
    while pidfd.is_none() {
        let opened = open_number(pid).map_err(io::Error::from);
        match opened.and_then(|child| child.map(sys::watched::readable).transpose()) {
            Ok(Some(watched)) => *pidfd = Some(watched),
            Ok(None) => return Ok(None),
            // The kernel does not announce when a descriptor becomes free.
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
    async fn only_a_child_set_free_outlives_its_value() {
        for free in [true, false] {
            let mut child = Child::spawn(Command::new("sleep").arg("1000")).expect("sleep starts");
            let pid = child.pid();
            if free {
                child.set_free();
            }
            // This descriptor reports the end even if other code reaps the child.
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
