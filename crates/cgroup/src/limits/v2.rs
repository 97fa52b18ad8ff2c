//! Reading and writing limits in v2's hierarchy, where each field has the nearest thing that v2 knows.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::{Changes, Device, Field, Limit, LimitError, Setting, Value, list, list_text, number, plain};
use crate::files::read;
use crate::group::Cgroup;

/// Returns the names that a field's file may have.
fn names(field: Field) -> &'static [&'static str] {
    match field {
        Field::BlkioWeight | Field::BlkioWeightDevice => &["io.bfq.weight", "io.weight"],
        Field::BlkioThrottleReadBpsDevice
        | Field::BlkioThrottleWriteBpsDevice
        | Field::BlkioThrottleReadIopsDevice
        | Field::BlkioThrottleWriteIopsDevice => &["io.max"],
        Field::CpuShares => &["cpu.weight"],
        Field::CpuPeriod | Field::CpuQuota => &["cpu.max"],
        Field::CpusetCpus => &["cpuset.cpus"],
        Field::CpusetMems => &["cpuset.mems"],
        Field::MemoryLimit => &["memory.max"],
        Field::MemorySwap => &["memory.swap.max"],
        Field::MemoryReservation => &["memory.low"],
        Field::PidsLimit => &["pids.max"],
        // v2 counts the kernel's memory as part of all memory, and it has no leaf weights.
        Field::KernelMemoryLimit
        | Field::KernelTcpMemoryLimit
        | Field::BlkioLeafWeight
        | Field::BlkioLeafWeightDevice => &[],
    }
}

/// Returns the path of a field's file. Returns `None` if this kernel has none.
pub(super) fn file(cgroup: &Cgroup, field: Field) -> Option<PathBuf> {
    let directory = cgroup.v2()?;
    names(field).iter().map(|name| directory.join(name)).find(|path| path.exists())
}

/// Returns the key of a throttle in `io.max`.
fn word(field: Field) -> Option<&'static str> {
    match field {
        Field::BlkioThrottleReadBpsDevice => Some("rbps"),
        Field::BlkioThrottleWriteBpsDevice => Some("wbps"),
        Field::BlkioThrottleReadIopsDevice => Some("riops"),
        Field::BlkioThrottleWriteIopsDevice => Some("wiops"),
        _ => None,
    }
}

/// Reads what the kernel has for a field.
pub(super) fn get(cgroup: &Cgroup, field: Field) -> io::Result<Option<Value>> {
    let Some(path) = file(cgroup, field) else { return Ok(None) };
    let Some(text) = read(&path)? else { return Ok(None) };
    let mut words = text.split_ascii_whitespace();
    Ok(match field {
        Field::CpusetCpus | Field::CpusetMems => list(&text).map(Value::List),
        Field::CpuQuota => words.next().and_then(number).map(Value::Number),
        Field::CpuPeriod => words.nth(1).and_then(number).map(Value::Number),
        Field::BlkioWeight => {
            let default = text.lines().find_map(|line| line.strip_prefix("default "));
            default.and_then(number).map(Value::Number)
        }
        Field::BlkioWeightDevice => Some(Value::Devices(devices(&text, number))),
        field => match word(field) {
            Some(word) => Some(Value::Devices(devices(&text, |rest| {
                let pairs = rest.split_ascii_whitespace().filter_map(|pair| pair.split_once('='));
                pairs.filter(|(key, _)| *key == word).find_map(|(_, value)| number(value))
            }))),
            None => number(&text).map(Value::Number),
        },
    })
}

/// Parses lines that begin with a device. `value` is given the rest of each line.
fn devices(text: &str, value: impl Fn(&str) -> Option<u64>) -> BTreeMap<Device, u64> {
    let line = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        Some(((major.parse().ok()?, minor.parse().ok()?), value(rest)?))
    };
    // A device is listed if it has any limit, so that this one may be `max`.
    text.lines().filter_map(line).filter(|(_, value)| *value != u64::MAX).collect()
}

