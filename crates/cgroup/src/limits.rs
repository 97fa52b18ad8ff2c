//! The limits of a running container: reading them, setting them, and checking whether they are what a client
//! requested.
//!
//! Each limit is a [`Field`]. A client requests a [`Setting`]; the kernel has a [`Value`] in its own units, which on v2
//! often differ from the client's.

mod v1;
mod v2;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use crate::group::Cgroup;

/// A limit that is a number or absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Not limited.
    Unlimited,
    /// Limited to this number.
    To(u64),
}

/// A block device, by major and minor number.
pub type Device = (u64, u64);

// The fields in the order in which they are set, with the names that clients know.
macro_rules! fields {
    ($($field:ident = $name:literal,)*) => {
        /// A limit of a container.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "their names are those of the fields that clients know")]
        pub enum Field {
            $($field,)*
        }

        impl Field {
            /// All fields. `memoryLimit` comes before `memorySwap`, which limits memory and swap together and must not
            /// be less.
            pub const ALL: &[Field] = &[$(Field::$field,)*];

            /// Returns the field's name.
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

/// What a client requests for a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// A number.
    Number(Limit),
    /// CPUs or memory nodes in any form that the kernel accepts: `0-2,4`, `all`, `0-N:1/2` (cpuset(7), "List format",
    /// and the kernel's `admin-guide/kernel-parameters.rst`).
    List(String),
    /// A limit for each of some devices. The limits of other devices stay as they are.
    Devices(BTreeMap<Device, Limit>),
}

/// The fields that a client changes.
pub type Changes = BTreeMap<Field, Setting>;

/// What the kernel has for a field, in its own units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number. The greatest number means no limit.
    Number(u64),
    /// CPUs or memory nodes.
    List(BTreeSet<u32>),
    /// CPUs or memory nodes in a form that only the kernel parses. Only the kernel's own file then tells what it means.
    Text(String),
    /// The devices that have a value of their own. The greatest number takes a device's value away.
    Devices(BTreeMap<Device, u64>),
}

/// Why a limit is not what the client requested.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The kernel has no file for the field.
    #[error("{} cannot be set: this host's control groups have no file for it", field.name())]
    Missing {
        /// The field.
        field: Field,
    },
    /// The kernel accepted the value and has another one.
    #[error("{} {wanted} was ignored: the kernel has {actual}", field.name())]
    Ignored {
        /// The field.
        field: Field,
        /// What the client requested.
        wanted: Setting,
        /// What the kernel has.
        actual: Value,
    },
    /// The value has no meaning for the field.
    #[error("{} {value} {reason}", field.name())]
    Meaningless {
        /// The field.
        field: Field,
        /// What the client requested.
        value: String,
        /// Why it has none.
        reason: &'static str,
    },
    /// The value does not fit another limit, which stays as it is.
    #[error(
        "{} {wanted} is {} {}, which is {now}: {}", field.name(), conflict.relation(), conflict.other().name(),
        conflict.advice(*wanted)
    )]
    Conflict {
        /// The field.
        field: Field,
        /// What the client requested.
        wanted: Limit,
        /// In which way the two do not fit.
        conflict: Conflict,
        /// The other limit.
        now: Value,
    },
    /// The kernel refused the value.
    #[error("{} {value} was refused by the kernel: {source}", field.name())]
    Refused {
        /// The field.
        field: Field,
        /// What the client requested.
        value: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The limit could not be restored after another one had failed.
    #[error("{} is {now} and could not be restored to {before}", field.name())]
    Stuck {
        /// The field.
        field: Field,
        /// What the kernel has now.
        now: Value,
        /// What the kernel had before.
        before: Value,
    },
    /// The kernel's file could not be read.
    #[error("read {}: {source}", field.name())]
    Unreadable {
        /// The field.
        field: Field,
        /// Why it could not be read.
        source: io::Error,
    },
}

/// In which way two limits do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// The limit of memory would be above that of memory and swap together.
    MemoryAboveSwap,
    /// The limit of memory and swap together would be below that of memory.
    SwapBelowMemory,
}

