//! The arguments and the environment of this program.

use alloc::ffi::CString;
use alloc::vec::Vec;

/// Returns the arguments. The first one is the program's own name.
#[cfg(feature = "std")]
pub fn arguments() -> Vec<CString> {
    use std::os::unix::ffi::OsStringExt;
    std::env::args_os().filter_map(|argument| CString::new(argument.into_vec()).ok()).collect()
}

#[cfg(not(feature = "std"))]
pub use crate::start::arguments;

/// Returns the environment variables in the form `NAME=value`.
#[cfg(feature = "std")]
pub fn variables() -> Vec<CString> {
    use std::os::unix::ffi::OsStrExt;
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    std::env::vars_os().filter_map(text).collect()
}

#[cfg(not(feature = "std"))]
pub use crate::start::variables;

/// Returns the environment variables except those with one of `names`.
pub fn variables_without(names: &[&str]) -> Vec<CString> {
    let mut variables = variables();
    variables.retain(|variable| names.iter().all(|name| value_of(variable.as_bytes(), name).is_none()));
    variables
}

/// Returns the value of `variable`, a text of the form `NAME=value`, if its name is `name`.
pub(crate) fn value_of<'a>(variable: &'a [u8], name: &str) -> Option<&'a [u8]> {
    variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_matches_only_by_its_whole_name() {
        assert_eq!(value_of(b"PATH=/bin:x=y", "PATH"), Some(&b"/bin:x=y"[..]));
        assert_eq!(value_of(b"PATHS=/bin", "PATH"), None);
        assert_eq!(value_of(b"PATH", "PATH"), None);
        let has = |all: &[CString]| all.iter().any(|one| value_of(one.as_bytes(), "PATH").is_some());
        assert!(has(&variables()) && !has(&variables_without(&["PATH"])));
        assert!(!arguments().is_empty());
    }
}
