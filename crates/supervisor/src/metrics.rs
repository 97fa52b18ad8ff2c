//! What the supervisor times.

use crate::timer::Timer;

/// The times that operations take.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Creating a container: until its init waits to be started.
    pub create: Timer,
    /// Starting one that has been created.
    pub start: Timer,
    /// Deleting one: the runtime's `delete`, the journal, the directory.
    pub delete: Timer,
    /// Reading what one uses.
    pub stats: Timer,
    /// Adding a process: until it runs.
    pub exec: Timer,
    /// From a process's end until it has been told.
    pub exit: Timer,
}
