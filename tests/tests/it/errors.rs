//! Bad input: the right code and text, nothing left behind, and the daemon goes on.

use crate::support::*;
use tests::{Host, Options};
use tonic::Code;

const BAD_NAMES: [&str; 8] = ["../x", "a/b", "-x", "", ".", "..", "a b", "x\n"];

/// Nothing has been made, and the daemon still works.
async fn unharmed(host: &Host) {
    let mut client = host.client().await;
    // It may have just been started: it answers when it has read its state directory.
    state(&mut client).await;
    let left: Vec<_> = std::fs::read_dir(host.state_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    let own = ["events.log", ".lock", ".version", ".directory"];
    assert!(left.iter().all(|name| own.iter().any(|own| name == own)), "{left:?}");
    assert_eq!(std::fs::read_dir(host.path().join("root")).unwrap().count(), 0, "nothing is left with the runtime");
    let mut watch = Watch::new(&mut client).await;
    start(&mut client, "fine", &host.bundle(&["true"]).write()).await;
    assert_eq!(watch.exit("fine", "init").await, 0);
}

#[tokio::test]
async fn a_program_that_does_not_exist() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["/does/not/exist"]).write();
    // The id is free again each time.
    for _ in 0..3 {
        let result = client.create_container(container("c", &bundle)).await;
        refused(result, Code::Unknown, &["oci runtime error: ", "/does/not/exist"]);
    }
    unharmed(&host).await;
    sleeper(&host, &mut client, "c").await;
    let result = client.add_process(process("c", "p", &["/does/not/exist"])).await;
    refused(result, Code::Unknown, &["oci runtime error: ", "/does/not/exist"]);
    let result = client.add_process(process("c", "p", &[])).await;
    refused(result, Code::InvalidArgument, &["args"]);
    let mut watch = Watch::new(&mut client).await;
    client.add_process(process("c", "p", &["true"])).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 0);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn bundles_that_cannot_be_used() {
    let host = Host::new().await;
    let mut client = host.client().await;
    for (bundle, texts) in [
        ("/does/not/exist".to_string(), vec!["/does/not/exist", "No such file"]),
        (String::new(), vec!["bundlePath"]),
        ("/etc/passwd".to_string(), vec!["/etc/passwd", "directory"]),
        (host.join("bundles"), vec!["config.json", "No such file"]),
        (host.bundle(&[]).write_config("{\n \"process\": }"), vec!["config.json", "line 2 column 13"]),
        (host.bundle(&[]).write_config(""), vec!["config.json", "line 1"]),
        (host.bundle(&[]).write_config("{}"), vec!["config.json", "process"]),
        (host.bundle(&[]).write_config("null"), vec!["config.json"]),
        (host.bundle(&[]).write_config("{\"process\": {\"args\": null}}"), vec!["config.json", "args"]),
        (host.bundle(&[]).write_config(&"[".repeat(100_000)), vec!["config.json"]),
        (host.bundle(&[]).write_config("\u{0}\u{1}"), vec!["config.json"]),
        ("a\0b".to_string(), vec!["NUL"]),
        ("x".repeat(5000), vec!["too long"]),
    ] {
        refused(client.create_container(container("c", &bundle)).await, Code::InvalidArgument, &texts);
    }
    // Valid to us, refused by the runtime, in its words.
    let broken = host.bundle(&[]).write_config(r#"{"ociVersion":"1.0.2","process":{"args":["x"],"cwd":"/"}}"#);
    refused(client.create_container(container("c", &broken)).await, Code::Unknown, &["oci runtime error: "]);
    unharmed(&host).await;
    host.finish();
}

#[tokio::test]
async fn stdio_paths_that_cannot_be_opened() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["true"]).write();
    sleeper(&host, &mut client, "other").await;
    let socket = host.join("socket");
    for (path, reason) in [
        ("/does/not/exist", "No such file"),
        ("/etc", "directory"),
        (socket.as_str(), "socket"),
        ("/etc/passwd/x", "Not a directory"),
    ] {
        for field in 0..3 {
            let mut request = container("c", &bundle);
            let mut added = process("other", "p", &["true"]);
            *[&mut request.stdin, &mut request.stdout, &mut request.stderr][field] = path.into();
            *[&mut added.stdin, &mut added.stdout, &mut added.stderr][field] = path.into();
            let name = ["stdin", "stdout", "stderr"][field];
            refused(client.create_container(request).await, Code::InvalidArgument, &[name, path, reason]);
            refused(client.add_process(added).await, Code::InvalidArgument, &[name, path, reason]);
        }
    }
    kill(&mut client, "other").await;
    unharmed(&host).await;
    host.finish();
}

