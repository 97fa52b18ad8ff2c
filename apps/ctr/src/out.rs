//! This program's output on stdout and its messages on stderr.
//!
//! A reader of stdout that goes away ends this program as it ends other programs: quietly, by SIGPIPE. A failed write to
//! stdout is an error of the command, and so is a stdout that was closed when this program was started. Text that came from
//! elsewhere is escaped before it is shown.

use serde::Serialize;
use std::fmt::{Display, Write as _};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use crate::failure::Failure;

const SIGPIPE: i32 = rustix::process::Signal::PIPE.as_raw();

/// Writes `text` to stdout, all of it.
pub(crate) fn write(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    if sys::closed::stdout() {
        let closed = std::io::Error::from(rustix::io::Errno::BADF);
        return Err(anyhow::Error::new(closed).context("write to stdout").into());
    }
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => sys::signal::die_by(SIGPIPE),
        Err(e) => Err(anyhow::Error::new(e).context("write to stdout").into()),
    }
}

/// Writes a value to stdout as indented JSON.
pub(crate) fn write_json(value: &impl Serialize) -> Result<ExitCode, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    write(harmless_json(&text) + "\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a value to stdout as JSON in one line.
pub(crate) fn write_json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(anyhow::Error::from)?;
    write(harmless_json(&text) + "\n")
}

/// Escapes characters that a terminal would obey. JSON itself escapes only the control characters of ASCII; all others can only
/// stand in a string.
fn harmless_json(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        if character != '\n' && sys::shown::is_obeyed(character) {
            // All of them fit into four digits, and writing to a string cannot fail.
            let _ = write!(harmless, "\\u{:04x}", u32::from(character));
        } else {
            harmless.push(character);
        }
    }
    harmless
}

/// Writes a message to stderr, in one line. If stderr cannot be written to, there is no place left to report that.
pub(crate) fn say(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(std::io::stderr(), "[ctr] {}", sys::shown::escape(&text));
}

/// Writes a message of several lines to stderr, such as the usage of a command.
pub(crate) fn say_lines(text: &str) {
    let lines: Vec<_> = text.lines().map(sys::shown::escape).collect();
    let _ = writeln!(std::io::stderr(), "[ctr] {}", lines.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_escapes_what_a_terminal_obeys_and_keeps_its_meaning() {
        let value = serde_json::json!({"a\u{9b}": ["\u{1b}[2J\u{202e}ä\n\u{7f}\u{2028}"]});
        let text = harmless_json(&serde_json::to_string_pretty(&value).expect("plain data"));
        assert!(!text.chars().any(|character| character != '\n' && sys::shown::is_obeyed(character)), "{text:?}");
        assert!(text.contains("ä"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("is JSON"), value);
    }
}
