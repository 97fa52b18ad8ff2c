//! The JSON form of fields for which serde's derived form differs from the contract's.

use prost_types::Timestamp;
use serde::ser::{Serialize, Serializer};
use std::collections::BTreeMap;

use crate::MapEntry;

/// Writes a timestamp as RFC 3339 with nanoseconds, or as seconds since 1970 if no calendar has it.
pub(crate) fn timestamp<S: Serializer>(value: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(Timestamp { seconds, nanos }) = *value else { return serializer.serialize_none() };
    match jiff::Timestamp::new(seconds, nanos) {
        Ok(time) => serializer.collect_str(&format_args!("{time:.9}")),
        Err(_) => serializer.collect_str(&format_args!("@{seconds}.{nanos:09}")),
    }
}

/// Writes the entries of a map as an object, ordered by key.
pub(crate) fn map<E: MapEntry<Value: Serialize>, S: Serializer>(
    entries: &[E],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let map: BTreeMap<&str, E::Value> = entries.iter().map(MapEntry::pair).collect();
    map.serialize(serializer)
}
