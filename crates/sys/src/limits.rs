//! Resource limits that would kill a long-lived program.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// The kernel ends a process that reaches one of these limits by a signal (setrlimit(2)).
const DEADLY: [Resource; 2] = [Resource::Fsize, Resource::Cpu];

/// Removes the limits of file size and CPU time, as far as this process may. Children inherit the result.
pub fn lift() -> io::Result<()> {
    for resource in DEADLY {
        let limit = getrlimit(resource);
        let none = Rlimit { current: None, maximum: None };
        if limit.current.is_some() && setrlimit(resource, none).is_err() {
            // Without CAP_SYS_RESOURCE the soft limit can be raised to the hard limit only.
            setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
        }
    }
    Ok(())
}
