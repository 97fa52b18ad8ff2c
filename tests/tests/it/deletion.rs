//! What the runtime keeps of a container is deleted before its exit is told, whatever the runtime does; and nothing is
//! deleted that this daemon did not make.

use crate::support::*;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::{Client, FAULTS, Host, Options, eventually};
use tonic::Code;

fn nothing_of(host: &Host, id: &str) {
    assert!(!host.state_dir().join(id).exists(), "the directory of {id}");
    assert!(!host.path().join("root").join(id).exists(), "what the runtime keeps of {id}");
}

/// Puts something else in place of the runtime, as an upgrade that went wrong may do.
fn break_runtime(path: &Path, how: &str) {
    std::fs::rename(path, path.with_extension("away")).unwrap();
    match how {
        "missing" => {}
        "directory" => std::fs::create_dir(path).unwrap(),
        script => tests::write_program(path, &format!("#!/bin/sh\n{script}\n")),
    }
}

fn mend_runtime(path: &Path) {
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_dir(path);
    std::fs::rename(path.with_extension("away"), path).unwrap();
}

#[tokio::test]
async fn exit_waits_for_a_runtime_that_cannot_be_run_and_the_reason_is_visible() {
    let flags = vec!["--start-timeout=2s".into()];
    let mut host =
        Host::with(Options { fake_runtime: Some(r#"exec $RUNTIME "$@""#), flags, ..Options::default() }).await;
    let program = host.path().join("fake-runtime");
    let hang = "sleep 100000";
    for (how, restart) in [
        ("missing", false),
        ("directory", false),
        ("echo '{\"level\":\"error\",\"msg\":\"no luck\"}' >$3; exit 1", true),
        ("kill -SEGV $$", false),
        (hang, true),
    ] {
        println!("{how}");
        let mut client = host.client().await;
        let mut watch = Watch::new(&mut client).await;
        let bundle = host.bundle(&["sleep", "1000"]);
        start(&mut client, "c", &bundle.write()).await;
        assert_eq!(short(&watch.next().await), "c start-container");
        break_runtime(&program, how);
        signal(&mut client, "c", "init", 9).await.unwrap();
        // Asked for again, the id is refused with the reason.
        let reason = loop {
            let again = client.create_container(container("c", "/nonexistent")).await.expect_err("the id is taken");
            assert_eq!(again.code(), Code::AlreadyExists, "{again:?}");
            if again.message().contains("cannot delete it") {
                break again.message().to_string();
            }
        };
        println!("{reason}");
        assert_eq!(state(&mut client).await[0].status, "stopped");
        if restart {
            host.restart(Signal::KILL).await;
            client = host.client().await;
            watch = Watch::new(&mut client).await;
        }
        assert!(stored(&mut client).await.iter().rfind(|event| event.id == "c").unwrap().r#type != "exit");
        mend_runtime(&program);
        assert_eq!(watch.exit("c", "init").await, 137);
        nothing_of(&host, "c");
        start(&mut client, "c", &host.bundle(&["true"]).write()).await;
        assert_eq!(watch.exit("c", "init").await, 0);
    }
    host.finish();
}

#[tokio::test]
async fn container_that_could_not_be_made_is_deleted_once_the_runtime_can_do_it() {
    let host = Host::with(Options {
        fake_runtime: Some(FAULTS),
        flags: vec!["--start-timeout=2s".into()],
        ..Options::default()
    })
    .await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]).fault("start:fail,delete:crash");
    let _group = bundle.make_group();
    let mut caller = client.clone();
    let request = container("c", &bundle.write());
    let call = tokio::spawn(async move { caller.create_container(request).await });
    let reached = host.join("reached");
    let read = move || std::fs::read_to_string(&reached).unwrap_or_default();
    tokio::task::spawn_blocking(move || eventually("its delete has crashed", || read().trim() == "delete"))
        .await
        .unwrap();
    std::fs::write(host.join("mended"), "").unwrap();
    refused(call.await.unwrap(), Code::Unknown, &["it fails on purpose"]);
    start(&mut client, "c", &host.bundle(&["sleep", "1000"]).write()).await;
    kill(&mut client, "c").await;
    host.finish();
}

/// A bundle with a poststop hook that notes its begin and its end, and waits for a file between the two.
fn hooked(host: &Host) -> tests::Bundle {
    let script = "echo begin >>$0/hook; while [ ! -e $0/go ]; do sleep 0.01; done; echo end >>$0/hook";
    let mut bundle = host.bundle(&["sleep", "1000"]);
    let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script, host.path()]});
    bundle.config["hooks"] = serde_json::json!({ "poststop": [hook] });
    bundle
}

