//! Serving the API, from the opened sockets to the last answer.
//!
//! The daemon accepts calls at once, while it still recovers the containers of the previous daemon; the calls wait for the
//! recovery. When it is replaced (SIGHUP), it serves until the new program has shown that it works, then stops accepting, lets
//! the calls finish and executes the new program. Clients that connect in between wait in the sockets, which stay open.

use anyhow::{Context as _, Result, bail};
use api::api_server::ApiServer;
use sd_notify::NotifyState;
use std::time::{Duration, Instant};
use supervisor::{Config, Supervisor};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::layer::layer_fn;
use tower::util::MapResponseLayer;

use super::Context;
use super::signals::{Signals, Stop};
use crate::dump;
use crate::flags::limit;
use crate::http;
use crate::listen::{self, Inherited, Sockets};
use crate::load::{Gate, Load};
use crate::metrics;
use crate::profile;
use crate::replace::Previous;
use crate::service::Service;
use crate::wire::with_plain_message;

/// How long a stopping daemon waits for the calls that are under way.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long a daemon that has stopped accepting, to be replaced, waits for the last calls. No client may wait longer than a
/// second for an answer.
const REPLACE_LIMIT: Duration = Duration::from_millis(700);

/// How long the event loop may take to notice a signal that has arrived.
const SIGNAL_LIMIT: Duration = Duration::from_millis(5);

/// How long clients may take to receive the last answers.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// Requests that one connection may have under way. A subscription to events is one request for as long as it lasts.
const STREAMS_PER_CONNECTION: u32 = 512;

/// The API's name in the health service.
const SERVICE: &str = "types.API";

/// Serves until a signal stops the daemon. `previous` is cleared once this program has recovered the containers: from then on
/// there is no way back to the previous program.
pub(super) async fn serve(context: &Context<'_>, inherited: Inherited, previous: &mut Option<Previous>) -> Result<()> {
    let flags = context.flags;
    let Signals { mut stop, mut replace, dump } = Signals::catch()?;
    let replaces = inherited.is_handed_over();
    let mut sockets = listen::listen(flags, inherited)?;
    sockets.leave_file(previous.is_some());
    let metrics_listener = http_listener("--metrics-address", flags.metrics_address.as_deref()).await?;
    let profile_listener = http_listener("--pprof-address", flags.pprof_address.as_deref()).await?;
    let supervisor = Supervisor::open(Config {
        state_dir: context.state_dir.to_path_buf(),
        runtime: flags.runtime.clone(),
        runtime_args: flags.runtime_args.clone(),
        shim: flags.shim.clone(),
        call_timeout: limit(flags.start_timeout),
        retain: flags.retain_count,
        replaces,
    })?;
    let mut server = Server::start(context, supervisor.clone(), sockets).await;
    observe(context, &supervisor, dump, metrics_listener, profile_listener);
    let end = server.run(context, &mut stop, &mut replace, previous).await?;
    let sockets = server.finish(end).await;
    match end {
        End::Stopped => Ok(()),
        End::Replaced { .. } => make_way(context, &sockets, &mut stop).await,
    }
}

/// Why the server ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// A signal stops the daemon.
    Stopped,
    /// The installed program replaces this one. So many calls still run after [`STOP_LIMIT`]: the server no longer waits for
    /// them.
    Replaced { hanging: usize },
}

