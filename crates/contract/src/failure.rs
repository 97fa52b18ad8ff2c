//! The lines of `shim-log.json`: one JSON object each, with the members `level`, `msg` and, for an error, `kind`.
//!
//! A shim writes at most one error, as its last line: it says why the process was not made, or why its status is lost. The
//! daemon decides by its kind what it tells the client.

use alloc::format;
use alloc::string::String;

/// What made a shim give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The shim could not open a stdio path of the client.
    Stdio,
    /// The runtime ran and failed. Its own log says why.
    Runtime,
    /// There is no program under the runtime's name or path.
    NoRuntime,
    /// `process.json`, or the `config.json` of a checkpoint, does not hold what it must.
    Request,
    /// A system call failed, or the shim itself has a fault.
    System,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [FailureKind; 5] =
        [FailureKind::Stdio, FailureKind::Runtime, FailureKind::NoRuntime, FailureKind::Request, FailureKind::System];

    /// The value of `kind`.
    pub fn name(self) -> &'static str {
        match self {
            FailureKind::Stdio => "stdio",
            FailureKind::Runtime => "runtime",
            FailureKind::NoRuntime => "no-runtime",
            FailureKind::Request => "request",
            FailureKind::System => "system",
        }
    }

    /// The kind of this name. `None` for an empty or unknown name, which a shim of another version may write.
    pub fn from_name(name: &str) -> Option<FailureKind> {
        FailureKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The line for the failure that ends the shim.
pub fn error_line(kind: FailureKind, message: &str) -> String {
    line("error", message, &format!(",\"kind\":\"{}\"", kind.name()))
}

/// The line for something that did not end the shim.
pub fn warning_line(message: &str) -> String {
    line("warning", message, "")
}

fn line(level: &str, message: &str, more: &str) -> String {
    // A string always serializes.
    let message = serde_json::to_string(message).unwrap_or_default();
    format!("{{\"level\":\"{level}\",\"msg\":{message}{more}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_their_names() {
        for kind in FailureKind::ALL {
            assert_eq!(FailureKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!((FailureKind::from_name(""), FailureKind::from_name("Stdio")), (None, None));
    }

    #[test]
    fn lines_have_the_form_that_every_daemon_reads() {
        let error = error_line(FailureKind::NoRuntime, "say \"x\"\n");
        assert_eq!(error, "{\"level\":\"error\",\"msg\":\"say \\\"x\\\"\\n\",\"kind\":\"no-runtime\"}\n");
        assert_eq!(warning_line("w"), "{\"level\":\"warning\",\"msg\":\"w\"}\n");
    }
}
