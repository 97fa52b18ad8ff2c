//! The daemon's process: the state that it starts from, the state directory's lock, and the way back to the previous program.
//!
//! [`run`] prepares the process while it has one thread, then starts the event loop and [serves](server).

mod server;
mod signals;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock, open};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;
use supervisor::Supervisor;
use tokio::signal::unix::SignalKind;

use crate::flags::Flags;
use crate::listen::Inherited;
use crate::logging::{Level, Log};
use crate::replace::{Previous, Replacement};

/// Descriptors for which the daemon makes room when it starts, beside those of the containers that it finds.
const FIRST_DESCRIPTORS: u64 = 1024;

/// Descriptors that the daemon holds for each container: one to learn of its exit, two to learn of OOM kills, and three that
/// `State` keeps open.
const DESCRIPTORS_PER_CONTAINER: u64 = 6;

/// Files of the daemon are writable by root alone.
const UMASK: Mode = Mode::from_raw_mode(0o022);

/// What every part of the daemon's life needs.
struct Context<'a> {
    flags: &'a Flags,
    state_dir: &'a Path,
    log: &'a Log,
    level: Level,
    replacement: &'a Replacement,
}

/// Runs the daemon until a signal stops it.
pub(crate) fn run(flags: &Flags, inherited: Inherited, log: &Log, level: Level) -> Result<()> {
    sys::allocator::limit_heaps(2);
    clean_state().context("begin with a clean state")?;
    let replacement = Replacement::new()?;
    let mut previous = inherited.previous();
    // Children inherit nothing that this process was started with.
    sys::descriptors::close_on_exec_from(3).context("set close-on-exec")?;
    if let Err(e) = sys::descriptors::raise_limit() {
        tracing::warn!("cannot raise the limit of open descriptors: {e}");
    }
    let state_dir = std::path::absolute(&flags.state_dir).context("find the state directory")?;
    // Checked before anything is written there, since another program may use the directory. The error's text includes its
    // cause, which anyhow would print again.
    let checked = Supervisor::check_state_dir(&state_dir).map_err(|e| anyhow::anyhow!("{e}"));
    let _lock = match checked.and_then(|()| lock(&state_dir)) {
        Ok(lock) => lock,
        failed => return go_back(failed.map(drop), previous, log),
    };
    // The directory has one entry for each container, and a few more.
    let containers = std::fs::read_dir(&state_dir).map_or(0, Iterator::count) as u64;
    if let Err(e) = sys::descriptors::make_room(FIRST_DESCRIPTORS + DESCRIPTORS_PER_CONTAINER * containers) {
        tracing::warn!("cannot make room for descriptors: {e}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The tasks wait more than they work. A second worker would be woken at every step of every call, and wake the first.
        .worker_threads(1)
        .max_blocking_threads(64)
        // These threads wait for file systems. An idle daemon has none.
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()
        .context("start the threads")?;
    let context = Context { flags, state_dir: &state_dir, log, level, replacement: &replacement };
    let result = runtime.block_on(server::serve(&context, inherited, &mut previous));
    // The next daemon takes up the operations that are still under way.
    runtime.shutdown_background();
    go_back(result, previous, log)
}

/// Goes back to the previous program if this one failed before it could serve.
fn go_back(result: Result<()>, previous: Option<Previous>, log: &Log) -> Result<()> {
    let (Err(e), Some(previous)) = (&result, previous) else { return result };
    tracing::error!("cannot serve, going back to the previous program: {e:#}");
    log.flush();
    sys::child::start_no_more();
    Err(previous.take_over(log.hand_over()))
}

/// Undoes what this process inherited and would pass on to its threads and children: blocked and ignored signals, limits that
/// would kill a daemon, and the umask, on which the modes of its files would depend.
fn clean_state() -> std::io::Result<()> {
    sys::signal::unblock_all()?;
    // The previous program in this process may have been taking a CPU profile.
    sys::signal::stop_profile_timer();
    // The previous program ignores SIGHUP before execve(2), so that the signal cannot kill this one before it listens. Rust
    // ignores SIGPIPE in this process and restores the default in children.
    sys::signal::restore_ignored(&[SignalKind::hangup().as_raw_value(), SignalKind::pipe().as_raw_value()]);
    sys::signal::survive_file_size_limit()?;
    sys::limits::lift()?;
    rustix::process::umask(UMASK);
    Ok(())
}

/// Creates the state directory and locks it. The lock lasts as long as the returned descriptor.
fn lock(state_dir: &Path) -> Result<OwnedFd> {
    let at = || state_dir.display();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(state_dir);
    made.with_context(|| format!("create the state directory {}", at()))?;
    let file = open(state_dir.join(".lock"), OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("lock the state directory {}", at()))?;
    // A POSIX record lock belongs to this process alone (fcntl(2), F_SETLK). A flock(2) lock would be shared with a child that
    // has been forked and has not executed its program yet, and would outlive a daemon that is killed at that moment.
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
            bail!("the state directory {} is in use by another daemon", at())
        }
        Err(e) => Err(e).with_context(|| format!("lock the state directory {}", at())),
    }
}
