//! The socket and the state directory: whose they are.

use crate::support::*;
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;
use tests::{Host, Options, eventually};

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn modes_keep_others_out() {
    let host = Host::new().await;
    let mut client = host.client().await;
    assert_eq!(mode(&host.path().join("socket")), 0o660);
    assert_eq!(mode(&host.state_dir()), 0o711);
    sleeper(&host, &mut client, "c").await;
    assert_eq!(mode(&host.state_dir().join("c/init/process.json")), 0o600);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut host = Host::new().await;
    host.stop(Signal::KILL);
    assert!(host.path().join("socket").exists(), "a killed daemon leaves its socket");
    host.start().await;
    // The same socket, another state directory.
    let mut second = host.command();
    let output = second.args(["--state-dir", &host.join("other-state")]).stderr(std::process::Stdio::piped()).output();
    let output = output.unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("another process listens on the socket"), "{said}");
    state(&mut host.client().await).await;
    host.finish();
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_directory_is_refused() {
    let host = Host::new().await;
    let mut second = host.command();
    let address = format!("unix://{}", host.join("other-socket"));
    let output = second.args(["--listen", &address]).stderr(std::process::Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("is in use by another daemon"), "{said}");
    state(&mut host.client().await).await;
    host.finish();
}

#[tokio::test]
async fn the_socket_goes_with_its_daemon() {
    let mut host = Host::new().await;
    assert!(host.stop(Signal::TERM).success());
    assert!(!host.path().join("socket").exists());
    host.start().await;
    host.finish();
}

#[tokio::test]
async fn a_subscriber_does_not_keep_the_daemon_from_stopping() {
    let mut host = Host::new().await;
    let mut watch = Watch::new(&mut host.client().await).await;
    assert!(host.stop(Signal::TERM).success());
    let status = watch.try_next().await.expect_err("the stream ends with an error");
    assert!(status.message().contains("transport is closing"), "{status:?}");
    host.start().await;
    host.finish();
}

#[tokio::test]
async fn addresses_that_cannot_be_listened_at() {
    let host = Host::prepare(Options::default());
    std::fs::write(host.path().join("socket"), "a file").unwrap();
    let listen = |address: &str| {
        let output = host.command().args(["--listen", address]).stderr(std::process::Stdio::piped()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(listen(&host.address()).contains("not a socket"));
    assert!(listen("nonsense").contains("unix:///path"));
    assert!(listen(&format!("unix://{}", host.join(&"x".repeat(300)))).contains("cannot listen at"));
    assert_eq!(std::fs::read(host.path().join("socket")).unwrap(), b"a file");
}

#[test]
fn socket_in_a_deep_directory_is_served_and_replaced() {
    use std::io::{Read, Write};
    let host = Host::prepare(Options::default());
    let deep = host.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    for (address, signal) in [
        ("unix://socket".to_string(), Signal::KILL),
        ("unix://./socket".to_string(), Signal::KILL),
        (format!("unix://{}", deep.join("socket").display()), Signal::TERM),
    ] {
        let mut daemon = host.command().args(["--listen", &address]).current_dir(&deep).spawn().unwrap();
        // It may still be the socket of the daemon before.
        let connect = || {
            let path = sys::socket_path::SocketPath::to_connect(&deep.join("socket"))?;
            std::os::unix::net::UnixStream::connect(path)
        };
        let mut socket = None;
        eventually("the daemon listens", || {
            socket = connect().ok();
            socket.is_some()
        });
        let mut socket = socket.unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        // The type of the first frame is that of the server's settings.
        let mut header = [0; 9];
        socket.read_exact(&mut header).unwrap();
        assert_eq!(header[3], 4);
        assert_eq!(mode(&deep.join("socket")), 0o660);
        rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), signal).unwrap();
        daemon.wait().unwrap();
        assert_eq!(deep.join("socket").exists(), signal == Signal::KILL);
    }
}

#[tokio::test]
async fn what_systemd_means_for_the_daemon_does_not_reach_containers_or_shims() {
    let env = vec![("NOTIFY_SOCKET", "/nowhere"), ("LISTEN_FDS", "1"), ("LISTEN_PID", "1")];
    let host = Host::with(Options { env, ..Options::default() }).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let [shim] = tests::children_of(host.pid())[..] else { panic!("one shim") };
    let environment = std::fs::read(format!("/proc/{shim}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(!environment.contains("NOTIFY_SOCKET") && !environment.contains("LISTEN_"), "{environment}");
    kill(&mut client, "c").await;
    host.finish();
}

/// One call of GetServerVersion in raw frames, with this as the header field for the authority; what comes back.
fn raw_call(host: &Host, authority: &[u8]) -> Vec<u8> {
    use std::io::{Read, Write};
    let field = |name: &[u8], value: &[u8]| [&[0x40, name.len() as u8][..], name, &[value.len() as u8], value].concat();
    let block = [
        b"\x83\x86",
        &[&b"\x44"[..], &[27], b"/types.API/GetServerVersion"].concat()[..],
        authority,
        &field(b"content-type", b"application/grpc"),
        &field(b"te", b"trailers"),
    ]
    .concat();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream][..], payload].concat()
    };
    let mut socket = std::os::unix::net::UnixStream::connect(host.path().join("socket")).unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, b""));
    // Two requests on one connection, of which each says it again.
    for stream in [1, 3] {
        bytes.extend(frame(1, 4, stream, &block));
        bytes.extend(frame(0, 1, stream, b"\0\0\0\0\0"));
    }
    socket.write_all(&bytes).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    // Until both are answered, or nothing more comes.
    while answers(&answer) < 2 {
        match socket.read(&mut piece) {
            Ok(n @ 1..) => answer.extend_from_slice(&piece[..n]),
            _ => break,
        }
    }
    answer
}

/// How many versions are in it: minor 3, and then a revision.
fn answers(bytes: &[u8]) -> usize {
    bytes.windows(3).filter(|bytes| bytes == b"\x10\x03\"").count()
}

#[tokio::test]
async fn clients_whose_authority_is_a_path_or_nothing_are_served() {
    let host = Host::new().await;
    let literal = |value: &[u8]| [&[0x41, value.len() as u8][..], value].concat();
    for authority in [
        literal(b"localhost"),
        literal(b"/run/containerd/containerd.sock"),
        literal(b"%2Frun%2Fcontainerd.sock"),
        literal(b""),
        b"\x40\x0a:authority\x0drun%2Fab.sock".to_vec(),
        Vec::new(),
        // Huffman-coded "/run/ab".
        b"\x41\x86\x62\xcb\x6a\x18\x1e\x47".to_vec(),
    ] {
        let answer = raw_call(&host, &authority);
        assert_eq!(answers(&answer), 2, "{authority:?}: {answer:?}");
    }
    state(&mut host.client().await).await;
    host.finish();
}
