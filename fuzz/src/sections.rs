//! Several files in one input, in a form that mutates well and that a person can read:
//!
//! ```text
//! @memory.max
//! max
//! @memory.events
//! oom_kill 2
//! ```
//!
//! A line that begins with `@` names a file. The lines up to the next such line are its content.

/// The sections of `input`: names, and contents with their line feeds. What stands before the first name is dropped.
pub(crate) fn sections(input: &[u8]) -> Vec<(&[u8], Vec<u8>)> {
    let mut found: Vec<(&[u8], Vec<u8>)> = Vec::new();
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        match (line.strip_prefix(b"@"), found.last_mut()) {
            (Some(name), _) => found.push((name.trim_ascii_end(), Vec::new())),
            (None, Some((_, content))) => content.extend_from_slice(line),
            (None, None) => {}
        }
    }
    found
}

/// The text of the first section called `name`; empty if there is none.
pub(crate) fn text(input: &[u8], name: &str) -> String {
    let found = sections(input).into_iter().find(|(known, _)| *known == name.as_bytes());
    found.map(|(_, content)| String::from_utf8_lossy(&content).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_keep_their_line_feeds() {
        let input = b"dropped\n@a\n1\n2\n@b\n@c\nend";
        let expected: [(&[u8], Vec<u8>); 3] = [(b"a", b"1\n2\n".to_vec()), (b"b", vec![]), (b"c", b"end".to_vec())];
        assert_eq!(sections(input), expected);
        assert_eq!(text(input, "a"), "1\n2\n");
        assert_eq!(text(input, "d"), "");
    }
}
