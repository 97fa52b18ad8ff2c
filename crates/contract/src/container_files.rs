//! The names in a container's directory, `<state directory>/<container id>/`.
//!
//! Only the daemon reads and writes these files. They belong to the contract because a later daemon, of any version, finds
//! them. Besides them the directory holds one directory for each process ([`crate::process_files`]), named after the process.

/// The name of a container's first process, and of that process's directory.
pub const INIT: &str = "init";

/// The container's record ([`crate::ContainerRecord`]).
pub const STATE: &str = "state.json";

/// Marks a container, or an added process, that is still being made. The daemon removes the marker after it has recorded the
/// start. A directory without a marker belongs to a process whose start was acknowledged, even if the journal has lost it.
pub const CREATING: &str = ".creating";

/// The prefix of a container directory's name until the directory holds the marker and `state.json`. The container's
/// instance key follows.
pub const UNFINISHED: &str = ".new-";

/// The control groups of init, as `/proc/<pid>/cgroup` listed them right after the runtime had made it.
pub const CGROUP: &str = ".cgroup";

/// The number of OOM kills that the daemon has recorded.
pub const OOM: &str = ".oom";

/// The checkpoint that is being made of the container.
pub const CHECKPOINT: &str = ".checkpoint";

/// CRIU's log of the last checkpoint that failed.
pub const CHECKPOINT_LOG: &str = ".dump.log";

/// The limits that the runtime's `update` reads.
pub const RESOURCES: &str = ".resources.json";

/// The names that a client must not give to a process, because a file has them. All other files have a name that begins with
/// a dot, which no process has.
pub const RESERVED: &[&str] = &[STATE];
