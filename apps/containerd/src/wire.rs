//! Error messages in the form that clients of 2016 expect.
//!
//! The gRPC specification leaves 0x20 to 0x7E unencoded in the header `grpc-message`, except for the percent sign. tonic
//! encodes more: spaces, quotes, braces. Clients that were built with the gRPC libraries of 2016 do not decode percent signs,
//! and they look for the daemon's texts in the message. This module therefore decodes what tonic encoded without need, in
//! the headers and trailers of answers that carry an error.

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Response, http};

const MESSAGE: http::HeaderName = http::HeaderName::from_static("grpc-message");

/// Decodes the error message of an answer as far as the specification demands. An answer without an error stays as it is.
pub(crate) fn with_plain_message<B: Body<Data = Bytes>>(
    response: Response<B>,
) -> Response<impl Body<Data = Bytes, Error = B::Error>> {
    let (mut head, body) = response.into_parts();
    decode_message(&mut head.headers);
    let body = body.map_frame(|frame| match frame.into_trailers() {
        Ok(mut trailers) => {
            decode_message(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    });
    Response::from_parts(head, body)
}

pub(crate) fn decode_message(headers: &mut HeaderMap) {
    let Some(value) = headers.get_mut(&MESSAGE) else { return };
    // This succeeds: only visible ASCII is left.
    if let Ok(decoded) = HeaderValue::from_bytes(&decoded(value.as_bytes())) {
        *value = decoded;
    }
}

/// Decodes each `%XX` that stands for 0x20 to 0x7E, except for the percent sign. Spaces at either end stay encoded, since HTTP/2
/// allows none there (RFC 9113, section 8.2.1).
fn decoded(encoded: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((first, after)) = rest.split_first() {
        let at_an_end = |after: &[u8]| out.is_empty() || after.is_empty();
        match escaped(rest) {
            Some((byte @ 0x20..=0x7e, after)) if byte != b'%' && !(byte == b' ' && at_an_end(after)) => {
                out.push(byte);
                rest = after;
            }
            Some((_, after)) => {
                out.extend_from_slice(&rest[..rest.len() - after.len()]);
                rest = after;
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Parses an escape at the beginning of `text`. Returns the byte that it stands for, and the rest of the text.
fn escaped(text: &[u8]) -> Option<(u8, &[u8])> {
    let [b'%', high, low, after @ ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = digit(*high)? << 4 | digit(*low)?;
    Some((u8::try_from(byte).ok()?, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(message: &str) -> String {
        let mut headers = HeaderMap::new();
        tonic::Status::not_found(message).add_header(&mut headers).expect("any text can be sent");
        decode_message(&mut headers);
        headers[&MESSAGE].to_str().expect("visible ASCII").to_string()
    }

    #[test]
    fn visible_ascii_without_percent_signs_is_sent_unchanged() {
        let all: String = (0x21..0x7f).map(char::from).filter(|c| *c != '%').collect();
        assert_eq!(sent(&all), all);
        let text = "containerd: container not found: \"a\" <b> {c} ?d #e `f`";
        assert_eq!(sent(text), text);
    }

    #[test]
    fn other_bytes_and_spaces_at_the_ends_stay_encoded() {
        assert_eq!(sent("100% of\n\tä"), "100%25 of%0A%09%C3%A4");
        assert_eq!(sent("%20"), "%2520");
        assert_eq!(sent(" a b "), "%20a b%20");
    }

    #[test]
    fn clients_decode_the_original_message() {
        for text in ["", " ", "%", "a%zz %41", "ends with %", "ü\r\n\x7f", "  "] {
            let mut headers = HeaderMap::new();
            tonic::Status::not_found(text).add_header(&mut headers).expect("any text can be sent");
            decode_message(&mut headers);
            let received = tonic::Status::from_header_map(&headers).expect("a status");
            assert_eq!(received.message(), text);
        }
    }
}
