//! The gRPC API as it is on the wire: the messages of `types.API`, its server trait and its client. What the calls do is the
//! daemon's business; this crate knows no container.
//!
//! Messages serialize to JSON with the contract's own field names, numbers as numbers and times as RFC 3339. Every field is
//! written, even if it is zero or empty.

/// Generated from `proto/api.proto` by `build.rs`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/types.rs"));
}

mod json;
mod map;

pub use generated::*;
pub use map::{MapEntry, value_of};
pub use prost_types::Timestamp;

impl Container {
    /// The length of the encoded message in bytes.
    pub fn encoded_size(&self) -> usize {
        prost::Message::encoded_len(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_names_of_the_contract_and_zeros() {
        let container = Container { id: "a".into(), bundle_path: "/b".into(), pids: vec![7, 8], ..Default::default() };
        assert_eq!(
            serde_json::to_string(&container).expect("plain data"),
            r#"{"id":"a","bundlePath":"/b","processes":[],"status":"","labels":[],"pids":[7,8],"runtime":""}"#
        );
        let event = Event { r#type: "exit".into(), ..Default::default() };
        assert_eq!(
            serde_json::to_string(&event).expect("plain data"),
            r#"{"type":"exit","id":"","status":0,"pid":"","timestamp":null}"#
        );
    }

    #[test]
    fn json_keeps_mixed_spelling_and_numbers() {
        let stats = NetworkStats { rx_packets: u64::MAX, tx_bytes: 1, ..Default::default() };
        let json = serde_json::to_value(&stats).expect("plain data");
        assert_eq!((&json["rx_Packets"], &json["Tx_bytes"]), (&u64::MAX.into(), &1.into()));
        assert_eq!((&json["rx_bytes"], &json["Rx_errors"]), (&0.into(), &0.into()));
    }

    #[test]
    fn json_writes_times_as_rfc_3339() {
        let json = |seconds, nanos| {
            let event = Event { timestamp: Some(Timestamp { seconds, nanos }), ..Default::default() };
            serde_json::to_value(&event).expect("plain data")["timestamp"].clone()
        };
        assert_eq!(json(5, 6), "1970-01-01T00:00:05.000000006Z");
        assert_eq!(json(1_700_000_000, 0), "2023-11-14T22:13:20.000000000Z");
        assert_eq!(json(i64::MAX, 0), "@9223372036854775807.000000000");
    }
}
