//! Logs go to stderr, or to the journal when systemd has connected stderr with it. Their level can be changed.

use anyhow::{Context, Result};
use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt as form, reload};

use crate::flags::{Flags, LogFormat, LogLevel};

/// The crates whose messages are of interest at any level.
const OURS: [&str; 4] = ["containerd", "supervisor", "runtime", "cgroup"];

/// What is logged, to be seen and to be changed while the daemon runs.
#[derive(Debug, Clone)]
pub(crate) struct Level(Handle<Targets, Registry>);

impl Level {
    /// Logs from now on what is at least as important as this.
    pub(crate) fn set(&self, text: &str) -> Result<()> {
        let names = ["error", "warn", "info", "debug", "trace"];
        let level = names.contains(&text).then(|| LevelFilter::from_str(text).ok()).flatten();
        let level = level.context("it must be error, warn, info, debug or trace")?;
        self.0.reload(filter(level)).context("change the level")
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level =
            self.0.with_current(|targets| targets.iter().find(|(name, _)| *name == OURS[0]).map(|(_, level)| level));
        match level {
            Ok(Some(level)) => write!(f, "{level}"),
            _ => write!(f, "off"),
        }
    }
}

fn filter(level: LevelFilter) -> Targets {
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    Targets::new().with_default(others).with_targets(OURS.map(|name| (name, level)))
}

/// Begins to log as the flags say.
pub(crate) fn init(flags: &Flags) -> Result<Level> {
    let level = match flags.log_level {
        _ if flags.debug => LevelFilter::DEBUG,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let (filter, handle) = reload::Layer::new(filter(level));
    let layer = match flags.log_format {
        LogFormat::Text if is_connected_to_journal() => {
            let journal = tracing_journald::layer().context("connect to the journal")?;
            journal.with_field_prefix(None).with_syslog_identifier("containerd".into()).with_filter(filter).boxed()
        }
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            form::layer().with_writer(std::io::stderr).with_ansi(ansi).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            let json = form::layer().json().flatten_event(true).with_span_list(false);
            json.with_writer(std::io::stderr).with_filter(filter).boxed()
        }
    };
    tracing_subscriber::registry().with(layer).init();
    Ok(Level(handle))
}

/// Whether stderr goes to the journal: `JOURNAL_STREAM` has its device and inode (systemd.exec(5)).
fn is_connected_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_not_of_interest_below_warnings() {
        let targets = filter(LevelFilter::DEBUG);
        assert!(targets.would_enable("supervisor::start", &tracing::Level::DEBUG));
        assert!(!targets.would_enable("h2::codec", &tracing::Level::INFO));
        assert!(targets.would_enable("h2::codec", &tracing::Level::WARN));
        assert!(filter(LevelFilter::TRACE).would_enable("h2::codec", &tracing::Level::TRACE));
        assert!(!filter(LevelFilter::ERROR).would_enable("h2::codec", &tracing::Level::WARN));
    }
}
