//! One reading of a container's groups. v1 and v2 fill the same fields; what a version lacks is filled by its nearest
//! equal, or left at zero (`docs/src/reference/stats.md` has the table).

mod v1;
mod v2;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::files::Directory;
use crate::group::{Below, Cgroup};
use crate::held::Watched;

/// What a container uses and has used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Block devices.
    pub blkio: Blkio,
    /// Huge pages, by their size (`2MB`).
    pub hugetlb: BTreeMap<String, Usage>,
    /// Processes and threads now.
    pub pids: u64,
    /// How many there may be; 0 if there is no limit.
    pub pids_limit: u64,
}

/// CPU time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All that has been used.
    pub total: u64,
    /// By each CPU; empty on v2.
    pub per_cpu: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// Outside it.
    pub user: u64,
    /// Periods of the quota that have passed.
    pub periods: u64,
    /// Those in which the quota was used up.
    pub throttled_periods: u64,
    /// How long the container was held back.
    pub throttled_time: u64,
}

/// Something that is counted and limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub usage: u64,
    /// The most that there was.
    pub max_usage: u64,
    /// How often the limit was reached.
    pub failures: u64,
    /// The limit; a very large number if there is none.
    pub limit: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of files.
    pub cache: u64,
    /// All.
    pub usage: Usage,
    /// Memory and swap together.
    pub swap: Usage,
    /// The kernel's own for this container.
    pub kernel: Usage,
    /// The kernel's `memory.stat`.
    pub raw: Vec<(String, u64)>,
}

/// A count of one operation on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkioEntry {
    /// The device.
    pub major: u64,
    /// The device.
    pub minor: u64,
    /// `Read`, `Write`, …; empty if the count is of no operation.
    pub operation: String,
    /// How much.
    pub value: u64,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blkio {
    /// Bytes.
    pub service_bytes: Vec<BlkioEntry>,
    /// Operations.
    pub serviced: Vec<BlkioEntry>,
    /// Operations that wait.
    pub queued: Vec<BlkioEntry>,
    /// Nanoseconds from dispatch to completion.
    pub service_time: Vec<BlkioEntry>,
    /// Nanoseconds in queues.
    pub wait_time: Vec<BlkioEntry>,
    /// Operations that became part of others.
    pub merged: Vec<BlkioEntry>,
    /// Milliseconds that the device was given.
    pub time: Vec<BlkioEntry>,
    /// Sectors.
    pub sectors: Vec<BlkioEntry>,
}

/// The controllers that are looked at.
const CONTROLLERS: [&str; 5] = ["cpuacct", "memory", "blkio", "hugetlb", "pids"];

impl Cgroup {
    /// Reads what the container uses. What is gone, or not there on this host, is zero. Of a few containers that are asked
    /// for again and again the files are held open: to open and to close them takes most of the time.
    pub fn stats(&self) -> io::Result<Stats> {
        if self.watched.get().is_none() && self.read.swap(true, Ordering::Relaxed) {
            if let Some(watched) = Watched::new(|| self.directories_to_keep()) {
                let _ = self.watched.set(watched);
            }
        }
        match self.watched.get().map(|watched| self.read_stats(Some(watched))).transpose()? {
            Some(stats) if stats.pids > 0 || stats.cpu.total > 0 => Ok(stats),
            // The groups that are held, if any are, are gone: there may be others of their names by now.
            _ => self.read_stats(None),
        }
    }

    fn directories_to_keep(&self) -> Vec<(usize, Arc<Directory>)> {
        let used = |place: &&Below| {
            let controllers = &self.host.mounts[place.0].controllers;
            let is_used = |name: &String| name == "cpu" || CONTROLLERS.contains(&name.as_str());
            if controllers.is_empty() { self.needs_v2() } else { controllers.iter().any(is_used) }
        };
        let keep = |place: &Below| Some((place.0, Arc::new(self.open(place).ok()??.keeping_files())));
        self.places.iter().filter(used).filter_map(keep).collect()
    }

