//! The gRPC API as it is on the wire, and nothing else: `types.API`, its messages, its server trait and
//! its client. What the calls mean is in the daemon; this crate knows no container.
//!
//! Messages serialize to JSON with the contract's own field names, numbers as numbers and times as RFC 3339 has
//! them. Every field is there, also when it is zero or empty.

/// Generated from `proto/api.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/types.rs"));
}

/// The server's side, generated from the same file.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, clippy::unwrap_used)]
mod server {
    include!(concat!(env!("OUT_DIR"), "/server/types.rs"));
}

mod json;
mod stats;
mod writer;

pub use generated::*;
pub use prost_types::Timestamp;
pub use server::*;
pub use stats::EncodedStats;
pub use writer::Writer;

use prost::bytes::{Buf, BufMut};

/// A [`StateResponse`] as a server gives it: what there is of its containers is encoded already, where they were looked
/// at. It is only sent, never received.
#[derive(Debug, Default)]
pub struct EncodedState {
    /// The fields `containers`, one part of them after the other, by a [`Writer`].
    pub containers: Vec<Vec<u8>>,
    /// The machine.
    pub machine: Option<Machine>,
}

impl EncodedState {
    /// The number of the field `containers`.
    pub const CONTAINERS: u32 = 1;
}

impl prost::Message for EncodedState {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        self.containers.iter().for_each(|part| buffer.put_slice(part));
        StateResponse { containers: Vec::new(), machine: self.machine }.encode_raw(buffer);
    }

    fn encoded_len(&self) -> usize {
        let containers: usize = self.containers.iter().map(Vec::len).sum();
        containers + StateResponse { containers: Vec::new(), machine: self.machine }.encoded_len()
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buffer: &mut impl Buf,
        context: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buffer, context)
    }

    fn clear(&mut self) {
        *self = EncodedState::default();
    }
}

impl Container {
    /// Its encoded length.
    pub fn size(&self) -> usize {
        prost::Message::encoded_len(self)
    }
}

impl Process {
    /// As it is on the wire.
    pub fn encoded(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

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
    fn an_encoded_state_is_a_state() {
        let container = |id: &str| Container { id: id.into(), pids: vec![7, 300], ..Default::default() };
        let containers = vec![container("a"), Container::default(), container("b")];
        for machine in [Some(Machine { cpus: 2, memory: 512 }), None] {
            let part = |part: &[Container]| {
                let mut bytes = Vec::new();
                for container in part {
                    Writer(&mut bytes).message(EncodedState::CONTAINERS, |writer| {
                        writer.text(1, &container.id);
                        writer.numbers(6, &container.pids);
                    });
                }
                bytes
            };
            let encoded = EncodedState { containers: vec![part(&containers[..2]), part(&containers[2..])], machine };
            let state = StateResponse { containers: containers.clone(), machine };
            assert_eq!(encoded.encode_to_vec(), state.encode_to_vec());
            assert_eq!(encoded.encoded_len(), state.encoded_len());
        }
    }

    #[test]
    fn json_keeps_mixed_spelling_and_numbers() {
        let stats = NetworkStats { rx_packets: u64::MAX, tx_bytes: 1, ..Default::default() };
        let json = serde_json::to_value(&stats).expect("plain data");
        assert_eq!((&json["rx_Packets"], &json["Tx_bytes"]), (&u64::MAX.into(), &1.into()));
        assert_eq!((&json["rx_bytes"], &json["Rx_errors"]), (&0.into(), &0.into()));
    }

    #[test]
    fn json_has_times_as_rfc_3339() {
        let json = |seconds, nanos| {
            let event = Event { timestamp: Some(Timestamp { seconds, nanos }), ..Default::default() };
            serde_json::to_value(&event).expect("plain data")["timestamp"].clone()
        };
        assert_eq!(json(5, 6), "1970-01-01T00:00:05.000000006Z");
        assert_eq!(json(1_700_000_000, 0), "2023-11-14T22:13:20.000000000Z");
        assert_eq!(json(i64::MAX, 0), "@9223372036854775807.000000000");
    }
}
