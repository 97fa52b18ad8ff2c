//! Attached sessions of `ctr` that end early, badly or by force.

use crate::support::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use tests::{Host, eventually};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn exec<'a>(name: &'a str, flags: &[&'a str], program: &[&'a str]) -> Vec<&'a str> {
    [&["containers", "exec", "--id", "c", "--pid", name, "--attach"], flags, &["--"], program].concat()
}

fn start(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the end without reading on.
fn end(mut child: Child) -> Output {
    eventually("ctr has ended", || child.try_wait().unwrap().is_some());
    drop(child.stdin.take());
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn process_that_ends_at_once_ends_its_session_with_all_output() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["echo", "short"]).write();
    for _ in 0..10 {
        let output = end(start(host.ctr(&["containers", "start", "--attach", "short", &bundle])));
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "short\n"), "{output:?}");
    }
    sleeper(&host, &mut client, "c").await;
    for n in 0..20 {
        let name = format!("p{n}");
        let output = end(start(host.ctr(&exec(&name, &[], &["sh", "-c", "echo out; echo err >&2; exit 3"]))));
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert_eq!((output.stdout, output.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
        assert_eq!(end(start(host.ctr(&exec(&name, &["-t"], &["true"])))).status.code(), Some(0));
    }
    // A stdin that nothing reads and that does not end.
    let mut command = host.ctr(&exec("deaf", &[], &["true"]));
    let mut child = command.stdin(std::fs::File::open("/dev/zero").unwrap()).spawn().unwrap();
    eventually("ctr has ended", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn full_disk_ends_the_session_with_an_error_and_not_the_process() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for (name, script, goes_on) in [("long", "echo out; exec sleep 100000", true), ("short", "echo out", false)] {
        let output = host.ctr(&exec(name, &[], &["sh", "-c", script])).stdin(Stdio::null()).stdout(full()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.starts_with("[ctr] write to stdout: No space left on device"), "{said}");
        if goes_on {
            assert!(said.contains("process long of container c goes on running"), "{said}");
            let processes = &state(&mut client).await[0].processes;
            assert!(processes.iter().any(|process| process.pid == name));
        }
    }
    // A stderr that is full leaves no place to report it.
    let output = host.ctr(&exec("err", &[], &["sh", "-c", "echo err >&2; exec sleep 100000"])).stderr(full()).output();
    assert_eq!(output.unwrap().status.code(), Some(1));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn signal_ends_the_session_at_once_and_not_the_process() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    // One that writes more than anything takes, to a reader that has stopped: the session is in the middle of a write.
    for (n, signal) in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].into_iter().enumerate() {
        let name = format!("p{n}");
        let mut child = start(host.ctr(&exec(&name, &[], &["sh", "-c", "echo x; exec cat /dev/zero"])));
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        eventually("ctr has ended", || child.try_wait().unwrap().is_some());
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()));
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let wanted = format!(
            "[ctr] process {name} of container c goes on running; `ctr containers kill --pid {name} c` ends it\n"
        );
        assert_eq!(said, wanted);
        assert!(state(&mut client).await[0].processes.iter().any(|process| process.pid == name));
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn nohup_keeps_a_session_from_ending_by_a_hangup() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let plain = host.ctr(&exec("p", &[], &["sh", "-c", "echo x; exec sleep 100000"]));
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(plain.get_program()).args(plain.get_args());
    let mut child = start(command);
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    // Of several signals that are pending the lowest number comes first: had the hangup been taken, it would end ctr.
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(end(child).status.signal(), Some(Signal::TERM.as_raw()));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn exec_runs_as_the_containers_user_or_as_a_user_of_its_files() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let etc = host.path().join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("passwd"), "root:x:0:0::/:/bin/sh\nalice:x:1001:1002::/:/bin/sh\n").unwrap();
    // As links go in images: from the container's root, which the host must not be taken for.
    std::fs::write(etc.join("real-group"), "alice:x:1002:\naudio:x:29:alice\n").unwrap();
    std::os::unix::fs::symlink("/etc/real-group", etc.join("group")).unwrap();
    let mut bundle = host.bundle(&["sleep", "100000"]).process("user", json!({"uid": 5, "gid": 6}));
    bundle = bundle.process("cwd", json!("/data"));
    let mount = json!({"destination": "/etc", "type": "bind", "source": etc, "options": ["bind", "ro"]});
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    crate::support::start(&mut client, "c", &bundle.write()).await;
    let run = |flags: &[&str]| {
        let name = host.name("p");
        let script = "echo $(id -u) $(id -g) $(grep ^Groups /proc/self/status | cut -f2) $(pwd)";
        let output = host.ctr(&exec(&name, flags, &["sh", "-c", script])).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout).trim().to_string()
    };
    assert_eq!(run(&[]), "5 6 /data");
    assert_eq!(run(&["--user", "alice"]), "1001 1002 29 /data");
    assert_eq!(run(&["--user", "alice:audio", "--cwd", "/tmp"]), "1001 29 /tmp");
    assert_eq!(run(&["--user", "7:8"]), "7 8 /data");
    assert_eq!(run(&["--uid", "0", "--gid", "0"]), "0 0 /data");
    let output = host.ctr(&exec("bad", &["--user", "mallory"], &["true"])).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(r#"there is no user "mallory" in the container's /etc/passwd"#));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn runtime_by_a_relative_path_is_that_of_the_clients_directory() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let directory = host.path().join("rel");
    std::fs::create_dir(&directory).unwrap();
    tests::write_program(&directory.join("run"), &format!("#!/bin/sh\nexec {} \"$@\"\n", tests::runtime()));
    let bundle = host.bundle(&["sleep", "100000"]).write();
    let root = format!("--runtime-args=--root={}", host.join("root"));
    let mut command = host.ctr(&["containers", "start", "--runtime", "./rel/run", &root, "c", &bundle]);
    let output = command.current_dir(host.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(state(&mut client).await[0].runtime, host.join("rel/run"));
    kill(&mut client, "c").await;
    host.finish();
}
