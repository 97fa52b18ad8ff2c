//! One process of a container, with its shim.

use cgroup::{Cgroup, Hierarchies};
use oci::{Child, ProcessDir, ProcessSpec, Stdio};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::Pid;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;
use sys::exhausted::is_exhausted;
use sys::pidfd::PidFd;
use tokio::io::unix::AsyncFd;

use crate::once::Once;

/// How long something that was killed may take to die.
pub(crate) const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait before something is tried again that this machine has run out of.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// How long a shim may take to reap what it has started and to end, once all that has been killed.
const REAP_LIMIT: Duration = Duration::from_secs(2);

const SIGCONT: u32 = 18;
const SIGSTOP: u32 = 19;

/// A process that a client asked for.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    /// Tells it from others of the same name; empty if an older daemon made it.
    pub(crate) key: String,
    pub(crate) spec: ProcessSpec,
    pub(crate) stdio: Stdio,
    pub(crate) dir: ProcessDir,
    /// Pid and start time.
    identity: OnceLock<(u32, u64)>,
    /// Its shim, if this supervisor started it.
    shim: Mutex<Option<Child>>,
    /// Another supervisor started its shim.
    adopted: bool,
    /// A shim has been started for it.
    pub(crate) begun: AtomicBool,
    /// Its shim is gone: what is left is to tell its exit.
    pub(crate) ended: AtomicBool,
    /// Its exit has been dealt with.
    pub(crate) over: Once,
}

impl Process {
    pub(crate) fn new(name: &str, key: String, spec: ProcessSpec, stdio: Stdio, dir: ProcessDir) -> Process {
        Process {
            name: name.to_string(),
            key,
            spec,
            stdio,
            dir,
            identity: OnceLock::new(),
            shim: Mutex::new(None),
            adopted: false,
            begun: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            over: Once::default(),
        }
    }

    /// A process that an earlier supervisor started.
    pub(crate) fn adopted(self) -> Process {
        Process { adopted: true, ..self }
    }

    /// The host's pid, once it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.identity.get().map(|(pid, _)| *pid)
    }

    /// Pid and start time.
    pub(crate) fn identity(&self) -> Option<(u32, u64)> {
        self.identity.get().copied()
    }

    pub(crate) fn set_identity(&self, identity: (u32, u64)) {
        // Set once, when the shim has written it or when it is found again.
        let _ = self.identity.set(identity);
    }

    pub(crate) fn keep_shim(&self, shim: Child) {
        *self.shim.lock().unwrap_or_else(PoisonError::into_inner) = Some(shim);
    }

    pub(crate) fn take_shim(&self) -> Option<Child> {
        self.shim.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Looks for the pid and the start time that its shim may have written. It must not be missed for want of a
    /// descriptor, or it would live on.
    pub(crate) async fn find_identity(&self) -> Option<(u32, u64)> {
        loop {
            match self.dir.process() {
                Ok(identity) => {
                    if let Some(identity) = identity {
                        self.set_identity(identity);
                    }
                    return identity;
                }
                Err(e) if is_exhausted(&e.source) => tokio::time::sleep(PAUSE).await,
                Err(e) => {
                    tracing::warn!(process = %self.name, "{e}; if it runs, it is not found");
                    return None;
                }
            }
        }
    }

    /// The process itself, if it is alive.
    pub(crate) fn open(&self) -> io::Result<Option<PidFd>> {
        match self.identity() {
            Some((pid, starttime)) => Ok(PidFd::open(pid, starttime)?),
            None => Ok(None),
        }
    }

    /// Kills it and waits until it is dead; false if it was dead already.
    pub(crate) async fn kill(&self) -> io::Result<bool> {
        loop {
            let killed = match self.open() {
                Ok(None) => return Ok(false),
                Ok(Some(process)) => kill_and_wait(self.pid().unwrap_or_default(), process).await,
                Err(e) => Err(e),
            };
            match killed {
                // It must not live on for want of a descriptor.
                Err(e) if is_exhausted(&e) => tokio::time::sleep(PAUSE).await,
                result => return result,
            }
        }
    }

    /// Kills a shim that does not end by itself, wherever it came from.
    pub(crate) async fn kill_shim(&self) {
        if let Some(shim) = self.take_shim() {
            end_shim(shim).await;
            return;
        }
        if !self.adopted {
            return;
        }
        end_shims_in(&self.dir).await;
    }

    /// Kills what a runtime may have left that was killed while it made the process. Its shim must be gone.
    pub(crate) async fn kill_runtimes(&self) {
        // One may have started another before it was stopped.
        for _ in 0..3 {
            let left = oci::Shim::runtimes_of(&self.dir);
            if left.is_empty() {
                return;
            }
            kill_together(left).await;
        }
    }

    /// Kills an added process whose start nobody will be told of, with its shim: the shim first, so that it writes
    /// nothing after it has been looked.
    pub(crate) async fn kill_half_made(&self, cgroup: Option<&Cgroup>) -> io::Result<()> {
        self.kill_shim().await;
        self.kill_runtimes().await;
        // The runtime may have started it before the shim could write its pid; then it is one of the container's.
        let unrecorded = || {
            let pid = self.dir.unrecorded_pid()?;
            // When it started is looked at first: a later one of that pid has another start time.
            let starttime = sys::procfs::stat(pid).ok()??.starttime;
            cgroup?.pids().ok()?.contains(&pid).then_some((pid, starttime))
        };
        if let Some(identity) = self.find_identity().await.or_else(unrecorded) {
            self.set_identity(identity);
        }
        self.kill().await.map(|_| ())
    }
}

