//! What a container uses. v1 and v2 fill the same fields. Where a version lacks a field, it gets the nearest figure
//! that the version has, or zero (`docs/src/reference/stats.md` has the table).

mod v1;
mod v2;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;

use crate::files::Directory;
use crate::group::Cgroup;
use crate::held::Watched;

/// What a container uses and has used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time, in nanoseconds.
    pub cpu: Cpu,
    /// Memory, in bytes.
    pub memory: Memory,
    /// Input and output of block devices.
    pub blkio: Blkio,
    /// Huge pages, by their size, for example `2MB`.
    pub hugetlb: BTreeMap<String, Usage>,
    /// The present number of processes and threads.
    pub pids: u64,
    /// How many processes and threads are allowed; 0 means no limit.
    pub pids_limit: u64,
}

/// CPU time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// The total.
    pub total: u64,
    /// The share of each CPU; empty on v2.
    pub per_cpu: Vec<u64>,
    /// The share spent in the kernel.
    pub kernel: u64,
    /// The share spent outside the kernel.
    pub user: u64,
    /// How many periods of the quota have passed.
    pub periods: u64,
    /// In how many of them the quota was used up.
    pub throttled_periods: u64,
    /// How long the container was throttled.
    pub throttled_time: u64,
}

/// The use of a limited resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The present use.
    pub usage: u64,
    /// The greatest use so far.
    pub max_usage: u64,
    /// How often the limit was reached.
    pub failures: u64,
    /// The limit; a very large number means no limit.
    pub limit: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The page cache.
    pub cache: u64,
    /// All memory.
    pub usage: Usage,
    /// Memory and swap together.
    pub swap: Usage,
    /// The kernel's own memory for this container.
    pub kernel: Usage,
    /// The lines of the kernel's `memory.stat`.
    pub raw: Vec<(String, u64)>,
}

/// The count of one operation on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkioEntry {
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// The operation, for example `Read`; empty if the count is not for an operation.
    pub operation: String,
    /// The count.
    pub value: u64,
}

/// Input and output of block devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blkio {
    /// Bytes transferred.
    pub service_bytes: Vec<BlkioEntry>,
    /// Operations done.
    pub serviced: Vec<BlkioEntry>,
    /// Operations waiting.
    pub queued: Vec<BlkioEntry>,
    /// Nanoseconds from dispatch to completion.
    pub service_time: Vec<BlkioEntry>,
    /// Nanoseconds spent in queues.
    pub wait_time: Vec<BlkioEntry>,
    /// Operations merged into others.
    pub merged: Vec<BlkioEntry>,
    /// Milliseconds for which the device was allotted.
    pub time: Vec<BlkioEntry>,
    /// Sectors transferred.
    pub sectors: Vec<BlkioEntry>,
}

/// The controllers whose files are read.
const CONTROLLERS: [&str; 5] = ["cpuacct", "memory", "blkio", "hugetlb", "pids"];

impl Cgroup {
    /// Reads what the container uses. Figures of a group that is gone, and of files that this host lacks, are zero.
    ///
    /// From the second call on, the files of v2's group are held open for a few containers, since opening and closing
    /// them takes most of the time.
    pub fn stats(&self) -> io::Result<Stats> {
        let v2 = self.place_v2().filter(|_| CONTROLLERS.iter().all(|controller| self.place_v1(controller).is_none()));
        let Some(place) = v2 else { return self.read_stats(None) };
        if self.watched.get().is_none() && self.read.swap(true, Ordering::Relaxed) {
            if let Some(watched) = Watched::new(|| self.open(place).ok().flatten()) {
                let _ = self.watched.set(watched);
            }
        }
        match self.watched.get().map(|Watched(group)| self.read_stats(Some(group))).transpose()? {
            Some(stats) if stats.pids > 0 || stats.cpu.total > 0 => Ok(stats),
            // The held group has been removed, or none is held. Another group may have its path by now.
            _ => self.read_stats(None),
        }
    }

