//! Killing processes and shims so that nothing of them is left, and waiting until they are dead.

use cgroup::Hierarchies;
use oci::{Child, ProcessDir};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::Pid;
use std::io;
use std::time::Duration;
use sys::pidfd::PidFd;

/// How long a process that was killed may take to die.
pub(crate) const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// How long a shim may take to reap its killed children and to end.
const REAP_LIMIT: Duration = Duration::from_secs(2);

const SIGCONT: u32 = 18;
const SIGSTOP: u32 = 19;
const SIGKILL: u32 = 9;

/// Kills a shim with everything that it has started and has not let go, and waits until all of that is gone: a runtime that is
/// just dying may still make something.
pub(crate) async fn end_shim(mut shim: Child) {
    shim.stop();
    kill_descendants(shim.pid()).await;
    // The shim reaps them, and ends because its runtime has failed. Unreaped, the zombies would keep their
    // container from ending.
    shim.go_on();
    if tokio::time::timeout(REAP_LIMIT, shim.wait()).await.is_ok() {
        return;
    }
    shim.kill();
    if tokio::time::timeout(DEATH_LIMIT, shim.wait()).await.is_err() {
        tracing::warn!(shim = shim.pid().as_raw_nonzero(), "a killed shim does not die");
    }
}

/// Does what [`end_shim`] does to the shims that an earlier daemon has started for a process. True if there were any.
pub(crate) async fn end_shims_in(dir: &ProcessDir) -> bool {
    let shims = oci::Shim::running_in(dir);
    let some = !shims.is_empty();
    for (pid, shim) in shims {
        let _ = shim.send(SIGSTOP);
        kill_descendants(pid).await;
        let _ = shim.send(SIGCONT);
        let ended = match shim.try_clone() {
            Ok(copy) => {
                tokio::time::timeout(REAP_LIMIT, has_ended(copy)).await.is_ok_and(|ended| ended.unwrap_or(false))
            }
            Err(_) => false,
        };
        if !ended {
            kill_all([(pid, shim)]).await;
        }
    }
    some
}

/// Kills all descendants of a stopped shim: the runtime, and what the runtime has made, wherever that belongs by now.
async fn kill_descendants(shim: Pid) {
    // One of them may have started another before it was stopped.
    for _ in 0..5 {
        let found = oci::Shim::descendants(shim);
        if found.is_empty() {
            return;
        }
        kill_together(found).await;
    }
}

/// Kills processes and waits until they are dead.
pub(crate) async fn kill_all(processes: impl IntoIterator<Item = (Pid, PidFd)>) {
    for (pid, process) in processes {
        if let Err(e) = kill_and_wait(number(pid), process).await {
            tracing::warn!(pid = pid.as_raw_nonzero(), "cannot kill a process: {e}");
        }
    }
}

/// Kills processes so that none of them sees another one die, and waits until they are dead. A runtime that sees its child die
/// would take that for a failure, write so into its log, and be killed while it cleans up.
pub(crate) async fn kill_together(processes: Vec<(Pid, PidFd)>) {
    // Both signals go to all processes before the daemon waits for one: it may die while it waits, and what is only stopped
    // then stays.
    for signal in [SIGSTOP, SIGKILL] {
        for (_, process) in &processes {
            let _ = process.send(signal);
        }
    }
    // All are thawed before the daemon waits for one, which may itself wait for another.
    for (pid, process) in &processes {
        free_killed(number(*pid), process);
    }
    kill_all(processes).await;
}

/// Sends SIGKILL and waits for the end; false if the process was dead already.
pub(crate) async fn kill_and_wait(pid: u32, process: PidFd) -> io::Result<bool> {
    match process.send(SIGKILL) {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => return Ok(false),
        result => result?,
    }
    free_killed(pid, &process);
    if has_ended(process).await? {
        return Ok(true);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "it was killed and does not die"))
}

/// Lets a killed process die that the freezer of cgroup v1 holds: a runtime may have put it into a group that another program
/// has frozen, or below one.
fn free_killed(pid: u32, process: &PidFd) {
    // As long as it has not ended, the pid is its own.
    let mut poll = [PollFd::new(process, PollFlags::IN)];
    if !matches!(rustix::event::poll(&mut poll, Some(&Timespec::default())), Ok(0)) {
        return;
    }
    if let Err(e) = Hierarchies::read().and_then(|hierarchies| hierarchies.free_killed(pid)) {
        tracing::warn!(pid, "cannot thaw a killed process: {e}");
    }
}

/// A pid as an unsigned number.
pub(crate) fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Waits for the end of a process that is about to end; false if it has not ended within [`DEATH_LIMIT`].
pub(crate) async fn has_ended(process: PidFd) -> io::Result<bool> {
    let ended = sys::watched::readable(process.into_fd())?;
    Ok(tokio::time::timeout(DEATH_LIMIT, ended.readable()).await.is_ok())
}
