//! What a program was started with: its arguments and its environment.

use alloc::ffi::CString;
use alloc::vec::Vec;

/// The arguments, the program's own name first.
#[cfg(feature = "std")]
pub fn arguments() -> Vec<CString> {
    use std::os::unix::ffi::OsStringExt;
    std::env::args_os().filter_map(|argument| CString::new(argument.into_vec()).ok()).collect()
}

#[cfg(not(feature = "std"))]
pub use crate::start::arguments;

/// The variables, as `NAME=value`.
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

/// The variables but for some.
pub fn variables_without(names: &[&str]) -> Vec<CString> {
    let mut variables = variables();
    variables.retain(|variable| names.iter().all(|name| value_of(variable.as_bytes(), name).is_none()));
    variables
}

/// The value, if `variable` has that name.
pub(crate) fn value_of<'a>(variable: &'a [u8], name: &str) -> Option<&'a [u8]> {
    variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_meant_as_a_whole() {
        assert_eq!(value_of(b"PATH=/bin:x=y", "PATH"), Some(&b"/bin:x=y"[..]));
        assert_eq!(value_of(b"PATHS=/bin", "PATH"), None);
        assert_eq!(value_of(b"PATH", "PATH"), None);
        let has = |all: &[CString]| all.iter().any(|one| value_of(one.as_bytes(), "PATH").is_some());
        assert!(has(&variables()) && !has(&variables_without(&["PATH"])));
        assert!(!arguments().is_empty());
    }
}
