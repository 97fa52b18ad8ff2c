//! What clients ask of containers that run: signals, pausing, stdin, terminals.

use cgroup::Cgroup;
use failpoint::{Point, reach};
use oci::{Command, INIT, Operation, Shim};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::container::Container;
use crate::error::Error;
use crate::event::EventKind;
use crate::lifecycle::{Happened, Request, State};
use crate::process::Process;
use crate::start::carried_through;
use crate::supervisor::{Shared, Supervisor};

const SIGKILL: u32 = 9;

impl Supervisor {
    /// Sends a signal to one process, and never to another one that has its pid now. Waits for nothing.
    pub fn kill(&self, id: &str, name: &str, signal: u32) -> Result<(), Error> {
        if let Some(aside) = self.0.aside(id) {
            if (name, signal) != (INIT, SIGKILL) {
                return Err(aside.error(id));
            }
            // If that is under way, and its deletion has failed, the deletion is tried again now.
            self.0.deletions.hurry(id);
            tokio::spawn(self.0.clone().clear(id.to_string(), aside));
            return Ok(());
        }
        let (container, process) = self.0.process(id, name)?;
        if !(1..=sys::signal::MAX).contains(&signal) {
            let reason = "is no signal: it must be from 1 to 64";
            return Err(Error::Argument { field: "signal", value: signal.to_string(), reason });
        }
        if signal == SIGKILL {
            // A deletion that has failed is tried again now.
            self.0.deletions.hurry(id);
        }
        let ended = || Error::ProcessEnded { id: id.to_string(), process: name.to_string() };
        let Some(opened) = process.open().map_err(Error::system("look up a process"))? else {
            if signal == SIGKILL && end_stopped_shim(&process)? {
                tracing::warn!(container = %id, process = %name, "its shim is stopped; it is killed");
                return Ok(());
            }
            // Init has not ended before the others of its PID namespace have, and v1's freezer may hold one.
            if signal == SIGKILL && name == INIT && self.0.thaw_for_kill(&container, &process)? {
                return Ok(());
            }
            return Err(ended());
        };
        match opened.send(signal) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => return Err(ended()),
            result => result.map_err(Error::system("send a signal"))?,
        }
        if signal == SIGKILL {
            // Set first: a pause that is under way looks at it when it is done.
            if name == INIT {
                container.killed.store(true, Ordering::SeqCst);
            }
            self.0.thaw_for_kill(&container, &process)?;
        }
        Ok(())
    }

    /// Freezes a running container.
    pub async fn pause(&self, id: &str) -> Result<(), Error> {
        self.freeze(id, Request::Pause).await
    }

    /// Thaws a paused container.
    pub async fn resume(&self, id: &str) -> Result<(), Error> {
        self.freeze(id, Request::Resume).await
    }

    async fn freeze(&self, id: &str, request: Request) -> Result<(), Error> {
        let (operation, happened, kind) = match request {
            Request::Pause => (Operation::Pause, Happened::Paused, EventKind::Pause),
            _ => (Operation::Resume, Happened::Resumed, EventKind::Resume),
        };
        let (shared, container) = (self.0.clone(), self.0.container(id)?);
        carried_through(async move {
            let _order = container.turn(operation.name(), shared.config.call_timeout).await?;
            shared.follow_freezer(&container);
            if request == Request::Resume {
                check_frozen_above(&container)?;
            }
            container.check(request)?;
            let log = container.dir.process(INIT).runtime_log();
            let what = if request == Request::Pause { "runtime pause" } else { "runtime resume" };
            let task = shared.tasks.begin_runtime(what, &container.id, "");
            let result = container.oci().run(operation, &container.id, &log, shared.config.call_timeout).await;
            drop(task);
            reach(Point::FreezerChanged);
            if container.killed.load(Ordering::SeqCst) {
                // It was killed meanwhile, and on v1 would not die frozen.
                if let Some(Err(e)) = container.cgroup().map(Cgroup::thaw_for_kill) {
                    tracing::warn!(container = %container.id, "cannot thaw it: {e}");
                }
            }
            // The kernel decides: a runtime that failed may have done it all the same, and one that resumes a container does not
            // notice that a group above it is frozen.
            let wanted = request == Request::Pause;
            let is_done = match container.cgroup().map(Cgroup::is_frozen) {
                Some(Ok(frozen)) => frozen == wanted,
                _ => result.is_ok(),
            };
            if is_done {
                container.happened(happened);
                shared.journal.append(Shared::event(kind, &container, None, 0))?;
                reach(Point::FreezerJournaled);
                tracing::info!(container = %container.id, state = container.state().name(), "changed");
            } else if request == Request::Resume {
                check_frozen_above(&container)?;
            }
            result?;
            if is_done {
                return Ok(());
            }
            let state = if wanted { "not frozen" } else { "still frozen" };
            Err(Error::Runtime(format!("{} succeeded, but the container is {state}", operation.name())))
        })
        .await
    }

    /// Makes a process read end-of-file after all that has been written to its stdin.
    pub fn close_stdin(&self, id: &str, name: &str) -> Result<(), Error> {
        self.0.command(id, name, Command::CloseStdin)
    }

    /// Resizes a process's terminal, in characters.
    pub fn resize(&self, id: &str, name: &str, columns: u32, rows: u32) -> Result<(), Error> {
        let size = |field, value: u32| {
            let reason = "is more than a terminal can have (65535)";
            u16::try_from(value).map_err(|_| Error::Argument { field, value: value.to_string(), reason })
        };
        let command = Command::Resize { columns: size("width", columns)?, rows: size("height", rows)? };
        self.0.command(id, name, command)
    }
}

