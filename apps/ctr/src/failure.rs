//! Why a command failed, as one line for a person and an exit status for a script.

use containerd_client::{Code, Error};
use std::fmt;
use std::process::ExitCode;

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The daemon refused a call, or there was no answer.
    Daemon(Error),
    /// Something on this side.
    Local(anyhow::Error),
}

impl Failure {
    /// 2 for what the daemon does not support, 1 for everything else.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Daemon(e) if e.code() == Some(Code::Unimplemented) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The user knows the command: the daemon's own words are enough.
            Failure::Daemon(Error::Refused { status, .. } | Error::EventsLost { status, .. }) => {
                if status.message().is_empty() {
                    write!(f, "{}", status.code())
                } else {
                    write!(f, "{}", status.message())
                }
            }
            Failure::Daemon(e @ Error::Unreachable { .. }) => {
                write!(f, "{e}; is containerd running there? `systemctl status containerd` shows it")
            }
            Failure::Daemon(Error::CutOff { operation, address, reason }) => {
                write!(f, "the daemon at {address} went away before it answered ({reason})")?;
                if operation.is_change() {
                    write!(f, "; `ctr state` shows whether it carried out the command")?;
                }
                Ok(())
            }
            Failure::Daemon(e) => write!(f, "{e}"),
            Failure::Local(e) => write!(f, "{e:#}"),
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Daemon(e)
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
