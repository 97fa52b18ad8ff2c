//! The entries of map fields.
//!
//! On the wire a map is a list of entries, each a message with a key and a value (protobuf's "Encoding" guide, "Maps").
//! prost leaves out a key or a value that is empty or zero. The protobuf libraries of 2016, with which clients of this API
//! were built, refuse such an entry ("bad map data: missing key/val"). `build.rs` therefore declares both as optional fields:
//! prost always writes an optional field that is set.

use crate::HugetlbStats;
use crate::cgroup_stats::HugetlbStatsEntry;
use crate::memory_stats::StatsEntry;

/// An entry of a map field.
pub trait MapEntry {
    /// The type of the map's values.
    type Value;

    /// The entry's key and value. One that the sender left out is empty or zero.
    fn pair(&self) -> (&str, Self::Value);
}

/// The value that a map has for a key.
pub fn value_of<E: MapEntry>(map: &[E], key: &str) -> Option<E::Value> {
    map.iter().map(MapEntry::pair).find(|(found, _)| *found == key).map(|(_, value)| value)
}

impl MapEntry for StatsEntry {
    type Value = u64;

    fn pair(&self) -> (&str, u64) {
        (self.key(), self.value())
    }
}

impl From<(String, u64)> for StatsEntry {
    fn from((key, value): (String, u64)) -> StatsEntry {
        StatsEntry { key: Some(key), value: Some(value) }
    }
}

impl MapEntry for HugetlbStatsEntry {
    type Value = HugetlbStats;

    fn pair(&self) -> (&str, HugetlbStats) {
        (self.key(), self.value.unwrap_or_default())
    }
}

impl From<(String, HugetlbStats)> for HugetlbStatsEntry {
    fn from((key, value): (String, HugetlbStats)) -> HugetlbStatsEntry {
        HugetlbStatsEntry { key: Some(key), value: Some(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CgroupStats, MemoryStats, StatsResponse};
    use prost::Message;

    fn response(stats: Vec<StatsEntry>, hugetlb_stats: Vec<HugetlbStatsEntry>) -> StatsResponse {
        let memory_stats = Some(MemoryStats { stats, ..Default::default() });
        StatsResponse {
            cgroup_stats: Some(CgroupStats { memory_stats, hugetlb_stats, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn map_entries_carry_empty_keys_and_zero_values() {
        let stats = vec![(String::new(), 1).into(), ("a".to_string(), 0).into()];
        let response = response(stats, vec![(String::new(), HugetlbStats::default()).into()]);
        // cgroup_stats { memory_stats { stats { "" 1 } stats { "a" 0 } } hugetlb_stats { "" {} } }
        let expected = b"\x12\x15\x12\x0d\x2a\x04\x0a\x00\x10\x01\x2a\x05\x0a\x01a\x10\x00\x22\x04\x0a\x00\x12\x00";
        assert_eq!(response.encode_to_vec(), expected);
        assert_eq!(StatsResponse::decode(&expected[..]).expect("valid"), response);
    }

    #[test]
    fn absent_keys_and_values_are_read_as_empty_and_zero() {
        // The same maps as another encoder may write them: nothing in the first and the last entry, a key in the second.
        let bytes = b"\x12\x0b\x12\x07\x2a\x00\x2a\x03\x0a\x01a\x22\x00";
        let cgroup = StatsResponse::decode(&bytes[..]).expect("valid").cgroup_stats.expect("is there");
        let memory = cgroup.memory_stats.expect("is there");
        let pairs: Vec<(&str, u64)> = memory.stats.iter().map(MapEntry::pair).collect();
        assert_eq!(pairs, [("", 0), ("a", 0)]);
        assert_eq!((value_of(&memory.stats, "a"), value_of(&memory.stats, "b")), (Some(0), None));
        assert_eq!(cgroup.hugetlb_stats[0].pair(), ("", HugetlbStats::default()));
    }

    #[test]
    fn maps_are_json_objects_ordered_by_key() {
        let response = response(vec![("b".to_string(), 1).into(), ("a".to_string(), 0).into()], Vec::new());
        let json = serde_json::to_string(&response.cgroup_stats).expect("plain data");
        assert!(json.contains(r#""stats":{"a":0,"b":1}"#), "{json}");
        assert!(json.contains(r#""hugetlb_stats":{}"#), "{json}");
    }
}
