//! The daemon goes and another one comes: containers run on, and what ended meanwhile is told once, truly.

use crate::support::*;
use api::EventsRequest;
use rustix::process::{Pid, Signal, kill_process};
use tests::{Host, children_of, eventually};

#[tokio::test]
async fn containers_run_on_and_are_found_again() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut host = Host::new().await;
        let mut client = host.client().await;
        sleeper(&host, &mut client, "c").await;
        sleeper(&host, &mut client, "frozen").await;
        client.add_process(process("c", "p", &["sleep", "100000"])).await.unwrap();
        set_status(&mut client, "frozen", "paused").await.unwrap();
        let before = state(&mut client).await;
        host.restart(signal).await;
        let mut client = host.client().await;
        assert_eq!(state(&mut client).await, before);
        let mut watch = Watch::new(&mut client).await;
        client.add_process(process("c", "q", &["sh", "-c", "exit 3"])).await.unwrap();
        assert_eq!(watch.exit("c", "q").await, 3);
        super::support::signal(&mut client, "c", "p", 15).await.unwrap();
        assert_eq!(watch.exit("c", "p").await, 143);
        set_status(&mut client, "frozen", "running").await.unwrap();
        kill(&mut client, "frozen").await;
        kill(&mut client, "c").await;
        host.finish();
    }
}

#[tokio::test]
async fn what_ended_meanwhile_is_told_once_in_order() {
    for stop in [Signal::TERM, Signal::KILL] {
        let mut host = Host::new().await;
        let mut client = host.client().await;
        let fifo = host.fifo();
        let mut request = container("c", &host.bundle(&["sh", "-c", "read x; exit 5"]).write());
        request.stdin = fifo.path();
        client.create_container(request).await.unwrap();
        let mut request = process("c", "p", &["sh", "-c", "read x; exit 6"]);
        let other = host.fifo();
        request.stdin = other.path();
        client.add_process(request).await.unwrap();
        let last = stored(&mut client).await.pop().unwrap().timestamp;
        host.stop(stop);
        let has_ended = |name: &str| host.state_dir().join("c").join(name).join("exitStatus").exists();
        other.feed(b"x\n".to_vec()).join().unwrap();
        // Init's end would be that of the other process as well.
        eventually("the added process has ended", || has_ended("p"));
        fifo.feed(b"x\n".to_vec()).join().unwrap();
        eventually("init has ended", || has_ended("init"));
        host.start().await;
        let mut client = host.client().await;
        let request = EventsRequest { timestamp: last, stored_only: false, id: String::new() };
        let mut watch = Watch::with(&mut client, request).await;
        assert_eq!(short(&watch.next().await), "c exit p 6");
        assert_eq!(short(&watch.next().await), "c exit init 5");
        assert!(state(&mut client).await.is_empty());
        host.restart(Signal::KILL).await;
        let told: Vec<String> = stored(&mut host.client().await).await.iter().map(short).collect();
        assert_eq!(told, ["c start-container", "c start-process p", "c exit p 6", "c exit init 5"]);
        host.finish();
    }
}

/// The shims of a container: those that work in its directory.
fn shims(host: &Host, id: &str, name: &str) -> Vec<Pid> {
    let directory = host.state_dir().join(id).join(name);
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let works_there = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory);
    pids.filter(works_there).filter_map(Pid::from_raw).collect()
}

#[tokio::test]
async fn a_killed_shim_is_137_and_the_id_is_free_at_once() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    for _ in 0..20 {
        sleeper(&host, &mut client, "c").await;
        client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap();
        let [shim] = shims(&host, "c", "p")[..] else { panic!("one shim a process") };
        kill_process(shim, Signal::KILL).unwrap();
        assert_eq!(watch.exit("c", "p").await, 137);
        let [shim] = shims(&host, "c", "init")[..] else { panic!("one shim a process") };
        kill_process(shim, Signal::KILL).unwrap();
        assert_eq!(watch.exit("c", "init").await, 137);
    }
    host.finish();
}

#[tokio::test]
async fn a_shim_that_dies_while_no_daemon_is_there() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "alive").await;
    let gone = sleeper(&host, &mut client, "gone").await.processes[0].system_pid;
    let last = stored(&mut client).await.pop().unwrap().timestamp;
    host.stop(Signal::KILL);
    for id in ["alive", "gone"] {
        kill_process(shims(&host, id, "init")[0], Signal::KILL).unwrap();
    }
    kill_process(Pid::from_raw(gone as i32).unwrap(), Signal::KILL).unwrap();
    eventually("the process is gone", || sys::procfs::stat(gone).unwrap().is_none_or(|stat| stat.is_dead()));
    host.start().await;
    let mut client = host.client().await;
    let request = EventsRequest { timestamp: last, stored_only: false, id: String::new() };
    let mut watch = Watch::with(&mut client, request).await;
    let mut told = [short(&watch.next().await), short(&watch.next().await)];
    told.sort();
    assert_eq!(told, ["alive exit init 137", "gone exit init 255"]);
    host.finish();
}

