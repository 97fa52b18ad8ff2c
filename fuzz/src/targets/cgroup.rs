//! What the kernel says of control groups. The kernel is trusted, but a user may bind another file over one of these, and
//! a container chooses the paths of its own groups.

use cgroup::Survey;
use cgroup::fuzzing::{cgroup, hierarchies as host, system_ticks};

use crate::scratch;
use crate::sections::{sections, text};

/// The files that are read of a group of v1, which has all controllers in this target.
const V1: &[&str] = &[
    "blkio.bfq.weight",
    "blkio.throttle.io_service_bytes_recursive",
    "blkio.throttle.io_serviced_recursive",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_iops_device",
    "blkio.time_recursive",
    "blkio.weight",
    "cgroup.procs",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.shares",
    "cpu.stat",
    "cpuacct.stat",
    "cpuacct.usage_percpu",
    "cpuset.cpus",
    "cpuset.mems",
    "freezer.state",
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.2MB.max_usage_in_bytes",
    "memory.kmem.limit_in_bytes",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.oom_control",
    "memory.soft_limit_in_bytes",
    "memory.stat",
    "memory.usage_in_bytes",
    "pids.current",
    "pids.max",
];

/// The files that are read of a group of v2.
const V2: &[&str] = &[
    "cgroup.events",
    "cgroup.freeze",
    "cgroup.procs",
    "cpu.max",
    "cpu.stat",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "hugetlb.2MB.current",
    "hugetlb.2MB.events",
    "hugetlb.2MB.max",
    "io.bfq.weight",
    "io.max",
    "io.stat",
    "io.weight",
    "memory.current",
    "memory.events",
    "memory.low",
    "memory.max",
    "memory.peak",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.events",
    "memory.swap.max",
    "pids.current",
    "pids.max",
];

const CONTROLLERS: &str = "cpu,cpuacct,memory,blkio,hugetlb,pids,freezer,cpuset";

/// Writes the files that the sections of the input name, and reads all that can be read of such a group.
pub(crate) fn files(input: &[u8]) {
    for (controllers, known) in [(CONTROLLERS, V1), ("", V2)] {
        let directory = scratch::directory();
        let group = directory.path().join("group");
        std::fs::create_dir(&group).expect("a directory");
        for (name, content) in sections(input) {
            if let Some(name) = known.iter().find(|known| known.as_bytes() == name) {
                scratch::write(&group.join(name), &content);
            }
        }
        let cgroup = cgroup(&[(controllers, &group)]);
        // A second look keeps the files open, and must show the same.
        let looks = [cgroup.stats().ok(), cgroup.stats().ok()];
        assert_eq!(looks[0], looks[1]);
        let _ = (cgroup.limits(), cgroup.is_frozen(), cgroup.frozen_above());
        let _ = (cgroup.oom_kills(), cgroup.counts_oom_kills(), cgroup.pids());
    }
}

/// Finds the groups that a process is in, and keeps what a later daemon needs to find them again.
pub(crate) fn hierarchies(input: &[u8]) {
    let (mountinfo, own, places) = (text(input, "mountinfo"), text(input, "own"), text(input, "places"));
    let host = host(&mountinfo, &own);
    let kept = host.of_use(&places);
    assert_eq!(host.of_use(&kept), kept, "what was kept is kept again");
    let (before, after) = (host.cgroup(&places), host.cgroup(&kept));
    assert_eq!(before.is_some(), after.is_some(), "the lines that were kept lead to the same groups");
    let _ = system_ticks(&text(input, "stat"));
    let survey = Survey::from_text(&text(input, "survey"));
    assert_eq!(Survey::from_text(&survey.to_text()), survey);
}