/// Returns what the kernel may have after a field has been set, given all `changes` of the same request.
pub(super) fn expected(
    cgroup: &Cgroup,
    field: Field,
    setting: &Setting,
    changes: &Changes,
) -> Result<Vec<Value>, LimitError> {
    let meaningless = |reason| LimitError::Meaningless { field, value: setting.to_string(), reason };
    let number_of = |setting: &Setting| match setting {
        Setting::Number(Limit::To(number)) => Some(*number),
        _ => None,
    };
    match (field, number_of(setting)) {
        (Field::CpuShares, Some(shares)) => Ok(weights(shares).map(Value::Number).to_vec()),
        (Field::CpuShares, None) => Err(meaningless("is not a number of shares")),
        (Field::MemorySwap, Some(together)) => {
            // The client limits memory and swap together. v2 limits swap alone.
            let memory = match changes.get(&Field::MemoryLimit) {
                Some(setting) => number_of(setting),
                None => match cgroup.limit(Field::MemoryLimit)? {
                    Some(Value::Number(number)) if number != u64::MAX => Some(number),
                    _ => None,
                },
            };
            let memory = memory.ok_or_else(|| meaningless("needs a memoryLimit, which it includes"))?;
            let swap = together.checked_sub(memory);
            let swap = swap.ok_or_else(|| meaningless("is less than memoryLimit, which it includes"))?;
            Ok(plain(field, &Setting::Number(Limit::To(swap))))
        }
        (Field::BlkioWeight, Some(weight)) if !is_bfq(cgroup) => Ok(vec![Value::Number(io_weight(weight))]),
        (Field::BlkioWeightDevice, _) if !is_bfq(cgroup) => Ok(plain(field, setting)
            .into_iter()
            .map(|value| match value {
                Value::Devices(devices) => {
                    Value::Devices(devices.into_iter().map(|(device, weight)| (device, io_weight(weight))).collect())
                }
                value => value,
            })
            .collect()),
        _ => Ok(plain(field, setting)),
    }
}

/// Returns whether the weights are those of the bfq scheduler, which have v1's range.
fn is_bfq(cgroup: &Cgroup) -> bool {
    file(cgroup, Field::BlkioWeight).is_some_and(|path| path.ends_with("io.bfq.weight"))
}

/// Converts a weight of v1 (10 to 1000) to one of `io.weight` (1 to 10000) by the formula of the OCI runtimes.
fn io_weight(weight: u64) -> u64 {
    if weight == u64::MAX { weight } else { 1 + weight.saturating_sub(10).saturating_mul(9999) / 990 }
}

/// Converts CPU shares of v1 (2 to 262144) to weights (1 to 10000) by both formulas of the OCI runtimes. The older one
/// is linear. The one that runtimes have used since 2025 maps 1024 shares, the default, to the default weight of 100.
fn weights(shares: u64) -> [u64; 2] {
    let shares = shares.clamp(2, 262_144);
    let even = 1 + (shares - 2) * 9999 / 262_142;
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // The result is between 1 and 10000.
    let bent = 10f64.powf(exponent).ceil() as u64;
    [even, bent.clamp(1, 10_000)]
}

/// Returns the texts to write to a field's file, each by a write of its own.
pub(super) fn lines(cgroup: &Cgroup, field: Field, value: &Value) -> Vec<String> {
    let text = |number: u64| if number == u64::MAX { "max".to_string() } else { number.to_string() };
    match (field, value) {
        (Field::CpuQuota, Value::Number(quota)) => vec![text(*quota)],
        (Field::CpuPeriod, Value::Number(period)) => {
            let quota = match cgroup.limit(Field::CpuQuota) {
                Ok(Some(Value::Number(quota))) => quota,
                _ => u64::MAX,
            };
            vec![format!("{} {period}", text(quota))]
        }
        (_, Value::Number(number)) => vec![text(*number)],
        // Without the newline, an empty list would make no write(2) at all.
        (_, Value::List(numbers)) => vec![list_text(numbers) + "\n"],
        (_, Value::Text(text)) => vec![format!("{text}\n")],
        (field, Value::Devices(devices)) => devices
            .iter()
            .map(|((major, minor), value)| match (word(field), *value) {
                (Some(word), value) => format!("{major}:{minor} {word}={}", text(value)),
                (None, u64::MAX) => format!("{major}:{minor} default"),
                (None, value) => format!("{major}:{minor} {value}"),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_converted_exactly_at_the_ends_and_the_default() {
        assert_eq!(weights(2), [1, 1]);
        assert_eq!(weights(1024), [39, 100]);
        assert_eq!(weights(262_144), [10_000, 10_000]);
        assert_eq!((io_weight(10), io_weight(1000), io_weight(u64::MAX)), (1, 10_000, u64::MAX));
    }
}
