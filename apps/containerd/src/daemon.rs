//! The daemon's own life: start, recover, serve, stop.

use anyhow::{Context, Result, bail};
use api::api_server::ApiServer;
use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock, open};
use sd_notify::NotifyState;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use supervisor::{Config, Supervisor};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tower::layer::layer_fn;
use tower::util::MapResponseLayer;

use crate::dump;
use crate::flags::{Flags, limit};
use crate::http;
use crate::listen::{self, Inherited};
use crate::load::{Gate, Load};
use crate::logging::{Level, Log};
use crate::metrics;
use crate::profile;
use crate::replace::{Previous, Replacement};
use crate::service::Service;
use crate::wire::with_plain_message;

/// How long calls that are under way may take when the daemon is stopped.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long calls may take that came when this program was about to make way for another one: no client is to wait
/// longer than a second.
const REPLACE_LIMIT: Duration = Duration::from_millis(700);

/// How long a signal that has come may take until it is seen.
const SIGNAL_LIMIT: Duration = Duration::from_millis(5);

/// How long clients may take to receive the last answers.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// Requests that one connection may have under way. Each subscriber to events is one for as long as it is there.
const STREAMS_PER_CONNECTION: u32 = 512;

/// The name under which the health service tells of the API.
const SERVICE: &str = "types.API";

/// Room for so many descriptors is made at the start, beside those of the containers that are there.
const FIRST_DESCRIPTORS: u64 = 1024;

/// A container takes so many: its `exit`, two that tell of an out-of-memory, and three that `State` holds.
const DESCRIPTORS_OF_ONE: u64 = 6;

/// What nobody but root may do with any file of the daemon's: write to it.
const UMASK: Mode = Mode::from_raw_mode(0o022);

/// Runs until a signal says to stop.
pub(crate) fn run(flags: Flags, inherited: Inherited, log: &Log, level: Level) -> Result<()> {
    sys::allocator::limit_heaps(2);
    clean_state().context("begin with a clean state")?;
    let replacement = Replacement::new()?;
    let mut previous = inherited.previous();
    // What this process was started with is not the containers' business.
    sys::descriptors::close_on_exec_from(3).context("set close-on-exec")?;
    if let Err(e) = sys::descriptors::raise_limit() {
        tracing::warn!("cannot raise the limit of open descriptors: {e}");
    }
    let state_dir = std::path::absolute(&flags.state_dir).context("find the state directory")?;
    // Before anything is written there: another program may use it.
    // Its text has the cause already.
    let checked = Supervisor::check_state_dir(&state_dir).map_err(|e| anyhow::anyhow!("{e}"));
    let _lock = match checked.and_then(|()| lock(&state_dir)) {
        Ok(lock) => lock,
        failed => return go_back(failed.map(drop), previous, log),
    };
    // Of as many containers as there are, and of some that come.
    let containers = std::fs::read_dir(&state_dir).map_or(0, Iterator::count) as u64;
    if let Err(e) = sys::descriptors::make_room(FIRST_DESCRIPTORS + DESCRIPTORS_OF_ONE * containers) {
        tracing::warn!("cannot make room for descriptors: {e}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One thread is enough for what waits; a second one would be woken, and wake, at every step of every call.
        .worker_threads(1)
        .max_blocking_threads(64)
        // Threads that wait for file systems: none while there is nothing to do.
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()
        .context("start the threads")?;
    let serving = serve(&flags, (log, level), state_dir, inherited, (&replacement, &mut previous));
    let result = runtime.block_on(serving);
    // What is still under way is taken up by the next daemon.
    runtime.shutdown_background();
    go_back(result, previous, log)
}

/// Goes back to the program before this one if this one could not serve.
fn go_back(result: Result<()>, previous: Option<Previous>, log: &Log) -> Result<()> {
    let (Err(e), Some(previous)) = (&result, previous) else { return result };
    tracing::error!("cannot serve, going back to the program before: {e:#}");
    log.flush();
    sys::child::start_no_more();
    Err(previous.take_over(log.hand_over()))
}

/// Leaves behind what this process's starter gave it, and what threads and children would inherit: blocked and ignored
/// signals, limits that would end a daemon, and a umask, on which the modes of files would depend.
fn clean_state() -> std::io::Result<()> {
    sys::signal::unblock_all()?;
    // The program before this one, in the same process, may have been profiled.
    sys::signal::stop_profile_timer();
    // SIGHUP stays ignored until it is listened to: the program before this one left it so, lest it end this one. Rust ignores
    // SIGPIPE, and gives children the default.
    sys::signal::restore_ignored(&[SignalKind::hangup().as_raw_value(), SignalKind::pipe().as_raw_value()]);
    sys::signal::survive_file_size_limit()?;
    sys::limits::lift()?;
    rustix::process::umask(UMASK);
    Ok(())
}

/// Takes the state directory for this process alone, as long as the result is held.
fn lock(state_dir: &Path) -> Result<OwnedFd> {
    let at = || state_dir.display();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(state_dir);
    made.with_context(|| format!("create the state directory {}", at()))?;
    let file = open(state_dir.join(".lock"), OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("lock the state directory {}", at()))?;
    // A lock of this process alone (fcntl(2), F_SETLK). One of flock(2) would be shared by a child that has been forked and
    // has not yet come to its exec, and outlive a daemon that is killed just then.
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
            bail!("the state directory {} is in use by another daemon", at())
        }
        Err(e) => Err(e).with_context(|| format!("lock the state directory {}", at())),
    }
}

