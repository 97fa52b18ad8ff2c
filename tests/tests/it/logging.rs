//! The log: a reader that does not read stops nothing, and foreign text stays in its line.

use crate::support::*;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};
use tests::{Host, Options, eventually};

/// A pipe, and how many bytes of `x` it has been filled with.
fn full_pipe() -> (File, OwnedFd, usize) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut file = File::from(writer.try_clone().unwrap());
    let size = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    file.write_all(&vec![b'x'; size]).unwrap();
    (reader.into(), writer, size)
}

/// Starts a daemon with this as its stderr, and waits until it serves.
async fn start_daemon(host: &Host, stderr: OwnedFd) -> Child {
    let daemon = host.command().stderr(stderr).spawn().unwrap();
    let socket = host.path().join("socket");
    eventually("the daemon listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    state(&mut host.lazy_client()).await;
    daemon
}

fn stop(mut daemon: Child) {
    let begun = Instant::now();
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    eventually("the daemon has ended", || daemon.try_wait().unwrap().is_some());
    assert!(daemon.wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_nobody_reads_stops_neither_calls_nor_the_end() {
    let host = Host::prepare(Options::default());
    let (mut reader, writer, filled) = full_pipe();
    let daemon = start_daemon(&host, writer).await;
    let mut client = host.lazy_client();
    sleeper(&host, &mut client, "c").await;
    // More than is kept: each call is logged with some 100 bytes.
    for _ in 0..4000 {
        state(&mut client).await;
    }
    // Once the log is read, the number of lines that are missing is in it.
    let mut read = Vec::new();
    let mut piece = vec![0; 64 << 10];
    let has = |read: &[u8], text: &str| String::from_utf8_lossy(read).contains(text);
    while !has(&read, "lines were dropped") {
        let length = reader.read(&mut piece).unwrap();
        assert!(length > 0, "the daemon goes on");
        read.extend_from_slice(&piece[..length]);
    }
    let text = String::from_utf8_lossy(&read[filled..]).into_owned();
    assert!(text.contains("serving") && text.contains("id=\"c\"") || text.contains("container=c"), "{text}");
    kill(&mut client, "c").await;
    // Full again, and nobody reads.
    for _ in 0..2000 {
        state(&mut client).await;
    }
    stop(daemon);
    drop(reader);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_were_kept_are_written_when_the_daemon_ends() {
    let host = Host::prepare(Options::default());
    let (mut reader, writer, filled) = full_pipe();
    let daemon = start_daemon(&host, writer).await;
    let read = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        String::from_utf8(all.split_off(filled)).unwrap()
    });
    stop(daemon);
    let text = read.join().unwrap();
    for line in ["serving", "answered", "stopping; containers go on running"] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_were_kept_outlive_a_replacement() {
    let mut host = Host::prepare(Options { own_programs: true, ..Options::default() });
    for name in ["containerd", "containerd-shim"] {
        let copied = std::process::Command::new("cp").arg(tests::bin(name)).arg(host.join(name)).status();
        assert!(copied.unwrap().success());
    }
    let manager = std::os::unix::net::UnixDatagram::bind(host.join("notify")).unwrap();
    manager.set_read_timeout(Some(tests::LIMIT)).unwrap();
    host.set_env("NOTIFY_SOCKET", &host.join("notify"));
    let (mut reader, writer, filled) = full_pipe();
    let daemon = start_daemon(&host, writer).await;
    kill_process(Pid::from_child(&daemon), Signal::HUP).unwrap();
    let mut told = String::new();
    while told.matches("READY=1").count() < 2 {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        told.push_str(&String::from_utf8_lossy(&message[..length]));
    }
    // Only now somebody reads.
    let read = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        String::from_utf8(all.split_off(filled)).unwrap()
    });
    stop(daemon);
    let text = read.join().unwrap();
    let places: Vec<usize> = text.match_indices(" serving ").map(|(place, _)| place).collect();
    let [first, second] = places[..] else { panic!("both programs say so: {text}") };
    assert!((first..second).contains(&text.find("making way").expect(&text)), "{text}");
    assert!(
        text.lines().all(|line| line.contains("INFO") || line.contains("DEBUG") || line.contains("WARN")),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn journal_that_nobody_reads_stops_neither_calls_nor_the_end() {
    let host = Host::prepare(Options::default());
    let journal = std::os::unix::net::UnixDatagram::bind(host.path().join("journal")).unwrap();
    let (_reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stat = rustix::fs::fstat(&writer).unwrap();
    // A /run of its own, with this journal in it.
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && touch /run/systemd/journal/socket && \
                  mount --bind \"$JOURNAL\" /run/systemd/journal/socket && exec \"$0\" \"$@\"";
    let ours = host.command();
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(ours.get_program()).args(ours.get_args());
    command.env("JOURNAL", host.path().join("journal"));
    command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino)).stderr(writer);
    let daemon = command.spawn().unwrap();
    drop(command);
    let socket = host.path().join("socket");
    eventually("the daemon listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let mut client = host.lazy_client();
    for _ in 0..2000 {
        state(&mut client).await;
    }
    // What was kept comes when the journal reads.
    let read = std::thread::spawn(move || {
        let mut entry = vec![0; 64 << 10];
        loop {
            let length = journal.recv(&mut entry).unwrap();
            if String::from_utf8_lossy(&entry[..length]).contains("lines were dropped") {
                return journal;
            }
        }
    });
    let journal = read.join().unwrap();
    for _ in 0..2000 {
        state(&mut client).await;
    }
    stop(daemon);
    drop(journal);
}

#[tokio::test]
async fn foreign_text_never_begins_a_line_of_the_log() {
    // What a runtime says reaches the log word for word otherwise.
    const FORGES: &str = r#"case " $* " in *" run "*) printf 'a\n2026-01-01T00:00:00Z ERROR forged\033[2J' >&2; exit 1;; esac; exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(FORGES), ..Options::default() }).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["true"]).write();
    let forged = "c\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\u{202e}";
    let labels = vec![forged.to_string()];
    let request = api::CreateContainerRequest { labels, stdin: forged.into(), ..container("c", &bundle) };
    client.create_container(request).await.expect_err("there is no such stdin");
    client.create_container(container(forged, &bundle)).await.expect_err("no id");
    client.create_container(container("c", forged)).await.expect_err("no bundle");
    client.create_container(container("c", &bundle)).await.expect_err("the runtime fails");
    signal(&mut client, forged, forged, 9).await.expect_err("no id");
    client.stats(api::StatsRequest { id: forged.into() }).await.expect_err("no id");
    let log = host.log();
    assert!(log.contains("forged"), "the test's text is logged: {log}");
    for line in log.lines() {
        assert!(!line.starts_with("2026-01-01"), "{line}");
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
    }
    host.finish();
}
