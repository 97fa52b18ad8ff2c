//! The log: to stderr, or to systemd's journal if systemd has connected stderr with it. The level can be changed while the
//! daemon runs.
//!
//! Logging never waits for a reader: see [`sink`]. In text, [`write_field`] escapes every field, since labels, paths and the
//! runtime's messages come from others: they can neither begin a line of their own nor control a terminal. JSON has its own
//! escapes, and the journal takes fields of any bytes.

mod journal;
mod sink;

use anyhow::{Context, Result};
use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt as form, reload};

use crate::flags::{Flags, LogFormat, LogLevel};
use sink::{Output, Sink};

/// The project's own crates. Their messages are logged at the chosen level, those of other crates only from warnings up.
const OWN_CRATES: [&str; 4] = ["containerd", "supervisor", "oci", "cgroup"];

/// The present level. It can be read and changed.
#[derive(Debug, Clone)]
pub(crate) struct Level(Handle<Targets, Registry>);

impl Level {
    /// Changes the level.
    pub(crate) fn set(&self, text: &str) -> Result<()> {
        let names = ["error", "warn", "info", "debug", "trace"];
        let level = names.contains(&text).then(|| LevelFilter::from_str(text).ok()).flatten();
        let level = level.context("it must be error, warn, info, debug or trace")?;
        self.0.reload(filter(level)).context("change the level")
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self
            .0
            .with_current(|targets| targets.iter().find(|(name, _)| *name == OWN_CRATES[0]).map(|(_, level)| level));
        match level {
            Ok(Some(level)) => write!(f, "{level}"),
            _ => write!(f, "off"),
        }
    }
}

fn filter(level: LevelFilter) -> Targets {
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    Targets::new().with_default(others).with_targets(OWN_CRATES.map(|name| (name, level)))
}

/// How long an ending daemon waits for the log's reader.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// The log's destination.
#[derive(Debug, Clone)]
pub(crate) struct Log(Arc<Sink>);

impl Log {
    /// Waits until all lines have been written, at most for [`FLUSH_LIMIT`].
    pub(crate) fn flush(&self) {
        self.0.flush(FLUSH_LIMIT);
    }

    /// Closes the log. Returns the variable, with its value, from which the next program in this process learns the lines that
    /// could not be written; `None` if there are none.
    pub(crate) fn hand_over(&self) -> Option<(&'static str, String)> {
        self.0.hand_over()
    }
}

/// Sets up logging as the flags ask.
pub(crate) fn init(flags: &Flags) -> Result<(Log, Level)> {
    let level = match flags.log_level {
        _ if flags.debug => LevelFilter::DEBUG,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let (filter, handle) = reload::Layer::new(filter(level));
    let is_journal = flags.log_format == LogFormat::Text && is_connected_to_journal();
    let output = if is_journal { Output::journal().context("connect to the journal")? } else { Output::stderr()? };
    let sink = Sink::new(output);
    let lines = {
        let sink = sink.clone();
        move || sink::Line(sink.clone())
    };
    let layer = match flags.log_format {
        LogFormat::Text if is_journal => journal::Journal::new(sink.clone()).with_filter(filter).boxed(),
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            let fields = format::debug_fn(write_field).delimited(" ");
            form::layer().fmt_fields(fields).with_writer(lines).with_ansi(ansi).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            let json = form::layer().json().flatten_event(true).with_span_list(false);
            json.with_writer(lines).with_filter(filter).boxed()
        }
    };
    tracing_subscriber::registry().with(layer).init();
    // The default hook writes to stderr, and would wait for its reader.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => tracing::error!(%backtrace, "{panic}"),
            _ => tracing::error!("{panic}"),
        }
    }));
    Ok((Log(sink), Level(handle)))
}

/// Writes a field of a text line: the message by itself, other fields as `name=value`.
fn write_field(writer: &mut format::Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}");
    let shown = sys::shown::escape(&text);
    match field.name() {
        "message" => write!(writer, "{shown}"),
        // The name in italics and the equals sign dimmed (console_codes(4)).
        name if writer.has_ansi_escapes() => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{shown}"),
        name => write!(writer, "{name}={shown}"),
    }
}

/// Whether systemd has connected stderr with its journal. `JOURNAL_STREAM` then has stderr's device and inode
/// (systemd.exec(5)).
fn is_connected_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_crates_log_from_warnings_up_except_at_trace() {
        let targets = filter(LevelFilter::DEBUG);
        for own in ["containerd::service", "supervisor::start", "oci::child", "cgroup::group"] {
            assert!(targets.would_enable(own, &tracing::Level::DEBUG), "{own}");
        }
        assert!(!targets.would_enable("h2::codec", &tracing::Level::INFO));
        assert!(targets.would_enable("h2::codec", &tracing::Level::WARN));
        assert!(filter(LevelFilter::TRACE).would_enable("h2::codec", &tracing::Level::TRACE));
        assert!(!filter(LevelFilter::ERROR).would_enable("h2::codec", &tracing::Level::WARN));
    }

    #[test]
    fn foreign_text_neither_breaks_lines_nor_controls_terminals() {
        #[derive(Clone, Default)]
        struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("lock").extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let fields = format::debug_fn(write_field).delimited(" ");
        let layer = form::layer().fmt_fields(fields).with_writer(move || writer.clone()).with_ansi(false);
        let foreign = "a\n2026-01-01 ERROR forged\x1b[2J\u{202e}b\r\u{9b}";
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("call", id = foreign, path = %foreign);
            let error = std::io::Error::other(foreign);
            span.in_scope(
                || tracing::warn!(plain = %foreign, quoted = foreign, debug = ?foreign, %error, "said: {foreign}"),
            );
        });
        let text = String::from_utf8(lines.0.lock().expect("lock").clone()).expect("text");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.ends_with('\n') && text.trim_end().chars().all(|c| !c.is_control() && c != '\u{202e}'), "{text}");
        assert_eq!(text.matches("forged").count(), 7, "{text}");
        assert!(text.contains(r"said: a\n2026-01-01 ERROR forged\u{1b}[2J\u{202e}b\r\u{9b} plain=a\n"), "{text}");
    }
}
