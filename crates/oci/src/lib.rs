//! What lies between the supervisor and an OCI runtime: bundles, the runtime's command line, and the files by which the
//! daemon and a shim communicate.
//!
//! Each function deals with one container or process. The crate keeps no state except copies of the runtimes' programs;
//! the supervisor decides what happens when. The crate knows neither gRPC nor the daemon's options.

mod abilities;
mod bundle;
mod capabilities;
mod checkpoint;
pub mod checksum;
mod child;
mod container_dir;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod json;
mod leftovers;
mod log;
mod names;
mod oci;
mod process_dir;
mod root;
mod sealed;
mod shim;
mod spec;
mod state_dir;
mod stdio;
mod words;

pub use abilities::{Abilities, Ability};
pub use bundle::{Bundle, BundleError};
pub use capabilities::Capabilities;
pub use checkpoint::{BeginError, Checkpoints, Partial, criu_at, criu_errors, restore_work, time_frozen};
pub use child::Child;
pub use container_dir::{ContainerDir, Dump};
pub use contract::container_files::{INIT, UNFINISHED};
pub use contract::runtime::Operation;
pub use contract::{
    Checkpoint, Command, ContainerRecord, FORMAT, FailureKind, ProcessRecord, RuntimeCopy, process_files, status,
};
pub use leftovers::unmount_leftovers;
pub use log::LogEntry;
pub use names::{NameError, check_name};
pub use oci::{Call, Oci, OciError, ask, deletes_under_way, find_program};
pub use process_dir::ProcessDir;
pub use root::{Kept, kept, with_root};
pub use shim::Shim;
pub use spec::{ProcessSpec, Rlimit, TerminalSize, User};
pub use state_dir::{check_state_dir, claim_state_dir, remove_unfinished};
pub use stdio::{Stdio, StdioError};

/// A failed operation on a path.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct PathError {
    /// The operation, as a verb.
    pub operation: &'static str,
    /// The path.
    pub path: std::path::PathBuf,
    /// Why it failed.
    pub source: std::io::Error,
}

impl PathError {
    /// Returns a function for `map_err` that adds the operation and the path to an error.
    pub(crate) fn new<E: Into<std::io::Error>>(
        operation: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(E) -> PathError + use<E> {
        let path = path.to_path_buf();
        move |source| PathError { operation, path, source: source.into() }
    }
}
