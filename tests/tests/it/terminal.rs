//! Processes with a terminal.

use crate::support::*;
use std::io::{Read, Write};
use tests::{Host, LIMIT};

/// Reads until the text has come.
fn read_until(reader: &mut std::fs::File, text: &str) -> String {
    let mut got = Vec::new();
    let mut byte = [0; 1];
    while !String::from_utf8_lossy(&got).contains(text) {
        assert_eq!(reader.read(&mut byte).unwrap(), 1, "{:?} ended without {text:?}", String::from_utf8_lossy(&got));
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

async fn resize(client: &mut tests::Client, id: &str, pid: &str, width: u32, height: u32) {
    let (id, pid) = (id.into(), pid.into());
    let request = api::UpdateProcessRequest { id, pid, width, height, close_stdin: false };
    client.update_process(request).await.unwrap();
}

#[tokio::test]
async fn a_resize_reaches_the_process_with_its_signal() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let stdout = host.fifo();
    let script = "trap 'stty size < /dev/tty; exit 4' WINCH; tty; echo ready; while :; do sleep 0.05; done";
    let bundle = host.bundle(&["sh", "-c", script]).terminal().write();
    let reading = {
        let stdout = stdout.clone();
        tokio::task::spawn_blocking(move || {
            let mut reader = stdout.reader();
            let head = read_until(&mut reader, "ready");
            (reader, head)
        })
    };
    let mut request = container("c", &bundle);
    request.stdout = stdout.path();
    let started = client.create_container(request).await.unwrap().into_inner().container.unwrap();
    assert!(started.processes[0].terminal);
    let (mut reader, head) = tokio::time::timeout(LIMIT, reading).await.unwrap().unwrap();
    assert!(head.starts_with("/dev/pts/"), "{head}");
    resize(&mut client, "c", "init", 132, 43).await;
    assert_eq!(watch.exit("c", "init").await, 4);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("43 132"), "{rest}");
    host.finish();
}

#[tokio::test]
async fn a_shell_on_a_terminal_answers_and_ends_with_its_input() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    let (stdin, stdout) = (host.fifo(), host.fifo());
    let reader = stdout.collect();
    let mut request = process("c", "p", &["cat"]);
    request.terminal = true;
    (request.stdin, request.stdout) = (stdin.path(), stdout.path());
    client.add_process(request).await.unwrap();
    stdin.writer().write_all(b"hello\n").unwrap();
    close_stdin(&mut client, "c", "p").await;
    assert_eq!(watch.exit("c", "p").await, 0);
    // Once as the echo, once as cat's.
    assert_eq!(reader.text(), "hello\r\nhello\r\n");
    kill(&mut client, "c").await;
    host.finish();
}

