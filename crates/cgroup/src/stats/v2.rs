//! Reading v2's files (the kernel's `admin-guide/cgroup-v2.rst`).

use std::collections::BTreeMap;
use std::io;

use super::{Blkio, BlkioEntry, Cpu, Memory, Usage};
use crate::files::{Directory, value};

pub(super) fn cpu(group: &Directory, cpu: &mut Cpu) -> io::Result<()> {
    let stat = group.keyed("cpu.stat")?;
    let nanoseconds = |key| value(&stat, key).saturating_mul(1000);
    (cpu.total, cpu.user, cpu.kernel) =
        (nanoseconds("usage_usec"), nanoseconds("user_usec"), nanoseconds("system_usec"));
    cpu.periods = value(&stat, "nr_periods");
    cpu.throttled_periods = value(&stat, "nr_throttled");
    cpu.throttled_time = nanoseconds("throttled_usec");
    Ok(())
}

pub(super) fn memory(group: &Directory, memory: &mut Memory) -> io::Result<()> {
    memory.raw = group.keyed("memory.stat")?;
    memory.cache = value(&memory.raw, "file");
    let limit = group.limit("memory.max")?;
    memory.usage = Usage {
        usage: group.number("memory.current")?,
        // The file exists since Linux 5.19.
        max_usage: group.number("memory.peak")?,
        failures: value(&group.keyed("memory.events")?, "max"),
        limit: limit.unwrap_or_default(),
    };
    // The field means memory and swap together, as v1 counts them. v2 counts each by itself.
    let swap_limit = group.limit("memory.swap.max")?;
    memory.swap = Usage {
        usage: memory.usage.usage.saturating_add(group.number("memory.swap.current")?),
        max_usage: 0,
        failures: value(&group.keyed("memory.swap.events")?, "max"),
        limit: limit.unwrap_or_default().saturating_add(swap_limit.unwrap_or_default()),
    };
    // The line `kernel` exists since Linux 5.18. Before that, add up its parts.
    let parts = ["slab", "kernel_stack", "pagetables", "percpu", "sec_pagetables"];
    let kernel = match value(&memory.raw, "kernel") {
        0 => parts.iter().fold(0, |sum: u64, key| sum.saturating_add(value(&memory.raw, key))),
        kernel => kernel,
    };
    memory.kernel = Usage { usage: kernel, limit: limit.map_or(0, |_| u64::MAX), ..Usage::default() };
    Ok(())
}

pub(super) fn blkio(group: &Directory, blkio: &mut Blkio) -> io::Result<()> {
    for line in group.text("io.stat")?.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some((major, minor)) = fields.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        let counts: Vec<(&str, u64)> =
            fields.filter_map(|field| field.split_once('=')).filter_map(|(k, v)| Some((k, v.parse().ok()?))).collect();
        // A device that no process of the group has used has no counts.
        if counts.is_empty() {
            continue;
        }
        let count = |key: &str| counts.iter().find(|(name, _)| *name == key).map_or(0, |(_, value)| *value);
        let rows = |keys: [&str; 3]| {
            let [read, write, discard] = keys.map(count);
            let total = read.saturating_add(write).saturating_add(discard);
            [("Read", read), ("Write", write), ("Discard", discard), ("Total", total)]
                .map(|(operation, value)| BlkioEntry { major, minor, operation: operation.into(), value })
        };
        blkio.service_bytes.extend(rows(["rbytes", "wbytes", "dbytes"]));
        blkio.serviced.extend(rows(["rios", "wios", "dios"]));
    }
    Ok(())
}

pub(super) fn hugetlb(group: &Directory, sizes: &[String], all: &mut BTreeMap<String, Usage>) -> io::Result<()> {
    for size in sizes {
        // The controller may be switched off.
        let Some(limit) = group.limit(&format!("hugetlb.{size}.max"))? else { continue };
        let usage = Usage {
            usage: group.number(&format!("hugetlb.{size}.current"))?,
            max_usage: 0,
            failures: value(&group.keyed(&format!("hugetlb.{size}.events"))?, "max"),
            limit,
        };
        all.insert(size.clone(), usage);
    }
    Ok(())
}