/// Refuses to resume a container that stays frozen because a group above it is.
fn check_frozen_above(container: &Container) -> Result<(), Error> {
    let Some(cgroup) = container.cgroup() else { return Ok(()) };
    match cgroup.frozen_above().map_err(Error::system("look at the freezer"))? {
        Some(group) => Err(Error::FrozenAbove { id: container.id.clone(), group }),
        None => Ok(()),
    }
}

/// Ends the shim of a process that is dead, if somebody has stopped it: it would never say so. How the process ended is
/// then told by the kernel, which keeps that until the process is reaped.
fn end_stopped_shim(process: &Process) -> Result<bool, Error> {
    let shims = Shim::stopped_in(&process.dir);
    if shims.is_empty() {
        return Ok(false);
    }
    let Some((pid, starttime)) = process.identity() else { return Ok(false) };
    let status = sys::procfs::exit_status(pid, starttime).map_err(Error::system("look up a process"))?;
    if let Some(status) = status.filter(|_| process.dir.exit_status().is_ok_and(|status| status.is_none())) {
        process.dir.write_exit_status(status)?;
    }
    for (_, shim) in shims {
        shim.send(SIGKILL).map_err(Error::system("kill a stopped shim"))?;
    }
    Ok(true)
}

impl Shared {
    /// Takes the state that the kernel shows: a runtime that outlived its daemon, or somebody else, may have frozen
    /// or thawed the container. Only while nothing else is done about it.
    pub(crate) fn follow_freezer(self: &Arc<Self>, container: &Container) {
        let Some(Ok(frozen)) = container.cgroup().map(Cgroup::is_frozen) else { return };
        let (happened, kind) = match (container.state(), frozen) {
            (State::Running, true) => (Happened::Paused, EventKind::Pause),
            (State::Paused, false) if !container.killed.load(Ordering::SeqCst) => {
                (Happened::Resumed, EventKind::Resume)
            }
            _ => return,
        };
        // When it ends, its shim's runtime may freeze what is left in it.
        if !container.init().is_some_and(|init| matches!(init.open(), Ok(Some(_)))) {
            return;
        }
        if container.happened(happened).is_some() {
            tracing::info!(container = %container.id, state = container.state().name(), "was changed by somebody else");
            self.tell_found(container, kind);
        }
    }

    /// Tells how a container was found, unless that is what has been told last.
    pub(crate) fn tell_freezer(self: &Arc<Self>, container: &Container, init: &Process, frozen: bool) {
        if frozen == self.journal.is_paused(&container.origin.instance) || !matches!(init.open(), Ok(Some(_))) {
            return;
        }
        self.tell_found(container, if frozen { EventKind::Pause } else { EventKind::Resume });
    }

    fn tell_found(self: &Arc<Self>, container: &Container, kind: EventKind) {
        if let Err(e) = self.journal.append(Shared::event(kind, container, None, 0)) {
            tracing::error!(container = %container.id, "{e}; that it changed is not told");
        }
    }

    /// Thaws the groups that keep a process from dying that has been sent SIGKILL. If the container itself goes on, that has
    /// resumed it. True if something was thawed.
    fn thaw_for_kill(self: &Arc<Self>, container: &Container, process: &Process) -> Result<bool, Error> {
        if container.dumping.load(Ordering::SeqCst) {
            // CRIU has frozen it until it traces all processes, and thaws it then. A process that ran meanwhile could be
            // left with CRIU's code in it.
            return Ok(false);
        }
        let Some(cgroup) = container.cgroup().filter(|cgroup| cgroup.holds_killed()) else { return Ok(false) };
        let failed = || Error::system("thaw a container that is killed");
        let Some(pid) = process.pid().filter(|_| process.name != INIT) else {
            // With init the kernel kills all others, wherever in the container they are.
            return cgroup.thaw_for_kill().map_err(failed());
        };
        let thawed = cgroup.thaw_process_for_kill(pid).map_err(failed())?;
        if thawed && container.happened(Happened::Resumed).is_some() {
            self.journal.append(Shared::event(EventKind::Resume, container, None, 0))?;
        }
        Ok(thawed)
    }

    /// Looks up a process by the names that a client gave.
    fn process(&self, id: &str, name: &str) -> Result<(Arc<Container>, Arc<Process>), Error> {
        let container = self.container(id)?;
        Shared::check_process_name(name)?;
        let process = container.process(name)?;
        Ok((container, process))
    }

    fn command(&self, id: &str, name: &str, command: Command) -> Result<(), Error> {
        let (_, process) = self.process(id, name)?;
        if process.dir.send(command)? {
            return Ok(());
        }
        Err(Error::ProcessEnded { id: id.to_string(), process: name.to_string() })
    }
}