    /// Reads all figures. `watched` is v2's group, if it is held.
    fn read_stats(&self, watched: Option<&Directory>) -> io::Result<Stats> {
        let mut stats = Stats::default();
        let needs_v2 = || CONTROLLERS.iter().any(|controller| self.place_v1(controller).is_none());
        let opened = match self.place_v2() {
            Some(place) if watched.is_none() && needs_v2() => self.open(place)?,
            _ => None,
        };
        let unified = watched.or(opened.as_ref());
        // Mostly one hierarchy has both controllers.
        let both = self.place_v1("cpu").map(|(mount, _)| mount) == self.place_v1("cpuacct").map(|(mount, _)| mount);
        let cpu = |group: &Directory, cpu: &mut Cpu| {
            v1::cpu_usage(group, cpu)?;
            if both { v1::throttling(group, cpu) } else { Ok(()) }
        };
        let sizes = &self.host.hugepages;
        // Each figure comes from its controller's group, in the version that has the controller.
        let v1 = |controller| self.place_v1(controller).map(|place| self.open(place)).transpose().map(Option::flatten);
        for controller in CONTROLLERS {
            let is_v1 = self.place_v1(controller).is_some();
            let group = v1(controller)?;
            let Some(group) = (if is_v1 { group.as_ref() } else { unified }) else { continue };
            match (controller, is_v1) {
                ("cpuacct", true) => cpu(group, &mut stats.cpu)?,
                ("cpuacct", false) => v2::cpu(group, &mut stats.cpu)?,
                ("memory", true) => v1::memory(group, &mut stats.memory)?,
                ("memory", false) => v2::memory(group, &mut stats.memory)?,
                ("blkio", true) => v1::blkio(group, &mut stats.blkio)?,
                ("blkio", false) => v2::blkio(group, &mut stats.blkio)?,
                ("hugetlb", true) => v1::hugetlb(group, sizes, &mut stats.hugetlb)?,
                ("hugetlb", false) => v2::hugetlb(group, sizes, &mut stats.hugetlb)?,
                // Both versions have the same files for `pids`.
                _ => pids(group, &mut stats)?,
            }
        }
        if let Some(group) = v1("cpu")?.filter(|_| !both) {
            // v2's figures, which include throttling, have been read already.
            v1::throttling(&group, &mut stats.cpu)?;
        }
        Ok(stats)
    }
}

fn pids(group: &Directory, stats: &mut Stats) -> io::Result<()> {
    stats.pids = group.number("pids.current")?;
    stats.pids_limit = group.number("pids.max")?;
    Ok(())
}

/// Reads the CPU time of the whole host since it started, in nanoseconds, including idle time: the first line of
/// `/proc/stat` (proc(5)). The time of guests is part of the user time.
pub fn system_cpu_time() -> io::Result<u64> {
    let text = sys::small_file::read_text(rustix::fs::CWD, "/proc/stat")?;
    parse_system(&text)
        .map(nanoseconds)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/stat"))
}

pub(crate) fn parse_system(text: &str) -> Option<u64> {
    let mut fields = text.lines().next()?.split_ascii_whitespace();
    (fields.next()? == "cpu").then_some(())?;
    // user, nice, system, idle, iowait, irq, softirq, steal
    fields.take(8).try_fold(0, |sum: u64, field| Some(sum.saturating_add(field.parse().ok()?)))
}