/// Adds a process with a terminal.
async fn on_terminal(client: &mut tests::Client, name: &str, script: &str, stdin: &str, stdout: &tests::Fifo) {
    let mut request = process("c", name, &["sh", "-c", script]);
    request.terminal = true;
    (request.stdin, request.stdout) = (stdin.into(), stdout.path());
    client.add_process(request).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_terminals_stdin_is_seen_in_every_mode() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    for n in 0..170 {
        // After an unfinished line, by each program that reads.
        let (stdin, stdout, name) = (host.fifo(), host.fifo(), format!("cat-{n}"));
        let reader = stdout.collect();
        on_terminal(&mut client, &name, "stty -echo; cat; cat; echo; echo end", &stdin.path(), &stdout).await;
        stdin.writer().write_all(b"abc").unwrap();
        close_stdin(&mut client, "c", &name).await;
        assert_eq!(watch.exit("c", &name).await, 0);
        let said = reader.text();
        assert!(said.ends_with("abc\r\nend\r\n"), "{said:?}");

        // At once, while a shell prepares its line editor.
        let (stdin, stdout, name) = (host.fifo(), host.fifo(), format!("sh-{n}"));
        let reader = stdout.collect();
        on_terminal(&mut client, &name, "exec sh", &stdin.path(), &stdout).await;
        close_stdin(&mut client, "c", &name).await;
        assert_eq!(watch.exit("c", &name).await, 0);
        drop(reader.text());

        // In raw mode, where no byte may come that was not sent, and after it.
        let (stdin, stdout, name) = (host.fifo(), host.fifo(), format!("raw-{n}"));
        let opened = stdout.clone();
        let reading = std::thread::spawn(move || {
            let mut reader = opened.reader();
            (read_until(&mut reader, "ready\n"), reader)
        });
        let script = "stty raw -echo; echo ready; cat; cat; echo; stty -raw echo; cat; echo end";
        on_terminal(&mut client, &name, script, &stdin.path(), &stdout).await;
        let (_, mut reader) = reading.join().unwrap();
        stdin.writer().write_all(b"a\x04bc").unwrap();
        close_stdin(&mut client, "c", &name).await;
        assert_eq!(watch.exit("c", &name).await, 0);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "a\u{4}bc\nend\r\n");
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_terminal_without_a_clients_stdin_has_no_input_and_no_end() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    let file = host.join("input");
    std::fs::write(&file, "line\n").unwrap();
    for (name, stdin) in [("empty", ""), ("null", "/dev/null"), ("file", file.as_str())] {
        let stdout = host.fifo();
        let reader = stdout.collect();
        // The reader goes on waiting while others come and go, and sees an end only when a client asks for it.
        let script = "stty -echo; echo ready; cat; echo end";
        on_terminal(&mut client, name, script, stdin, &stdout).await;
        for n in 0..5 {
            client.add_process(process("c", &format!("{name}-{n}"), &["true"])).await.unwrap();
            assert_eq!(watch.exit("c", &format!("{name}-{n}")).await, 0);
        }
        let running = state(&mut client).await.remove(0).processes;
        assert!(running.iter().any(|process| process.pid == name), "{name} goes on");
        close_stdin(&mut client, "c", name).await;
        assert_eq!(watch.exit("c", name).await, 0);
        let said = reader.text();
        assert!(said.ends_with("end\r\n") && said.contains("line") == (name == "file"), "{said:?}");
    }
    // A container that is started without a client, as its shell.
    start(&mut client, "d", &host.bundle(&["sh"]).terminal().write()).await;
    assert!(watch.silent_for(std::time::Duration::from_millis(500)).await || state(&mut client).await.len() == 2);
    assert!(state(&mut client).await.iter().any(|container| container.id == "d" && container.status == "running"));
    kill(&mut client, "d").await;
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_stderr_path_beside_a_terminal_is_not_looked_at() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sh", "-c", "echo hello; exec sleep 100000"]).terminal().write();
    let mut request = container("c", &bundle);
    request.stderr = host.join("fifos/never-made");
    client.create_container(request.clone()).await.unwrap();
    let stdout = host.fifo();
    let reader = stdout.collect();
    let mut added = process("c", "p", &["sh", "-c", "echo out; echo err >&2"]);
    (added.terminal, added.stdout, added.stderr) = (true, stdout.path(), host.join("fifos/never-made-either"));
    client.add_process(added.clone()).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 0);
    assert_eq!(reader.text(), "out\r\nerr\r\n");
    // Without a terminal it is.
    (added.terminal, added.stdout) = (false, String::new());
    refused(client.add_process(added).await, tonic::Code::InvalidArgument, &["stderr", "never-made-either"]);
    request.id = "d".into();
    request.bundle_path = host.bundle(&["true"]).write();
    refused(client.create_container(request).await, tonic::Code::InvalidArgument, &["stderr", "never-made"]);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_long_state_directory_is_no_obstacle_for_the_console_socket() {
    // A socket's path may have 107 bytes; the id alone has 120.
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let id = "x".repeat(120);
    let stdout = host.fifo();
    let reader = stdout.collect();
    let mut request = container(&id, &host.bundle(&["echo", "hello"]).terminal().write());
    request.stdout = stdout.path();
    client.create_container(request).await.unwrap();
    assert_eq!(watch.exit(&id, "init").await, 0);
    assert_eq!(reader.text(), "hello\r\n");
    host.finish();
}

#[tokio::test]
async fn a_background_process_that_keeps_the_terminal_is_waited_for() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    let stdout = host.fifo();
    let reader = stdout.collect();
    // The shell's end is a hang-up for the others, which this one must have learnt to ignore by then.
    let script = "(trap '' HUP; touch /tmp/trap; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last) & \
                  while [ ! -e /tmp/trap ]; do sleep 0.01; done; echo first";
    let mut request = process("c", "p", &["sh", "-c", script]);
    request.terminal = true;
    request.stdout = stdout.path();
    client.add_process(request).await.unwrap();
    client.add_process(process("c", "go", &["touch", "/tmp/go"])).await.unwrap();
    let mut seen = Vec::new();
    while !seen.iter().any(|event| event == "c exit p 0") {
        seen.push(short(&watch.next().await));
    }
    assert_eq!(reader.text(), "first\r\nlast\r\n");
    kill(&mut client, "c").await;
    host.finish();
}