#[tokio::test]
async fn ids_and_names_never_leave_their_place() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["true"]).write();
    sleeper(&host, &mut client, "c").await;
    let long = "x".repeat(5000);
    for bad in BAD_NAMES.into_iter().chain([long.as_str(), "events.log"]) {
        refused(client.create_container(container(bad, &bundle)).await, Code::InvalidArgument, &["id"]);
        refused(signal(&mut client, bad, "init", 15).await, Code::InvalidArgument, &["id"]);
        refused(client.add_process(process(bad, "p", &["true"])).await, Code::InvalidArgument, &["id"]);
        refused(set_status(&mut client, bad, "paused").await, Code::InvalidArgument, &["id"]);
        if !bad.is_empty() {
            let request = api::StateRequest { id: bad.into() };
            refused(client.state(request).await, Code::InvalidArgument, &["id"]);
        }
    }
    for bad in BAD_NAMES.into_iter().chain([long.as_str(), "state.json"]) {
        refused(client.add_process(process("c", bad, &["true"])).await, Code::InvalidArgument, &["pid"]);
        refused(signal(&mut client, "c", bad, 15).await, Code::InvalidArgument, &["pid"]);
    }
    kill(&mut client, "c").await;
    unharmed(&host).await;
    host.finish();
}

#[tokio::test]
async fn names_that_are_taken_or_not_there() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let bundle = host.bundle(&["true"]).write();
    refused(client.create_container(container("c", &bundle)).await, Code::AlreadyExists, &["c"]);
    refused(client.add_process(process("c", "init", &["true"])).await, Code::AlreadyExists, &["init"]);
    client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap();
    refused(client.add_process(process("c", "p", &["true"])).await, Code::AlreadyExists, &["p"]);
    let none = ["containerd: container not found"];
    refused(signal(&mut client, "none", "init", 9).await, Code::NotFound, &none);
    refused(client.add_process(process("none", "p", &["true"])).await, Code::NotFound, &none);
    refused(set_status(&mut client, "none", "paused").await, Code::NotFound, &none);
    refused(set_status(&mut client, "none", "").await, Code::NotFound, &none);
    refused(client.state(api::StateRequest { id: "none".into() }).await, Code::NotFound, &none);
    let none = ["containerd: process not found for container"];
    refused(signal(&mut client, "c", "none", 9).await, Code::NotFound, &none);
    let update = |pid: &str| api::UpdateProcessRequest {
        id: "c".into(),
        pid: pid.into(),
        close_stdin: true,
        ..Default::default()
    };
    refused(client.update_process(update("none")).await, Code::NotFound, &none);
    for number in [0, 65, 4096, u32::MAX] {
        refused(
            signal(&mut client, "c", "init", number).await,
            Code::InvalidArgument,
            &["signal", &number.to_string()],
        );
    }
    refused(set_status(&mut client, "c", "frozen").await, Code::InvalidArgument, &["status", "frozen"]);
    kill(&mut client, "c").await;
    unharmed(&host).await;
    host.finish();
}

