//! `ctr` with a daemon that behaves as no real one can be made to at will: one that is slow, silent, old or hostile.

use crate::fake::{Behaviour, Fake};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tests::{LIMIT, bin};

/// A directory with a socket and an empty bundle in it.
struct Place {
    directory: tempfile::TempDir,
    socket: PathBuf,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        Place { directory, socket }
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        tests::obey_hangups();
        let mut command = Command::new(bin("ctr"));
        command.arg("--address").arg(format!("unix://{}", self.socket.display()));
        command.args(arguments).env("TMPDIR", self.directory.path()).current_dir(self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.ctr(arguments).output().unwrap()
    }

    /// The number of directories that attached sessions have left.
    fn left(&self) -> usize {
        let entries = std::fs::read_dir(self.directory.path()).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("containerd-client-")).count()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn running(id: &str) -> api::Container {
    let user = Some(api::User { uid: 5, gid: 6, additional_gids: vec![7] });
    let (pid, env, cwd) = ("init".into(), vec!["A=1".into(), "B=2".into()], "/data".into());
    let init = api::Process { pid, user, env, cwd, system_pid: std::process::id(), ..Default::default() };
    api::Container { id: id.into(), processes: vec![init], status: "running".into(), ..Default::default() }
}

const START: [&str; 5] = ["containers", "start", "--attach", "c", "bundle"];
const EXEC: [&str; 9] = ["containers", "exec", "--id", "c", "--pid", "p", "--attach", "--", "true"];

#[test]
fn attached_session_does_not_wait_for_event_headers() {
    let place = Place::new();
    for arguments in [&START[..], &EXEC] {
        let _fake = Fake::serve(&place.socket, Behaviour { containers: vec![running("c")], ..Default::default() });
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_eq!(output.stdout, b"said at once\n");
        assert!(output.stderr.is_empty(), "{output:?}");
        assert_eq!(place.left(), 0);
    }
}

#[test]
fn session_whose_daemon_is_replaced_right_after_the_start_finds_the_next_one() {
    let place = Place::new();
    // The look whether the process has ended already is what breaks.
    let behaviour = Behaviour { forgets_subscribers: true, silent: vec!["State"], ..Default::default() };
    let fake = Fake::serve(&place.socket, behaviour);
    let child = place.ctr(&START).spawn().unwrap();
    fake.wait_for("State");
    let stored = fake.state.events.borrow().clone();
    drop(fake);
    let _next = Fake::serve(&place.socket, Behaviour { stored, ..Default::default() });
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn exit_that_the_subscription_missed_is_found_among_stored_events() {
    let place = Place::new();
    let behaviour = Behaviour { forgets_subscribers: true, ..Default::default() };
    let _fake = Fake::serve(&place.socket, behaviour);
    let output = place.run(&START);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"said at once\n");
}

/// Ends a `ctr` that is waiting by a signal; what it said.
fn ended_by(mut child: std::process::Child, signal: Signal) -> String {
    kill_process(Pid::from_child(&child), signal).unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < LIMIT, "ctr does not end by {signal:?}");
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

#[test]
fn signals_end_ctr_in_every_phase_and_it_says_what_goes_on() {
    let patient = |arguments: &[&'static str]| [&["--conn-timeout", "1h"], arguments].concat();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for arguments in [&START[..], &EXEC, &["containers", "start", "c", "bundle"], &["containers", "pause", "c"]] {
            // Connecting: the connection is taken, and nothing answers.
            let place = Place::new();
            let listener = UnixListener::bind(&place.socket).unwrap();
            let child = place.ctr(&patient(arguments)).spawn().unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 24]).unwrap();
            let said = ended_by(child, signal);
            assert!(said.starts_with("[ctr] nothing was "), "{said}");
            // Waiting for an answer that changes something.
            let place = Place::new();
            let silent = vec!["CreateContainer", "AddProcess", "UpdateContainer"];
            let behaviour = Behaviour { silent: silent.clone(), containers: vec![running("c")], ..Default::default() };
            let fake = Fake::serve(&place.socket, behaviour);
            let child = place.ctr(&patient(arguments)).spawn().unwrap();
            while !silent.contains(&fake.calls.recv_timeout(LIMIT).unwrap()) {}
            let said = ended_by(child, signal);
            assert!(said.starts_with("[ctr] the daemon ") && said.contains("ctr containers state c"), "{said}");
            assert_eq!(place.left(), 0);
        }
        // Subscribing.
        for arguments in [&START[..], &EXEC] {
            let place = Place::new();
            // The only connection is answered on, and the call that follows the subscription is not.
            let behaviour = Behaviour { versions: Some(1), containers: vec![running("c")], ..Default::default() };
            let fake = Fake::serve(&place.socket, behaviour);
            let child = place.ctr(&patient(arguments)).spawn().unwrap();
            fake.wait_for("Events");
            let said = ended_by(child, signal);
            assert_eq!(said, "[ctr] nothing was started\n");
            assert!(fake.state.created.lock().unwrap().is_none());
        }
    }
}

