//! The command line.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// The version and what it was built from.
pub(crate) const REVISION: &str = env!("CONTAINERD_REVISION");
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("CONTAINERD_REVISION"), ")");

/// Supervises containers: drives an OCI runtime, over a gRPC API on a socket.
#[derive(Debug, Parser)]
#[command(name = "containerd", version = VERSION, max_term_width = 100, args_override_self = true)]
pub(crate) struct Flags {
    /// Where state lives
    #[arg(long, value_name = "DIR", default_value = "/run/containerd")]
    pub(crate) state_dir: PathBuf,

    /// Where to listen: unix://PATH, tcp://HOST:PORT, or fd:// for a socket that systemd passes
    #[arg(long, short, value_name = "ADDRESS", default_value = "unix:///run/containerd/containerd.sock")]
    pub(crate) listen: String,

    /// OCI runtime, name or path
    #[arg(long, short, value_name = "RUNTIME", default_value = "runc")]
    pub(crate) runtime: String,

    /// Put in front of the runtime's subcommand; repeatable
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) runtime_args: Vec<String>,

    /// Shim, name or path; looked for beside this program first, then in PATH
    #[arg(long, value_name = "SHIM", default_value = "containerd-shim")]
    pub(crate) shim: String,

    /// How long a container may take to start before it is killed
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) start_timeout: Duration,

    /// Events kept in the journal, 0 for all
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) retain_count: usize,

    /// How often metrics are printed (with --debug) or sent; 0 for never
    #[arg(long, value_name = "DURATION", default_value = "5m0s", value_parser = duration)]
    pub(crate) metrics_interval: Duration,

    /// Send metrics to a Graphite server there instead of printing them: HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) graphite_address: Option<String>,

    /// Serve metrics for Prometheus over HTTP there: HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics_address: Option<String>,

    /// Serve debug information over HTTP there (CPU profile, tasks, log level): HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) pprof_address: Option<String>,

    /// Group that owns the socket, name or number
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,

    /// This daemon's certificate for tcp://, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,

    /// The authority of which every client must have a certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Allow tcp:// without TLS, on loopback only: everybody on this machine is then root
    #[arg(long)]
    pub(crate) insecure_tcp: bool,

    /// Log everything; the same as --log-level debug
    #[arg(long)]
    pub(crate) debug: bool,

    /// What to log
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub(crate) log_level: LogLevel,

    /// How to log
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// The least important messages that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// `300ms`, `15s`, `1m30s`; `0` needs no unit and means off.
fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|e| format!("{e}; durations are written as 300ms, 15s or 1m30s"))
}

/// A time limit; 0 means that there is none, which is as long as no machine runs.
pub(crate) fn limit(given: Duration) -> Duration {
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    if given.is_zero() { LONGEST } else { given.min(LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn durations_are_read_as_they_are_written() {
        let ms = |text| duration(text).map(|d| d.as_millis());
        assert_eq!(ms("300ms"), Ok(300));
        assert_eq!(ms("15s"), Ok(15_000));
        assert_eq!(ms("1m30s"), Ok(90_000));
        assert_eq!(ms("5m0s"), Ok(300_000));
        assert_eq!(ms("0"), Ok(0));
        for bad in ["", "5", "-1s", "x"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_limit_is_a_long_one() {
        assert!(limit(Duration::ZERO) > Duration::from_secs(1 << 20));
        assert_eq!(limit(Duration::from_secs(1)), Duration::from_secs(1));
        let _ = std::time::Instant::now() + limit(Duration::MAX);
    }

    #[test]
    fn runtime_arguments_may_begin_with_dashes() {
        let flags = Flags::parse_from(["containerd", "--runtime-args=--root=/r", "--runtime-args", "--debug"]);
        assert_eq!(flags.runtime_args, ["--root=/r", "--debug"]);
        assert!(!flags.debug);
    }
}
