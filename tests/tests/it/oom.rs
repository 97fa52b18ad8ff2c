//! Containers that run out of memory: one `oom` for each kill that is seen, before the exit that it caused.

use crate::support::*;
use rustix::process::Signal;
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;
use tests::{Bundle, Host, eventually};

/// More than runtimes need to start a container, and soon used up.
const LIMIT: u64 = 24 << 20;
/// Takes memory until it is killed.
const HOG: &str = "exec tail /dev/zero";

fn limited(host: &Host, script: &str) -> Bundle {
    host.bundle(&["sh", "-c", script]).resources(json!({"memory": {"limit": LIMIT}}))
}

#[tokio::test]
async fn two_hundred_containers_that_run_out_of_memory() {
    let host = Host::with(tests::Options { flags: vec!["--retain-count=0".into()], ..Default::default() }).await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    // Neighbours that have nothing to do with it.
    let quiet = host.bundle(&["sleep", "100000"]).resources(json!({"memory": {"limit": LIMIT}})).write();
    start(&mut client, "quiet", &quiet).await;
    let (hog, harmless) = (limited(&host, HOG).write(), limited(&host, "exit 7").write());
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..8 {
        let (mut client, hog, harmless) = (host.client().await, hog.clone(), harmless.clone());
        // Each lane has bundles, and so cgroups, of its own.
        let of_lane = |path: &str| {
            let config = std::fs::read_to_string(format!("{path}/config.json")).unwrap();
            let mut bundle = host.bundle(&[]);
            let cgroup = bundle.cgroup();
            bundle.config = serde_json::from_str(&config).unwrap();
            bundle.config["linux"]["cgroupsPath"] = cgroup.into();
            bundle.write()
        };
        let (hog, harmless) = (of_lane(&hog), of_lane(&harmless));
        tasks.spawn(async move {
            let mut watch = Watch::new(&mut client).await;
            for n in 0..25 {
                let id = format!("c{lane}-{n}");
                start(&mut client, &id, &hog).await;
                assert_eq!(watch.exit(&id, "init").await, 137);
                // The next one of the same id, at once.
                start(&mut client, &id, &harmless).await;
                assert_eq!(watch.exit(&id, "init").await, 7);
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    kill(&mut client, "quiet").await;
    let mut told: HashMap<String, Vec<String>> = HashMap::new();
    loop {
        let event = watch.next().await;
        told.entry(event.id.clone()).or_default().push(short(&event).split_once(' ').unwrap().1.to_string());
        if event.id == "quiet" && event.r#type == "exit" {
            break;
        }
    }
    assert_eq!(told.remove("quiet").unwrap(), ["start-container", "exit init 137"]);
    assert_eq!(told.len(), 200);
    let expected = ["start-container", "oom", "exit init 137", "start-container", "exit init 7"];
    for (id, events) in told {
        assert_eq!(events, expected, "{id}");
    }
    host.finish();
}

#[tokio::test]
async fn a_child_that_is_killed_is_told_while_its_container_goes_on() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    start(&mut client, "c", &limited(&host, "tail /dev/zero; sleep 100000").write()).await;
    assert_eq!(short(&watch.next().await), "c start-container");
    assert_eq!(short(&watch.next().await), "c oom");
    // An added process: its exit comes after.
    client.add_process(process("c", "p", &["tail", "/dev/zero"])).await.unwrap();
    assert_eq!(short(&watch.next().await), "c start-process p");
    assert_eq!(short(&watch.next().await), "c oom");
    assert_eq!(short(&watch.next().await), "c exit p 137");
    assert!(watch.silent_for(Duration::from_secs(3)).await, "nothing is told twice");
    kill(&mut client, "c").await;
    assert_eq!(short(&watch.next().await), "c exit init 137");
    host.finish();
}

#[tokio::test]
async fn a_restart_tells_what_happened_meanwhile_and_nothing_twice() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let out = host.fifo();
    let mut request = container("c", &limited(&host, "while read line; do tail /dev/zero; echo killed; done").write());
    let input = host.fifo();
    (request.stdin, request.stdout) = (input.path(), out.path());
    let mut reader = out.reader_now();
    client.create_container(request).await.unwrap();
    let mut writer = input.writer();
    let mut kill_one = || {
        use std::io::{Read, Write};
        writer.write_all(b"go\n").unwrap();
        let mut said = Vec::new();
        eventually("the child is killed", || {
            let mut piece = [0; 64];
            if let Ok(n) = reader.read(&mut piece) {
                said.extend_from_slice(&piece[..n]);
            }
            said.ends_with(b"killed\n")
        });
    };
    kill_one();
    while watch.next().await.r#type != "oom" {}
    let ooms = async |host: &Host| {
        let events = stored(&mut host.client().await).await;
        events.iter().filter(|event| event.r#type == "oom").count()
    };
    host.restart(Signal::KILL).await;
    assert_eq!(ooms(&host).await, 1, "not told twice");
    host.stop(Signal::KILL);
    kill_one();
    host.start().await;
    assert_eq!(ooms(&host).await, 2, "told by the next daemon");
    host.restart(Signal::KILL).await;
    assert_eq!(ooms(&host).await, 2, "not told twice");
    // Also when the container is over before the next daemon is there, and none has seen it.
    host.stop(Signal::KILL);
    kill_one();
    let pid = std::fs::read_to_string(host.state_dir().join("c/init/pid")).unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let status = host.state_dir().join("c/init/exitStatus");
    eventually("the shim has written the status", || status.exists());
    host.start().await;
    let mut client = host.client().await;
    eventually("the container is gone", || !host.state_dir().join("c").exists());
    let events: Vec<String> = stored(&mut client).await.iter().map(short).collect();
    assert_eq!(events, ["c start-container", "c oom", "c oom", "c oom", "c exit init 137"]);
    host.finish();
}

#[tokio::test]
async fn kills_in_groups_below_count() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sleep", "100000"]);
    start(&mut client, "c", &bundle.write()).await;
    // A group that the container might have made, with less than the container has. The kernel wakes those who watch
    // the group itself only, on v1; the count before the exit tells.
    let memory = tests::cgroup::directories(&bundle.cgroup())
        .into_iter()
        .find(|directory| directory.join("memory.stat").exists())
        .expect("a memory group");
    let below = memory.join("below");
    std::fs::create_dir(&below).unwrap();
    if tests::cgroup::is_v2() {
        println!("SKIPPED: a group with processes and groups below it is not allowed on v2");
        std::fs::remove_dir(&below).unwrap();
    } else {
        std::fs::write(below.join("memory.limit_in_bytes"), "4M").unwrap();
        let script = format!("echo $$ > {}/cgroup.procs; exec tail /dev/zero", below.display());
        let status = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
        assert!(!status.success());
    }
    signal(&mut client, "c", "init", 9).await.unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != "c exit init 137") {
        told.push(short(&watch.next().await));
    }
    assert_eq!(told.contains(&"c oom".to_string()), !tests::cgroup::is_v2(), "{told:?}");
    host.finish();
}