impl Conflict {
    fn relation(self) -> &'static str {
        match self {
            Conflict::MemoryAboveSwap => "more than",
            Conflict::SwapBelowMemory => "less than",
        }
    }

    fn other(self) -> Field {
        match self {
            Conflict::MemoryAboveSwap => Field::MemorySwap,
            Conflict::SwapBelowMemory => Field::MemoryLimit,
        }
    }

    fn advice(self, wanted: Limit) -> String {
        match self {
            Conflict::MemoryAboveSwap => {
                let least = if wanted == Limit::Unlimited { "" } else { "at least " };
                format!("memorySwap limits memory and swap together, so set it to {least}{wanted} in the same call")
            }
            Conflict::SwapBelowMemory => format!(
                "memorySwap limits memory and swap together, so set memoryLimit to at most {wanted} in the same call"
            ),
        }
    }
}

impl Cgroup {
    /// Reads what the kernel has for a field. Returns `None` if the kernel does not know the field.
    pub fn limit(&self, field: Field) -> Result<Option<Value>, LimitError> {
        let read = if self.limits_are_v1(field) { v1::get(self, field) } else { v2::get(self, field) };
        read.map_err(|source| LimitError::Unreadable { field, source })
    }

    /// Reads what the kernel has for each field that it knows.
    pub fn limits(&self) -> Result<BTreeMap<Field, Value>, LimitError> {
        let mut all = BTreeMap::new();
        for field in Field::ALL.iter().copied() {
            if let Some(value) = self.limit(field)? {
                all.insert(field, value);
            }
        }
        Ok(all)
    }

    /// Returns what the kernel may have after `changes`, for each field. The first value is the one to pass to
    /// [`Cgroup::set_limit`]. The others mean the same: the runtime or the kernel may round or convert it in another
    /// way.
    pub fn expected(&self, changes: &Changes) -> Result<BTreeMap<Field, Vec<Value>>, LimitError> {
        let mut all = BTreeMap::new();
        for (field, setting) in changes {
            let is_v1 = self.limits_are_v1(*field);
            let values = if is_v1 { plain(*field, setting) } else { v2::expected(self, *field, setting, changes)? };
            if self.limit(*field)?.is_none() {
                return Err(LimitError::Missing { field: *field });
            }
            all.insert(*field, values);
        }
        Ok(all)
    }

    /// Returns why `changes` do not fit each other or a limit that stays as it is, as far as that can be known
    /// beforehand.
    ///
    /// v1 refuses with EINVAL a limit of memory that is above the limit of memory and swap together, and does not say
    /// which other file is the reason (mm/memcontrol-v1.c, `mem_cgroup_resize_max`). v2 limits memory and swap
    /// independently.
    pub fn conflict(&self, changes: &Changes) -> Result<Option<LimitError>, LimitError> {
        if !self.counts_swap_with_memory() {
            return Ok(None);
        }
        let asked = |field| match changes.get(&field) {
            Some(Setting::Number(limit)) => Some(*limit),
            _ => None,
        };
        let pages = |number: u64| number / rustix::param::page_size() as u64;
        let number = |limit: Limit| match limit {
            Limit::To(number) if number < UNLIMITED_FROM => pages(number),
            _ => u64::MAX,
        };
        let now = |field| Ok::<_, LimitError>(self.limit(field)?.filter(|value| *value != Value::Number(u64::MAX)));
        let fits = |memory, swap| memory <= swap;
        Ok(match (asked(Field::MemoryLimit), asked(Field::MemorySwap)) {
            (Some(memory), Some(swap)) if !fits(number(memory), number(swap)) => Some(LimitError::Meaningless {
                field: Field::MemorySwap,
                value: swap.to_string(),
                reason: "is less than memoryLimit, which it includes",
            }),
            (Some(wanted), None) => match now(Field::MemorySwap)? {
                Some(Value::Number(swap)) if !fits(number(wanted), pages(swap)) => Some(LimitError::Conflict {
                    field: Field::MemoryLimit,
                    wanted,
                    conflict: Conflict::MemoryAboveSwap,
                    now: Value::Number(swap),
                }),
                _ => None,
            },
            (None, Some(wanted)) => {
                let memory = now(Field::MemoryLimit)?.unwrap_or(Value::Number(u64::MAX));
                let least = if let Value::Number(memory) = memory { number(Limit::To(memory)) } else { 0 };
                (!fits(least, number(wanted))).then_some(LimitError::Conflict {
                    field: Field::MemorySwap,
                    wanted,
                    conflict: Conflict::SwapBelowMemory,
                    now: memory,
                })
            }
            _ => None,
        })
    }

