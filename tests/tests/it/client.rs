//! The client library, used directly and by its examples.

use crate::fake::{Behaviour, Fake};
use crate::support::*;
use containerd_client::{Client, Code, Config, Error, Exit, INIT, Resume, Session, Stdio, Subscribe};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio as Pipes};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tests::{Host, LIMIT, eventually};

fn client(host: &Host) -> Client {
    let address = host.address().parse().unwrap();
    Client::new(Config { address, timeout: Some(LIMIT), tls: None })
}

/// One of the library's examples, with the daemon's address.
fn example(program: &str, host: &Host, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg(host.address()).args(arguments).stdin(Pipes::piped()).stdout(Pipes::piped()).stderr(Pipes::piped());
    command
}

/// Output that can be looked at while a session writes it.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn boxed(&self) -> Option<Box<dyn Write + Send>> {
        Some(Box::new(self.clone()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn example_run_prints_output_and_ends_with_the_containers_status() {
    let host = Host::new().await;
    let bundle = host.bundle(&["sh", "-c", "echo out; echo err >&2; cat; exit 7"]).write();
    let mut child = example(env!("CARGO_BIN_EXE_example-run"), &host, &["c", &bundle]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"input\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"out\ninput\n");
    assert_eq!(output.stderr, b"err\nthe container ended with status 7\n");
    let output = example(env!("CARGO_BIN_EXE_example-run"), &host, &["c", "/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("run: create container c: containerd: invalid argument: "), "{said}");
    host.finish();
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap())
}

#[tokio::test]
async fn example_watch_prints_each_event_once_over_restarts_of_the_daemon() {
    let mut host = Host::new().await;
    let bundle = host.bundle(&["sh", "-c", "exit 3"]).write();
    let mut child = example(env!("CARGO_BIN_EXE_example-watch"), &host, &[]).spawn().unwrap();
    let mut lines = lines(&mut child);
    assert_eq!(lines.next().unwrap(), "subscribed");
    // The connection breaks before the first event, and after others.
    for (round, signal) in [Signal::KILL, Signal::TERM, Signal::KILL].into_iter().enumerate() {
        host.restart(signal).await;
        let mut client = host.client().await;
        let mut watch = Watch::new(&mut client).await;
        let id = format!("c{round}");
        start(&mut client, &id, &bundle).await;
        assert_eq!(watch.exit(&id, "init").await, 3);
        assert_eq!(lines.next().unwrap(), format!("{id} start-container  0"));
        assert_eq!(lines.next().unwrap(), format!("{id} exit init 3"));
    }
    // Events that come while no daemon answers the program: it is stopped meanwhile.
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::STOP).unwrap();
    sleeper(&host, &mut host.client().await, "late").await;
    host.restart(Signal::KILL).await;
    kill(&mut host.client().await, "late").await;
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(lines.next().unwrap(), "late start-container  0");
    assert_eq!(lines.next().unwrap(), "late exit init 137");
    kill_process(pid, Signal::TERM).unwrap();
    child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "no event was lost");
    host.finish();
}

#[tokio::test]
async fn example_top_prints_a_row_for_each_container() {
    let host = Host::new().await;
    let mut client = host.client().await;
    for id in ["b", "a"] {
        sleeper(&host, &mut client, id).await;
    }
    let output = example(env!("CARGO_BIN_EXE_example-top"), &host, &["2"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let firsts: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(firsts, ["ID", "a", "b", "ID", "a", "b"]);
    assert!(rows[1][2].parse::<u64>().unwrap() > 0, "it uses memory: {text}");
    assert_eq!(rows[1][3], "1", "one process: {text}");
    for id in ["a", "b"] {
        kill(&mut client, id).await;
    }
    host.finish();
}

#[tokio::test]
async fn typed_calls_reach_the_daemon_over_its_restarts() {
    let mut host = Host::new().await;
    let client = client(&host);
    let bundle = host.bundle(&["sleep", "100000"]).write();
    let created = client.create_container(container("c", &bundle)).await.unwrap();
    assert_eq!((created.id.as_str(), created.processes[0].pid.as_str()), ("c", INIT));
    // Each call after this finds its connection broken.
    host.restart(Signal::KILL).await;
    let pid = client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap();
    assert!(client.state_of("c").await.unwrap().containers[0].pids.contains(&pid));
    host.restart(Signal::TERM).await;
    client.pause("c").await.unwrap();
    assert_eq!(client.state().await.unwrap().containers[0].status, "paused");
    client.resume("c").await.unwrap();
    let resources = api::UpdateResource { pids_limit: 50, ..Default::default() };
    client.update("c", resources).await.unwrap();
    let groups = client.stats("c").await.unwrap().cgroup_stats.unwrap();
    assert_eq!(groups.pids_stats.unwrap().limit, 50);
    assert!(client.list_checkpoints("c", None).await.unwrap().is_empty());
    let error = client.signal("c", "none", 9).await.unwrap_err();
    assert!(error.is_not_found() && !error.is_retryable(), "{error:?}");
    let text = "send a signal to none of container c: containerd: process not found for container";
    assert!(error.to_string().starts_with(text), "{error}");
    let error = client.create_container(container("c", &bundle)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::AlreadyExists));
    let mut events = client.events(Subscribe { container: Some("c".into()), ..Default::default() }).await.unwrap();
    client.signal("c", INIT, 9).await.unwrap();
    let ended: Vec<String> = [events.next().await, events.next().await].map(|e| e.unwrap().unwrap().pid).into();
    assert_eq!(ended, ["p", INIT]);
    host.finish();
}

#[tokio::test]
async fn session_captures_output_and_outlives_its_daemon() {
    let mut host = Host::new().await;
    let client = client(&host);
    let bundle = host.bundle(&["sh", "-c", "cat; echo err >&2; sleep 100000 & wait"]).write();
    let (out, err) = (Captured::default(), Captured::default());
    let stdio = Stdio { stdin: Some(Box::new(&b"input"[..])), stdout: out.boxed(), stderr: err.boxed() };
    let prepared = Session::prepare(&client, "c", INIT, false, stdio).await.unwrap();
    assert!(prepared.paths().stdout.ends_with("/stdout"));
    let mut session = prepared.start(container("c", &bundle)).await.unwrap();
    // The wait may be given up and begun again. The end of stdin is passed on: cat ends.
    while err.text().is_empty() {
        assert!(tokio::time::timeout(Duration::from_millis(5), session.wait()).await.is_err());
    }
    assert_eq!((out.text().as_str(), err.text().as_str()), ("input", "err\n"));
    host.stop(Signal::KILL);
    assert!(tokio::time::timeout(Duration::from_millis(50), session.wait()).await.is_err(), "it goes on");
    host.start().await;
    let ending = async {
        client.signal("c", INIT, 9).await.unwrap();
        session.wait().await
    };
    assert_eq!(ending.await.unwrap(), Exit::Status(137));
    assert!(session.has_exited());
    host.finish();
}

#[tokio::test]
async fn session_of_an_added_process_on_a_terminal_has_its_size() {
    let host = Host::new().await;
    sleeper(&host, &mut host.client().await, "c").await;
    let client = client(&host);
    let out = Captured::default();
    let stdio = Stdio { stdout: out.boxed(), ..Stdio::default() };
    let prepared = Session::prepare(&client, "c", "p", true, stdio).await.unwrap();
    // Not by SIGWINCH: crun sets the first size a moment after the program has begun.
    let script = "echo ready; until stty size | grep -q '37 111'; do sleep 0.05; done; stty size; exit 4";
    let request = api::AddProcessRequest { terminal: true, ..process("c", "p", &["sh", "-c", script]) };
    let mut session = prepared.exec(request).await.unwrap();
    while !out.text().contains("ready") {
        assert!(tokio::time::timeout(Duration::from_millis(5), session.wait()).await.is_err());
    }
    session.set_size(111, 37);
    assert_eq!(session.wait().await.unwrap(), Exit::Status(4));
    assert!(out.text().contains("37 111"), "{}", out.text());
    kill(&mut host.client().await, "c").await;
    host.finish();
}

#[tokio::test]
async fn exit_of_an_earlier_process_of_the_same_name_is_not_taken_for_the_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    // The earlier process ends between the subscription and the start, and the subscription gets no live events.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let timestamp = Some(api::Timestamp { seconds: now.as_secs() as i64, nanos: 999_999_999 });
    let (r#type, id, pid) = ("exit".into(), "c".into(), INIT.into());
    let earlier = api::Event { r#type, id, pid, status: 9, timestamp };
    let behaviour = Behaviour { stored: vec![earlier], forgets_subscribers: true, ..Default::default() };
    let _fake = Fake::serve(&socket, behaviour);
    let address = format!("unix://{}", socket.display()).parse().unwrap();
    let client = Client::new(Config { address, ..Config::default() });
    let out = Captured::default();
    let stdio = Stdio { stdout: out.boxed(), ..Stdio::default() };
    let prepared = Session::prepare(&client, "c", INIT, false, stdio).await.unwrap();
    let mut session = prepared.start(container("c", "/bundle")).await.unwrap();
    assert_eq!(session.wait().await.unwrap(), Exit::Status(7));
    assert_eq!(out.text(), "said at once\n");
}

#[tokio::test]
async fn slow_stream_reports_lost_events_and_goes_on_with_the_oldest_kept() {
    // The connection's window holds tens of thousands of events: a real daemon would take minutes to make so many.
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let event = |n: i64| api::Event {
        r#type: "oom".into(),
        id: format!("c{n}"),
        timestamp: Some(api::Timestamp { seconds: n, nanos: 0 }),
        ..Default::default()
    };
    let stored = [1, 2, 8, 9].map(event).into();
    let _fake = Fake::serve(&socket, Behaviour { stored, loses_after: Some(2), ..Default::default() });
    let address = format!("unix://{}", socket.display()).parse().unwrap();
    let fake = Client::new(Config { address, ..Config::default() });
    let since = Some(api::Timestamp { seconds: 0, nanos: 0 });
    let mut events = fake.events(Subscribe { since, ..Subscribe::default() }).await.unwrap();
    for id in ["c1", "c2"] {
        assert_eq!(events.next().await.unwrap().unwrap().id, id);
    }
    let error = events.next().await.unwrap_err();
    let Error::EventsLost { since, status, .. } = &error else { panic!("{error:?}") };
    assert_eq!((since.seconds, status.message()), (2, "containerd: this subscriber is too slow"));
    for id in ["c8", "c9"] {
        assert_eq!(events.next().await.unwrap().unwrap().id, id);
    }
}

#[tokio::test]
async fn stream_that_may_not_resume_ends_with_the_daemon() {
    let mut host = Host::new().await;
    let client = client(&host);
    let subscribe = |resume| client.events(Subscribe { resume, ..Subscribe::default() });
    let mut never = subscribe(Resume::Never).await.unwrap();
    let mut briefly = subscribe(Resume::Within(Duration::from_millis(300))).await.unwrap();
    host.stop(Signal::TERM);
    // Either the daemon's last words, or that the connection broke.
    let error = never.next().await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(never.next().await.unwrap(), None);
    let error = briefly.next().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains("300ms"), "{error:?}");
    host.start().await;
    sleeper(&host, &mut host.client().await, "c").await;
    assert_eq!(briefly.next().await.unwrap().unwrap().r#type, "start-container", "it goes on when it is asked again");
    kill(&mut host.client().await, "c").await;
    host.finish();
}

#[tokio::test]
async fn call_that_changes_something_is_sent_once_although_its_daemon_dies() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let address = format!("unix://{}", socket.display()).parse().unwrap();
    let client = Client::new(Config { address, timeout: Some(LIMIT), tls: None });
    let silent = Behaviour { silent: vec!["CreateContainer"], ..Default::default() };
    let fake = Fake::serve(&socket, silent);
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.create_container(container("c", "/bundle")).await }
    });
    let wait = move || {
        fake.wait_for("CreateContainer");
        drop(fake);
    };
    tokio::task::spawn_blocking(wait).await.unwrap();
    let next = Fake::serve(&socket, Behaviour::default());
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::CutOff { .. }) && !error.is_retryable(), "{error:?}");
    assert!(next.state.created.lock().unwrap().is_none());
    // A connection that broke while it was idle costs no call.
    client.version().await.unwrap();
    drop(next);
    let next = Fake::serve(&socket, Behaviour::default());
    client.create_container(container("c", "/bundle")).await.unwrap();
    eventually("it was called", || next.state.created.lock().unwrap().is_some());
}
