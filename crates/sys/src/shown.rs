//! Makes foreign text harmless before it is shown on a terminal or written to a text log.
//!
//! Labels, paths, ids in foreign archives and messages of a runtime can contain a newline or an escape sequence.
//! Unescaped, they would add a row to a table or a line to a log, or change what the terminal shows.

use alloc::borrow::Cow;
use alloc::string::String;

/// Returns `text` with each character that a terminal or a log would obey replaced by its escape: `\n`, `\r`, `\t`, or
/// `\u{1b}` with the number of any other.
///
/// These are the control characters (C0, DEL, C1), the line and paragraph separators, and the characters that change
/// the direction of text (Unicode Standard Annex #9). A backslash stays as it is, so that ordinary text is never
/// changed. An escape therefore looks like the same characters written out in the text.
///
/// ```
/// assert_eq!(sys::shown::escape("one\ntwo \x1b[2J"), r"one\ntwo \u{1b}[2J");
/// assert_eq!(sys::shown::escape(r"C:\new"), r"C:\new");
/// ```
pub fn escape(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(is_obeyed) else { return Cow::Borrowed(text) };
    let (harmless, rest) = text.split_at(first);
    let mut shown = String::with_capacity(text.len() + 16);
    shown.push_str(harmless);
    for character in rest.chars() {
        if is_obeyed(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Returns whether a terminal obeys `character` instead of showing it, so that [`escape`] replaces it.
pub fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_is_borrowed_unchanged() {
        for text in ["", "a b", r"C:\new\table", "größer 漢字 ⚓ \u{200d}", "\"quoted\" 'text' {}"] {
            assert!(matches!(escape(text), Cow::Borrowed(same) if same == text), "{text:?}");
        }
    }

    #[test]
    fn characters_that_a_terminal_obeys_are_escaped() {
        assert_eq!(escape("a\nb\tc\rd"), r"a\nb\tc\rd");
        assert_eq!(escape("\x1b[2Jcleared\x07\x00\x7f"), r"\u{1b}[2Jcleared\u{7}\u{0}\u{7f}");
        assert_eq!(escape("\u{9b}31m \u{2028}\u{2029}"), r"\u{9b}31m \u{2028}\u{2029}");
        assert_eq!(escape("ä\u{202e}txt.exe\u{2066}"), r"ä\u{202e}txt.exe\u{2066}");
        for number in (0..0x20).chain(0x7f..0xa0).chain([0x61c, 0x200e, 0x200f]) {
            let character = char::from_u32(number).expect("a character");
            let text = String::from(character);
            let shown = escape(&text);
            assert!(shown.starts_with('\\') && shown.is_ascii() && !shown.contains(character), "{number:#x}");
        }
    }

    #[test]
    fn escaped_text_is_unchanged_when_escaped_again() {
        let once = escape("a\n\u{202e}\\n").into_owned();
        assert_eq!(escape(&once), once);
    }
}
