//! The limits that a client asks for, computed for a group of each version.
//!
//! An input is an encoded `UpdateResource` (crates/api/proto/api.proto).

use cgroup::fuzzing::cgroup;
use containerd::fuzzing::changes;
use std::path::PathBuf;
use std::sync::OnceLock;
use tempfile::TempDir;

use crate::scratch;

const V1: &[(&str, &str)] = &[
    ("blkio.bfq.weight", "100\n"),
    ("blkio.throttle.read_bps_device", ""),
    ("blkio.throttle.read_iops_device", ""),
    ("blkio.throttle.write_bps_device", ""),
    ("blkio.throttle.write_iops_device", ""),
    ("cpu.cfs_period_us", "100000\n"),
    ("cpu.cfs_quota_us", "-1\n"),
    ("cpu.shares", "1024\n"),
    ("cpuset.cpus", "0-1\n"),
    ("cpuset.mems", "0\n"),
    ("memory.kmem.limit_in_bytes", "9223372036854771712\n"),
    ("memory.kmem.tcp.limit_in_bytes", "9223372036854771712\n"),
    ("memory.limit_in_bytes", "9223372036854771712\n"),
    ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
    ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
    ("pids.max", "max\n"),
];

const V2: &[(&str, &str)] = &[
    ("cpu.max", "max 100000\n"),
    ("cpu.weight", "100\n"),
    ("cpuset.cpus", "\n"),
    ("cpuset.mems", "\n"),
    ("io.bfq.weight", "default 100\n"),
    ("io.max", ""),
    ("memory.low", "0\n"),
    ("memory.max", "max\n"),
    ("memory.swap.max", "max\n"),
    ("pids.max", "max\n"),
];

/// Two groups that are only read, for all inputs.
fn groups() -> &'static [(&'static str, PathBuf); 2] {
    static GROUPS: OnceLock<(TempDir, [(&str, PathBuf); 2])> = OnceLock::new();
    let make = || {
        let directory = scratch::directory();
        let (v1, v2) = (directory.path().join("v1/group"), directory.path().join("v2/group"));
        for (group, files) in [(&v1, V1), (&v2, V2)] {
            for (name, text) in files {
                scratch::write(&group.join(name), text.as_bytes());
            }
        }
        (directory, [("cpu,cpuset,memory,blkio,pids", v1), ("", v2)])
    };
    &GROUPS.get_or_init(make).1
}

pub(crate) fn run(input: &[u8]) {
    let Some(changes) = changes(input) else { return };
    for (controllers, group) in groups() {
        let cgroup = cgroup(&[(controllers, group)]);
        let _ = cgroup.conflict(&changes);
        if let Ok(expected) = cgroup.expected(&changes) {
            assert!(expected.keys().eq(changes.keys()), "each limit that is asked for has an outcome");
            assert!(expected.values().all(|values| !values.is_empty()));
        }
    }
}
