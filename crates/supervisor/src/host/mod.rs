//! What is there once for all containers of a supervisor.

pub(crate) mod disk;
pub(crate) mod metrics;
pub(crate) mod pid_watch;
pub(crate) mod registry;
pub(crate) mod runtimes;
pub(crate) mod tasks;
pub(crate) mod timer;

use std::time::Duration;

/// How long to wait before trying again what failed because this machine has run out of something: nothing tells when there
/// is more.
pub(crate) const RETRY_DELAY: Duration = Duration::from_secs(1);
