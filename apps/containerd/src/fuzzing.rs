//! Private parsers of foreign bytes, for the targets in `fuzz/`.

use supervisor::Changes;

use crate::{convert, wire};

pub use crate::authority::filter_in_pieces as filter_authority;

/// The changes that an encoded `UpdateResource` asks for; `None` if it cannot be decoded or is refused.
pub fn changes(message: &[u8]) -> Option<Changes> {
    let asked: api::UpdateResource = prost::Message::decode(message).ok()?;
    convert::resources::changes(asked).ok()
}

/// The `grpc-message` header of an error with this message, as the daemon sends it.
pub fn sent_message(message: &str) -> Vec<u8> {
    let mut headers = hyper::HeaderMap::new();
    // Any text can be sent.
    let _ = tonic::Status::unknown(message).add_header(&mut headers);
    wire::decode_message(&mut headers);
    headers.get("grpc-message").map(|value| value.as_bytes().to_vec()).unwrap_or_default()
}