#[test]
fn socket_that_takes_connections_and_never_answers_is_given_up_in_time() {
    let place = Place::new();
    let _listener = UnixListener::bind(&place.socket).unwrap();
    for arguments in [&["version"][..], &["state"], &["events"], &["containers", "kill", "c"], &START, &EXEC] {
        let begun = Instant::now();
        let output = place.run(&[&["--conn-timeout", "200ms"], arguments].concat());
        assert!(begun.elapsed() < Duration::from_secs(30), "{arguments:?}");
        assert_eq!(output.status.code(), Some(1));
        let said = said(&output);
        assert!(said.starts_with("[ctr] cannot reach the daemon at unix:///"), "{said}");
        for part in [place.socket.to_str().unwrap(), "within 200ms", "systemctl status containerd"] {
            assert!(said.contains(part), "{said}");
        }
    }
    // None at all, and one that is left over.
    let refused = |reason: &str| {
        let output = place.run(&["--conn-timeout", "200ms", "version"]);
        assert_eq!(output.status.code(), Some(1));
        let said = said(&output);
        assert!(said.contains(reason) && said.contains("is containerd running there?"), "{said}");
    };
    drop(_listener);
    refused("Connection refused");
    std::fs::remove_file(&place.socket).unwrap();
    refused("No such file or directory");
}

