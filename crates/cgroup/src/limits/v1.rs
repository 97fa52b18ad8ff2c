//! Reading and writing limits in v1's hierarchies.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::{Device, Field, Value, list, list_text, number};
use crate::files::read;
use crate::group::Cgroup;

/// Returns the controller of a field.
pub(super) fn controller(field: Field) -> &'static str {
    match field {
        Field::CpuShares | Field::CpuPeriod | Field::CpuQuota => "cpu",
        Field::CpusetCpus | Field::CpusetMems => "cpuset",
        Field::MemoryLimit
        | Field::MemorySwap
        | Field::MemoryReservation
        | Field::KernelMemoryLimit
        | Field::KernelTcpMemoryLimit => "memory",
        Field::PidsLimit => "pids",
        _ => "blkio",
    }
}

/// Returns the names that a field's file has had, from older to newer kernels.
fn names(field: Field) -> &'static [&'static str] {
    match field {
        Field::BlkioWeight => &["blkio.weight", "blkio.bfq.weight"],
        Field::BlkioLeafWeight => &["blkio.leaf_weight"],
        Field::BlkioWeightDevice => &["blkio.weight_device", "blkio.bfq.weight_device"],
        Field::BlkioLeafWeightDevice => &["blkio.leaf_weight_device"],
        Field::BlkioThrottleReadBpsDevice => &["blkio.throttle.read_bps_device"],
        Field::BlkioThrottleWriteBpsDevice => &["blkio.throttle.write_bps_device"],
        Field::BlkioThrottleReadIopsDevice => &["blkio.throttle.read_iops_device"],
        Field::BlkioThrottleWriteIopsDevice => &["blkio.throttle.write_iops_device"],
        Field::CpuShares => &["cpu.shares"],
        Field::CpuPeriod => &["cpu.cfs_period_us"],
        Field::CpuQuota => &["cpu.cfs_quota_us"],
        Field::CpusetCpus => &["cpuset.cpus"],
        Field::CpusetMems => &["cpuset.mems"],
        Field::MemoryLimit => &["memory.limit_in_bytes"],
        Field::MemorySwap => &["memory.memsw.limit_in_bytes"],
        Field::MemoryReservation => &["memory.soft_limit_in_bytes"],
        Field::KernelMemoryLimit => &["memory.kmem.limit_in_bytes"],
        Field::KernelTcpMemoryLimit => &["memory.kmem.tcp.limit_in_bytes"],
        Field::PidsLimit => &["pids.max"],
    }
}

/// Returns the path of a field's file. Returns `None` if this kernel has none.
pub(super) fn file(cgroup: &Cgroup, field: Field) -> Option<PathBuf> {
    let directory = cgroup.v1(controller(field))?;
    names(field).iter().map(|name| directory.join(name)).find(|path| path.exists())
}

/// Returns whether a field has a value for each device.
fn is_of_devices(field: Field) -> bool {
    use Field::*;
    matches!(
        field,
        BlkioWeightDevice
            | BlkioLeafWeightDevice
            | BlkioThrottleReadBpsDevice
            | BlkioThrottleWriteBpsDevice
            | BlkioThrottleReadIopsDevice
            | BlkioThrottleWriteIopsDevice
    )
}

/// Reads what the kernel has for a field.
pub(super) fn get(cgroup: &Cgroup, field: Field) -> io::Result<Option<Value>> {
    let Some(path) = file(cgroup, field) else { return Ok(None) };
    let Some(text) = read(&path)? else { return Ok(None) };
    Ok(match field {
        Field::CpusetCpus | Field::CpusetMems => list(&text).map(Value::List),
        _ if is_of_devices(field) => Some(Value::Devices(devices(&text))),
        _ => number(&text).map(Value::Number),
    })
}

/// Parses lines such as `8:0 100`. Skips lines that name no device, such as `default 100`.
fn devices(text: &str) -> BTreeMap<Device, u64> {
    let line = |line: &str| {
        let (device, value) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        Some(((major.parse().ok()?, minor.parse().ok()?), number(value)?))
    };
    text.lines().filter_map(line).collect()
}

/// Returns the texts to write to a field's file, each by a write of its own.
pub(super) fn lines(field: Field, value: &Value) -> Vec<String> {
    match value {
        Value::Number(u64::MAX) if field == Field::PidsLimit => vec!["max".into()],
        Value::Number(u64::MAX) => vec!["-1".into()],
        Value::Number(number) => vec![number.to_string()],
        Value::List(numbers) => vec![list_text(numbers)],
        Value::Text(text) => vec![text.clone()],
        // Writing 0 takes a device's own value away.
        Value::Devices(devices) => devices
            .iter()
            .map(|((major, minor), value)| format!("{major}:{minor} {}", if *value == u64::MAX { 0 } else { *value }))
            .collect(),
    }
}
