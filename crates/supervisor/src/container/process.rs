//! One process of a container, with its shim.

use cgroup::Cgroup;
use oci::{Child, ProcessDir, ProcessSpec, Stdio};
use rustix::io::Errno;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, ready};
use sys::exhausted::is_exhausted;
use sys::pidfd::PidFd;
use tokio::io::unix::AsyncFd;
use tokio::sync::SetOnce;

use crate::container::killing::{end_shim, end_shims_in, kill_and_wait, kill_together};
use crate::container::lifecycle::State;
use crate::host::RETRY_DELAY;

/// A process that a client asked for: a container's init, or one that was added.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    /// Tells it from other processes of the same name; empty if an older daemon made it.
    pub(crate) key: String,
    pub(crate) spec: ProcessSpec,
    pub(crate) stdio: Stdio,
    pub(crate) dir: ProcessDir,
    /// Pid and start time.
    identity: OnceLock<(u32, u64)>,
    shim: Mutex<ShimHandle>,
    /// The lifecycle of an added process. An init has its container's.
    state: Mutex<State>,
    /// Set when its exit has been dealt with.
    pub(crate) over: SetOnce<()>,
}

/// What this daemon knows of a process's shim.
#[derive(Debug)]
enum ShimHandle {
    /// None has been started.
    NotStarted,
    /// This daemon has started it. The handle is with the code that waits for it, or it has been reaped.
    Started,
    /// This daemon has started it, or it is a child that a daemon in this process has left.
    Kept(Child),
    /// An earlier daemon has started it.
    Foreign,
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
            shim: Mutex::new(ShimHandle::NotStarted),
            state: Mutex::new(State::Creating),
            over: SetOnce::new(),
        }
    }

    /// Marks a process as one that an earlier daemon started.
    pub(crate) fn adopted(self) -> Process {
        Process { shim: Mutex::new(ShimHandle::Foreign), ..self }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Held for an assignment, and while an event is written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its shim is known to have ended, so that its exit is about to be recorded.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().is_over()
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
        // Set once: when the shim has written it, or when a new daemon finds the process.
        let _ = self.identity.set(identity);
    }

    fn shim(&self) -> MutexGuard<'_, ShimHandle> {
        self.shim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shim has been started for it.
    pub(crate) fn shim_was_started(&self) {
        *self.shim() = ShimHandle::Started;
    }

    /// Whether a shim has been started for it.
    pub(crate) fn has_shim(&self) -> bool {
        !matches!(*self.shim(), ShimHandle::NotStarted)
    }

    pub(crate) fn keep_shim(&self, shim: Child) {
        *self.shim() = ShimHandle::Kept(shim);
    }

    pub(crate) fn take_shim(&self) -> Option<Child> {
        let mut handle = self.shim();
        match std::mem::replace(&mut *handle, ShimHandle::Started) {
            ShimHandle::Kept(shim) => Some(shim),
            other => {
                *handle = other;
                None
            }
        }
    }

    /// Looks for the pid and the start time that its shim may have written. It tries again while the daemon has no descriptor
    /// for that: a process that the daemon misses would live on.
    pub(crate) async fn find_identity(&self) -> Option<(u32, u64)> {
        loop {
            match self.dir.process() {
                Ok(identity) => {
                    if let Some(identity) = identity {
                        self.set_identity(identity);
                    }
                    return identity;
                }
                Err(e) if is_exhausted(&e.source) => tokio::time::sleep(RETRY_DELAY).await,
                Err(e) => {
                    tracing::warn!(process = %self.name, "{e}; if the process runs, the daemon does not find it");
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

    /// Whether it is known to be alive.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.open(), Ok(Some(_)))
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
                // It must not live on because the daemon lacks a descriptor.
                Err(e) if is_exhausted(&e) => tokio::time::sleep(RETRY_DELAY).await,
                result => return result,
            }
        }
    }

    /// Kills its shim, which does not end by itself, whichever daemon started it.
    pub(crate) async fn kill_shim(&self) {
        if let Some(shim) = self.take_shim() {
            end_shim(shim).await;
        } else if matches!(*self.shim(), ShimHandle::Foreign) {
            end_shims_in(&self.dir).await;
        }
    }

    /// Kills what is left of a runtime that was killed while it made the process. Its shim must be gone.
    pub(crate) async fn kill_runtimes(&self) {
        // A runtime may have started another program before it was stopped.
        for _ in 0..3 {
            let left = oci::Shim::runtimes_of(&self.dir);
            if left.is_empty() {
                return;
            }
            kill_together(left).await;
        }
    }

    /// Kills an added process whose start no client will hear of, with its shim. The shim dies first, so that it writes no pid
    /// after the daemon has looked for one.
    pub(crate) async fn kill_half_made(&self, cgroup: Option<&Cgroup>) -> io::Result<()> {
        self.kill_shim().await;
        self.kill_runtimes().await;
        // The runtime may have started it before the shim could write its pid; then it is in the container's group.
        let unrecorded = || {
            let pid = self.dir.unrecorded_pid()?;
            // The start time is read first: a later process of the same pid has another one.
            let starttime = sys::procfs::stat(pid).ok()??.starttime;
            cgroup?.pids().ok()?.contains(&pid).then_some((pid, starttime))
        };
        if let Some(identity) = self.find_identity().await.or_else(unrecorded) {
            self.set_identity(identity);
        }
        self.kill().await.map(|_| ())
    }
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
                // A shim writes nothing here. Another program may have; that says nothing.
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits until no shim holds the other end. A shim must have held it since this was opened, or none holds it. Only one task
    /// may wait at a time: tokio has a place for one in its record of a descriptor, and each further one would allocate.
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
