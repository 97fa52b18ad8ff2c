//! The settings of a supervisor.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a supervisor.
#[derive(Debug, Clone)]
pub struct Config {
    /// The state directory: everything that must outlive this process is there.
    pub state_dir: PathBuf,
    /// The OCI runtime for containers that name none: a name or a path.
    pub runtime: String,
    /// Arguments of that runtime, in front of its subcommands.
    pub runtime_args: Vec<String>,
    /// The shim: a name or a path.
    pub shim: String,
    /// How long one call of the runtime may take.
    pub call_timeout: Duration,
    /// The number of events to keep in the journal; 0 for all.
    pub retain: usize,
    /// This process ran another daemon and has replaced its program (execve(2)), so that it has that daemon's children.
    pub replaces: bool,
}
