//! What this program writes to its own stdout and stderr.
//!
//! A reader that goes away ends this program as it ends others: quietly, by SIGPIPE. A failed write to stdout is an
//! error of the command. Text that came from elsewhere is escaped before it is shown.

use serde::Serialize;
use std::fmt::{Display, Write as _};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use crate::failure::Failure;

const SIGPIPE: i32 = rustix::process::Signal::PIPE.as_raw();

/// Writes `text` to stdout, all of it.
pub(crate) fn write(text: impl AsRef<[u8]>) -> Result<(), Failure> {
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

/// JSON escapes the control characters of ASCII only. A terminal obeys others too, which can only be in a string.
fn harmless_json(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        if character != '\n' && sys::shown::is_obeyed(character) {
            // All of them are in the first plane, and writing to a string cannot fail.
            let _ = write!(harmless, "\\u{:04x}", u32::from(character));
        } else {
            harmless.push(character);
        }
    }
    harmless
}

/// Says something on stderr, in one line. If stderr cannot be written to, there is no place left to report that.
pub(crate) fn say(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(std::io::stderr(), "[ctr] {}", sys::shown::escape(&text));
}

/// Says something on stderr that has several lines, such as the usage of a command.
pub(crate) fn say_lines(text: &str) {
    let lines: Vec<_> = text.lines().map(sys::shown::escape).collect();
    let _ = writeln!(std::io::stderr(), "[ctr] {}", lines.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_no_character_that_a_terminal_obeys_and_keeps_its_meaning() {
        let value = serde_json::json!({"a\u{9b}": ["\u{1b}[2J\u{202e}ä\n\u{7f}\u{2028}"]});
        let text = harmless_json(&serde_json::to_string_pretty(&value).expect("plain data"));
        assert!(!text.chars().any(|character| character != '\n' && sys::shown::is_obeyed(character)), "{text:?}");
        assert!(text.contains("ä"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("is JSON"), value);
    }
}
