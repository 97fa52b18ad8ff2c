//! Errors, typed by what a caller can do about them.

use cgroup::LimitError;
use oci::{Ability, BundleError, NameError, OciError, PathError, StdioError};

use crate::events::JournalError;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container has this id.
    #[error("no container {id}")]
    ContainerNotFound {
        /// As it was asked for.
        id: String,
    },
    /// The container of this id is being created, or is being removed again.
    #[error("container {id} is being created, or removed again")]
    ContainerNotReady {
        /// As it was asked for.
        id: String,
    },
    /// The daemon cannot read the container's directory. All that can be done with the container is to remove it.
    #[error("container {id} is broken and set aside: {reason}; SIGKILL to its init removes it")]
    Aside {
        /// The container.
        id: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// No evidence says whether a container was being made or had been started when its daemon ended.
    #[error("nothing runs in container {id}, and nothing says whether it was ever started")]
    Unproven {
        /// The container.
        id: String,
    },
    /// The container has no process of this name.
    #[error("container {id} has no process {process}")]
    ProcessNotFound {
        /// The container.
        id: String,
        /// As it was asked for.
        process: String,
    },
    /// The process has ended.
    #[error("process {process} of container {id} has ended")]
    ProcessEnded {
        /// The container.
        id: String,
        /// The process.
        process: String,
    },
    /// Another container has this id.
    #[error("container {id} already exists")]
    ContainerExists {
        /// The container.
        id: String,
    },
    /// A container that has ended still has this id, because its runtime cannot delete it.
    #[error(
        "container {id} already exists: it has ended, and its runtime cannot delete it ({reason}); that is tried again, \
         and the id is free when it has succeeded"
    )]
    ContainerLeaving {
        /// The container.
        id: String,
        /// Why the last attempt failed.
        reason: String,
    },
    /// Another process of the container has this name.
    #[error("container {id} already has a process {process}")]
    ProcessExists {
        /// The container.
        id: String,
        /// The process.
        process: String,
    },
    /// An id or a name is refused.
    #[error("{field} {value:?} {reason}")]
    Name {
        /// Which one.
        field: &'static str,
        /// The value, shortened if it is long.
        value: String,
        /// Why.
        reason: NameError,
    },
    /// Another argument is refused.
    #[error("{field} {value:?} {reason}")]
    Argument {
        /// Which one.
        field: &'static str,
        /// The value.
        value: String,
        /// Why.
        reason: &'static str,
    },
    /// The bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A stdio path cannot be used.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A stdio path could not be opened by the shim, although it looked usable.
    #[error("{0}")]
    StdioOpen(String),
    /// The operation does not fit the state.
    #[error("cannot {operation} container {id}: it is {state}")]
    State {
        /// The container.
        id: String,
        /// What was asked for.
        operation: &'static str,
        /// The OCI name of the state it is in.
        state: &'static str,
    },
    /// Another program has frozen a group above the container's.
    #[error("cannot resume container {id}: the control group {} above it is frozen; thaw that first", group.display())]
    FrozenAbove {
        /// The container.
        id: String,
        /// The frozen group.
        group: std::path::PathBuf,
    },
    /// The OCI runtime is not installed.
    #[error("{0} not installed on system")]
    RuntimeMissing(String),
    /// The OCI runtime lacks a command or a flag.
    #[error("{runtime} cannot {}", ability.name())]
    Inability {
        /// The runtime.
        runtime: String,
        /// What it cannot do.
        ability: Ability,
    },
    /// There is no such checkpoint.
    #[error("no checkpoint {}", path.display())]
    CheckpointNotFound {
        /// Its path.
        path: std::path::PathBuf,
    },
    /// A checkpoint has changed since it was made.
    #[error("the checkpoint is damaged: {0}")]
    CheckpointDamaged(PathError),
    /// A checkpoint of this name exists, or is being made.
    #[error("{0}")]
    CheckpointExists(String),
    /// The program that makes checkpoints is not installed.
    #[error("criu not installed on system: it must be in the PATH of this program")]
    CriuMissing,
    /// The container has no control groups of its own.
    #[error("container {id} has no cgroup of its own")]
    NoCgroup {
        /// The container.
        id: String,
    },
    /// A limit cannot be set.
    #[error("container {id}: {source}")]
    Limit {
        /// The container.
        id: String,
        /// The limit, and why.
        source: LimitError,
    },
    /// The OCI runtime failed; its message.
    #[error("{0}")]
    Runtime(String),
    /// A runtime call did not end in time and was killed.
    #[error("{0}")]
    RuntimeTimeout(OciError),
    /// The daemon has few descriptors left, and keeps them for ending what runs.
    #[error(
        "no more can be started: {free} of the {limit} descriptors that this daemon may open (RLIMIT_NOFILE) are left, which \
         are kept for ending what runs; end containers, or start the daemon with a higher limit (LimitNOFILE= in its unit)"
    )]
    Descriptors {
        /// How many are left.
        free: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A program could not be started.
    #[error("start {program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The shim failed; its message.
    #[error("{0}")]
    Shim(String),
    /// A container or process did not start in time and was killed.
    #[error("not started in time")]
    StartTimeout {
        /// The container.
        id: String,
    },
    /// Another call on the container, such as a long checkpoint, has not ended in time.
    #[error("cannot {operation} container {id}: another call on it has not ended within {limit:?}")]
    Busy {
        /// The container.
        id: String,
        /// What was asked for.
        operation: &'static str,
        /// How long it was waited for.
        limit: std::time::Duration,
    },
    /// A file system that a client has named does not answer.
    #[error("cannot {operation} within {limit:?}: the file system does not answer")]
    DiskTimeout {
        /// What was being done.
        operation: &'static str,
        /// How long it was waited for.
        limit: std::time::Duration,
    },
    /// A file of the daemon's.
    #[error(transparent)]
    File(#[from] PathError),
    /// The journal cannot be written. An operation whose event is not in the journal has not happened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another request to the kernel failed.
    #[error("{operation}: {source}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// The kernel's error, if there is one.
    pub(crate) fn io(&self) -> Option<&std::io::Error> {
        match self {
            Error::File(e) | Error::CheckpointDamaged(e) => Some(&e.source),
            Error::Bundle(BundleError::Missing { source, .. } | BundleError::Unreadable { source, .. }) => Some(source),
            Error::Stdio(e) => Some(&e.reason),
            Error::Journal(e) => Some(&e.source),
            Error::System { source, .. } | Error::Spawn { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether the machine has run out of something, so that the operation may succeed later.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Error::Descriptors { .. }) || self.io().is_some_and(sys::exhausted::is_exhausted)
    }

    /// For `map_err` on an I/O error that concerns no particular file.
    pub(crate) fn system<E: Into<std::io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::System { operation, source: source.into() }
    }
}

impl From<OciError> for Error {
    fn from(e: OciError) -> Error {
        match e {
            OciError::NotInstalled(name) => Error::RuntimeMissing(name),
            OciError::Failed(words) => Error::Runtime(words),
            e @ OciError::Timeout { .. } => Error::RuntimeTimeout(e),
            OciError::Crashed(words) => Error::Runtime(words),
            OciError::Spawn { runtime, source } => Error::Spawn { program: runtime, source },
        }
    }
}

/// The beginning of a value, for a message.
pub(crate) fn shorten(value: &str) -> String {
    match value.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_string(),
    }
}

/// Checks a name that a client gave.
pub(crate) fn check_name(field: &'static str, name: &str, reserved: &[&str]) -> Result<(), Error> {
    oci::check_name(name, reserved).map_err(|reason| Error::Name { field, value: shorten(name), reason })
}

/// Checks the name of a process that is to be added, or that a client asks for.
pub(crate) fn check_process_name(name: &str) -> Result<(), Error> {
    check_name("pid", name, oci::ContainerDir::RESERVED)
}