#[tokio::test]
async fn a_signal_to_a_process_that_has_ended() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    // It has ended, and its exit is held back by a reader that does not read.
    let out = host.fifo();
    let reader = out.reader_now();
    let mut request = process("c", "p", &["sh", "-c", "cat /data/1048576 & sleep 0.1; kill $!"]);
    request.stdout = out.path();
    let pid = client.add_process(request).await.unwrap().into_inner().system_pid;
    tests::eventually("the process has been reaped", || sys::procfs::stat(pid).unwrap().is_none());
    let text = "containerd: process not found for container: no such process";
    refused(signal(&mut client, "c", "p", 9).await, Code::NotFound, &[text]);
    drop(reader);
    kill(&mut client, "c").await;
    assert_eq!(watch.exit("c", "init").await, 137);
    host.finish();
}

#[tokio::test]
async fn a_runtime_that_is_not_there() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut request = container("c", &host.bundle(&["true"]).write());
    request.runtime = "no-such-runtime".into();
    let result = client.create_container(request).await;
    refused(result, Code::FailedPrecondition, &["no-such-runtime not installed on system"]);
    unharmed(&host).await;
    host.finish();
}

#[tokio::test]
async fn every_call_names_a_runtime_that_has_been_taken_away() {
    let host = Host::with(Options { fake_runtime: Some(r#"exec $RUNTIME "$@""#), ..Options::default() }).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let (runtime, kept) = (host.path().join("fake-runtime"), host.path().join("kept"));
    std::fs::rename(&runtime, &kept).unwrap();
    let expected = format!("{} not installed on system", runtime.display());
    let limits = Some(api::UpdateResource { pids_limit: 50, ..Default::default() });
    let update = api::UpdateContainerRequest { id: "c".into(), resources: limits, ..Default::default() };
    let checkpoint = Some(api::Checkpoint { name: "one".into(), ..Default::default() });
    let checkpoint = api::CreateCheckpointRequest { id: "c".into(), checkpoint, ..Default::default() };
    for stand_in in ["nothing", "a directory", "a file that is not executable"] {
        match stand_in {
            "a directory" => std::fs::create_dir(&runtime).unwrap(),
            "nothing" => {}
            _ => std::fs::write(&runtime, "").unwrap(),
        }
        println!("{stand_in}");
        let answers = [
            client.add_process(process("c", "p", &["true"])).await.map(drop),
            set_status(&mut client, "c", "paused").await,
            client.update_container(update.clone()).await.map(drop),
            client.create_checkpoint(checkpoint.clone()).await.map(drop),
            client.create_container(container("d", &host.bundle(&["true"]).write())).await.map(drop),
        ];
        for answer in answers {
            refused(answer, Code::FailedPrecondition, &[&expected]);
        }
        assert!(!host.state_dir().join("c/p").exists());
        let _ = std::fs::remove_dir(&runtime).or_else(|_| std::fs::remove_file(&runtime));
    }
    std::fs::rename(&kept, &runtime).unwrap();
    client.add_process(process("c", "p", &["true"])).await.unwrap();
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_shim_that_fails() {
    let mut host = Host::prepare(Options::default());
    host.start().await;
    host.stop(rustix::process::Signal::TERM);
    let mut broken = host.command().args(["--shim", "/bin/false"]).spawn().unwrap();
    tests::eventually("it serves", || std::os::unix::net::UnixStream::connect(host.path().join("socket")).is_ok());
    let mut client = host.client().await;
    let result = client.create_container(container("c", &host.bundle(&["true"]).write())).await;
    refused(result, Code::Unknown, &["shim error: "]);
    broken.kill().unwrap();
    broken.wait().unwrap();
    host.start().await;
    unharmed(&host).await;
    host.finish();
}

/// The arguments after the runtime's own ones: `run`, the flags, the id last.
const HANG_IN_START: &str = r#"case "$*" in *" start "*slow*) exec sleep 100000;; esac; exec $RUNTIME "$@""#;
const HANG_IN_RUN: &str = r#"case "$*" in *" run "*slow*) exec sleep 100000;; esac; exec $RUNTIME "$@""#;
const KILLED_IN_RUN: &str = r#"case "$*" in *" run "*) kill -9 $$;; esac; exec $RUNTIME "$@""#;
const SILENT_RUN: &str = r#"case "$*" in *" run "*) exit 0;; esac; exec $RUNTIME "$@""#;
const GARBAGE: &str =
    r#"case "$*" in *" run "*) head -c 100000 /dev/urandom > "$5"; exit 5;; esac; exec $RUNTIME "$@""#;

#[tokio::test]
async fn a_start_that_hangs_ends_at_its_timeout() {
    for script in [HANG_IN_START, HANG_IN_RUN] {
        let flags = vec!["--start-timeout=700ms".into()];
        let host = Host::with(Options { flags, fake_runtime: Some(script), ..Options::default() }).await;
        let mut client = host.client().await;
        let bundle = host.bundle(&["sleep", "1000"]);
        let group = (script == HANG_IN_START).then(|| bundle.make_group());
        let result = client.create_container(container("slow", &bundle.write())).await;
        drop(group);
        let text = "containerd: container did not start before the specified timeout";
        refused(result, Code::DeadlineExceeded, &[text]);
        unharmed(&host).await;
        host.finish();
    }
}

#[tokio::test]
async fn an_exec_that_hangs_after_its_process_has_started_leaves_no_process() {
    const HANG_AFTER_EXEC: &str = r#"case " $* " in *" exec "*) $RUNTIME "$@"; touch "$(dirname $0)/started"; exec sleep 100000;; esac; exec $RUNTIME "$@""#;
    let flags = vec!["--start-timeout=1500ms".into()];
    let host = Host::with(Options { flags, fake_runtime: Some(HANG_AFTER_EXEC), ..Options::default() }).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let result = client.add_process(process("c", "p", &["sleep", "99999"])).await;
    refused(result, Code::DeadlineExceeded, &["did not start before the specified timeout"]);
    assert!(std::fs::exists(host.join("started")).unwrap(), "the process had been started");
    let pids = state(&mut client).await[0].pids.clone();
    assert_eq!(pids.len(), 1, "only init is there: {pids:?}");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn no_start_timeout_is_none() {
    let host = Host::with(Options { flags: vec!["--start-timeout=0".into()], ..Options::default() }).await;
    unharmed(&host).await;
    host.finish();
}

#[tokio::test]
async fn a_runtime_that_misbehaves() {
    for (script, texts) in [
        (KILLED_IN_RUN, ["shim error: ", "signal 9"]),
        (SILENT_RUN, ["shim error: ", "pid"]),
        (GARBAGE, ["shim error: ", "status 5"]),
    ] {
        let host = Host::with(Options { fake_runtime: Some(script), ..Options::default() }).await;
        let mut client = host.client().await;
        let result = client.create_container(container("c", &host.bundle(&["sleep", "1000"]).write())).await;
        refused(result, Code::Unknown, &texts);
        assert!(!host.state_dir().join("c").exists());
        host.finish();
    }
}

#[tokio::test]
async fn ids_and_numbers_that_no_process_can_have_are_refused() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let user = serde_json::json!({"uid": u32::MAX, "gid": 0});
    let bundle = host.bundle(&["id", "-u"]).process("user", user).write();
    let result = client.create_container(container("c", &bundle)).await;
    refused(result, Code::InvalidArgument, &["process.user.uid: 4294967295", "config.json"]);
    let mut bundle = host.bundle(&["true"]);
    bundle.config["linux"]["devices"] = serde_json::json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 0}]);
    let result = client.create_container(container("c", &bundle.write())).await;
    refused(result, Code::InvalidArgument, &["linux.devices[0].major: -1"]);
    sleeper(&host, &mut client, "c").await;
    for (user, field) in [
        (api::User { uid: u32::MAX, ..Default::default() }, "user.uid"),
        (api::User { gid: u32::MAX, ..Default::default() }, "user.gid"),
        (api::User { additional_gids: vec![u32::MAX], ..Default::default() }, "user.additionalGids"),
    ] {
        let request = api::AddProcessRequest { user: Some(user), ..process("c", "p", &["true"]) };
        refused(client.add_process(request).await, Code::InvalidArgument, &[field, "4294967295"]);
    }
    let rlimits = vec![api::Rlimit { r#type: "RLIMIT_NOFILE".into(), soft: 2, hard: 1 }];
    let request = api::AddProcessRequest { rlimits, ..process("c", "p", &["true"]) };
    refused(client.add_process(request).await, Code::InvalidArgument, &["rlimits", "RLIMIT_NOFILE 2:1"]);
    for number in [0, 65, u32::MAX] {
        refused(signal(&mut client, "c", "init", number).await, Code::InvalidArgument, &["signal"]);
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn labels_beyond_the_limit_are_refused_and_the_most_are_kept() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "100000"]).write();
    let labels = |count| vec!["x".repeat(1022); count];
    let request = api::CreateContainerRequest { labels: labels(65), ..container("c", &bundle) };
    refused(client.create_container(request).await, Code::InvalidArgument, &["labels", "65536"]);
    let request = api::CreateContainerRequest { labels: labels(64), ..container("c", &bundle) };
    let made = client.create_container(request).await.unwrap().into_inner().container.unwrap();
    assert_eq!((&made.labels, &state(&mut client).await[0].labels), (&labels(64), &labels(64)));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn state_of_one_container_fits_a_clients_default_limit() {
    let host = Host::new().await;
    // It takes messages of 4 MB, as gRPC clients do that were not told otherwise.
    let mut client = host.client_with_window(1 << 20).await;
    let mut args = vec!["sh", "-c", "sleep 100000"];
    let large = "x".repeat(100_000);
    args.extend([large.as_str(); 12]);
    start(&mut client, "c", &host.bundle(&args).write()).await;
    for name in ["p", "q", "r"] {
        client.add_process(process("c", name, &args)).await.unwrap();
    }
    let state = client.state(api::StateRequest { id: "c".into() }).await.unwrap().into_inner();
    let processes = &state.containers[0].processes;
    assert_eq!(processes.len(), 4);
    for process in processes {
        assert_eq!(process.args[..3], ["sh", "-c", "sleep 100000"].map(String::from));
        assert_eq!(process.args[3..], ["[too long to be shown]"]);
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn config_with_nulls_and_duplicate_keys_starts() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let mut bundle = host.bundle(&["sh", "-c", "exit 3"]);
    for name in ["terminal", "apparmorProfile", "selinuxLabel", "rlimits"] {
        bundle.config["process"][name] = serde_json::Value::Null;
    }
    bundle.config["hooks"] = serde_json::Value::Null;
    let text = bundle.config.to_string();
    let twice = text.replacen("{", "{\"hostname\":\"first\",", 1);
    for (n, config) in [text, twice].iter().enumerate() {
        start(&mut client, &format!("c{n}"), &bundle.write_config(config)).await;
        assert_eq!(watch.exit(&format!("c{n}"), "init").await, 3);
    }
    host.finish();
}

#[tokio::test]
async fn relative_runtime_of_a_client_is_refused_and_an_id_that_is_being_created_is_called_so() {
    const SLOW: &str = r#"case " $* " in *" run "*) : >"$(dirname $0)/begun"; while [ ! -e "$(dirname $0)/go" ]; do sleep 0.01; done;; esac
        exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(SLOW), ..Options::default() }).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]).write();
    let mut request = container("r", &bundle);
    request.runtime = "./rel/crun".into();
    refused(client.create_container(request).await, Code::InvalidArgument, &["runtime", "./rel/crun", "absolute"]);
    let mut caller = client.clone();
    let request = container("c", &bundle);
    let call = tokio::spawn(async move { caller.create_container(request).await });
    let begun = host.join("begun");
    let is_begun = move || std::fs::exists(&begun).unwrap();
    tokio::task::spawn_blocking(move || tests::eventually("the runtime is at work", is_begun)).await.unwrap();
    let texts = ["containerd: container not found", "c is being created"];
    refused(signal(&mut client, "c", "init", 9).await, Code::NotFound, &texts);
    std::fs::write(host.join("go"), "").unwrap();
    call.await.unwrap().unwrap();
    kill(&mut client, "c").await;
    host.finish();
}