    /// Writes a value. For devices, writes those that it names.
    pub fn set_limit(&self, field: Field, value: &Value) -> Result<(), LimitError> {
        let lines = if self.limits_are_v1(field) { v1::lines(field, value) } else { v2::lines(self, field, value) };
        let path = if self.limits_are_v1(field) { v1::file(self, field) } else { v2::file(self, field) };
        let path = path.ok_or(LimitError::Missing { field })?;
        for line in lines {
            std::fs::write(&path, &line).map_err(|source| {
                let value = match value {
                    Value::Text(text) => quoted(text),
                    _ => line.clone(),
                };
                LimitError::Refused { field, value, source }
            })?;
        }
        Ok(())
    }

    /// Returns whether the kernel's limit of swap includes memory, as on v1.
    pub fn counts_swap_with_memory(&self) -> bool {
        self.limits_are_v1(Field::MemorySwap)
    }

    /// Returns whether the field's controller is in a v1 hierarchy.
    fn limits_are_v1(&self, field: Field) -> bool {
        self.v1(v1::controller(field)).is_some()
    }
}

impl Value {
    /// Returns whether this value is `wanted`. For devices, compares those that `wanted` names.
    pub fn is(&self, wanted: &Value) -> bool {
        match (self, wanted) {
            (Value::Devices(actual), Value::Devices(wanted)) => {
                wanted.iter().all(|(device, value)| actual.get(device).copied().unwrap_or(u64::MAX) == *value)
            }
            (actual, wanted) => actual == wanted,
        }
    }

    /// Returns the value to set so that the kernel has `before` again.
    pub fn back_to(&self, before: &Value) -> Value {
        match (self, before) {
            (Value::Devices(now), Value::Devices(before)) => {
                // Devices that had no value lose theirs.
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
            Value::Text(text) => write!(f, "{}", quoted(text)),
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
            Setting::List(list) => write!(f, "{}", quoted(list)),
            Setting::Devices(devices) => {
                let devices: Vec<String> =
                    devices.iter().map(|((major, minor), value)| format!("{major}:{minor} {value}")).collect();
                write!(f, "{}", devices.join(", "))
            }
        }
    }
}

/// The greatest number that the kernel's page counters report. This and greater ones mean no limit.
const UNLIMITED_FROM: u64 = 0x7fff_ffff_ffff_f000;

/// Parses a number; `max` and negative numbers mean no limit.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "max" || text.starts_with('-') {
        return Some(u64::MAX);
    }
    text.parse().ok().map(|number| if number >= UNLIMITED_FROM { u64::MAX } else { number })
}

/// Parses a list such as `0-2,4`.
fn list(text: &str) -> Option<BTreeSet<u32>> {
    // No machine has as many CPUs. A client may name more of them, and each number as often as it likes.
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

/// Quotes a client's text for a message and cuts it, since a client may send megabytes.
fn quoted(text: &str) -> String {
    const MOST: usize = 64;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Formats a list for the kernel.
fn list_text(numbers: &BTreeSet<u32>) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(",")
}

/// Returns the values for a setting that the kernel takes without conversion. The kernel rounds memory to whole pages.
fn plain(field: Field, setting: &Setting) -> Vec<Value> {
    let raw = |limit: &Limit| match limit {
        Limit::Unlimited => u64::MAX,
        Limit::To(number) if *number >= UNLIMITED_FROM => u64::MAX,
        Limit::To(number) => *number,
    };
    match setting {
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
        Setting::List(text) => match list(text).filter(|numbers| !numbers.is_empty()) {
            Some(numbers) => vec![Value::List(numbers)],
            None => vec![Value::Text(text.clone())],
        },
        Setting::Devices(devices) => {
            vec![Value::Devices(devices.iter().map(|(device, limit)| (*device, raw(limit))).collect())]
        }
    }
}

#[cfg(test)]
mod tests;
