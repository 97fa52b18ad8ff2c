//! The filter that replaces a malformed `:authority` before the HTTP/2 library reads it.
//!
//! The first byte of an input says into how large pieces the connection is cut. The rest follows the client's preface.

use containerd::fuzzing::filter_authority;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) fn run(input: &[u8]) {
    let Some((cut, frames)) = input.split_first() else { return };
    let connection = [PREFACE, frames].concat();
    let whole = filter_authority([&connection[..]]);
    let cut = usize::from(*cut).max(1);
    assert_eq!(filter_authority(connection.chunks(cut)), whole, "the result depends on how the bytes arrive");
    assert!(whole.starts_with(PREFACE), "the preface is passed on");
    assert_eq!(filter_authority([&whole[..]]), whole, "what has been filtered needs no filtering");
    // An empty authority becomes one character. Every other replacement is no longer than what it replaces.
    let headers = frames.len() / 9;
    assert!(whole.len() <= connection.len() + headers, "{} bytes became {}", connection.len(), whole.len());
}
