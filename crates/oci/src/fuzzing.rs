//! Private parsers of foreign bytes, for the targets in `fuzz/`.

use crate::{checksum, log};

/// Why a runtime failed, according to what it wrote to stderr.
pub fn reason_in_words(stderr: &str) -> String {
    log::reason_in_words(stderr)
}

/// The lines in front of a checksum line; all of `text` if it has none, and `None` if the checksum is wrong.
pub fn unseal_lines(text: &str) -> Option<&str> {
    checksum::unseal_lines(text)
}
