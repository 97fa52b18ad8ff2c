//! The format number of the files in a state directory, and how their JSON is read.

use serde::{Deserialize, Deserializer};

/// The format that this version writes, as the member `version` of its files. A program does not read a file of a later
/// format, because the file's members may have another meaning.
pub const FORMAT: u32 = 1;

/// A file has this format, which is later than [`FORMAT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewerFormat(pub u32);

/// Refuses a format that is later than [`FORMAT`]. Files of older daemons have no format number, which counts as 0.
pub fn check_format(version: u32) -> Result<(), NewerFormat> {
    if version <= FORMAT { Ok(()) } else { Err(NewerFormat(version)) }
}

/// Reads a member that may be `null`, as Go programs write it, as its default. For serde's `deserialize_with`.
pub fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_format_is_refused() {
        for known in 0..=FORMAT {
            assert_eq!(check_format(known), Ok(()));
        }
        assert_eq!(check_format(FORMAT + 1), Err(NewerFormat(FORMAT + 1)));
    }
}