/// Converts clock ticks to nanoseconds.
fn nanoseconds(ticks: u64) -> u64 {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    ticks.saturating_mul(1_000_000_000 / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchies::test_cgroup;
    use std::path::Path;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            std::fs::write(directory.join(name), text).expect("writes");
        }
    }

    fn entry(major: u64, minor: u64, operation: &str, value: u64) -> BlkioEntry {
        BlkioEntry { major, minor, operation: operation.into(), value }
    }

    #[test]
    fn stats_are_read_from_v1_files() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path();
        write(
            path,
            &[
                ("cpuacct.usage_percpu", "123456700 89 \n"),
                ("cpuacct.stat", "user 7\nsystem 3\n"),
                ("cpu.stat", "nr_periods 5\nnr_throttled 4\nthrottled_time 300\n"),
                ("memory.stat", "cache 1\nrss 2\ntotal_cache 10\n"),
                ("memory.usage_in_bytes", "4096\n"),
                ("memory.max_usage_in_bytes", "8192\n"),
                ("memory.failcnt", "2\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.memsw.usage_in_bytes", "5000\n"),
                ("memory.kmem.usage_in_bytes", "300\n"),
                ("blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
                ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 12\n8:0 Total 12\nTotal 12\n"),
                ("blkio.time_recursive", "8:16 3\n"),
                ("blkio.sectors_recursive", "8:16 9\n"),
                ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
                ("hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
                ("hugetlb.2MB.limit_in_bytes", "4194304\n"),
                ("pids.current", "3\n"),
                ("pids.max", "max\n"),
            ],
        );
        let cgroup = test_cgroup(&[("cpu,cpuacct,memory,blkio,hugetlb,pids", path)]);
        let stats = cgroup.stats().expect("reads");
        for _ in 0..3 {
            assert_eq!(cgroup.stats().expect("reads"), stats);
        }
        write(path, &[("pids.current", "9\n")]);
        assert_eq!(cgroup.stats().expect("reads").pids, 9);
        write(path, &[("pids.current", "7\n")]);
        assert_eq!((stats.cpu.total, stats.cpu.per_cpu.as_slice()), (123_456_789, &[123_456_700, 89][..]));
        assert_eq!((stats.cpu.user, stats.cpu.kernel), (70_000_000, 30_000_000));
        assert_eq!((stats.cpu.periods, stats.cpu.throttled_periods, stats.cpu.throttled_time), (5, 4, 300));
        assert_eq!(stats.memory.cache, 10);
        let usage = Usage { usage: 4096, max_usage: 8192, failures: 2, limit: 9_223_372_036_854_771_712 };
        assert_eq!(stats.memory.usage, usage);
        assert_eq!((stats.memory.swap.usage, stats.memory.kernel.usage), (5000, 300));
        assert_eq!(stats.memory.raw.len(), 3);
        assert_eq!(stats.blkio.service_bytes, [entry(8, 0, "Read", 12), entry(8, 0, "Total", 12)]);
        assert_eq!(stats.blkio.sectors, [entry(8, 16, "", 9)]);
        assert_eq!(
            stats.hugetlb["2MB"],
            Usage { usage: 2_097_152, max_usage: 4_194_304, limit: 4_194_304, failures: 0 }
        );
        assert_eq!((stats.pids, stats.pids_limit), (3, 0));
    }

    #[test]
    fn stats_are_read_from_v2_files() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path();
        let cpu = "usage_usec 1000\nuser_usec 700\nsystem_usec 300\nnr_periods 5\nnr_throttled 4\nthrottled_usec 6\n";
        write(
            path,
            &[
                ("cpu.stat", cpu),
                ("memory.stat", "anon 2\nfile 10\nkernel 33\n"),
                ("memory.current", "4096\n"),
                ("memory.peak", "8192\n"),
                ("memory.events", "low 0\nhigh 0\nmax 2\noom 1\noom_kill 1\n"),
                ("memory.max", "max\n"),
                ("memory.swap.current", "100\n"),
                ("memory.swap.max", "0\n"),
                ("io.stat", "8:0 rbytes=12 wbytes=3 rios=2 wios=1 dbytes=0 dios=0\n254:0 \n"),
                ("hugetlb.2MB.current", "2097152\n"),
                ("hugetlb.2MB.max", "max\n"),
                ("pids.current", "3\n"),
                ("pids.max", "10\n"),
            ],
        );
        let cgroup = test_cgroup(&[("", path)]);
        let stats = cgroup.stats().expect("reads");
        for _ in 0..3 {
            assert_eq!(cgroup.stats().expect("reads"), stats, "from files that are held");
        }
        write(path, &[("pids.current", "9\n")]);
        assert_eq!(cgroup.stats().expect("reads").pids, 9);
        assert_eq!((stats.cpu.total, stats.cpu.user, stats.cpu.kernel), (1_000_000, 700_000, 300_000));
        assert_eq!((stats.cpu.periods, stats.cpu.throttled_periods, stats.cpu.throttled_time), (5, 4, 6000));
        assert_eq!(stats.memory.usage, Usage { usage: 4096, max_usage: 8192, failures: 2, limit: u64::MAX });
        assert_eq!((stats.memory.swap.usage, stats.memory.swap.limit), (4196, u64::MAX));
        assert_eq!((stats.memory.cache, stats.memory.kernel.usage), (10, 33));
        let bytes = [("Read", 12), ("Write", 3), ("Discard", 0), ("Total", 15)];
        assert_eq!(stats.blkio.service_bytes, bytes.map(|(operation, n)| entry(8, 0, operation, n)));
        let operations = [("Read", 2), ("Write", 1), ("Discard", 0), ("Total", 3)];
        assert_eq!(stats.blkio.serviced, operations.map(|(operation, n)| entry(8, 0, operation, n)));
        assert_eq!(stats.hugetlb["2MB"], Usage { usage: 2_097_152, limit: u64::MAX, ..Usage::default() });
        assert_eq!((stats.pids, stats.pids_limit), (3, 10));
    }

    #[test]
    fn numbers_too_large_to_add_do_not_wrap() {
        let directory = tempfile::tempdir().expect("tempdir");
        let stat = format!("slab {0}\nkernel_stack {0}\npagetables 1\n", u64::MAX);
        write(directory.path(), &[("memory.stat", &stat)]);
        let stats = test_cgroup(&[("", directory.path())]).stats().expect("reads");
        assert_eq!(stats.memory.kernel.usage, u64::MAX);
    }

    #[test]
    fn stats_of_a_removed_group_are_zero() {
        let gone = test_cgroup(&[("pids,memory", Path::new("/nonexistent")), ("", Path::new("/nonexistent"))]);
        assert_eq!(gone.stats().expect("no error"), Stats::default());
    }

    #[test]
    fn host_cpu_time_includes_steal_and_counts_guests_once() {
        assert_eq!(parse_system("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n"), Some(36));
        assert_eq!(parse_system("intr 5\n"), None);
        assert_eq!(parse_system("cpu  18446744073709551615 1\n"), Some(u64::MAX), "does not wrap");
        assert!(system_cpu_time().expect("reads") > 0);
    }
}
