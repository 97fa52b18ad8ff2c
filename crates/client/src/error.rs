//! Why an operation failed.

use api::Timestamp;
use std::fmt;
use std::io;
use std::path::PathBuf;
use tonic::{Code, Status};

use crate::address::Address;

/// Why an operation of this library failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon answered a call with an error.
    #[error("{operation}: {}", said(status))]
    Refused {
        /// The call.
        operation: Operation,
        /// The daemon's answer. Its message has the text that the API documents.
        status: Status,
    },
    /// No daemon answered at the address within the time limit. The call was not sent.
    #[error("cannot reach the daemon at {address}: {reason}")]
    Unreachable {
        /// Where the client looked for the daemon.
        address: Address,
        /// Why the last attempt failed.
        reason: String,
    },
    /// The connection broke before the daemon answered a call. The daemon may have carried out the call, or may still do so.
    #[error("{operation}: the daemon at {address} went away before it answered ({reason})")]
    CutOff {
        /// The call.
        operation: Operation,
        /// The daemon's address.
        address: Address,
        /// What broke the connection.
        reason: String,
    },
    /// The stream was read so slowly that the daemon's journal no longer keeps all events that this client has not seen.
    #[error("{operation}: events after {} were lost: {}", moment(since), said(status))]
    EventsLost {
        /// The subscription.
        operation: Operation,
        /// The timestamp of the last event that was received before the gap, or the place where the stream began.
        since: Timestamp,
        /// The daemon's own words.
        status: Status,
    },
    /// A file for TLS cannot be used.
    #[error("{operation} {}: {reason}", path.display())]
    Tls {
        /// What failed.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        reason: String,
    },
    /// The FIFOs or threads of an attached session cannot be made.
    #[error("{operation}: {source}")]
    Session {
        /// What failed, and on what.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The output of an attached process cannot be written to where it should go. The process goes on running.
    #[error("write to {stream}: {source}")]
    Output {
        /// The stream: `stdout` or `stderr`.
        stream: &'static str,
        /// Why the write failed.
        source: io::Error,
    },
}

/// A call and what it is about, as in `create container web`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    what: &'static str,
    subject: String,
    is_change: bool,
}

impl Operation {
    pub(crate) fn read(what: &'static str, subject: impl Into<String>) -> Operation {
        Operation { what, subject: subject.into(), is_change: false }
    }

    pub(crate) fn change(what: &'static str, subject: impl Into<String>) -> Operation {
        Operation { what, subject: subject.into(), is_change: true }
    }

    /// Whether the call changes something. The library sends such a call at most once.
    pub fn is_change(&self) -> bool {
        self.is_change
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject.as_str() {
            "" => write!(f, "{}", self.what),
            subject => write!(f, "{} {subject}", self.what),
        }
    }
}

impl Error {
    /// The code of the daemon's answer. `None` if the daemon did not answer.
    pub fn code(&self) -> Option<Code> {
        self.status().map(Status::code)
    }

    /// The daemon's answer. `None` if the daemon did not answer.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Refused { status, .. } | Error::EventsLost { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether the daemon has no such container, process or checkpoint.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// Whether it is worth making the same call again later: it had no effect, and the reason may pass by itself.
    ///
    /// False for a [`CutOff`](Error::CutOff) call that changes something, since the daemon may have carried it out:
    /// [`Client::state`](crate::Client::state) shows whether it did.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::EventsLost { .. } => true,
            Error::CutOff { operation, .. } => !operation.is_change,
            Error::Refused { status, .. } => {
                matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
            }
            Error::Tls { .. } | Error::Session { .. } | Error::Output { .. } => false,
        }
    }

    /// Whether another daemon may soon answer in place of the one that failed.
    ///
    /// gRPC libraries report a stream that breaks with several codes: of the transport (`Unavailable`, `Cancelled`), or of
    /// its HTTP/2 error (`Unknown`, `Internal`).
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::CutOff { .. } => true,
            Error::Refused { status, .. } => {
                matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal)
            }
            _ => false,
        }
    }
}

/// Whether a call failed because its connection broke or the daemon is about to stop, and not by the daemon's answer.
pub(crate) fn is_cut_off(status: &Status) -> bool {
    status.code() == Code::Unavailable || is_of_transport(status)
}

/// Whether this library's transport made up `status`. tonic attaches the transport's error as its source; a status that the
/// daemon sent has none.
pub(crate) fn is_of_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The innermost reason of a broken call, without what the layers of the transport add to it.
pub(crate) fn cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if cause.is::<Status>() { status.message().to_string() } else { cause.to_string() }
}

/// An error and its sources, as one line.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        let more = e.to_string();
        // Some errors repeat the text of their source.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = e.source();
    }
    text
}

/// The daemon's words, or the name of the code if it gave none.
fn said(status: &Status) -> String {
    if status.message().is_empty() { status.code().to_string() } else { status.message().to_string() }
}

/// A timestamp as seconds since 1970.
fn moment(timestamp: &Timestamp) -> String {
    format!("{}.{:09}", timestamp.seconds, timestamp.nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_off(operation: Operation) -> Error {
        Error::CutOff { operation, address: Address::default(), reason: "broken pipe".into() }
    }

    #[test]
    fn message_says_what_failed_on_what_and_why() {
        let operation = Operation::change("create container", "c");
        let status = Status::already_exists("containerd: container c already exists");
        let refused = Error::Refused { operation: operation.clone(), status };
        assert_eq!(refused.to_string(), "create container c: containerd: container c already exists");
        assert_eq!(refused.code(), Some(Code::AlreadyExists));
        let silent = Error::Refused { operation: operation.clone(), status: Status::not_found("") };
        assert!(silent.is_not_found());
        assert!(silent.to_string().len() > "create container c: ".len(), "{silent}");
        let said = cut_off(operation).to_string();
        assert!(said.contains("went away before it answered (broken pipe)"), "{said}");
    }

    #[test]
    fn only_failures_that_had_no_effect_and_may_pass_are_retryable() {
        let refused = |status| Error::Refused { operation: Operation::change("pause", "c"), status };
        assert!(refused(Status::resource_exhausted("")).is_retryable());
        assert!(!refused(Status::failed_precondition("")).is_retryable());
        assert!(!refused(Status::deadline_exceeded("")).is_retryable(), "the daemon may have begun it");
        assert!(cut_off(Operation::read("read state", "")).is_retryable());
        assert!(!cut_off(Operation::change("pause", "c")).is_retryable());
    }
}