/// Removes the groups of a path as soon as they are empty, as systemd does with its scopes.
struct Remover {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    /// It was faster than the runtime.
    removed: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Remover {
    fn new(host: &Host, id: &str, cgroup: &str) -> Remover {
        let pid_file = host.state_dir().join(id).join("init/pid");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let removed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, cgroup) = (stop.clone(), cgroup.to_string());
        let has_removed = removed.clone();
        let thread = std::thread::spawn(move || {
            let goes_on = || !stopped.load(std::sync::atomic::Ordering::Relaxed);
            let members =
                |group: &std::path::PathBuf| std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            // A process that has just been made is not in all of them yet: the memory group has to have it.
            let memory = if tests::cgroup::is_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
            let memory = std::path::Path::new(memory).join(cgroup.trim_start_matches('/'));
            while goes_on() && members(&memory).is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let pid = || std::fs::read_to_string(&pid_file);
            while goes_on() && tests::cgroup::is_v2() && pid().is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let init = pid().map(|pid| std::path::Path::new("/proc").join(pid));
            // v2 says nothing of a kill before it has happened, so nothing can be faster than this loop. systemd takes some
            // milliseconds, and is later than the shim, which reads the count before it reaps its process.
            while goes_on() && tests::cgroup::is_v2() && init.as_ref().is_ok_and(|init| init.exists()) {}
            while goes_on() {
                if std::fs::remove_dir(&memory).is_ok() {
                    for group in tests::cgroup::directories(&cgroup) {
                        let _ = std::fs::remove_dir(group);
                    }
                    has_removed.store(true, std::sync::atomic::Ordering::Relaxed);
                    break;
                }
            }
        });
        Remover { stop, removed, thread: Some(thread) }
    }
}

impl Remover {
    fn has_removed(&self) -> bool {
        self.removed.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

#[tokio::test]
async fn kills_are_reported_though_the_group_goes_with_its_last_process() {
    let mut host = Host::with(tests::Options { flags: vec!["--retain-count=0".into()], ..Default::default() }).await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let input = host.fifo();
    // Waits for a line, so that the group is known to be removed and not on its way.
    let bundle = limited(&host, "read line; exec tail /dev/zero");
    let path = bundle.write();
    let mut removed = 0;
    for n in 0..20 {
        let id = format!("c{n}");
        let remover = Remover::new(&host, &id, &bundle.cgroup());
        let mut request = container(&id, &path);
        request.stdin = input.path();
        client.create_container(request).await.unwrap();
        let with_daemon = n % 2 == 0;
        if !with_daemon {
            host.stop(Signal::KILL);
        }
        input.feed(b"go\n".to_vec()).join().unwrap();
        if !with_daemon {
            let status = host.state_dir().join(&id).join("init/exitStatus");
            eventually("the shim has written the status", || status.exists());
            host.start().await;
            client = host.client().await;
            let state = host.state_dir().join(&id);
            eventually("the container is gone", || !state.exists());
            let events: Vec<String> =
                stored(&mut client).await.iter().filter(|event| event.id == id).map(short).collect();
            assert_eq!(events, [format!("{id} start-container"), format!("{id} oom"), format!("{id} exit init 137")]);
            watch = Watch::new(&mut client).await;
            removed += usize::from(remover.has_removed());
            continue;
        }
        let mut events = Vec::new();
        while events.last().is_none_or(|last: &String| !last.contains("exit")) {
            events.push(short(&watch.next().await));
        }
        assert_eq!(events, [format!("{id} start-container"), format!("{id} oom"), format!("{id} exit init 137")]);
        removed += usize::from(remover.has_removed());
    }
    // With a daemon the runtime may be as fast.
    assert!(removed >= 10, "{removed}");
    // A container that is killed otherwise is not one that ran out of memory.
    let _remover = Remover::new(&host, "killed", &bundle.cgroup());
    let mut request = container("killed", &path);
    request.stdin = input.path();
    client.create_container(request).await.unwrap();
    signal(&mut client, "killed", "init", 9).await.unwrap();
    assert_eq!(short(&watch.next().await), "killed start-container");
    assert_eq!(short(&watch.next().await), "killed exit init 137");
    host.finish();
}