/// Kills a shim with all that it has started and has not let go, and waits until they are gone: a runtime that is just
/// dying may still make something.
pub(crate) async fn end_shim(mut shim: Child) {
    shim.stop();
    kill_descendants(shim.pid()).await;
    // It reaps them, and ends because its runtime has failed. Zombies that nobody reaps would keep a container from ending.
    shim.go_on();
    if tokio::time::timeout(REAP_LIMIT, shim.wait()).await.is_ok() {
        return;
    }
    shim.kill();
    if tokio::time::timeout(DEATH_LIMIT, shim.wait()).await.is_err() {
        tracing::warn!(shim = shim.pid().as_raw_nonzero(), "a killed shim does not die");
    }
}

/// The same for the shims of another daemon. True if there were any.
pub(crate) async fn end_shims_in(dir: &ProcessDir) -> bool {
    let shims = oci::Shim::running_in(dir);
    let some = !shims.is_empty();
    for (pid, shim) in shims {
        let _ = shim.send(SIGSTOP);
        kill_descendants(pid).await;
        // See `end_shim`.
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

/// Kills all that a stopped shim has started: the runtime, and what that has made, wherever it belongs by now.
async fn kill_descendants(shim: Pid) {
    // One may have started another before it was stopped.
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

/// The same, so that none of them sees another one die: a runtime would take its child's death for a failure, say so,
/// and be killed while it cleans up.
async fn kill_together(processes: Vec<(Pid, PidFd)>) {
    // All of them before one is waited for: what is stopped stays so if this program dies.
    for signal in [SIGSTOP, 9] {
        for (_, process) in &processes {
            let _ = process.send(signal);
        }
    }
    // Before one of them is waited for, which may itself wait for another one.
    for (pid, process) in &processes {
        free_killed(number(*pid), process);
    }
    kill_all(processes).await;
}

/// Sends SIGKILL and waits for the end; false if it was dead already.
pub(crate) async fn kill_and_wait(pid: u32, process: PidFd) -> io::Result<bool> {
    match process.send(9) {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => return Ok(false),
        result => result?,
    }
    free_killed(pid, &process);
    if has_ended(process).await? {
        return Ok(true);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "it was killed and does not die"))
}

/// Lets a process die that has been sent SIGKILL, if v1's freezer holds it: a runtime may have put it into a group that
/// another program has frozen, or below one.
fn free_killed(pid: u32, process: &PidFd) {
    // As long as it has not ended, the number is its own.
    let mut poll = [PollFd::new(process, PollFlags::IN)];
    if !matches!(rustix::event::poll(&mut poll, Some(&Timespec::default())), Ok(0)) {
        return;
    }
    if let Err(e) = Hierarchies::read().and_then(|hierarchies| hierarchies.free_killed(pid)) {
        tracing::warn!(pid, "cannot thaw a killed process: {e}");
    }
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Waits for the end of a process that is about to end; false if it does not.
pub(crate) async fn has_ended(process: PidFd) -> io::Result<bool> {
    let ended = sys::watched::readable(process.into_fd())?;
    Ok(tokio::time::timeout(DEATH_LIMIT, ended.readable()).await.is_ok())
}

/// The reading end of a process's `exit`.
#[derive(Debug)]
pub(crate) struct ExitFifo(AsyncFd<OwnedFd>);

impl ExitFifo {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<ExitFifo> {
        Ok(ExitFifo(sys::watched::readable(fd)?))
    }

    /// Whether no shim holds the other end.
    pub(crate) fn is_closed(&self) -> io::Result<bool> {
        let mut buffer = [0; 64];
        loop {
            match rustix::io::read(self.0.get_ref(), &mut buffer) {
                Ok(0) => return Ok(true),
                // Nothing of ours is written here; what somebody else wrote says nothing.
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits until no shim holds the other end. There must have been one since this was opened, or be none. Only one may
    /// wait at a time: tokio has a place for one in what it keeps of a descriptor, and each other one would bring its own.
    pub(crate) async fn closed(&self) -> io::Result<()> {
        poll_fn(|context| {
            while !self.is_closed()? {
                ready!(self.0.poll_read_ready(context))?.clear_ready();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}
