//! The names in a process's directory, `<state directory>/<container id>/<process name>/`, through which its shim and the
//! daemon talk. The shim's working directory is this directory. `docs/dev/contract.md` says who writes each file and when.

pub use crate::container_files::CREATING;

/// What the shim is to run ([`crate::ProcessRecord`]). The OCI runtime reads the same file as an OCI process object.
pub const REQUEST: &str = "process.json";

/// A FIFO. The shim holds its writing end open until it has written [`STATUS`].
pub const EXIT: &str = "exit";

/// A FIFO for commands to the shim ([`crate::Command`]).
pub const CONTROL: &str = "control";

/// The process's pid on the host.
pub const PID: &str = "pid";

/// The process's start time, field 22 of `/proc/<pid>/stat`. The shim writes it before [`PID`].
pub const START_TIME: &str = "starttime";

/// How the process ended: its exit code, or 128 plus the number of the signal that killed it.
pub const STATUS: &str = "exitStatus";

/// The temporary name of [`STATUS`]. The shim creates it when it starts, to reserve room on the disk.
pub const STATUS_TEMPORARY: &str = ".exitStatus";

/// The OCI runtime's own log (`--log`).
pub const RUNTIME_LOG: &str = "log.json";

/// The shim's log ([`crate::error_line`], [`crate::warning_line`]).
pub const SHIM_LOG: &str = "shim-log.json";

/// A FIFO that the daemon makes if it cannot watch the directory with inotify. The shim writes to it after [`PID`].
pub const READY: &str = ".ready";

/// Where the OCI runtime writes the pid (`--pid-file`). The runtime writes it before it has finished, so the shim renames it
/// to [`PID`] only after the runtime has succeeded.
pub const RUNTIME_PID: &str = ".runtime-pid";

/// The console socket, on which the OCI runtime sends the master of the process's terminal.
pub const CONSOLE: &str = ".console";

/// The number of OOM kills that the shim of init has counted, if there were any.
pub const OOM_KILLS: &str = ".oomKills";

/// The directory in which CRIU works while it restores the process. A checkpoint has a directory of this name too.
pub const CRIU_WORK: &str = "criu.work";

/// The pid and start time of the runtime that deletes the container.
pub const DELETING: &str = ".deleting";

/// The environment variable that names the process's directory to a runtime that restores, and to its CRIU. CRIU's children
/// have no other mark by which the daemon could find them.
pub const DIRECTORY_VARIABLE: &str = "CONTAINERD_PROCESS_DIR";
