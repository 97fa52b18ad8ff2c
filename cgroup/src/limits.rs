//! Limits of a running container: what they are, setting them, and whether they are as they were asked for.
//!
//! A limit is a [`Field`]; what the kernel has for it is a [`Value`] in the kernel's own terms, which on v2 are often
//! others than those in which limits are asked for.

mod v1;
mod v2;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use crate::group::Cgroup;

/// A number that can also be "without limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Not limited.
    Unlimited,
    /// Limited to this.
    To(u64),
}

/// A block device, by major and minor number.
pub type Device = (u64, u64);

/// The fields, in the order in which they are set, with the names that clients know.
macro_rules! fields {
    ($($field:ident = $name:literal,)*) => {
        /// What can be limited.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "their names are those of the fields that clients know")]
        pub enum Field {
            $($field,)*
        }

        impl Field {
            /// All of them. Memory comes before memory and swap together, and that is no smaller.
            pub const ALL: &[Field] = &[$(Field::$field,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Field::$field => $name,)*
                }
            }
        }
    };
}

fields! {
    BlkioWeight = "blkioWeight",
    CpuShares = "cpuShares",
    CpuPeriod = "cpuPeriod",
    CpuQuota = "cpuQuota",
    CpusetCpus = "cpusetCpus",
    CpusetMems = "cpusetMems",
    MemoryLimit = "memoryLimit",
    MemorySwap = "memorySwap",
    MemoryReservation = "memoryReservation",
    KernelMemoryLimit = "kernelMemoryLimit",
    KernelTcpMemoryLimit = "kernelTCPMemoryLimit",
    BlkioLeafWeight = "blkioLeafWeight",
    BlkioWeightDevice = "blkioWeightDevice",
    BlkioLeafWeightDevice = "blkioWeightDevice.leafWeight",
    BlkioThrottleReadBpsDevice = "blkioThrottleReadBpsDevice",
    BlkioThrottleWriteBpsDevice = "blkioThrottleWriteBpsDevice",
    BlkioThrottleReadIopsDevice = "blkioThrottleReadIopsDevice",
    BlkioThrottleWriteIopsDevice = "blkioThrottleWriteIopsDevice",
    PidsLimit = "pidsLimit",
}

/// What is asked of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// A number.
    Number(Limit),
    /// CPUs or memory nodes as cpuset(7) writes them: `0-2,4`.
    List(String),
    /// A number for each of some devices; others stay as they are.
    Devices(BTreeMap<Device, Limit>),
}

/// Fields that are to be changed, each once.
pub type Changes = BTreeMap<Field, Setting>;

/// What the kernel has, in its own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The greatest number means that there is no limit.
    Number(u64),
    /// CPUs or memory nodes.
    List(BTreeSet<u32>),
    /// Devices that have a value of their own; the greatest number means that one is to have none.
    Devices(BTreeMap<Device, u64>),
}

/// Why a limit is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// There is no file for it.
    #[error("{} is not to be had: this host's cgroups have nothing for it", field.name())]
    Missing {
        /// The field.
        field: Field,
    },
    /// The kernel took it and has something else.
    #[error("{} {wanted} was ignored: the kernel has {actual}", field.name())]
    Ignored {
        /// The field.
        field: Field,
        /// What was asked for.
        wanted: Setting,
        /// What is there.
        actual: Value,
    },
    /// It means nothing.
    #[error("{} {value} {reason}", field.name())]
    Meaningless {
        /// The field.
        field: Field,
        /// What was asked for.
        value: String,
        /// Why.
        reason: &'static str,
    },
    /// The kernel refused it.
    #[error("{} {value} was refused by the kernel: {source}", field.name())]
    Refused {
        /// The field.
        field: Field,
        /// What was asked for.
        value: String,
        /// In the kernel's words.
        source: io::Error,
    },
    /// It could not be put back to what it was.
    #[error("{} is {now} and not {before}, as it was", field.name())]
    Stuck {
        /// The field.
        field: Field,
        /// What is there.
        now: Value,
        /// What was there.
        before: Value,
    },
    /// A file could not be read.
    #[error("read {}: {source}", field.name())]
    Unreadable {
        /// The field.
        field: Field,
        /// Why.
        source: io::Error,
    },
}

impl Cgroup {
    /// What the kernel has for a field; `None` if it has no such thing.
    pub fn limit(&self, field: Field) -> Result<Option<Value>, LimitError> {
        let read = if self.limits_are_v1(field) { v1::get(self, field) } else { v2::get(self, field) };
        read.map_err(|source| LimitError::Unreadable { field, source })
    }

    /// What the kernel has for each field that it knows.
    pub fn limits(&self) -> Result<BTreeMap<Field, Value>, LimitError> {
        let mut all = BTreeMap::new();
        for field in Field::ALL.iter().copied() {
            if let Some(value) = self.limit(field)? {
                all.insert(field, value);
            }
        }
        Ok(all)
    }

    /// What the kernel would have if `changes` were carried out, one of these for each field. The first is what
    /// [`Cgroup::set_limit`] should be given; others mean the same, as another program may have rounded it.
    pub fn expected(&self, changes: &Changes) -> Result<BTreeMap<Field, Vec<Value>>, LimitError> {
        let mut all = BTreeMap::new();
        for (field, setting) in changes {
            let is_v1 = self.limits_are_v1(*field);
            let values =
                if is_v1 { v1::expected(*field, setting)? } else { v2::expected(self, *field, setting, changes)? };
            if self.limit(*field)?.is_none() {
                return Err(LimitError::Missing { field: *field });
            }
            all.insert(*field, values);
        }
        Ok(all)
    }

