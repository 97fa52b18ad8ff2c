//! Starting the shim of a process, and waiting until it has written the process's pid.
//!
//! Containers and added processes need the same of a shim. The shim runs the runtime; see `docs/dev/start.md`.

use failpoint::{Point, reach};
use oci::{FailureKind, INIT, Oci, ProcessDir, Shim};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

use crate::container::killing::kill_all;
use crate::container::{Begin, Container, ExitFifo, Process};
use crate::error::Error;
use crate::host::pid_watch::PidWatcher;
use crate::host::tasks::Tasks;

/// So many descriptors are kept from starts: for signals, exits and deletions (some ten at a time), for a connection by which a
/// client asks for them, and for what a start itself opens.
const KEPT_FROM_STARTS: u64 = 24;

/// So many are counted for each other start that is under way.
const FOR_A_START: u64 = 8;

/// How long a runtime that has failed without a message may take to say what is wrong with it.
const COMPLAINT_LIMIT: Duration = Duration::from_secs(1);

/// How long the start of an added process goes on after the container's init has ended. Usually the runtime notices by itself.
const AFTER_INIT: Duration = Duration::from_secs(2);

/// Starts shims.
#[derive(Debug)]
pub(crate) struct Launcher {
    shim: Shim,
    pids: PidWatcher,
    tasks: Tasks,
    /// How many starts are under way.
    starting: AtomicU64,
}

/// Permission to start a process. The start is under way as long as this exists.
#[derive(Debug)]
#[must_use]
pub(crate) struct StartPermit(Arc<Launcher>);

impl Drop for StartPermit {
    fn drop(&mut self) {
        self.0.starting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Launcher {
    pub(crate) fn new(shim: Shim, tasks: Tasks) -> Launcher {
        Launcher { shim, pids: PidWatcher::default(), tasks, starting: AtomicU64::new(0) }
    }

    /// The path of the shim's program.
    pub(crate) fn program(&self) -> &Path {
        self.shim.path()
    }

    /// Permits a start, unless the daemon could not look after the process: its last descriptors are for ending what runs.
    pub(crate) fn permit(self: &Arc<Self>) -> Result<StartPermit, Error> {
        let permit = StartPermit(self.clone());
        let others = self.starting.fetch_add(1, Ordering::Relaxed);
        let limit = sys::descriptors::limit();
        match sys::descriptors::free() {
            Ok(free) if free < KEPT_FROM_STARTS + FOR_A_START * others => Err(Error::Descriptors { free, limit }),
            // If they cannot be counted, the first operation that needs one fails with its own error.
            _ => Ok(permit),
        }
    }

    /// Starts the shim of a process whose directory is ready, and waits until it has written the pid.
    pub(crate) async fn launch(
        &self,
        container: &Container,
        process: &Process,
        deadline: Instant,
    ) -> Result<ExitFifo, Error> {
        let what = match (process.name.as_str(), container.begin) {
            (INIT, Begin::Run) => "shim and runtime run",
            (INIT, Begin::Restore) => "shim and runtime restore",
            (INIT, Begin::CreateThenStart) => "shim and runtime create",
            _ => "shim and runtime exec",
        };
        let _task = self.tasks.begin_runtime(what, &container.id, &process.name);
        let exit = process.dir.open_exit()?;
        let mut watch = self.pids.watch(process.dir.path()).map_err(Error::system("watch a process directory"))?;
        let started = self.shim.start(&container.id, &container.origin.bundle, container.oci(), &process.dir);
        let program = || self.shim.path().display().to_string();
        let mut shim = started.map_err(|source| Error::Spawn { program: program(), source })?;
        process.shim_was_started();
        reach(Point::ShimStarted);
        let gone_with_init = async {
            container.init_ended.wait().await;
            tokio::time::sleep(AFTER_INIT).await;
        };
        let ended = tokio::select! {
            biased;
            () = watch.written() => None,
            // It is not reaped yet: its process group shows what it has started.
            ended = shim.ended() => Some(ended),
            () = tokio::time::sleep_until(deadline) => {
                // The caller ends it, however long that takes.
                process.keep_shim(shim);
                return Err(Error::StartTimeout { id: container.id.clone() });
            }
            () = gone_with_init => {
                process.keep_shim(shim);
                return Err(container.ended_meanwhile());
            }
        };
        drop(watch);
        // The pid counts also if the process and its shim have ended since.
        if let Some(identity) = process.dir.process()? {
            reach(Point::PidSeen);
            process.set_identity(identity);
            shim.set_free();
            process.keep_shim(shim);
            return ExitFifo::new(exit).map_err(Error::system("watch the exit fifo"));
        }
        let ended = match ended {
            Some(Ok(())) => {
                // A shim that was killed takes the runtime along, which may not be dead yet.
                kill_all(Shim::others_in_group(shim.pid())).await;
                Some(shim.wait().await)
            }
            Some(Err(e)) => Some(Err(e)),
            None => None,
        };
        Err(explain(&process.dir, container.oci(), ended).await)
    }
}

/// Why a shim ended without having written a pid. A runtime that failed without a message is asked what is wrong with it.
async fn explain(dir: &ProcessDir, oci: &Oci, ended: Option<io::Result<u32>>) -> Error {
    let failed = why_it_failed(dir, oci, ended);
    let runtime_said_nothing = matches!(failed, Error::Shim(_)) && failure_kind(dir) == Some(FailureKind::Runtime);
    let complaint = if runtime_said_nothing { oci.complaint(COMPLAINT_LIMIT).await } else { None };
    complaint.map_or(failed, Error::Runtime)
}

/// Why a shim ended without having written a pid: in the runtime's words, or else in its own.
fn why_it_failed(dir: &ProcessDir, oci: &Oci, ended: Option<io::Result<u32>>) -> Error {
    let shim = dir.shim_error();
    match (&shim, failure_kind(dir)) {
        (Some(line), Some(FailureKind::Stdio)) => return Error::StdioOpen(line.msg.clone()),
        // The shim was given a path, and the client may have named the runtime otherwise.
        (_, Some(FailureKind::NoRuntime)) => return Error::RuntimeMissing(oci.name().to_string()),
        _ => {}
    }
    if let Some(words) = dir.runtime_error() {
        return Error::Runtime(words);
    }
    match (shim, ended) {
        (Some(line), _) => Error::Shim(line.msg),
        // It could not even write that down.
        (None, Some(Ok(_))) if is_full(dir) => Error::System {
            operation: "start a process",
            source: io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
        },
        (None, Some(Ok(status))) => Error::Shim(format!("it ended with status {status} and said nothing")),
        (None, Some(Err(e))) => Error::Shim(format!("it cannot be waited for: {e}")),
        (None, None) => Error::Shim("it wrote no pid".into()),
    }
}

/// What kind of failure a shim has written down.
fn failure_kind(dir: &ProcessDir) -> Option<FailureKind> {
    dir.shim_error().and_then(|line| line.failure())
}

/// Whether the file system of a directory has no room for another file.
fn is_full(dir: &ProcessDir) -> bool {
    rustix::fs::statvfs(dir.path()).is_ok_and(|fs| fs.f_bavail == 0 || (fs.f_files > 0 && fs.f_favail == 0))
}