    /// Whether a controller is not v1's.
    fn needs_v2(&self) -> bool {
        CONTROLLERS.iter().any(|controller| self.place_v1(controller).is_none())
    }

    fn read_stats(&self, watched: Option<&Watched>) -> io::Result<Stats> {
        let mut stats = Stats::default();
        let open = |place: &Below| match watched.and_then(|watched| watched.directory(place.0)) {
            Some(directory) => Ok(Some(directory)),
            None => Ok::<_, io::Error>(self.open(place)?.map(Arc::new)),
        };
        let unified = match self.place_v2().filter(|_| self.needs_v2()) {
            Some(place) => open(place)?,
            None => None,
        };
        let unified = unified.as_deref();
        // One hierarchy has both, mostly.
        let both = self.place_v1("cpu").map(|(mount, _)| mount) == self.place_v1("cpuacct").map(|(mount, _)| mount);
        let cpu = |group: &Directory, cpu: &mut Cpu| {
            v1::cpu_usage(group, cpu)?;
            if both { v1::throttling(group, cpu) } else { Ok(()) }
        };
        let sizes = &self.host.hugepages;
        // Each from its controller's group, of whichever version has it.
        let v1 = |controller| self.place_v1(controller).map(&open).transpose().map(Option::flatten);
        for controller in CONTROLLERS {
            let is_v1 = self.place_v1(controller).is_some();
            let group = v1(controller)?;
            let Some(group) = (if is_v1 { group.as_deref() } else { unified }) else { continue };
            match (controller, is_v1) {
                ("cpuacct", true) => cpu(group, &mut stats.cpu)?,
                ("cpuacct", false) => v2::cpu(group, &mut stats.cpu)?,
                ("memory", true) => v1::memory(group, &mut stats.memory)?,
                ("memory", false) => v2::memory(group, &mut stats.memory)?,
                ("blkio", true) => v1::blkio(group, &mut stats.blkio)?,
                ("blkio", false) => v2::blkio(group, &mut stats.blkio)?,
                ("hugetlb", true) => v1::hugetlb(group, sizes, &mut stats.hugetlb)?,
                ("hugetlb", false) => v2::hugetlb(group, sizes, &mut stats.hugetlb)?,
                // The same on both versions.
                _ => pids(group, &mut stats)?,
            }
        }
        if let Some(group) = v1("cpu")?.filter(|_| !both) {
            // v2's has been read.
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

/// CPU time of the whole host since its start, in nanoseconds, idle time included: the first line of `/proc/stat`
/// (proc(5)). Guests' time is in that of users already.
pub fn system_cpu_time() -> io::Result<u64> {
    let text = sys::small_file::read_text(rustix::fs::CWD, "/proc/stat")?;
    parse_system(&text)
        .map(nanoseconds)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/stat"))
}

fn parse_system(text: &str) -> Option<u64> {
    let mut fields = text.lines().next()?.split_ascii_whitespace();
    (fields.next()? == "cpu").then_some(())?;
    // user, nice, system, idle, iowait, irq, softirq, steal
    fields.take(8).map(|field| field.parse::<u64>().ok()).sum()
}

/// Of clock ticks.
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
    fn v1_files_are_read() {
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
            assert_eq!(cgroup.stats().expect("reads"), stats, "from files that are held");
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
    fn v2_files_fill_the_same_fields() {
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
        let stats = test_cgroup(&[("", path)]).stats().expect("reads");
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
    fn a_group_that_is_gone_has_nothing() {
        let gone = test_cgroup(&[("pids,memory", Path::new("/nonexistent")), ("", Path::new("/nonexistent"))]);
        assert_eq!(gone.stats().expect("no error"), Stats::default());
    }

    #[test]
    fn the_hosts_time_includes_what_is_stolen_and_no_guest_twice() {
        assert_eq!(parse_system("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n"), Some(36));
        assert_eq!(parse_system("intr 5\n"), None);
        assert!(system_cpu_time().expect("reads") > 0);
    }
}
