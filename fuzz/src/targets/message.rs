//! The `grpc-message` header of an answer, whose text may come from a bundle, a runtime or a container.

use containerd::fuzzing::sent_message;

pub(crate) fn run(input: &[u8]) {
    let message = String::from_utf8_lossy(input);
    let sent = sent_message(&message);
    assert!(sent.iter().all(|byte| (0x20..=0x7e).contains(byte)), "HTTP/2 allows only visible ASCII here");
    assert!(!sent.starts_with(b" ") && !sent.ends_with(b" "), "HTTP/2 allows no space at an end");
    assert_eq!(decoded(&sent), message.as_bytes(), "a client reads the message that was sent");
}

/// Decodes as a client does (gRPC over HTTP/2, "Percent-Encoded").
fn decoded(mut text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                out.push(byte);
                text = &rest[2..];
            }
            None => {
                out.push(*first);
                text = rest;
            }
        }
    }
    out
}