fn hook_log(host: &Host) -> String {
    std::fs::read_to_string(host.path().join("hook")).unwrap_or_default()
}

/// Waits without holding up the client's event loop.
async fn until(host: &Host, what: &'static str, is_so: impl Fn(&str) -> bool + Send + 'static) {
    let path = host.path().join("hook");
    let log = move || std::fs::read_to_string(&path).unwrap_or_default();
    tokio::task::spawn_blocking(move || eventually(what, || is_so(&log()))).await.unwrap();
}

#[tokio::test]
async fn poststop_hook_runs_once_to_its_end_before_the_exit_whatever_becomes_of_the_daemon() {
    for end in [None, Some(Signal::TERM), Some(Signal::KILL), Some(Signal::HUP)] {
        println!("{end:?}");
        let mut host = Host::with(Options { flags: vec!["--start-timeout=2s".into()], ..Options::default() }).await;
        let mut client = host.client().await;
        start(&mut client, "c", &hooked(&host).write()).await;
        signal(&mut client, "c", "init", 9).await.unwrap();
        until(&host, "the hook runs", |log| log == "begin\n").await;
        match end {
            // Longer than any other call of the runtime may take.
            None => {
                let log = host.path().join("log");
                let log = move || std::fs::read_to_string(&log).unwrap();
                let waits = move || log().contains("a hook has been running for more than 2s");
                tokio::task::spawn_blocking(move || eventually("the daemon says why it waits", waits)).await.unwrap();
            }
            Some(Signal::HUP) => {
                let pid = Pid::from_raw(host.pid() as i32).unwrap();
                kill_process(pid, Signal::HUP).unwrap();
                let log = host.path().join("log");
                let served = move || std::fs::read_to_string(&log).unwrap().matches("recovered").count() == 2;
                tokio::task::spawn_blocking(move || eventually("the next program serves", served)).await.unwrap();
            }
            Some(signal) => host.restart(signal).await,
        }
        client = host.client().await;
        let mut watch = Watch::with(
            &mut client,
            api::EventsRequest { timestamp: Some(api::Timestamp { seconds: 1, nanos: 0 }), ..Default::default() },
        )
        .await;
        assert_eq!(short(&watch.next().await), "c start-container");
        assert!(watch.silent_for(Duration::from_millis(300)).await, "the exit waits for the hook");
        assert_eq!(hook_log(&host), "begin\n");
        std::fs::write(host.path().join("go"), "").unwrap();
        assert_eq!(short(&watch.next().await), "c exit init 137");
        assert_eq!(hook_log(&host), "begin\nend\n");
        nothing_of(&host, "c");
        host.finish();
    }
}

#[tokio::test]
async fn hook_of_a_container_that_was_never_started_is_not_cut_off_by_the_next_daemon() {
    let mut host = Host::with(Options { fake_runtime: Some(FAULTS), ..Options::default() }).await;
    let mut client = host.client().await;
    let bundle = hooked(&host).fault("start:fail");
    let _group = bundle.make_group();
    let request = container("c", &bundle.write());
    let call = tokio::spawn(async move { client.create_container(request).await });
    until(&host, "the hook runs", |log| log == "begin\n").await;
    host.restart(Signal::KILL).await;
    call.await.unwrap().expect_err("its daemon was killed");
    let mut client = host.client().await;
    assert!(state(&mut client).await.is_empty());
    assert_eq!(hook_log(&host), "begin\n");
    std::fs::write(host.path().join("go"), "").unwrap();
    until(&host, "the hook has ended", |log| log == "begin\nend\n").await;
    std::fs::write(host.path().join("mended"), "").unwrap();
    let mut watch = Watch::new(&mut client).await;
    start(&mut client, "c", &host.bundle(&["true"]).write()).await;
    assert_eq!(watch.exit("c", "init").await, 0);
    assert_eq!(hook_log(&host), "begin\nend\n");
    host.finish();
}