/// The API's server, which runs in a task of its own.
struct Server {
    supervisor: Supervisor,
    sockets: Sockets,
    health: HealthReporter,
    /// True once the server is to end.
    stopping: watch::Sender<bool>,
    /// How many calls are under way.
    calls: watch::Receiver<usize>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Begins to serve. The health service reports `NOT_SERVING` until the recovery is done.
    async fn start(context: &Context<'_>, supervisor: Supervisor, mut sockets: Sockets) -> Server {
        let flags = context.flags;
        let (stopping, mut stopped) = watch::channel(false);
        let (health, health_server) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let (count, calls) = watch::channel(0);
        let service = Service::new(supervisor.clone(), limit(flags.start_timeout), stopped.clone(), count);
        let load = Load::default();
        let connections = sockets.connections(&load, &stopped);
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .layer(MapResponseLayer::new(with_plain_message))
            .layer(layer_fn(move |inner| Gate { inner, load: load.clone() }))
            .add_service(health_server)
            .add_service(ApiServer::new(service))
            .serve_with_incoming_shutdown(connections, async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            });
        let task = tokio::spawn(server);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %flags.listen, "serving");
        Server { supervisor, sockets, health, stopping, calls, task }
    }

    /// Recovers the containers, and then serves until a signal ends the server.
    async fn run(
        &mut self,
        context: &Context<'_>,
        stop: &mut Stop,
        replace: &mut Signal,
        previous: &mut Option<Previous>,
    ) -> Result<End> {
        let (supervisor, health) = (self.supervisor.clone(), self.health.clone());
        let recovery = async {
            supervisor.recover().await.context("recover the containers")?;
            // Before any call is answered.
            set_health(&health, ServingStatus::Serving).await;
            supervisor.serve();
            notify_manager(NotifyState::Ready);
            anyhow::Ok(())
        };
        tokio::pin!(recovery);
        let mut is_recovered = false;
        loop {
            tokio::select! {
                result = &mut recovery, if !is_recovered => {
                    result?;
                    is_recovered = true;
                    *previous = None;
                    self.sockets.leave_file(false);
                }
                result = &mut self.task => {
                    result.context("serve")?.context("serve")?;
                    bail!("the server ended by itself");
                }
                signal = stop.wait() => {
                    tracing::info!(signal, "stopping; containers go on running");
                    return Ok(End::Stopped);
                }
                // Only after the recovery: this waits for calls, and calls wait for the recovery.
                _ = replace.recv(), if is_recovered => tokio::select! {
                    result = self.prepare_replacement(context) => match result {
                        Ok(hanging) => return Ok(End::Replaced { hanging }),
                        Err(e) => tracing::error!("not replaced, still serving: {e:#}"),
                    },
                    signal = stop.wait() => {
                        tracing::info!(signal, "stopping instead of being replaced; containers go on running");
                        return Ok(End::Stopped);
                    }
                }
            }
        }
    }

    /// Tries the installed program, and then waits for the calls that are under way; new calls are served meanwhile. Returns
    /// how many of the calls hang.
    async fn prepare_replacement(&self, context: &Context<'_>) -> Result<usize> {
        let version = context.replacement.check().await?;
        context.replacement.rehearse(context.flags, context.state_dir).await?;
        tracing::info!(version, "making way for the installed program");
        Ok(calls_of_before(&self.supervisor, self.calls.clone()).await)
    }

    /// Stops accepting and waits for the calls that are under way. Returns the sockets, which are still open if another program
    /// is to inherit them.
    async fn finish(mut self, end: End) -> Sockets {
        let (state, limit, hanging) = match end {
            End::Stopped => (NotifyState::Stopping, STOP_LIMIT, 0),
            End::Replaced { hanging } => (NotifyState::Reloading, REPLACE_LIMIT, hanging),
        };
        notify_manager(state);
        if matches!(end, End::Stopped) {
            self.sockets.close();
        }
        set_health(&self.health, ServingStatus::NotServing).await;
        self.stopping.send_replace(true);
        // The server's task ends when the last client closes its connection, which a hung client never does. So this waits for
        // the calls, and only briefly for the task.
        let finished = async {
            let _ = self.calls.wait_for(|calls| *calls <= hanging).await;
            let _ = tokio::time::timeout(FLUSH_LIMIT, &mut self.task).await;
        };
        if tokio::time::timeout(limit, finished).await.is_err() {
            tracing::warn!("calls are still under way after {limit:?}; the next daemon takes up what they began");
        }
        self.sockets
    }
}

/// Executes the installed program in this one's place. Returns only if a signal stops the daemon first, or on failure.
async fn make_way(context: &Context<'_>, sockets: &Sockets, stop: &mut Stop) -> Result<()> {
    // From here on, a signal to stop kills this process, whichever program is in it. A signal that arrived before stops it too.
    Stop::restore_default().context("restore the signals' default")?;
    if let Ok(signal) = tokio::time::timeout(SIGNAL_LIMIT, stop.wait()).await {
        tracing::info!(signal, "stopping instead of being replaced; containers go on running");
        return Ok(());
    }
    // The descriptors for the next program lose close-on-exec below, so no child may be started any more. From here on nothing
    // is awaited.
    sys::child::start_no_more();
    sys::signal::stop_profile_timer();
    for signal in [SignalKind::hangup().as_raw_value(), sys::signal::PROF] {
        sys::signal::ignore(signal).context("ignore a signal")?;
    }
    let handed_over = sockets.hand_over().context("hand the sockets over")?;
    context.log.flush();
    let left = [Some(handed_over), context.log.hand_over()];
    bail!(context.replacement.take_over(left.into_iter().flatten().collect()))
}

/// Waits for the calls that are under way at this moment, at most for [`STOP_LIMIT`]. Returns how many still are.
async fn calls_of_before(supervisor: &Supervisor, mut calls: watch::Receiver<usize>) -> usize {
    let now = Instant::now();
    let left = || supervisor.tasks().running().iter().filter(|task| task.is_call && task.since <= now).count();
    let finished = async { while left() > 0 && calls.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(STOP_LIMIT, finished).await;
    left()
}

/// Starts the tasks that show what the daemon does: dumps, metrics and profiles, as far as the flags ask for them.
fn observe(
    context: &Context<'_>,
    supervisor: &Supervisor,
    mut dump_signal: Signal,
    metrics_listener: Option<TcpListener>,
    profile_listener: Option<TcpListener>,
) {
    let Context { flags, level, .. } = context;
    let watched = supervisor.clone();
    tokio::spawn(async move {
        while dump_signal.recv().await.is_some() {
            for line in dump::lines(&watched).await {
                // A warning, so that the usual log levels show it.
                tracing::warn!("dump: {line}");
            }
        }
    });
    if let Some(listener) = metrics_listener {
        tokio::spawn(metrics::serve(listener, supervisor.clone()));
    }
    if let Some(listener) = profile_listener {
        tokio::spawn(profile::serve(listener, supervisor.clone(), level.clone()));
    }
    // Without a Graphite server metrics are logged, and only with --debug.
    if !flags.metrics_interval.is_zero() && (flags.debug || flags.graphite_address.is_some()) {
        let (interval, graphite) = (limit(flags.metrics_interval), flags.graphite_address.clone());
        tokio::spawn(metrics::report(supervisor.clone(), interval, graphite));
    }
}

async fn http_listener(flag: &'static str, address: Option<&str>) -> Result<Option<TcpListener>> {
    match address {
        Some(address) => http::listen(flag, address).await.map(Some),
        None => Ok(None),
    }
}

/// Notifies the service manager, if the daemon has one (sd_notify(3)).
fn notify_manager(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot notify the service manager: {e}");
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health.set_service_status(SERVICE, status).await;
}
