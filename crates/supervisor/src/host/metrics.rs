//! The operations that the supervisor times.

use crate::host::timer::Timer;

/// The times that operations take.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Creating a container: until the runtime has made it.
    pub create: Timer,
    /// Starting a created container.
    pub start: Timer,
    /// Deleting a container: the runtime's `delete`, the journal, the directory.
    pub delete: Timer,
    /// Reading what a container uses.
    pub stats: Timer,
    /// Adding a process: until it runs.
    pub exec: Timer,
    /// From a process's end until its `exit` event is published.
    pub exit: Timer,
}