#[tokio::test]
async fn runtime_state_that_was_removed_by_hand_leaves_nothing_and_is_no_warning() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    std::fs::remove_dir_all(host.path().join("root/c")).unwrap();
    kill(&mut client, "c").await;
    nothing_of(&host, "c");
    let log = host.log();
    assert!(!log.lines().any(|line| line.contains("WARN") && line.contains("delete")), "{log}");
    host.finish();
}

#[tokio::test]
async fn container_that_ends_in_a_shared_paused_group_leaves_nothing() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sleep", "1000"]);
    let mut other = bundle.copy("other", &["sleep", "1000"]);
    other.config["linux"]["cgroupsPath"] = bundle.cgroup().into();
    start(&mut client, "a", &bundle.write()).await;
    start(&mut client, "b", &other.write()).await;
    set_status(&mut client, "b", "paused").await.unwrap();
    signal(&mut client, "a", "init", 9).await.unwrap();
    assert_eq!(watch.exit("a", "init").await, 137);
    nothing_of(&host, "a");
    // crun's delete kills everything in the group.
    let mut others = Watch::with(
        &mut client,
        api::EventsRequest { timestamp: Some(api::Timestamp { seconds: 1, nanos: 0 }), ..Default::default() },
    )
    .await;
    let _ = signal(&mut client, "b", "init", 9).await;
    assert_eq!(others.exit("b", "init").await, 137);
    nothing_of(&host, "b");
    host.finish();
}

#[tokio::test]
async fn containers_in_one_group_outlive_each_other_when_one_is_set_aside() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]);
    let sharing = |name: &str| {
        let mut other = bundle.copy(name, &["sleep", "1000"]);
        other.config["linux"]["cgroupsPath"] = bundle.cgroup().into();
        other.write()
    };
    start(&mut client, "known", &bundle.write()).await;
    let pid = start(&mut client, "aside", &sharing("other")).await.processes[0].system_pid;
    host.stop(Signal::KILL);
    // It cannot be adopted without the FIFO, and its `state.json` proves that it is of this boot.
    let exit = host.state_dir().join("aside/init/exit");
    std::fs::remove_file(&exit).unwrap();
    std::fs::write(&exit, "").unwrap();
    host.start().await;
    let mut client = host.client().await;
    // crun's own `delete` kills every process of the group.
    let spares = !tests::runtime().contains("crun");
    let lives = |pid: u32| sys::procfs::stat(pid).unwrap().is_some_and(|stat| !stat.is_dead());
    kill(&mut client, "known").await;
    nothing_of(&host, "known");
    assert!(lives(pid) || !spares, "the container that was set aside");
    let next = start(&mut client, "next", &sharing("next")).await.processes[0].system_pid;
    kill(&mut client, "aside").await;
    nothing_of(&host, "aside");
    assert!(!lives(pid));
    assert!(lives(next) || !spares, "the other container");
    let mut watch = Watch::with(
        &mut client,
        api::EventsRequest { timestamp: Some(api::Timestamp { seconds: 1, nanos: 0 }), ..Default::default() },
    )
    .await;
    let _ = signal(&mut client, "next", "init", 9).await;
    assert_eq!(watch.exit("next", "init").await, 137);
    nothing_of(&host, "next");
    host.finish();
}

/// A container that another program has made with the same runtime.
struct Theirs {
    arguments: Vec<String>,
    program: String,
}

