//! The mapping of errors to gRPC statuses. Existing clients look for the texts.

use rustix::io::Errno;
use supervisor::{Error, LimitError};
use tonic::{Code, Status};

/// Maps a supervisor's error. Logs it if the cause is not the client's request.
pub(crate) fn status(error: Error) -> Status {
    let (code, message) = match &error {
        // Any operation that failed because memory, disk space or descriptors ran out.
        error if error.is_exhausted() => (Code::ResourceExhausted, format!("containerd: {error}")),
        Error::ContainerNotFound { id } => (Code::NotFound, format!("containerd: container not found: {id}")),
        Error::ContainerNotReady { .. } => (Code::NotFound, format!("containerd: container not found: {error}")),
        Error::ProcessNotFound { id, process } => {
            (Code::NotFound, format!("containerd: process not found for container: {process} in {id}"))
        }
        Error::ProcessEnded { id, process } => {
            let text = "containerd: process not found for container: no such process";
            (Code::NotFound, format!("{text}: {process} in {id} has ended"))
        }
        Error::ContainerExists { id } => (Code::AlreadyExists, format!("containerd: container {id} already exists")),
        Error::ProcessExists { .. } | Error::ContainerLeaving { .. } => {
            (Code::AlreadyExists, format!("containerd: {error}"))
        }
        Error::Name { .. } | Error::Argument { .. } | Error::Bundle(_) | Error::Stdio(_) | Error::StdioOpen(_) => {
            (Code::InvalidArgument, format!("containerd: invalid argument: {error}"))
        }
        Error::Limit { source: LimitError::Meaningless { .. }, .. } => {
            (Code::InvalidArgument, format!("containerd: invalid argument: {error}"))
        }
        // The kernel returns ERANGE for a CPU or memory node number in a list that no machine has.
        Error::Limit { source: LimitError::Refused { source, .. }, .. }
            if matches!(Errno::from_io_error(source), Some(Errno::INVAL | Errno::RANGE)) =>
        {
            (Code::InvalidArgument, format!("containerd: invalid argument: {error}"))
        }
        Error::Limit { source: LimitError::Unreadable { .. }, .. } => (Code::Internal, format!("containerd: {error}")),
        Error::CheckpointNotFound { .. } => (Code::NotFound, format!("containerd: {error}")),
        Error::CheckpointExists(_) => (Code::AlreadyExists, format!("containerd: {error}")),
        Error::Limit { .. }
        | Error::CriuMissing
        | Error::CheckpointDamaged(_)
        | Error::Inability { .. }
        | Error::NoCgroup { .. }
        | Error::State { .. }
        | Error::Unproven { .. }
        | Error::FrozenAbove { .. }
        | Error::Aside { .. } => (Code::FailedPrecondition, format!("containerd: {error}")),
        Error::RuntimeMissing(name) => (Code::FailedPrecondition, format!("{name} not installed on system")),
        Error::Runtime(message) => (Code::Unknown, format!("oci runtime error: {message}")),
        Error::RuntimeTimeout(e) => (Code::DeadlineExceeded, format!("oci runtime error: {e}; it was killed")),
        Error::Shim(message) => (Code::Unknown, format!("shim error: {message}")),
        Error::StartTimeout { .. } => {
            (Code::DeadlineExceeded, "containerd: container did not start before the specified timeout".into())
        }
        Error::DiskTimeout { .. } | Error::Busy { .. } => (Code::DeadlineExceeded, format!("containerd: {error}")),
        Error::Descriptors { .. } => (Code::ResourceExhausted, format!("containerd: {error}")),
        Error::File(_) | Error::Journal(_) | Error::System { .. } | Error::Spawn { .. } => {
            (Code::Internal, format!("containerd: {error}"))
        }
    };
    if matches!(code, Code::Internal | Code::Unknown | Code::DeadlineExceeded | Code::ResourceExhausted) {
        tracing::warn!("{message}");
    }
    Status::new(code, message)
}

/// The status for an argument that this program refuses before the supervisor sees it.
pub(crate) fn invalid(field: &str, value: impl std::fmt::Debug, reason: &str) -> Status {
    Status::invalid_argument(format!("containerd: invalid argument: {field} {value:?} {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_codes_and_texts_that_clients_look_for() {
        let check = |error: Error, code: Code, text: &str| {
            let status = status(error);
            assert_eq!(status.code(), code);
            assert!(status.message().contains(text), "{:?} lacks {text:?}", status.message());
        };
        let (id, process) = ("c".to_string(), "p".to_string());
        check(Error::ContainerNotFound { id: id.clone() }, Code::NotFound, "containerd: container not found");
        let none = Error::ProcessNotFound { id: id.clone(), process: process.clone() };
        check(none, Code::NotFound, "containerd: process not found for container");
        let text = "containerd: process not found for container: no such process";
        check(Error::ProcessEnded { id: id.clone(), process }, Code::NotFound, text);
        let text = "containerd: container did not start before the specified timeout";
        check(Error::StartTimeout { id }, Code::DeadlineExceeded, text);
        check(Error::RuntimeMissing("x".into()), Code::FailedPrecondition, "x not installed on system");
        check(Error::Runtime("a b".into()), Code::Unknown, "oci runtime error: a b");
        check(Error::Shim("a b".into()), Code::Unknown, "shim error: a b");
        let io = std::io::Error::from_raw_os_error;
        let (full, broken) = (io(Errno::NOSPC.raw_os_error()), io(Errno::IO.raw_os_error()));
        check(Error::System { operation: "o", source: full }, Code::ResourceExhausted, "No space left");
        check(Error::System { operation: "o", source: broken }, Code::Internal, "containerd: o: ");
    }
}
