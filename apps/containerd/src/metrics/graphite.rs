//! Graphite's line protocol: a name, a value, the time in seconds. Names begin with `metrics.`, and durations are in
//! nanoseconds, as existing dashboards expect them.

use std::fmt::Write;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Figures;

/// How long the server may take to receive all lines.
const LIMIT: Duration = Duration::from_secs(10);

impl Figures {
    /// The lines for all figures, with the time `now`.
    pub(super) fn graphite(&self, now: u64) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let mut line = |name: &str, what: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "metrics.{name}.{what} {value} {now}");
        };
        let rounded = |value: f64| format!("{value:.2}");
        for (name, timer) in &self.timers {
            line(name, "count", &timer.count);
            line(name, "min", &timer.min);
            line(name, "max", &timer.max);
            line(name, "mean", &rounded(timer.mean));
            line(name, "std-dev", &rounded(timer.stddev));
            let percentiles = ["50", "75", "95", "99", "999"];
            for (percentile, (_, value)) in percentiles.iter().zip(timer.quantiles) {
                line(name, &format!("{percentile}-percentile"), &value);
            }
            for (window, rate) in ["one-minute", "five-minute", "fifteen-minute"].iter().zip(timer.rates) {
                line(name, window, &rounded(rate));
            }
            line(name, "mean-rate", &rounded(timer.mean_rate));
        }
        for (name, value) in &self.counters {
            line(name, "count", value);
        }
        for (name, value) in &self.gauges {
            line(name, "value", value);
        }
        text
    }
}

/// Sends lines to a server, over a new connection.
pub(super) async fn send(address: &str, lines: &str) -> io::Result<()> {
    let host = address.strip_prefix("tcp://").unwrap_or(address);
    let sent = async {
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(lines.as_bytes()).await?;
        stream.shutdown().await
    };
    tokio::time::timeout(LIMIT, sent).await.map_err(|_| io::ErrorKind::TimedOut)?
}
