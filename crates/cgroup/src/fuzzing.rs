//! Hierarchies made of given text and directories, for the targets in `fuzz/`.

use std::path::Path;

use crate::hierarchies::{test_cgroup, test_hierarchies};
use crate::stats::parse_system;
use crate::{Cgroup, Hierarchies};

/// The hierarchies of a host whose `/proc/self/mountinfo` and `/proc/self/cgroup` read `mountinfo` and `own`.
pub fn hierarchies(mountinfo: &str, own: &str) -> Hierarchies {
    test_hierarchies(mountinfo, own)
}

/// The control groups of a container, one for each directory. The text before a directory names the controllers of its
/// hierarchy; an empty one means cgroup v2.
pub fn cgroup(directories: &[(&str, &Path)]) -> Cgroup {
    test_cgroup(directories)
}

/// The sum of the times in the first line of `/proc/stat`, in clock ticks.
pub fn system_ticks(text: &str) -> Option<u64> {
    parse_system(text)
}
