//! Child processes that are waited for through a pidfd: no signal handler, no thread, and no `waitpid(-1)`.

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, Command};
use sys::child::ExitStatus;
use tokio::io::unix::AsyncFd;

/// A child in a process group of its own. Dropped before it has been reaped, it is killed with its group and
/// reaped in the background.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: Option<AsyncFd<OwnedFd>>,
    stderr: Option<ChildStderr>,
    reaped: bool,
}

impl Child {
    /// Starts `command`. What systemd means for the daemon alone is taken out of its environment.
    pub fn spawn(command: &mut Command) -> io::Result<Child> {
        command.process_group(0);
        for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Child { pid, pidfd: None, stderr: child.stderr.take(), reaped: false })
    }

    /// The child's pid, which stays its own until it is reaped.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What it writes to a piped stderr.
    pub(crate) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.stderr.take()
    }

    /// Waits for its end and reaps it.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = reap(self.pid, &mut self.pidfd).await?;
        self.reaped = true;
        Ok(status)
    }

    /// Gives back the descriptor that [`Child::wait`] used, for a child that lives long and is watched otherwise.
    pub fn unwatch(&mut self) {
        self.pidfd = None;
    }

    /// Kills it and all of its process group.
    pub fn kill(&self) {
        if !self.reaped {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// Lets it go on without us; it is still reaped when it ends, if we are there then.
    pub fn release(mut self) {
        self.reap_in_background();
    }

    fn reap_in_background(&mut self) {
        if self.reaped {
            return;
        }
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
        // Not reaped, so that the number is still this child's.
        let watched = match pidfd {
            Some(watched) => watched,
            None => pidfd.insert(sys::watched::readable(pidfd_open(pid, PidfdFlags::empty())?)?),
        };
        watched.readable().await?.clear_ready();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.reap_in_background();
        }
    }
}
