//! What a supervisor must be told.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a supervisor.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where everything is kept that must outlive this process.
    pub state_dir: PathBuf,
    /// The OCI runtime for containers that name none: a name or a path.
    pub runtime: String,
    /// Put in front of that runtime's subcommands.
    pub runtime_args: Vec<String>,
    /// The shim: a name or a path.
    pub shim: String,
    /// How long one call of the runtime may take.
    pub call_timeout: Duration,
    /// Events kept in the journal; 0 for all.
    pub retain: usize,
    /// This process was another supervisor's and has replaced itself (execve(2)), so that all its children are that one's.
    pub replaces: bool,
}
