//! What clients ask of running processes: signals, the end of stdin, the size of a terminal.

use oci::{Command, INIT, Shim};
use rustix::io::Errno;
use std::sync::Arc;

use crate::container::condition::Thaw;
use crate::container::lifecycle::Recorded;
use crate::container::{Container, Process};
use crate::error::Error;
use crate::events::Journal;

/// The signal that ends a process whatever it does.
pub(crate) const SIGKILL: u32 = 9;

/// Refuses what is no signal.
pub(crate) fn check_signal(signal: u32) -> Result<(), Error> {
    if (1..=sys::signal::MAX).contains(&signal) {
        return Ok(());
    }
    let reason = "is no signal: it must be from 1 to 64";
    Err(Error::Argument { field: "signal", value: signal.to_string(), reason })
}

/// Sends a signal to one process, and never to another one that has its pid now. Waits for nothing.
pub(crate) fn send(journal: &Arc<Journal>, container: &Container, process: &Process, signal: u32) -> Result<(), Error> {
    let ended = || Error::ProcessEnded { id: container.id.clone(), process: process.name.clone() };
    let is_init = process.name == INIT;
    let Some(opened) = process.open().map_err(Error::system("look up a process"))? else {
        if signal == SIGKILL && end_stopped_shim(process)? {
            tracing::warn!(container = %container.id, process = %process.name, "its shim is stopped; it is killed");
            return Ok(());
        }
        // Init has ended only when all other processes of its PID namespace have, and v1's freezer may hold one of them.
        let may_thaw = container.condition(|condition| condition.may_thaw());
        if signal == SIGKILL && is_init && may_thaw == Thaw::Now && thaw(journal, container, process)? {
            return Ok(());
        }
        return Err(ended());
    };
    match opened.send(signal) {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => return Err(ended()),
        result => result.map_err(Error::system("send a signal"))?,
    }
    if signal == SIGKILL && container.condition(|condition| condition.process_was_killed(is_init)) == Thaw::Now {
        thaw(journal, container, process)?;
    }
    Ok(())
}

/// Thaws the groups that keep a killed process from dying. If the container itself was thawed and goes on, it has been resumed.
/// True if a group was thawed.
fn thaw(journal: &Arc<Journal>, container: &Container, process: &Process) -> Result<bool, Error> {
    let Some(cgroup) = container.cgroup().filter(|cgroup| cgroup.holds_killed()) else { return Ok(false) };
    let failed = || Error::system("thaw a container that is killed");
    let Some(pid) = process.pid().filter(|_| process.name != INIT) else {
        // When init dies the kernel kills all other processes, in whatever group of the container they are.
        return cgroup.thaw_for_kill().map_err(failed());
    };
    let thawed = cgroup.thaw_process_for_kill(pid).map_err(failed())?;
    if thawed && container.record(journal, Recorded::Resumed)?.is_done() {
        tracing::info!(container = %container.id, "resumed, because a process in it was killed");
    }
    Ok(thawed)
}

/// Ends the shim of a dead process, if the shim is stopped and so would never report the exit. The kernel keeps a process's exit
/// status until it is reaped; the daemon writes that status down in the shim's place.
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

/// Makes a process read end-of-file after everything that has been written to its stdin.
pub(crate) fn close_stdin(container: &Container, process: &Process) -> Result<(), Error> {
    command(container, process, Command::CloseStdin)
}

/// Refuses a size that no terminal can have.
pub(crate) fn check_size(columns: u32, rows: u32) -> Result<(), Error> {
    size(columns, rows).map(drop)
}

fn size(columns: u32, rows: u32) -> Result<(u16, u16), Error> {
    let size = |field, value: u32| {
        let reason = "is more than a terminal can have (65535)";
        u16::try_from(value).map_err(|_| Error::Argument { field, value: value.to_string(), reason })
    };
    Ok((size("width", columns)?, size("height", rows)?))
}

/// Resizes a process's terminal, in characters.
pub(crate) fn resize(container: &Container, process: &Process, columns: u32, rows: u32) -> Result<(), Error> {
    let (columns, rows) = size(columns, rows)?;
    command(container, process, Command::Resize { columns, rows })
}

fn command(container: &Container, process: &Process, command: Command) -> Result<(), Error> {
    if process.dir.send(command)? {
        return Ok(());
    }
    Err(Error::ProcessEnded { id: container.id.clone(), process: process.name.clone() })
}
