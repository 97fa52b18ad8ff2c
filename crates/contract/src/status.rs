//! Exit statuses. A process's status is its exit code, or 128 plus the number of the signal that killed it.

use alloc::format;
use alloc::string::String;

/// SIGKILL killed the process. The daemon reports this status too for a process that it killed because its shim had died.
pub const KILLED: u32 = 137;

/// The daemon cannot know how the process ended.
pub const UNKNOWN: u32 = 255;

/// Describes a program's exit status for an error message: `signal 9` or `status 1`.
pub fn describe(status: u32) -> String {
    if status > 128 { format!("signal {}", status - 128) } else { format!("status {status}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_tells_signals_from_exit_codes() {
        assert_eq!(describe(KILLED), "signal 9");
        assert_eq!(describe(1), "status 1");
        assert_eq!(describe(128), "status 128");
    }
}
