//! Names that clients give: they become path components and arguments, so that only a narrow set is taken.

/// Longer ones are refused.
const LONGEST: usize = 128;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("must not be empty")]
    Empty,
    /// More than 128 characters.
    #[error("has more than {LONGEST} characters")]
    TooLong,
    /// Outside `[A-Za-z0-9][A-Za-z0-9_.-]*`.
    #[error("must be of the form [A-Za-z0-9][A-Za-z0-9_.-]*")]
    Malformed,
    /// One of our own files in the same directory has it.
    #[error("is the name of a file of the state directory")]
    Reserved,
}

/// Checks a container's or process's name. `reserved` are the names of our own files in its directory; files of
/// ours that the contract does not name begin with a dot, so that no client's name can be theirs.
///
/// ```
/// use oci::{NameError, check_name};
///
/// assert_eq!(check_name("redis-1", &["state.json"]), Ok(()));
/// assert_eq!(check_name("../redis", &["state.json"]), Err(NameError::Malformed));
/// assert_eq!(check_name("state.json", &["state.json"]), Err(NameError::Reserved));
/// ```
pub fn check_name(name: &str, reserved: &[&str]) -> Result<(), NameError> {
    let bytes = name.as_bytes();
    let Some(first) = bytes.first() else { return Err(NameError::Empty) };
    if !first.is_ascii_alphanumeric() || !bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b)) {
        return Err(NameError::Malformed);
    }
    if bytes.len() > LONGEST {
        return Err(NameError::TooLong);
    }
    if reserved.contains(&name) {
        return Err(NameError::Reserved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for good in ["a", "A1", "redis-1_2.3", "0", &"x".repeat(128)] {
            assert_eq!(check_name(good, &["state.json"]), Ok(()), "{good}");
        }
        for bad in ["../x", "a/b", "-x", ".x", "_x", "a b", "a\nb", "a\0b", "é", "..", "."] {
            assert_eq!(check_name(bad, &[]), Err(NameError::Malformed), "{bad}");
        }
        assert_eq!(check_name("", &[]), Err(NameError::Empty));
        assert_eq!(check_name(&"x".repeat(129), &[]), Err(NameError::TooLong));
        assert_eq!(check_name("state.json", &["state.json"]), Err(NameError::Reserved));
    }
}
