//! Logs go to stderr.

use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::flags::{Flags, LogFormat, LogLevel};

/// The crates whose messages are of interest at any level.
const OURS: [&str; 4] = ["containerd", "supervisor", "runtime", "cgroup"];

/// Begins to log as the flags say.
pub(crate) fn init(flags: &Flags) {
    let level = match flags.log_level {
        _ if flags.debug => LevelFilter::DEBUG,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    let filter = Targets::new().with_default(others).with_targets(OURS.map(|name| (name, level)));
    let layer = match flags.log_format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_filter(filter).boxed()
        }
    };
    tracing_subscriber::registry().with(layer).init();
}
