//! How fields are written as JSON where the derived form is not the contract's.

use prost_types::Timestamp;
use serde::ser::Serializer;

/// A timestamp as RFC 3339 has it, with nanoseconds. One that no calendar has is written as seconds since 1970.
pub(crate) fn timestamp<S: Serializer>(value: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(Timestamp { seconds, nanos }) = *value else { return serializer.serialize_none() };
    match jiff::Timestamp::new(seconds, nanos) {
        Ok(time) => serializer.collect_str(&format_args!("{time:.9}")),
        Err(_) => serializer.collect_str(&format_args!("@{seconds}.{nanos:09}")),
    }
}
