//! Resource limits that a long-lived program cannot keep.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// Each ends a process by a signal when it is reached (setrlimit(2)).
const DEADLY: [Resource; 2] = [Resource::Fsize, Resource::Cpu];

/// Lifts the limits of file sizes and of CPU time, as far as this process may. Its children begin without them too.
pub fn lift() -> io::Result<()> {
    for resource in DEADLY {
        let limit = getrlimit(resource);
        let none = Rlimit { current: None, maximum: None };
        if limit.current.is_some() && setrlimit(resource, none).is_err() {
            // Without CAP_SYS_RESOURCE as far as the hard limit.
            setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
        }
    }
    Ok(())
}
