//! Text from elsewhere, on its way to a terminal, a log or a path.

use std::borrow::Cow;
use std::path::{Component, Path};
use sys::shown::{escape, is_obeyed};

pub(crate) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let shown = escape(&text);
    assert!(!shown.contains(is_obeyed), "no character is left that a terminal obeys");
    assert_eq!(escape(&shown), shown, "what was escaped once stays as it is");
    assert_eq!(matches!(shown, Cow::Borrowed(_)), !text.contains(is_obeyed), "harmless text is not copied");
    if oci::check_name(&text, &["state.json"]).is_ok() {
        let mut parts = Path::new(text.as_ref()).components();
        assert!(matches!(parts.next(), Some(Component::Normal(name)) if name == text.as_ref()));
        assert!(parts.next().is_none() && text.len() <= 255 && escape(&text) == text, "a name is one part of a path");
    }
}
