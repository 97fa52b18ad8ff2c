//! Reading v1's files (the kernel's `admin-guide/cgroup-v1`).

use std::collections::BTreeMap;
use std::io;

use super::{Blkio, BlkioEntry, Cpu, Memory, Usage, nanoseconds};
use crate::files::{Directory, value};

pub(super) fn cpu_usage(group: &Directory, cpu: &mut Cpu) -> io::Result<()> {
    let each = group.text("cpuacct.usage_percpu")?;
    cpu.per_cpu = each.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
    // `cpuacct.usage` is the sum of these (kernel/sched/cpuacct.c, `__cpuusage_read`), but reading it would cost one
    // more file.
    cpu.total = cpu.per_cpu.iter().fold(0, |sum: u64, time| sum.saturating_add(*time));
    let ticks = group.keyed("cpuacct.stat")?;
    (cpu.user, cpu.kernel) = (nanoseconds(value(&ticks, "user")), nanoseconds(value(&ticks, "system")));
    Ok(())
}

pub(super) fn throttling(group: &Directory, cpu: &mut Cpu) -> io::Result<()> {
    let stat = group.keyed("cpu.stat")?;
    cpu.periods = value(&stat, "nr_periods");
    cpu.throttled_periods = value(&stat, "nr_throttled");
    cpu.throttled_time = value(&stat, "throttled_time");
    Ok(())
}

pub(super) fn memory(group: &Directory, memory: &mut Memory) -> io::Result<()> {
    let usage = |prefix: &str| {
        Ok::<_, io::Error>(Usage {
            usage: group.number(&format!("{prefix}.usage_in_bytes"))?,
            max_usage: group.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failures: group.number(&format!("{prefix}.failcnt"))?,
            limit: group.number(&format!("{prefix}.limit_in_bytes"))?,
        })
    };
    memory.usage = usage("memory")?;
    memory.swap = usage("memory.memsw")?;
    memory.kernel = usage("memory.kmem")?;
    memory.raw = group.keyed("memory.stat")?;
    // Include the groups below this one, as the usage does.
    memory.cache = match value(&memory.raw, "total_cache") {
        0 => value(&memory.raw, "cache"),
        total => total,
    };
    Ok(())
}

pub(super) fn blkio(group: &Directory, blkio: &mut Blkio) -> io::Result<()> {
    // A device's I/O scheduler keeps the counts: bfq, or cfq until Linux 5.0. The throttle layer counts for every
    // device, but only two of the counts, as bfq does on most kernels (block/bfq-cgroup.c, `CONFIG_BFQ_CGROUP_DEBUG`).
    let (cfq, all_of_bfq) = (group.has("blkio.time_recursive"), group.has("blkio.bfq.time_recursive"));
    let read = |name: &str| {
        let always = matches!(name, "io_service_bytes" | "io_serviced");
        for (prefix, there) in [("blkio.bfq.", always || all_of_bfq), ("blkio.", cfq), ("blkio.throttle.", always)] {
            let entries = if there { entries(&group.text(&format!("{prefix}{name}_recursive"))?) } else { Vec::new() };
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok::<_, io::Error>(Vec::new())
    };
    blkio.service_bytes = read("io_service_bytes")?;
    blkio.serviced = read("io_serviced")?;
    blkio.queued = read("io_queued")?;
    blkio.service_time = read("io_service_time")?;
    blkio.wait_time = read("io_wait_time")?;
    blkio.merged = read("io_merged")?;
    blkio.time = read("time")?;
    blkio.sectors = read("sectors")?;
    Ok(())
}

/// Parses lines such as `8:0 Read 4096` and `8:0 17`. Skips the sum over all devices at the end, which names no device.
fn entries(text: &str) -> Vec<BlkioEntry> {
    let line = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let (operation, value) = rest.split_once(' ').unwrap_or(("", rest));
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            operation: operation.into(),
            value: value.trim().parse().ok()?,
        })
    };
    text.lines().filter_map(line).collect()
}

pub(super) fn hugetlb(group: &Directory, sizes: &[String], all: &mut BTreeMap<String, Usage>) -> io::Result<()> {
    for size in sizes {
        let max_usage = group.number(&format!("hugetlb.{size}.max_usage_in_bytes"))?;
        let usage = Usage {
            // Mostly no huge page was ever used, which saves reading a file.
            usage: if max_usage == 0 { 0 } else { group.number(&format!("hugetlb.{size}.usage_in_bytes"))? },
            max_usage,
            failures: group.number(&format!("hugetlb.{size}.failcnt"))?,
            limit: group.number(&format!("hugetlb.{size}.limit_in_bytes"))?,
        };
        all.insert(size.clone(), usage);
    }
    Ok(())
}
