//! Why a command failed, as one line for a person and an exit status for a script.

use std::fmt;
use std::process::ExitCode;
use tonic::{Code, Status};

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The daemon answered with an error.
    Call(Status),
    /// Something here.
    Local(anyhow::Error),
}

impl Failure {
    /// 2 for what is not supported, 1 for everything else.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Call(status) if status.code() == Code::Unimplemented => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// The connection broke, or the daemon is about to stop: another one may come. What the daemon answers to a session's
    /// own calls with these codes passes too.
    pub(crate) fn is_passing(&self) -> bool {
        let Failure::Call(status) = self else { return true };
        matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss)
    }
}

/// Whether a call failed because its connection broke or its daemon is about to stop, and not by the daemon's answer.
pub(crate) fn is_cut_off(status: &Status) -> bool {
    // An error of the transport is the source of its status; a status that the daemon sent has none.
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Call(status) if status.message().is_empty() => write!(f, "{}", status.code()),
            Failure::Call(status) => write!(f, "{}", status.message()),
            Failure::Local(e) => write!(f, "{e:#}"),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Call(status)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Failure {
        Failure::Local(e)
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::Local(e.into())
    }
}