    /// Writes a value; of devices, those that are named.
    pub fn set_limit(&self, field: Field, value: &Value) -> Result<(), LimitError> {
        let lines = if self.limits_are_v1(field) { v1::lines(field, value) } else { v2::lines(self, field, value) };
        let path = if self.limits_are_v1(field) { v1::file(self, field) } else { v2::file(self, field) };
        let path = path.ok_or(LimitError::Missing { field })?;
        for line in lines {
            std::fs::write(&path, &line).map_err(|source| LimitError::Refused {
                field,
                value: line.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Whether its limit of swap is one of memory and swap together, as on v1.
    pub fn counts_swap_with_memory(&self) -> bool {
        self.limits_are_v1(Field::MemorySwap)
    }

    /// Whether the field's controller is in a v1 hierarchy.
    fn limits_are_v1(&self, field: Field) -> bool {
        self.v1(v1::controller(field)).is_some()
    }
}

impl Value {
    /// Whether this is what was asked for: of devices, those that are named.
    pub fn is(&self, wanted: &Value) -> bool {
        match (self, wanted) {
            (Value::Devices(actual), Value::Devices(wanted)) => {
                wanted.iter().all(|(device, value)| actual.get(device).copied().unwrap_or(u64::MAX) == *value)
            }
            (actual, wanted) => actual == wanted,
        }
    }

    /// What has to be set so that everything is as it was `before` again.
    pub fn back_to(&self, before: &Value) -> Value {
        match (self, before) {
            (Value::Devices(now), Value::Devices(before)) => {
                // Those that had none have none again.
                let none = now.keys().map(|device| (*device, u64::MAX));
                Value::Devices(none.chain(before.iter().map(|(device, value)| (*device, *value))).collect())
            }
            _ => before.clone(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(u64::MAX) => write!(f, "no limit"),
            Value::Number(number) => write!(f, "{number}"),
            Value::List(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
                write!(f, "{:?}", numbers.join(","))
            }
            Value::Devices(devices) if devices.is_empty() => write!(f, "nothing"),
            Value::Devices(devices) => {
                let devices: Vec<String> =
                    devices.iter().map(|((major, minor), value)| format!("{major}:{minor} {value}")).collect();
                write!(f, "{}", devices.join(", "))
            }
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Unlimited => write!(f, "-1"),
            Limit::To(number) => write!(f, "{number}"),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Number(limit) => write!(f, "{limit}"),
            Setting::List(list) => write!(f, "{list:?}"),
            Setting::Devices(devices) => {
                let devices: Vec<String> =
                    devices.iter().map(|((major, minor), value)| format!("{major}:{minor} {value}")).collect();
                write!(f, "{}", devices.join(", "))
            }
        }
    }
}

/// The greatest number that the kernel's page counters show, and more: no limit.
const UNLIMITED_FROM: u64 = 0x7fff_ffff_ffff_f000;

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "max" || text.starts_with('-') {
        return Some(u64::MAX);
    }
    text.parse().ok().map(|number| if number >= UNLIMITED_FROM { u64::MAX } else { number })
}

/// `0-2,4`.
fn list(text: &str) -> Option<BTreeSet<u32>> {
    // No machine has as many CPUs; a client may write anything, as often as it likes.
    const MOST: u32 = 8192;
    let mut numbers = BTreeSet::new();
    let mut named: u32 = 0;
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        named = named.saturating_add(last.saturating_sub(first)).saturating_add(1);
        if last >= MOST || named > MOST {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn list_text(numbers: &BTreeSet<u32>) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(",")
}

/// What a setting means where the kernel takes it as it is; memory comes in whole pages.
fn plain(field: Field, setting: &Setting) -> Result<Vec<Value>, LimitError> {
    let raw = |limit: &Limit| match limit {
        Limit::Unlimited => u64::MAX,
        Limit::To(number) if *number >= UNLIMITED_FROM => u64::MAX,
        Limit::To(number) => *number,
    };
    Ok(match setting {
        Setting::Number(limit) => {
            let value = raw(limit);
            let page = rustix::param::page_size() as u64;
            let in_pages = matches!(
                field,
                Field::MemoryLimit
                    | Field::MemorySwap
                    | Field::MemoryReservation
                    | Field::KernelMemoryLimit
                    | Field::KernelTcpMemoryLimit
            );
            match value {
                u64::MAX => vec![Value::Number(value)],
                value if in_pages => vec![Value::Number(value), Value::Number(value / page * page)],
                value => vec![Value::Number(value)],
            }
        }
        Setting::List(text) => {
            let numbers = list(text).filter(|numbers| !numbers.is_empty());
            vec![Value::List(numbers.ok_or_else(|| {
                let value = text.chars().take(64).collect::<String>();
                LimitError::Meaningless { field, value: format!("{value:?}"), reason: "is no list such as 0-2,4" }
            })?)]
        }
        Setting::Devices(devices) => {
            vec![Value::Devices(devices.iter().map(|(device, limit)| (*device, raw(limit))).collect())]
        }
    })
}

#[cfg(test)]
mod tests;
