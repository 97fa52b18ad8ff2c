//! stdin: bytes, and its end.

use crate::support::*;
use std::io::Write;
use std::time::Duration;
use tests::Host;

fn noise(size: usize) -> Vec<u8> {
    (0..size as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[tokio::test]
async fn three_hundred_kilobytes_through_cat() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    for n in 0..20 {
        let (stdin, stdout) = (host.fifo(), host.fifo());
        let bytes = noise(300_000);
        let (reader, writer) = (stdout.collect(), stdin.feed(bytes.clone()));
        let name = format!("p{n}");
        let mut request = process("c", &name, &["cat"]);
        (request.stdin, request.stdout) = (stdin.path(), stdout.path());
        client.add_process(request).await.unwrap();
        writer.join().unwrap();
        close_stdin(&mut client, "c", &name).await;
        assert_eq!(watch.exit("c", &name).await, 0);
        assert!(reader.bytes() == bytes, "the same bytes come back");
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_writers_going_is_no_end_and_another_may_come() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let (stdin, stdout) = (host.fifo(), host.fifo());
    let reader = stdout.collect();
    let mut request = container("c", &host.bundle(&["cat"]).write());
    (request.stdin, request.stdout) = (stdin.path(), stdout.path());
    client.create_container(request).await.unwrap();
    assert_eq!(watch.next().await.r#type, "start-container");
    for text in ["one\n", "two\n", "three\n"] {
        stdin.writer().write_all(text.as_bytes()).unwrap();
    }
    assert!(watch.silent_for(Duration::from_millis(200)).await, "cat goes on");
    close_stdin(&mut client, "c", "init").await;
    assert_eq!(watch.exit("c", "init").await, 0);
    assert_eq!(reader.text(), "one\ntwo\nthree\n");
    host.finish();
}

#[tokio::test]
async fn the_end_comes_after_what_the_process_has_not_yet_taken() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let (stdin, stdout) = (host.fifo(), host.fifo());
    let reader = stdout.collect();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exec cat";
    let mut request = container("c", &host.bundle(&["sh", "-c", script]).write());
    (request.stdin, request.stdout) = (stdin.path(), stdout.path());
    client.create_container(request).await.unwrap();
    // More than the process's pipe holds: the rest is in the FIFO when the end is asked for.
    let bytes = noise(100_000);
    stdin.writer().write_all(&bytes).unwrap();
    close_stdin(&mut client, "c", "init").await;
    close_stdin(&mut client, "c", "init").await;
    client.add_process(process("c", "go", &["touch", "/tmp/go"])).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 0);
    assert!(reader.bytes() == bytes);
    host.finish();
}

#[tokio::test]
async fn a_writer_that_never_stops_does_not_put_the_end_off() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let stdin = host.fifo();
    let mut request = container("c", &host.bundle(&["sh", "-c", "cat >/dev/null"]).write());
    request.stdin = stdin.path();
    client.create_container(request).await.unwrap();
    let (opened, is_open) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        let mut fifo = stdin.writer();
        opened.send(()).unwrap();
        while fifo.write_all(&[b'x'; 4096]).is_ok() {}
    });
    is_open.recv().unwrap();
    close_stdin(&mut client, "c", "init").await;
    assert_eq!(watch.exit("c", "init").await, 0);
    writer.join().unwrap();
    host.finish();
}

#[tokio::test]
async fn files_and_dev_null_end_by_themselves() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let path = host.join("input");
    let bytes = noise(200_000);
    std::fs::write(&path, &bytes).unwrap();
    for (stdin, expected) in [(path.as_str(), bytes.as_slice()), ("/dev/null", b""), ("", b"")] {
        let stdout = host.fifo();
        let reader = stdout.collect();
        let mut request = container("c", &host.bundle(&["cat"]).write());
        (request.stdin, request.stdout) = (stdin.to_string(), stdout.path());
        client.create_container(request).await.unwrap();
        assert_eq!(watch.exit("c", "init").await, 0);
        assert!(reader.bytes() == expected, "{stdin}");
    }
    host.finish();
}
