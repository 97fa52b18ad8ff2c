//! Checksums in files. In a JSON object the last member, `crc`, is the CRC-32 of the text before it.
//!
//! The files of the state directory and the lines of the journal have a checksum, so that the daemon notices a changed
//! byte before it relies on it. Older daemons ignore the member and write none.

use std::io::Write;

/// The text between the object's other members and the checksum.
const NAME: &[u8] = b",\"crc\":\"";

/// The text after the checksum.
const END: &[u8] = b"\"}";

/// The number of digits of a checksum.
const DIGITS: usize = 8;

/// Adds a checksum to the text of a JSON object that has at least one member.
///
/// ```
/// use oci::checksum::{is_intact, seal};
///
/// let mut text = seal(br#"{"status":0}"#.to_vec());
/// assert_eq!(text, br#"{"status":0,"crc":"d16bc3dc"}"#);
/// text[10] = b'1';
/// assert!(!is_intact(&text), "a changed byte is noticed");
/// ```
pub fn seal(mut object: Vec<u8>) -> Vec<u8> {
    // Remove the closing brace.
    object.pop();
    let checksum = crc32fast::hash(&object);
    object.extend_from_slice(NAME);
    // Writing to a vector cannot fail.
    let _ = write!(object, "{checksum:08x}");
    object.extend_from_slice(END);
    object
}

/// Returns whether the text of a JSON object matches its checksum. Text without a checksum counts as intact, since an
/// older daemon may have written it.
pub fn is_intact(object: &[u8]) -> bool {
    let Some((body, digits)) = split(object) else { return true };
    let checksum = std::str::from_utf8(digits).ok().and_then(|digits| u32::from_str_radix(digits, 16).ok());
    checksum == Some(crc32fast::hash(body))
}

/// Splits an object into the text that the checksum covers and the checksum's digits. Returns `None` if it has no
/// checksum.
fn split(object: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = object.strip_suffix(END)?;
    let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(DIGITS)?)?;
    Some((rest.strip_suffix(NAME)?, digits))
}

/// Adds a line with a checksum to a text that consists of lines.
pub(crate) fn seal_lines(text: &str) -> String {
    format!("{text}crc {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// Returns the lines without the checksum that [`seal_lines`] added. Text without a checksum is returned as it is,
/// since an older daemon may have written it. Returns `None` if the text does not match its checksum.
pub(crate) fn unseal_lines(text: &str) -> Option<&str> {
    let lines = text.strip_suffix('\n')?;
    let (body, last) = lines.rsplit_once('\n').map_or(("", lines), |(body, last)| (&text[..=body.len()], last));
    let Some(digits) = last.strip_prefix("crc ") else { return Some(text) };
    let checksum = u32::from_str_radix(digits, 16).ok()?;
    (checksum == crc32fast::hash(body.as_bytes())).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flipped_bit_is_noticed_or_leaves_the_object_unchanged() {
        let object = br#"{"a":1,"b":"two"}"#;
        let sealed = seal(object.to_vec());
        assert!(is_intact(&sealed) && is_intact(object));
        let value = |text: &[u8]| {
            let mut value: serde_json::Value = serde_json::from_slice(text).ok()?;
            Some((value["a"].take(), value["b"].take()))
        };
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let taken = value(&flipped).filter(|_| is_intact(&flipped));
            assert!(taken.is_none() || taken == value(object), "bit {bit}");
        }
    }

    #[test]
    fn damaged_lines_are_refused() {
        let text = "8:pids:/a\n0::/a\n";
        let sealed = seal_lines(text);
        assert_eq!(unseal_lines(&sealed), Some(text));
        assert_eq!(unseal_lines(text), Some(text), "an older daemon wrote it");
        assert_eq!(unseal_lines(&sealed.replace("/a\n0", "/c\n0")), None);
        assert_eq!(unseal_lines(&sealed[..sealed.len() - 1]), None);
        assert_eq!(unseal_lines(""), None);
        assert_eq!(unseal_lines(&seal_lines("")), Some(""));
    }
}
