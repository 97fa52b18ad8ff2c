//! The command line.

use clap::{CommandFactory, Parser, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The revision of the source that this program was built from.
pub(crate) const REVISION: &str = env!("CONTAINERD_REVISION");
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("CONTAINERD_REVISION"), ")");

/// Supervises containers: runs them with an OCI runtime and serves a gRPC API on a socket.
#[derive(Debug, Parser)]
#[command(name = "containerd", version = VERSION, max_term_width = 100, args_override_self = true)]
pub(crate) struct Flags {
    /// Directory for the state of containers and the journal of events
    #[arg(long, value_name = "DIR", default_value = "/run/containerd")]
    pub(crate) state_dir: PathBuf,

    /// Address to listen on: unix://PATH, tcp://HOST:PORT, or fd:// for sockets that systemd passes
    #[arg(long, short, value_name = "ADDRESS", default_value = "unix:///run/containerd/containerd.sock")]
    pub(crate) listen: String,

    /// OCI runtime, by name or path
    #[arg(long, short, value_name = "RUNTIME", default_value = "runc")]
    pub(crate) runtime: String,

    /// Argument for the runtime, in front of its subcommand; can be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) runtime_args: Vec<String>,

    /// Shim, by name or path; a name is searched beside this program first, then in PATH
    #[arg(long, value_name = "SHIM", default_value = "containerd-shim")]
    pub(crate) shim: String,

    /// How long a container may take to start before the daemon kills it; 0 for no limit
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) start_timeout: Duration,

    /// How many events the journal keeps; 0 for all
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) retain_count: usize,

    /// How often metrics are logged (with --debug) or sent to Graphite; 0 for never
    #[arg(long, value_name = "DURATION", default_value = "5m0s", value_parser = duration)]
    pub(crate) metrics_interval: Duration,

    /// Graphite server to send metrics to instead of logging them: HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) graphite_address: Option<String>,

    /// Address to serve metrics for Prometheus on, over HTTP: HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics_address: Option<String>,

    /// Address to serve debug information on, over HTTP (CPU profile, tasks, log level): HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) pprof_address: Option<String>,

    /// Group that owns the unix socket, by name or number
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,

    /// The daemon's certificate for tcp://, in PEM format
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's private key, in PEM format
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,

    /// The authority that must have issued every client's certificate, in PEM format
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Allow tcp:// without TLS, on loopback only: every user of this machine can then become root
    #[arg(long)]
    pub(crate) insecure_tcp: bool,

    /// Same as --log-level debug
    #[arg(long)]
    pub(crate) debug: bool,

    /// Least severe messages to log
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub(crate) log_level: LogLevel,

    /// Format of the log
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

impl Flags {
    /// Reads this program's command line. Prints an error and exits if it is wrong.
    pub(crate) fn read() -> Flags {
        Flags::parse_from(with_two_dashes(std::env::args_os()))
    }
}

/// Rewrites long flags from the form that Go programs accept (`-debug`, `-state-dir DIR`, `-debug=true`) into the form that
/// clap accepts. The value of a flag stays as it is, and so does every word that is not a long flag of this program.
fn with_two_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut command = Flags::command();
    command.build();
    // Whether the flag takes a value. `None` if this program has no such flag.
    let takes_value = |is_meant: &dyn Fn(&clap::Arg) -> bool| {
        command.get_arguments().find(|flag| is_meant(flag)).map(|flag| flag.get_action().takes_values())
    };
    let mut rewritten = Vec::new();
    // The first word is the program's name.
    let (mut is_value, mut flags_ended) = (true, false);
    for argument in arguments {
        let text = argument.to_str().filter(|_| !flags_ended && !is_value).unwrap_or_default();
        is_value = false;
        flags_ended |= text == "--";
        let word = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).unwrap_or_default();
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let takes = takes_value(&|flag| flag.get_long() == Some(name)).filter(|_| name.len() > 1);
        match (takes, value) {
            (Some(false), Some("false")) => continue,
            (Some(false), Some("true")) => rewritten.push(format!("--{name}").into()),
            (Some(takes), _) => {
                is_value = takes && value.is_none();
                rewritten.push(format!("--{word}").into());
            }
            (None, _) => {
                let short = text.strip_prefix('-').filter(|letter| letter.len() == 1);
                let letter = short.and_then(|letter| letter.chars().next());
                is_value = letter.is_some() && takes_value(&|flag| flag.get_short() == letter) == Some(true);
                rewritten.push(argument);
            }
        }
    }
    rewritten
}

/// The least severe messages that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Parses a duration such as `300ms`, `15s` or `1m30s`. `0` needs no unit.
fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|e| format!("{e}; write a duration like 300ms, 15s or 1m30s"))
}

/// The time limit that a flag asks for. 0 means no limit, for which ten years stand: `Instant` cannot hold an unlimited time.
pub(crate) fn limit(given: Duration) -> Duration {
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    if given.is_zero() { LONGEST } else { given.min(LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_defined_consistently() {
        Flags::command().debug_assert();
    }

    #[test]
    fn durations_are_parsed_and_malformed_ones_are_refused() {
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
    fn limit_of_zero_is_ten_years() {
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

    fn parsed(words: &str) -> Flags {
        let words = words.split(' ').map(OsString::from);
        Flags::try_parse_from(with_two_dashes(words)).expect("valid flags")
    }

    #[test]
    fn long_flags_with_one_dash_are_accepted() {
        let flags = parsed("containerd -debug -state-dir /s -listen=unix:///x -runtime crun -start-timeout 5s");
        assert!(flags.debug);
        assert_eq!((flags.state_dir.to_str(), flags.listen.as_str()), (Some("/s"), "unix:///x"));
        assert_eq!((flags.runtime.as_str(), flags.start_timeout), ("crun", Duration::from_secs(5)));
        assert!(parsed("containerd -debug=true").debug && parsed("containerd --debug=true").debug);
        assert!(!parsed("containerd -debug=false").debug);
    }

    #[test]
    fn values_and_short_flags_with_one_dash_stay_as_they_are() {
        let flags = parsed("containerd --runtime-args -debug -runtime-args=-debug -l unix:///y -r crun");
        assert_eq!(flags.runtime_args, ["-debug", "-debug"]);
        assert_eq!((flags.listen.as_str(), flags.runtime.as_str()), ("unix:///y", "crun"));
        assert!(!flags.debug);
        // The value follows the flag's letter without a space.
        assert_eq!(parsed("containerd -lunix:///x").listen, "unix:///x");
        let value = with_two_dashes(["containerd", "-l", "-debug"].map(OsString::from));
        assert_eq!(value, ["containerd", "-l", "-debug"]);
        let unknown = with_two_dashes(["containerd", "-unknown", "--", "-debug"].map(OsString::from));
        assert_eq!(unknown, ["containerd", "-unknown", "--", "-debug"]);
    }
}