#[tokio::test]
async fn a_half_made_container_is_removed() {
    // The daemon is killed while the runtime is at work.
    const SLOW: &str =
        r#"case " $* " in *" run "*) touch "$(dirname $0)/creating"; sleep 1;; esac; exec $RUNTIME "$@""#;
    let options = tests::Options { fake_runtime: Some(SLOW), ..Default::default() };
    let mut host = Host::with(options).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]).write();
    let request = container("c", &bundle);
    let call = tokio::spawn(async move { client.create_container(request).await });
    let creating = host.join("creating");
    tokio::task::spawn_blocking(move || eventually("the runtime is at work", || std::fs::exists(&creating).unwrap()))
        .await
        .unwrap();
    host.restart(Signal::KILL).await;
    call.await.unwrap().expect_err("its daemon was killed");
    let mut client = host.client().await;
    assert!(state(&mut client).await.is_empty());
    // Whoever wants the id waits until it is free.
    start(&mut client, "c", &bundle).await;
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn an_attached_reader_sees_all_over_a_restart() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let out = host.fifo();
    let reader = out.collect();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.1; done";
    let mut request = container("c", &host.bundle(&["sh", "-c", script]).write());
    request.stdout = out.path();
    client.create_container(request).await.unwrap();
    let last = stored(&mut client).await.pop().unwrap().timestamp;
    host.restart(Signal::KILL).await;
    let mut client = host.client().await;
    let request = EventsRequest { timestamp: last, stored_only: false, id: String::new() };
    assert_eq!(Watch::with(&mut client, request).await.exit("c", "init").await, 0);
    assert_eq!(reader.text(), (1..=10).map(|n| format!("{n}\n")).collect::<String>());
    host.finish();
}

#[tokio::test]
async fn shims_stay_when_their_daemon_goes() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    assert_eq!(children_of(host.pid()).len(), 1, "one shim a process");
    let [shim] = shims(&host, "c", "init")[..] else { panic!("one shim") };
    // A terminal's signals go to a process group: the shim is in one of its own.
    assert_ne!(rustix::process::getpgid(Some(shim)).unwrap(), Pid::from_raw(host.pid() as i32).unwrap());
    host.restart(Signal::INT).await;
    assert_eq!(shims(&host, "c", "init"), [shim]);
    kill(&mut host.client().await, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_removal_that_was_cut_off_is_finished() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    start(&mut client, "c", &host.bundle(&["true"]).write()).await;
    let told = watch.next().await;
    assert_eq!(watch.exit("c", "init").await, 0);
    host.stop(Signal::TERM);
    // As if the daemon had died while it removed the directory: the journal has the exit.
    let log = std::fs::read_to_string(host.state_dir().join("events.log")).unwrap();
    let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    for missing in ["process.json", "exit", "init"] {
        let directory = host.state_dir().join("c");
        std::fs::create_dir_all(directory.join("init")).unwrap();
        let state = serde_json::json!({"bundle": "/b", "runtime": "runc", "instance": line["instance"]});
        std::fs::write(directory.join("state.json"), state.to_string()).unwrap();
        if missing == "init" {
            std::fs::remove_dir(directory.join("init")).unwrap();
        }
        host.start().await;
        assert!(state_is_empty(&host).await);
        eventually(missing, || !directory.exists());
        host.stop(Signal::TERM);
    }
    host.start().await;
    let all: Vec<String> = stored(&mut host.client().await).await.iter().map(short).collect();
    assert_eq!(all, ["c start-container", "c exit init 0"], "{told:?}");
    host.finish();
}

async fn state_is_empty(host: &Host) -> bool {
    state(&mut host.client().await).await.is_empty()
}

#[tokio::test]
async fn what_an_earlier_boot_left_is_told_as_unknown_and_nothing_is_signalled() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let pid = sleeper(&host, &mut client, "c").await.processes[0].system_pid;
    watch.next().await;
    let [shim] = shims(&host, "c", "init")[..] else { panic!("one shim") };
    host.stop(Signal::KILL);
    let path = host.state_dir().join("c/state.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["boot_id"] = "another".into();
    std::fs::write(&path, record.to_string()).unwrap();
    host.start().await;
    assert!(state_is_empty(&host).await);
    // It is told when its directory has gone, and calls need not wait for that.
    let request = EventsRequest { timestamp: Some(api::Timestamp { seconds: 1, nanos: 0 }), ..Default::default() };
    assert_eq!(Watch::with(&mut host.client().await, request).await.exit("c", "init").await, 255);
    let all: Vec<String> = stored(&mut host.client().await).await.iter().map(short).collect();
    assert_eq!(all, ["c start-container", "c exit init 255"]);
    assert!(sys::procfs::stat(pid).unwrap().is_some_and(|stat| !stat.is_dead()), "nobody has been signalled");
    // In truth it is of this boot.
    kill_process(shim, Signal::KILL).unwrap();
    let root = format!("--root={}", host.join("root"));
    std::process::Command::new(tests::runtime()).args([&root, "delete", "--force", "c"]).status().unwrap();
    host.finish();
}
