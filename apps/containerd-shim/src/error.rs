//! What can go wrong before the process runs, and how it reaches the daemon: lines of `shim-log.json`.
//! Once the process runs nothing is fatal any more; then there are only warnings.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use sys::{Errno, Explained};

use crate::files;

/// Why the shim gave up.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody reads `exit`: the daemon that started this shim is gone.
    NoDaemon,
    /// A stdio path of the client's cannot be used.
    Stdio(String, Errno),
    /// The runtime ran and failed; its own log says why.
    Runtime(String),
    /// There is no such runtime, or no program under its path.
    NoRuntime(String),
    /// A system call failed on something of ours.
    System(String, Errno),
    /// `process.json` does not hold what it must.
    Request(String),
    /// A fault of this program.
    #[cfg(not(feature = "std"))]
    Panic(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NoDaemon => write!(f, "no daemon reads the exit fifo"),
            Failure::Stdio(what, e) | Failure::System(what, e) => write!(f, "{what}: {}", Explained(*e)),
            Failure::Runtime(what) | Failure::NoRuntime(what) | Failure::Request(what) => write!(f, "{what}"),
            #[cfg(not(feature = "std"))]
            Failure::Panic(what) => write!(f, "{what}"),
        }
    }
}

impl Failure {
    /// Writes the failure down for the daemon.
    pub(crate) fn log(&self) {
        let kind = match self {
            Failure::Stdio(..) => "stdio",
            Failure::Runtime(_) => "runtime",
            Failure::NoRuntime(_) => "no-runtime",
            Failure::Request(_) => "request",
            _ => "system",
        };
        write_line("error", &self.to_string(), Some(kind));
    }
}

/// Adds what failed to an error.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| Failure::System(what(), e))
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
    // Unit tests have no process directory.
    #[cfg(test)]
    std::eprint!("{line}");
    // There is nowhere else to say it.
    if !cfg!(test) {
        let _ = files::append("shim-log.json", line.as_bytes());
    }
}
