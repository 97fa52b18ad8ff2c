//! The gRPC API as it is on the wire, and nothing else: `types.API`, its messages, its server trait and
//! its client. What the calls mean is in the daemon; this crate knows no container.
//!
//! Messages serialize to JSON with the contract's own field names, numbers as numbers, zeros left out.

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

pub use generated::*;
pub use prost_types::Timestamp;
pub use server::*;

/// A [`StateResponse`] as a server gives it, each container encoded by itself where there was time for it: a message in a
/// field is its bytes (protobuf's encoding, "Length-Delimited Records").
#[derive(Clone, PartialEq, prost::Message)]
pub struct EncodedState {
    /// Each as [`Container::encoded`] makes it.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub containers: Vec<Vec<u8>>,
    /// The machine.
    #[prost(message, optional, tag = "2")]
    pub machine: Option<Machine>,
}

impl Container {
    /// For [`EncodedState`].
    pub fn encoded(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_names_of_the_contract_and_no_zeros() {
        let container = Container {
            id: "a".into(),
            bundle_path: "/b".into(),
            processes: vec![Process {
                pid: "init".into(),
                system_pid: 7,
                no_new_privileges: true,
                ..Default::default()
            }],
            pids: vec![7, 8],
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_string(&container).expect("plain data"),
            r#"{"id":"a","bundlePath":"/b","processes":[{"pid":"init","systemPid":7,"noNewPrivileges":true}],"pids":[7,8]}"#
        );
    }

    #[test]
    fn an_encoded_state_is_a_state() {
        let container = |id: &str| Container { id: id.into(), pids: vec![7, 300], ..Default::default() };
        let containers = vec![container("a"), Container::default(), container("b")];
        let machine = Some(Machine { cpus: 2, memory: 512 });
        let encoded = containers.iter().map(Container::encoded).collect();
        let encoded = EncodedState { containers: encoded, machine };
        let state = StateResponse { containers, machine };
        assert_eq!(prost::Message::encode_to_vec(&encoded), prost::Message::encode_to_vec(&state));
    }

    #[test]
    fn json_keeps_mixed_spelling_and_writes_timestamps_as_numbers() {
        let stats = StatsResponse {
            network_stats: vec![NetworkStats { rx_packets: u64::MAX, tx_bytes: 1, ..Default::default() }],
            timestamp: Some(Timestamp { seconds: 5, nanos: 6 }),
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_string(&stats).expect("plain data"),
            r#"{"network_stats":[{"rx_Packets":18446744073709551615,"Tx_bytes":1}],"timestamp":{"seconds":5,"nanos":6}}"#
        );
    }
}
