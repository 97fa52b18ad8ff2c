//! A container's control groups as the host shows them, whatever the version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files that are limits, on either version.
const LIMITS: [&str; 32] = [
    "blkio.weight",
    "blkio.bfq.weight",
    "blkio.bfq.weight_device",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.write_iops_device",
    "cpu.shares",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.rt_runtime_us",
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "devices.list",
    "freezer.state",
    "io.max",
    "io.weight",
    "io.bfq.weight",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.kmem.limit_in_bytes",
    "memory.kmem.tcp.limit_in_bytes",
    "memory.swappiness",
    "memory.max",
    "memory.swap.max",
    "memory.low",
    "memory.high",
    "pids.max",
    "cgroup.freeze",
];

/// Whether this host has v2 only.
pub fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The directories of the group `path` in all hierarchies.
pub fn directories(path: &str) -> Vec<PathBuf> {
    let below = path.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    if is_v2() {
        return vec![root.join(below)];
    }
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten();
    hierarchies.map(|hierarchy| hierarchy.path().join(below)).filter(|directory| directory.is_dir()).collect()
}

/// What limits the group `path`: the files' names and texts.
pub fn limits(path: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for directory in directories(path) {
        for name in LIMITS {
            if let Ok(text) = std::fs::read_to_string(directory.join(name)) {
                all.insert(name.to_string(), text.trim().to_string());
            }
        }
    }
    all
}

/// A block device of one's own: a loop device on a file, gone when this is dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: String,
    /// Its numbers.
    pub major: u64,
    /// Its numbers.
    pub minor: u64,
}

impl LoopDevice {
    /// On a new file of 64 MiB in `directory`, scheduled by bfq if that is to be had.
    ///
    /// # Panics
    /// When there is none to be had.
    pub fn new(directory: &Path) -> LoopDevice {
        let file = directory.join("disk");
        std::fs::File::create(&file).and_then(|file| file.set_len(64 << 20)).expect("makes a file");
        let output = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
        let output = output.expect("losetup runs");
        assert!(output.status.success(), "a loop device: {}", String::from_utf8_lossy(&output.stderr));
        let path = String::from_utf8(output.stdout).expect("a path").trim().to_string();
        let name = path.trim_start_matches("/dev/").to_string();
        let numbers = std::fs::read_to_string(format!("/sys/block/{name}/dev")).expect("sysfs");
        let (major, minor) = numbers.trim().split_once(':').expect("two numbers");
        let device =
            LoopDevice { path, major: major.parse().expect("a number"), minor: minor.parse().expect("a number") };
        let _ = std::fs::write(format!("/sys/block/{name}/queue/scheduler"), "bfq");
        device
    }

    /// Its path on the host.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether bfq schedules it: only then may it have a weight of its own.
    ///
    /// # Panics
    /// When sysfs is not there.
    pub fn has_bfq(&self) -> bool {
        let name = self.path.trim_start_matches("/dev/");
        std::fs::read_to_string(format!("/sys/block/{name}/queue/scheduler")).expect("sysfs").contains("[bfq]")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.path]).status();
    }
}
