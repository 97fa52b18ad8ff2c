//! Metrics: timers, counters and gauges. They are gathered on request and shown in the log, to Graphite or to Prometheus.

mod graphite;
mod prometheus;

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use supervisor::{Reading, Supervisor};
use tokio::net::TcpListener;

use crate::http::{self, Answer};

/// All metrics at one moment, under the names that dashboards know.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Durations in nanoseconds.
    timers: [(&'static str, Reading); 6],
    counters: [(&'static str, u64); 4],
    gauges: [(&'static str, u64); 4],
}

impl Figures {
    /// Gathers the figures in a thread of its own, so that reading `/proc` delays no call.
    async fn gather(supervisor: &Supervisor) -> Figures {
        let supervisor = supervisor.clone();
        match tokio::task::spawn_blocking(move || Figures::gather_now(&supervisor)).await {
            Ok(figures) => figures,
            Err(e) => std::panic::resume_unwind(Box::new(e)),
        }
    }

    /// Gathers the figures. Blocks while it reads a few files in `/proc`.
    fn gather_now(supervisor: &Supervisor) -> Figures {
        let metrics = supervisor.metrics();
        let (events, subscribers) = (supervisor.event_count(), supervisor.subscriber_count());
        let (descriptors, watched) = descriptors();
        Figures {
            timers: [
                ("container-create-time", metrics.create.read()),
                ("container-start-time", metrics.start.read()),
                ("container-delete-time", metrics.delete.read()),
                ("container-stats-time", metrics.stats.read()),
                ("exec-process-time", metrics.exec.read()),
                ("exit-process-time", metrics.exit.read()),
            ],
            counters: [
                ("containers", supervisor.container_count() as u64),
                ("events", events),
                ("event-subscribers", subscribers as u64),
                ("tasks", supervisor.tasks().begun()),
            ],
            gauges: [
                ("fds", descriptors),
                ("epoll-fds", watched),
                ("memory-used", resident()),
                ("runtime-tasks", tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64),
            ],
        }
    }
}

/// How many descriptors this process has open, and how many descriptors its epoll instances watch.
fn descriptors() -> (u64, u64) {
    let (mut open, mut watched) = (0, 0);
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        open += 1;
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]") {
            let name = entry.file_name();
            let info = std::path::Path::new("/proc/self/fdinfo").join(name);
            // A line "tfd:" for each watched descriptor (proc_pid_fdinfo(5)).
            let info = std::fs::read_to_string(info).unwrap_or_default();
            watched += info.lines().filter(|line| line.starts_with("tfd:")).count() as u64;
        }
    }
    // Without the descriptor of this listing.
    (u64::saturating_sub(open, 1), watched)
}

/// The daemon's resident memory in bytes (proc_pid_statm(5)).
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * rustix::param::page_size() as u64
}

/// Sends metrics to a Graphite server in intervals, or logs them if there is none. Never returns.
pub(crate) async fn report(supervisor: Supervisor, interval: Duration, graphite: Option<String>) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick comes at once.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let figures = Figures::gather(&supervisor).await;
        match &graphite {
            None => figures.log(),
            Some(address) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                if let Err(e) = graphite::send(address, &figures.graphite(now.as_secs())).await {
                    tracing::warn!(address, "cannot send metrics: {e}; trying again in {interval:?}");
                }
            }
        }
    }
}

/// Serves metrics for Prometheus over HTTP. Never returns.
pub(crate) async fn serve(listener: TcpListener, supervisor: Supervisor) {
    http::serve(listener, move |asked| {
        let supervisor = supervisor.clone();
        async move {
            match asked.path.as_str() {
                "/metrics" => Answer {
                    status: hyper::StatusCode::OK,
                    kind: prometheus::CONTENT_TYPE,
                    body: Figures::gather(&supervisor).await.prometheus().into_bytes(),
                },
                _ => Answer::text(hyper::StatusCode::NOT_FOUND, "metrics are at /metrics\n"),
            }
        }
    })
    .await;
}

impl Figures {
    /// Logs a line for each metric.
    fn log(&self) {
        let ms = |nanoseconds: f64| nanoseconds / 1e6;
        for (name, timer) in &self.timers {
            let [q50, q75, q95, q99, q999] = timer.quantiles.map(|(_, value)| ms(value as f64));
            let [m1, m5, m15] = timer.rates;
            let (count, min, max) = (timer.count, ms(timer.min as f64), ms(timer.max as f64));
            let (mean, stddev, mean_rate) = (ms(timer.mean), ms(timer.stddev), timer.mean_rate);
            tracing::info!(
                name,
                count,
                min,
                max,
                mean,
                stddev,
                q50,
                q75,
                q95,
                q99,
                q999,
                m1,
                m5,
                m15,
                mean_rate,
                "timer (ms, per second)"
            );
        }
        for (name, value) in &self.counters {
            tracing::info!(name, value, "counter");
        }
        for (name, value) in &self.gauges {
            tracing::info!(name, value, "gauge");
        }
    }
}
