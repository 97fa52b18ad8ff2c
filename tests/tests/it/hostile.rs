//! Clients that mean harm, or are broken: the daemon goes on.

use crate::support::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use tests::Host;

fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

async fn goes_on(host: &Host) {
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    start(&mut client, "fine", &host.bundle(&["true"]).write()).await;
    assert_eq!(watch.exit("fine", "init").await, 0);
}

#[tokio::test]
async fn random_bytes() {
    let host = Host::new().await;
    for seed in 0..200 {
        let mut socket = UnixStream::connect(host.path().join("socket")).unwrap();
        // Every other one gets past the preface.
        if seed % 2 == 0 {
            let _ = socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        }
        let _ = socket.write_all(&noise(seed, 1 + (seed as usize * 97) % 20_000));
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let _ = socket.read_to_end(&mut Vec::new());
    }
    goes_on(&host).await;
    host.finish();
}

#[tokio::test]
async fn connections_that_say_nothing() {
    let host = Host::new().await;
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(host.path().join("socket")).unwrap()).collect();
    goes_on(&host).await;
    drop(silent);
    goes_on(&host).await;
    host.finish();
}

#[tokio::test]
async fn messages_that_are_none() {
    use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
    /// Sends bytes as they are.
    #[derive(Default)]
    struct Raw;
    impl Codec for Raw {
        type Encode = Vec<u8>;
        type Decode = ();
        type Encoder = Raw;
        type Decoder = Raw;
        fn encoder(&mut self) -> Raw {
            Raw
        }
        fn decoder(&mut self) -> Raw {
            Raw
        }
    }
    impl Encoder for Raw {
        type Item = Vec<u8>;
        type Error = tonic::Status;
        fn encode(&mut self, bytes: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
            use prost::bytes::BufMut;
            buffer.put_slice(&bytes);
            Ok(())
        }
    }
    impl Decoder for Raw {
        type Item = ();
        type Error = tonic::Status;
        fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, tonic::Status> {
            Ok(Some(()))
        }
    }
    let host = Host::new().await;
    let mut grpc = tonic::client::Grpc::new(host.channel().await);
    let methods = [
        "CreateContainer",
        "UpdateContainer",
        "Signal",
        "UpdateProcess",
        "AddProcess",
        "CreateCheckpoint",
        "DeleteCheckpoint",
        "ListCheckpoint",
        "State",
        "Events",
        "Stats",
        "GetServerVersion",
        "NoSuchMethod",
    ];
    for (seed, method) in methods.iter().cycle().take(260).enumerate() {
        grpc.ready().await.unwrap();
        let path = format!("/types.API/{method}").parse().unwrap();
        let request = tonic::Request::new(noise(seed as u64 + 1, seed * 7));
        // Whatever the answer is; random bytes may be a message. A stream is not waited for.
        let _ = grpc.server_streaming::<_, (), _>(request, path, Raw).await;
    }
    goes_on(&host).await;
    host.finish();
}

#[tokio::test]
async fn fifty_hung_subscribers() {
    let host = Host::new().await;
    let mut client = host.client_with_window(65_535).await;
    let mut hung = Vec::new();
    for _ in 0..50 {
        hung.push(Watch::new(&mut client).await);
    }
    let mut busy = host.client().await;
    let mut watch = Watch::new(&mut busy).await;
    let bundle = host.bundle(&["true"]).write();
    for _ in 0..30 {
        start(&mut busy, "c", &bundle).await;
        assert_eq!(watch.exit("c", "init").await, 0);
    }
    drop((hung, client));
    goes_on(&host).await;
    host.finish();
}

/// A connection with so many requests whose messages never come.
fn half_open(host: &Host, streams: u32) -> UnixStream {
    let field = |name: &[u8], value: &[u8]| [&[0, name.len() as u8][..], name, &[value.len() as u8], value].concat();
    let path = b"/types.API/GetServerVersion";
    let block = [
        &[0x83, 0x86, 0x04, path.len() as u8][..],
        path,
        b"\x01\x04unix",
        &field(b"content-type", b"application/grpc"),
        &field(b"te", b"trailers"),
    ]
    .concat();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in 0..streams {
        bytes.extend([0, 0, block.len() as u8, 1, 4]);
        bytes.extend((2 * stream + 1).to_be_bytes());
        bytes.extend(&block);
    }
    let mut socket = UnixStream::connect(host.path().join("socket")).unwrap();
    // The daemon may have had enough before.
    socket.set_write_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let _ = socket.write_all(&bytes);
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_of_half_open_requests_locks_out_nobody_and_its_memory_is_given_back() {
    let host = Host::new().await;
    goes_on(&host).await;
    let before = tests::usage(host.pid()).anonymous;
    for _ in 0..2 {
        let connections: Vec<_> = (0..50).map(|_| half_open(&host, 1000)).collect();
        goes_on(&host).await;
        let during = tests::usage(host.pid()).anonymous;
        println!("anonymous memory: {before} kB before, {during} kB during");
        assert!(during < before + (200 << 10), "{before} kB before, {during} kB during");
        drop(connections);
        tests::eventually("memory is given back", || tests::usage(host.pid()).anonymous < before + (4 << 10));
    }
    goes_on(&host).await;
    host.finish();
}