impl Theirs {
    fn run(program: &str, root: Option<&str>, id: &str, bundle: &str) -> Theirs {
        let arguments: Vec<String> = root.iter().map(|root| format!("--root={root}")).collect();
        let mut command = Command::new(program);
        command.args(&arguments).args(["run", "--detach", "--bundle", bundle, id]);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        assert!(command.status().unwrap().success(), "another program starts {id}");
        Theirs { arguments, program: program.to_string() }
    }

    fn is_running(&self, id: &str) -> bool {
        let output = Command::new(&self.program).args(&self.arguments).args(["state", id]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("running")
    }

    fn delete(&self, id: &str) {
        assert!(
            Command::new(&self.program)
                .args(&self.arguments)
                .args(["delete", "--force", id])
                .status()
                .unwrap()
                .success()
        );
    }
}

/// The runtime under another name, as a version of its own is installed beside the system's.
fn named_copy(host: &Host, program: &str) -> String {
    let found = std::env::split_paths(&tests::path_with_criu())
        .map(|directory| directory.join(program))
        .find(|path| path.exists());
    let path = host.join(&format!("{}-1.28", Path::new(program).file_name().unwrap().to_str().unwrap()));
    assert!(Command::new("cp").arg(found.unwrap()).arg(&path).status().unwrap().success());
    path
}

async fn create_with(
    client: &mut Client,
    id: &str,
    bundle: &str,
    program: &str,
    arguments: &[&str],
) -> Result<(), tonic::Status> {
    let mut request = container(id, bundle);
    request.runtime = program.into();
    request.runtime_args = arguments.iter().map(ToString::to_string).collect();
    client.create_container(request).await.map(drop)
}

#[tokio::test]
async fn container_of_another_program_with_the_same_id_is_not_touched() {
    for runtime in crate::versions::runtimes() {
        println!("{runtime}");
        container_of_another_program_is_not_touched(&runtime).await;
    }
}

async fn container_of_another_program_is_not_touched(runtime: &str) {
    let host = Host::with(Options { runtime: Some(runtime.into()), ..Options::default() }).await;
    let mut client = host.client().await;
    let program = named_copy(&host, runtime);
    let id = host.path().file_name().unwrap().to_string_lossy().replace('.', "-");
    // In the runtime's usual root, which the daemon does not use by itself.
    let theirs = Theirs::run(&program, None, &id, &host.bundle(&["sleep", "1000"]).write());
    create_with(&mut client, &id, &host.bundle(&["sleep", "1000"]).write(), &program, &[]).await.unwrap();
    kill(&mut client, &id).await;
    assert!(theirs.is_running(&id));
    theirs.delete(&id);
    // In a root that the client names, in every form.
    let root = host.join("shared");
    let relative = relative_to_daemon(&host, &root);
    let theirs = Theirs::run(&program, Some(&root), "c", &host.bundle(&["sleep", "1000"]).write());
    for arguments in [
        vec![format!("--root={root}")],
        vec!["--root".into(), root.clone()],
        vec!["--root=/nonexistent".into(), format!("--root={root}")],
        vec![format!("--root={relative}")],
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let bundle = host.bundle(&["sleep", "1000"]).write();
        let refusal = create_with(&mut client, "c", &bundle, &program, &arguments).await;
        refused(refusal, Code::Unknown, &["exist"]);
        assert!(theirs.is_running("c"), "{arguments:?}");
        assert!(!host.state_dir().join("c").exists());
    }
    theirs.delete("c");
    let arguments = [format!("--root={relative}")];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    create_with(&mut client, "c", &host.bundle(&["sleep", "1000"]).write(), &program, &arguments).await.unwrap();
    assert!(Path::new(&root).join("c").exists(), "a relative root is the daemon's");
    kill(&mut client, "c").await;
    assert!(!Path::new(&root).join("c").exists());
    host.finish();
}

/// A path as it is seen from the daemon's working directory.
fn relative_to_daemon(host: &Host, path: &str) -> String {
    let directory = std::fs::read_link(format!("/proc/{}/cwd", host.pid())).unwrap();
    let up = "../".repeat(directory.components().count() - 1);
    format!("{up}{}", path.trim_start_matches('/'))
}
