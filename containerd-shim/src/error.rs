//! What can go wrong before the process runs, and how it reaches the daemon: lines of `shim-log.json`.
//! Once the process runs nothing is fatal any more; then there are only warnings.

use std::fmt;
use std::io::{self, Write};

/// Why the shim gave up.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody reads `exit`: the daemon that started this shim is gone.
    NoDaemon,
    /// A stdio path of the client's cannot be used.
    Stdio(String, io::Error),
    /// The runtime ran and failed; its own log says why.
    Runtime(String),
    /// A system call failed on something of ours.
    System(String, io::Error),
    /// `process.json` does not hold what it must.
    Request(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NoDaemon => write!(f, "no daemon reads the exit fifo"),
            Failure::Stdio(what, e) => write!(f, "{what}: {e}"),
            Failure::Runtime(what) | Failure::Request(what) => write!(f, "{what}"),
            Failure::System(what, e) => write!(f, "{what}: {e}"),
        }
    }
}

impl Failure {
    /// Writes the failure down for the daemon.
    pub(crate) fn log(&self) {
        let kind = match self {
            Failure::NoDaemon | Failure::System(..) => "system",
            Failure::Stdio(..) => "stdio",
            Failure::Runtime(_) => "runtime",
            Failure::Request(_) => "request",
        };
        write_line("error", &self.to_string(), Some(kind));
    }
}

/// Adds what failed to an I/O error.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| Failure::System(what(), e.into()))
    }
}

/// Writes down something that did not stop the shim.
pub(crate) fn warn(message: &str) {
    write_line("warning", message, None);
}

fn write_line(level: &str, message: &str, kind: Option<&str>) {
    // Strings always serialize.
    let message = serde_json::to_string(message).unwrap_or_default();
    let kind = kind.map(|kind| format!(",\"kind\":\"{kind}\"")).unwrap_or_default();
    let line = format!("{{\"level\":\"{level}\",\"msg\":{message}{kind}}}\n");
    if cfg!(test) {
        // Unit tests have no process directory.
        eprint!("{line}");
        return;
    }
    let file = std::fs::OpenOptions::new().append(true).create(true).open("shim-log.json");
    // There is nowhere else to say it.
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}
