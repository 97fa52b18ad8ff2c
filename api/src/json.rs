//! How fields are written as JSON where the derived form is not the contract's.

use prost_types::Timestamp;
use serde::ser::{SerializeStruct, Serializer};

/// Whether a field holds its proto3 default, which JSON leaves out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A timestamp as `{"seconds": …, "nanos": …}`.
pub(crate) fn timestamp<S: Serializer>(value: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(value) = value else { return serializer.serialize_none() };
    let mut fields = serializer.serialize_struct("Timestamp", 2)?;
    fields.serialize_field("seconds", &value.seconds)?;
    fields.serialize_field("nanos", &value.nanos)?;
    fields.end()
}
