//! What can go wrong before the process runs, and how it reaches the daemon: lines of `shim-log.json`.
//! Once the process runs nothing is fatal any more; then there are only warnings.

use alloc::string::{String, ToString};
use contract::process_files::SHIM_LOG;
use contract::{FailureKind, error_line, warning_line};
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
    /// Writes the failure into the shim's log, for the daemon.
    pub(crate) fn log(&self) {
        let kind = match self {
            Failure::Stdio(..) => FailureKind::Stdio,
            Failure::Runtime(_) => FailureKind::Runtime,
            Failure::NoRuntime(_) => FailureKind::NoRuntime,
            Failure::Request(_) => FailureKind::Request,
            _ => FailureKind::System,
        };
        write(&error_line(kind, &self.to_string()));
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

/// Writes something that does not stop the shim into the shim's log.
pub(crate) fn warn(message: &str) {
    write(&warning_line(message));
}

fn write(line: &str) {
    // Unit tests have no process directory.
    #[cfg(test)]
    std::eprint!("{line}");
    // If the log cannot be written, there is no other place for the message.
    if !cfg!(test) {
        let _ = files::append(SHIM_LOG, line.as_bytes());
    }
}
