//! Answers as they are on the wire, for clients that were built with the gRPC and protobuf libraries of 2016.

use crate::support::*;
use http_body_util::BodyExt;
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use tests::Host;
use tonic::codegen::http::{HeaderMap, Request};
use tower::{Service, ServiceExt};

/// Calls a method; the headers of the answer, and its body, which may still come.
async fn begin(host: &Host, method: &str, request: impl Message) -> (HeaderMap, tonic::body::Body) {
    let message = request.encode_to_vec();
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let body = tonic::body::Body::new(http_body_util::Full::new(Bytes::from(body)).map_err(|e| match e {}));
    let uri = format!("http://localhost/types.API/{method}");
    let request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    let mut channel = host.channel().await;
    let answer = channel.ready().await.unwrap().call(request.body(body).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    (head.headers, body)
}

#[tokio::test]
async fn error_texts_are_sent_without_percent_signs() {
    let mut host = Host::new().await;
    // A call with one answer has its error in the headers.
    let (headers, _) = begin(&host, "State", api::StateRequest { id: "none".into() }).await;
    assert_eq!(headers["grpc-message"], "containerd: container not found: none");
    let bundle_path = r#"/"no" <bundle> {a} #%?`ü"#.to_string();
    let request = api::CreateContainerRequest { id: "a".into(), bundle_path, ..Default::default() };
    let (headers, _) = begin(&host, "CreateContainer", request).await;
    let text = headers["grpc-message"].to_str().unwrap();
    assert!(text.contains(r#"bundle /"no" <bundle> {a} #%25?`%C3%BC: No such file or directory"#), "{text}");
    // A stream has it in the trailers.
    let (headers, stream) = begin(&host, "Events", api::EventsRequest::default()).await;
    assert_eq!(headers.get("grpc-message"), None);
    host.stop(rustix::process::Signal::TERM);
    let stream = stream.collect().await.unwrap();
    let text = stream.trailers().unwrap()["grpc-message"].to_str().unwrap();
    assert!(text.starts_with("transport is closing: "), "{text}");
    host.start().await;
    host.finish();
}

/// The fields of a message that are messages or texts, by their numbers; the numbers of all fields.
fn fields(mut bytes: &[u8]) -> (BTreeMap<u32, Vec<&[u8]>>, Vec<u32>) {
    let (mut parts, mut numbers) = (BTreeMap::<u32, Vec<&[u8]>>::new(), Vec::new());
    while !bytes.is_empty() {
        let (number, kind) = prost::encoding::decode_key(&mut bytes).unwrap();
        numbers.push(number);
        let value = prost::encoding::decode_varint(&mut bytes).unwrap() as usize;
        if kind == prost::encoding::WireType::LengthDelimited {
            parts.entry(number).or_default().push(&bytes[..value]);
            bytes = &bytes[value..];
        }
    }
    (parts, numbers)
}

#[tokio::test]
async fn map_entries_of_stats_carry_key_and_value() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let (_, body) = begin(&host, "Stats", api::StatsRequest { id: "c".into() }).await;
    let body = body.collect().await.unwrap().to_bytes();
    let (answer, _) = fields(&body[5..]);
    let (cgroup, _) = fields(answer[&2][0]);
    let (memory, _) = fields(cgroup[&2][0]);
    let entries: Vec<&[u8]> = [&memory[&5][..], cgroup.get(&4).map_or(&[], Vec::as_slice)].concat();
    assert!(entries.len() > 5, "the kernel counts more than that");
    for entry in &entries {
        assert_eq!(fields(entry).1, [1, 2], "{entry:?}");
    }
    let zeros = entries.iter().filter(|entry| entry.ends_with(&[0x10, 0]));
    assert!(zeros.count() > 0, "some of the kernel's counters are zero in a new group");
    kill(&mut client, "c").await;
    host.finish();
}
