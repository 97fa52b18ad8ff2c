//! What can go wrong before the process runs, and the shim's log, `shim-log.json`. Once the process runs, only a status that
//! cannot be written ends the shim; everything else is a warning.

use alloc::string::{String, ToString};
use contract::process_files::SHIM_LOG;
use contract::{FailureKind, error_line, warning_line};
use core::fmt;
use rustix::fs::CWD;
use shim_core::{Error, files};

/// Why the shim gave up.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No daemon reads `exit`: the daemon that started this shim has ended.
    NoDaemon,
    /// A stdio path of the client cannot be opened.
    Stdio(Error),
    /// The runtime ran and failed. Its own log says why.
    Runtime(String),
    /// There is no program under the runtime's name or path.
    NoRuntime(String),
    /// A system call failed.
    System(Error),
    /// `process.json`, or the `config.json` of a checkpoint, does not hold what it must.
    Request(String),
    /// A fault of this program.
    #[cfg(not(feature = "std"))]
    Panic(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NoDaemon => write!(f, "no daemon reads the exit fifo"),
            Failure::Stdio(e) | Failure::System(e) => write!(f, "{e}"),
            Failure::Runtime(what) | Failure::NoRuntime(what) | Failure::Request(what) => write!(f, "{what}"),
            #[cfg(not(feature = "std"))]
            Failure::Panic(what) => write!(f, "{what}"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::System(error)
    }
}

impl Failure {
    /// Writes the failure into the shim's log, for the daemon.
    pub(crate) fn log(&self) {
        let kind = match self {
            Failure::Stdio(_) => FailureKind::Stdio,
            Failure::Runtime(_) => FailureKind::Runtime,
            Failure::NoRuntime(_) => FailureKind::NoRuntime,
            Failure::Request(_) => FailureKind::Request,
            _ => FailureKind::System,
        };
        write(&error_line(kind, &self.to_string()));
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
        let _ = files::append(CWD, SHIM_LOG, line.as_bytes());
    }
}
