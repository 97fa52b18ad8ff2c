//! The command line.

use clap::{CommandFactory, Parser, ValueEnum};
use std::ffi::OsString;
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

impl Flags {
    /// Reads this program's command line; ends the program if it is wrong.
    pub(crate) fn read() -> Flags {
        Flags::parse_from(with_two_dashes(std::env::args_os()))
    }
}

/// Writes long flags as clap knows them where they are written as Go programs know them: `-debug`, `-state-dir DIR`,
/// `-debug=true`. A word that is the value of the flag before it stays as it is, and so does what is no long flag.
fn with_two_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut command = Flags::command();
    command.build();
    let takes_value = |is_meant: &dyn Fn(&clap::Arg) -> bool| {
        command.get_arguments().find(|flag| is_meant(flag)).map(|flag| flag.get_action().takes_values())
    };
    let mut written = Vec::new();
    let (mut is_value, mut is_flag_still) = (true, true);
    for argument in arguments {
        let text = argument.to_str().filter(|_| is_flag_still && !is_value).unwrap_or_default();
        is_value = false;
        if text == "--" {
            is_flag_still = false;
        }
        let word = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).unwrap_or_default();
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let takes = takes_value(&|flag| flag.get_long() == Some(name)).filter(|_| name.len() > 1);
        match (takes, value) {
            (Some(false), Some("false")) => continue,
            (Some(false), Some("true")) => written.push(format!("--{name}").into()),
            (Some(takes), _) => {
                is_value = takes && value.is_none();
                written.push(format!("--{word}").into());
            }
            (None, _) => {
                let short = text.strip_prefix('-').filter(|letter| letter.len() == 1);
                let letter = short.and_then(|letter| letter.chars().next());
                is_value = letter.is_some() && takes_value(&|flag| flag.get_short() == letter) == Some(true);
                written.push(argument);
            }
        }
    }
    written
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
        // The value is written at the flag's letter.
        assert_eq!(parsed("containerd -lunix:///x").listen, "unix:///x");
        let value = with_two_dashes(["containerd", "-l", "-debug"].map(OsString::from));
        assert_eq!(value, ["containerd", "-l", "-debug"]);
        let unknown = with_two_dashes(["containerd", "-unknown", "--", "-debug"].map(OsString::from));
        assert_eq!(unknown, ["containerd", "-unknown", "--", "-debug"]);
    }
}