#[test]
fn calls_that_change_nothing_are_made_again_when_the_daemon_is_restarted() {
    for (arguments, call) in [
        (&["state"][..], "State"),
        (&["containers", "list"], "State"),
        (&["containers", "stats", "c"], "Stats"),
        (&["version"], "GetServerVersion"),
    ] {
        let place = Place::new();
        let silent = Behaviour { silent: vec![call], ..Default::default() };
        let fake = Fake::serve(&place.socket, silent);
        let child = place.ctr(&[&["--conn-timeout", "1h"], arguments].concat()).spawn().unwrap();
        fake.wait_for(call);
        // The connection breaks while ctr waits for the answer.
        drop(fake);
        let _next = Fake::serve(&place.socket, Behaviour::default());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn lost_connection_is_no_reason_to_start_twice() {
    let place = Place::new();
    let fake = Fake::serve(&place.socket, Behaviour { silent: vec!["CreateContainer"], ..Default::default() });
    let child = place.ctr(&["--conn-timeout", "1h", "containers", "start", "c", "bundle"]).spawn().unwrap();
    fake.wait_for("CreateContainer");
    drop(fake);
    let next = Fake::serve(&place.socket, Behaviour::default());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("went away before it answered"), "{said}");
    assert!(next.state.created.lock().unwrap().is_none());
}

#[test]
fn socket_with_a_long_path_is_connected_to() {
    let mut place = Place::new();
    let deep = place.directory.path().join("d".repeat(120)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    place.socket = deep.join("socket");
    let _fake = Fake::serve(&place.socket, Behaviour::default());
    let output = place.run(&["version"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn foreign_text_makes_no_row_and_no_escape_sequence() {
    let place = Place::new();
    let mut container = running("c");
    container.bundle_path = "/b\nforged   /etc   running   init\x1b[2J".into();
    container.labels = vec!["a\u{9b}31m\u{202e}b\x7f\n".into()];
    let refusal = Some("oci runtime error: \x1b]0;title\x07\n[ctr] all is well\u{9b}");
    let behaviour = Behaviour { containers: vec![container.clone()], refusal, ..Default::default() };
    let _fake = Fake::serve(&place.socket, behaviour);
    let table = place.run(&["containers"]);
    let shown = String::from_utf8(table.stdout).unwrap();
    assert_eq!(shown.lines().count(), 2, "{shown:?}");
    assert!(shown.contains(r"/b\nforged   /etc   running   init\u{1b}[2J"), "{shown:?}");
    for arguments in [&["state"][..], &["containers", "list", "--json"]] {
        let json = String::from_utf8(place.run(arguments).stdout).unwrap();
        assert!(!json.chars().any(|c| c != '\n' && sys::shown::is_obeyed(c)), "{json:?}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let first = value.get("containers").unwrap_or(&value)[0].clone();
        assert_eq!(first["labels"][0], container.labels[0].as_str());
    }
    for arguments in [&START[..], &["containers", "start", "c", "bundle"]] {
        let said = said(&place.run(arguments));
        assert_eq!(said, "[ctr] oci runtime error: \\u{1b}]0;title\\u{7}\\n[ctr] all is well\\u{9b}\n");
    }
}

/// A pipe whose reader has gone.
fn unread() -> std::os::fd::OwnedFd {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap().1
}

#[test]
fn closed_pipe_ends_ctr_by_sigpipe_and_full_disk_is_an_error() {
    let place = Place::new();
    let containers = (0..5000).map(|n| running(&format!("c{n}"))).collect();
    let _fake = Fake::serve(&place.socket, Behaviour { containers, ..Default::default() });
    let commands = [
        &["containers"][..],
        &["state"],
        &["version"],
        &["containers", "stats", "c1"],
        &["events"],
        &["--help"],
        &["containers", "exec", "--help"],
        &["completion", "bash"],
    ];
    for arguments in commands {
        let mut command = place.ctr(arguments);
        let output = command.stdout(unread()).output().unwrap();
        assert_eq!(output.status.signal(), Some(Signal::PIPE.as_raw()), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = place.ctr(arguments).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let said = said(&output);
        assert!(said.contains("write to stdout: No space left on device"), "{arguments:?}: {said}");
    }
    // Errors that cannot be shown change nothing.
    for arguments in [&["nonsense"][..], &["containers", "state", "none"]] {
        let status = place.ctr(arguments).stderr(unread()).status().unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn stdout_that_was_closed_at_the_start_is_an_error_if_there_is_output() {
    let place = Place::new();
    let _fake = Fake::serve(&place.socket, Behaviour { containers: vec![running("c")], ..Default::default() });
    let closed = |arguments: &[&str]| {
        let plain = place.ctr(arguments);
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" >&-", "sh"]).arg(plain.get_program()).args(plain.get_args());
        command.current_dir(place.directory.path()).output().unwrap()
    };
    for arguments in [&["state"][..], &["version"], &["containers"], &["events"], &["--help"], &["completion", "bash"]]
    {
        let output = closed(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert_eq!(said(&output), "[ctr] write to stdout: Bad file descriptor (os error 9)\n", "{arguments:?}");
    }
    assert!(closed(&["containers", "pause", "c"]).status.success());
}

#[test]
fn exec_takes_what_is_not_given_from_the_containers_process() {
    let place = Place::new();
    let fake = Fake::serve(&place.socket, Behaviour { containers: vec![running("c")], ..Default::default() });
    let exec = |flags: &[&str]| {
        let arguments = [&["containers", "exec", "--id", "c", "--pid", "p"], flags, &["--", "true"]].concat();
        let output = place.run(&arguments);
        assert!(output.status.success(), "{output:?}");
        fake.state.added.lock().unwrap().take().unwrap()
    };
    let user = |request: &api::AddProcessRequest| {
        let user = request.user.clone().unwrap();
        (user.uid, user.gid, user.additional_gids)
    };
    let plain = exec(&[]);
    assert_eq!((user(&plain), plain.cwd.as_str(), plain.env.len()), ((5, 6, vec![7]), "/data", 0));
    assert_eq!((plain.width, plain.height), (0, 0), "there is no terminal");
    let changed = exec(&["-e", "B=3", "--cwd", "/tmp", "-u", "0"]);
    assert_eq!((user(&changed), changed.cwd.as_str()), ((0, 6, vec![7]), "/tmp"));
    assert_eq!(changed.env, ["A=1", "B=3"]);
    assert_eq!(user(&exec(&["--user", "8:9"])), (8, 9, vec![]));
    // The fake container's process is this one: its root is the host's.
    assert_eq!(user(&exec(&["--user", "root"])).0, 0);
    let output = place.run(&["containers", "exec", "--id", "c", "--pid", "p", "--user", "no such user", "true"]);
    assert!(said(&output).contains(r#"there is no user "no such user""#), "{output:?}");
    let output = place.run(&["containers", "exec", "--id", "c", "--pid", "p", "--user", "a", "-u", "5", "true"]);
    assert!(said(&output).contains("cannot be used with"), "{output:?}");
}

#[test]
fn size_of_the_terminal_is_passed_with_the_start() {
    let place = Place::new();
    let fake = Fake::serve(&place.socket, Behaviour { containers: vec![running("c")], ..Default::default() });
    std::fs::create_dir(place.directory.path().join("bundle")).unwrap();
    let config = place.directory.path().join("bundle/config.json");
    std::fs::write(&config, r#"{"process":{"terminal":true}}"#).unwrap();
    let run = |arguments: &[&str]| {
        let mut session = crate::ctr::Session::sized(place.ctr(arguments), 101, 42);
        assert_eq!(session.child.wait().unwrap().code(), Some(7));
    };
    let created = || fake.state.created.lock().unwrap().take().unwrap();
    run(&START);
    let request = created();
    assert_eq!((request.width, request.height, request.stderr.as_str()), (101, 42, ""));
    run(&["containers", "exec", "--id", "c", "--pid", "p", "-at", "--", "true"]);
    let added = fake.state.added.lock().unwrap().take().unwrap();
    assert_eq!((added.width, added.height), (101, 42));
    std::fs::write(&config, r#"{"process":{"terminal":false}}"#).unwrap();
    run(&START);
    assert_eq!(created().width, 0);
    // What is no regular file is not read, and a start does not wait for it.
    std::fs::remove_file(&config).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &config, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    run(&START);
    assert_eq!(created().width, 0);
}

#[test]
fn flags_of_go_and_paths_of_programs_are_understood() {
    let place = Place::new();
    let fake = Fake::serve(&place.socket, Behaviour { containers: vec![running("c")], ..Default::default() });
    let address = format!("-address=unix://{}", place.socket.display());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(bin("ctr"));
        command.current_dir(place.directory.path()).arg(&address).args(["-conn-timeout", "10s"]).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let state: serde_json::Value = serde_json::from_str(&run(&["containers", "state", "c"])).unwrap();
    assert_eq!(state["containers"][0]["id"], "c");
    assert_eq!(state, serde_json::from_str::<serde_json::Value>(&run(&["state", "c"])).unwrap());
    run(&["-debug", "containers", "start", "-label", "x", "c", "bundle", "-runtime", "./rel/crun"]);
    let created = fake.state.created.lock().unwrap().take().unwrap();
    let directory = place.directory.path().to_str().unwrap();
    assert_eq!(created.runtime, format!("{directory}/rel/crun"));
    assert_eq!(created.bundle_path, format!("{directory}/bundle"));
    assert_eq!(created.labels, ["x"]);
    run(&["containers", "start", "c", "bundle", "--runtime", "crun"]);
    assert_eq!(fake.state.created.lock().unwrap().take().unwrap().runtime, "crun");
    run(&["containers", "exec", "-id", "c", "-pid", "p", "ls", "-debug"]);
    assert_eq!(fake.state.added.lock().unwrap().take().unwrap().args, ["ls", "-debug"]);
}

#[test]
fn json_has_zeros_and_times_as_rfc_3339() {
    let place = Place::new();
    let _fake = Fake::serve(&place.socket, Behaviour::default());
    let run = |arguments: &[&str]| String::from_utf8(place.run(arguments).stdout).unwrap();
    let version: serde_json::Value = serde_json::from_str(&run(&["version", "--json"])).unwrap();
    assert_eq!(version, serde_json::json!({"major": 0, "minor": 2, "patch": 0, "revision": ""}));
    assert!(place.run(&START).status.code() == Some(7));
    let events = run(&["events", "--json", "--stored-only", "--timestamp", "2020-01-01T00:00:00Z"]);
    let event: serde_json::Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!((&event["status"], &event["pid"]), (&0.into(), &"".into()));
    let time = event["timestamp"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with("000000001Z"), "{time}");
}