async fn serve(
    flags: &Flags,
    (log, level): (&Log, Level),
    state_dir: PathBuf,
    inherited: Inherited,
    (replacement, previous): (&Replacement, &mut Option<Previous>),
) -> Result<()> {
    let mut stop = Stop::new()?;
    let mut replace = signal(SignalKind::hangup()).context("listen for signals")?;
    let mut dump = signal(SignalKind::user_defined1()).context("listen for signals")?;
    let replaces = inherited.is_handed_over();
    let mut sockets = listen::listen(flags, inherited)?;
    sockets.leave_file(previous.is_some());
    let metrics_listener = http_listener("--metrics-address", flags.metrics_address.as_deref()).await?;
    let profile_listener = http_listener("--pprof-address", flags.pprof_address.as_deref()).await?;
    let supervisor = Supervisor::open(Config {
        state_dir: state_dir.clone(),
        runtime: flags.runtime.clone(),
        runtime_args: flags.runtime_args.clone(),
        shim: flags.shim.clone(),
        call_timeout: limit(flags.start_timeout),
        retain: flags.retain_count,
        replaces,
    })?;

    let (stopping, stopped) = watch::channel(false);
    let (health, health_server) = tonic_health::server::health_reporter();
    set_health(&health, ServingStatus::NotServing).await;
    let (calls, mut under_way) = watch::channel(0);
    let service = Service::new(supervisor.clone(), limit(flags.start_timeout), stopped.clone(), calls);
    let mut until = stopped;
    let load = Load::default();
    let requests = load.clone();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .layer(MapResponseLayer::new(with_plain_message))
        .layer(layer_fn(move |inner| Gate { inner, load: requests.clone() }))
        .add_service(health_server)
        .add_service(ApiServer::new(service))
        .serve_with_incoming_shutdown(sockets.connections(&load, &until.clone()), async move {
            let _ = until.wait_for(|stop| *stop).await;
        });
    let mut server = tokio::spawn(server);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %flags.listen, "serving");

    let watched = supervisor.clone();
    tokio::spawn(async move {
        while dump.recv().await.is_some() {
            for line in dump::lines(&watched).await {
                // Somebody wants to see it, whatever is logged otherwise.
                tracing::warn!("dump: {line}");
            }
        }
    });
    if let Some(listener) = metrics_listener {
        tokio::spawn(metrics::serve(listener, supervisor.clone()));
    }
    if let Some(listener) = profile_listener {
        tokio::spawn(profile::serve(listener, supervisor.clone(), level));
    }
    // Without --debug nobody wants them printed.
    if !flags.metrics_interval.is_zero() && (flags.debug || flags.graphite_address.is_some()) {
        let (interval, graphite) = (limit(flags.metrics_interval), flags.graphite_address.clone());
        tokio::spawn(metrics::report(supervisor.clone(), interval, graphite));
    }
    let recovering = supervisor.clone();
    let recovery = async {
        recovering.recover().await.context("recover the containers")?;
        set_health(&health, ServingStatus::Serving).await;
        recovering.serve();
        tell_manager(NotifyState::Ready);
        anyhow::Ok(())
    };
    tokio::pin!(recovery);
    // Calls that are not waited for any more.
    let mut hanging = 0;
    let mut ready = false;
    let replaced = loop {
        tokio::select! {
            result = &mut recovery, if !ready => {
                result?;
                ready = true;
                *previous = None;
                sockets.leave_file(false);
            }
            result = &mut server => {
                result.context("serve")?.context("serve")?;
                bail!("the server ended by itself");
            }
            signal = stop.wait() => {
                tracing::info!(signal, "stopping; containers go on running");
                break false;
            }
            // Calls wait for recovery, which would wait for them.
            _ = replace.recv(), if ready => {
                let make_way = async {
                    let version = replacement.check().await?;
                    replacement.rehearse(flags, &state_dir).await?;
                    tracing::info!(version, "making way for the program that is installed now");
                    // All is served meanwhile.
                    anyhow::Ok(calls_of_before(&supervisor, under_way.clone()).await)
                };
                tokio::select! {
                    result = make_way => match result {
                        Ok(left) => {
                            hanging = left;
                            break true;
                        }
                        Err(e) => tracing::error!("not replaced, going on: {e:#}"),
                    },
                    signal = stop.wait() => {
                        tracing::info!(signal, "stopping after all; containers go on running");
                        break false;
                    }
                }
            }
        }
    };
    tell_manager(if replaced { NotifyState::Reloading } else { NotifyState::Stopping });
    if !replaced {
        sockets.close();
    }
    set_health(&health, ServingStatus::NotServing).await;
    stopping.send_replace(true);
    // The server ends when every client has gone, which one that hangs never does; what counts are calls.
    let finished = async {
        let _ = under_way.wait_for(|calls| *calls <= hanging).await;
        let _ = tokio::time::timeout(FLUSH_LIMIT, &mut server).await;
    };
    let limit = if replaced { REPLACE_LIMIT } else { STOP_LIMIT };
    if tokio::time::timeout(limit, finished).await.is_err() {
        tracing::warn!("calls are still under way after {limit:?}; the next daemon takes up what they have begun");
    }
    if replaced {
        // From here on a signal to stop ends this process, whichever program is in it; one that came before does too.
        Stop::restore_default().context("give signals back")?;
        if let Ok(signal) = tokio::time::timeout(SIGNAL_LIMIT, stop.wait()).await {
            tracing::info!(signal, "stopping after all; containers go on running");
            return Ok(());
        }
        // What is left to the next program is not for children. From here on nothing is waited for.
        sys::child::start_no_more();
        sys::signal::stop_profile_timer();
        for signal in [SignalKind::hangup().as_raw_value(), sys::signal::PROF] {
            sys::signal::ignore(signal).context("ignore a signal")?;
        }
        // Clients wait in the sockets.
        let sockets = sockets.hand_over().context("hand the sockets over")?;
        log.flush();
        let left = [Some(sockets), log.hand_over()];
        bail!(replacement.take_over(left.into_iter().flatten().collect()));
    }
    Ok(())
}

/// Waits for the calls that are under way now to finish, but not without end; how many have not.
async fn calls_of_before(supervisor: &Supervisor, mut under_way: watch::Receiver<usize>) -> usize {
    let now = Instant::now();
    let left = || supervisor.tasks().running().iter().filter(|task| task.is_call && task.since <= now).count();
    let finished = async { while left() > 0 && under_way.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(STOP_LIMIT, finished).await;
    left()
}

/// Tells the service manager, if one wants to know (sd_notify(3)).
fn tell_manager(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell the service manager: {e}");
    }
}

async fn http_listener(flag: &'static str, address: Option<&str>) -> Result<Option<tokio::net::TcpListener>> {
    match address {
        Some(address) => http::listen(flag, address).await.map(Some),
        None => Ok(None),
    }
}

async fn set_health(health: &tonic_health::server::HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health.set_service_status(SERVICE, status).await;
}

/// The signals that the daemon knows.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Stop> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Stop { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Lets them end this process.
    fn restore_default() -> std::io::Result<()> {
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            sys::signal::restore_default(kind.as_raw_value())?;
        }
        Ok(())
    }

    /// Waits for one that says to stop.
    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
