//! A container's control groups: where they are, what is left of them, and what other programs do to them.

use crate::support::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::cgroup::{directories, is_v2};
use tests::{Bundle, Host, Options, children_of, eventually};
use tonic::Code;

/// Longer where the tests run in an emulated machine, as those of v2 alone do.
fn time_limit() -> Duration {
    Duration::from_secs(if is_v2() { 12 } else { 2 })
}

fn start_timeout() -> String {
    format!("--start-timeout={}s", time_limit().as_secs())
}

/// All groups of this host with a text in their paths.
fn groups_with(text: &str) -> BTreeSet<PathBuf> {
    fn walk(directory: &Path, text: &str, found: &mut BTreeSet<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.path().to_string_lossy().contains(text) {
                    found.insert(entry.path());
                }
                walk(&entry.path(), text, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(Path::new("/sys/fs/cgroup"), text, &mut found);
    found
}

/// The roots of all hierarchies.
fn roots() -> Vec<PathBuf> {
    if is_v2() {
        return vec!["/sys/fs/cgroup".into()];
    }
    let all = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.join("cgroup.procs").exists()).collect()
}

/// A group for the daemon in each hierarchy, two levels below the root.
struct OwnGroup(String);

impl OwnGroup {
    fn new(name: &str) -> OwnGroup {
        for root in roots() {
            for group in [root.join(name), root.join(name).join("d")] {
                std::fs::create_dir(&group).unwrap();
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let of_root = std::fs::read_to_string(root.join(file));
                    if let (false, Ok(text)) = (is_v2(), of_root) {
                        std::fs::write(group.join(file), text).unwrap();
                    }
                }
            }
        }
        OwnGroup(name.into())
    }

    /// A command that puts itself there before it runs another one.
    fn wrapper(name: &str) -> Vec<String> {
        let root = if is_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/*" };
        let script = format!("for g in {root}/{name}/d/cgroup.procs; do echo $$ > $g; done; exec \"$@\"");
        ["sh", "-c", &script, "sh"].map(String::from).to_vec()
    }
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        for root in roots() {
            for group in [root.join(&self.0).join("d"), root.join(&self.0)] {
                let deadline = Instant::now() + Duration::from_secs(5);
                while std::fs::remove_dir(&group).is_err() && group.exists() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// Kills the hooks of a runtime that was killed: bare crun leaves them, too.
fn kill_hooks(host: &Host) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if cwd.starts_with(host.path().join("bundles")) && command.starts_with(b"sleep\0") {
            let pid = entry.file_name().to_string_lossy().parse().unwrap();
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

/// Has a bundle run a hook that notes that it runs, and then waits.
fn hanging(host: &Host, bundle: Bundle, hook: &str) -> (Bundle, PathBuf) {
    let reached = host.path().join(host.name("hook"));
    let script = format!("touch {}; exec sleep 1000", reached.display());
    let mut bundle = bundle;
    bundle.config["hooks"] = json!({hook: [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    (bundle, reached)
}

#[tokio::test]
async fn failed_starts_leave_no_groups_wherever_the_daemon_is() {
    let name = format!("own-{}-{:x}", std::process::id(), rustix::thread::gettid().as_raw_nonzero());
    let own = OwnGroup::new(&name);
    let options = Options { flags: vec![start_timeout()], wrapper: OwnGroup::wrapper(&name), ..Options::default() };
    let mut host = Host::with(options).await;
    let mut client = host.client().await;
    let unique = host.path().file_name().unwrap().to_str().unwrap().replace('.', "-");
    let id = format!("id-{unique}");
    let bundle_at = |host: &Host, path: Option<String>| {
        let mut bundle = host.bundle(&["sleep", "1000"]);
        bundle.config["linux"]["cgroupsPath"] = path.into();
        if bundle.config["linux"]["cgroupsPath"].is_null() {
            bundle.config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        }
        bundle
    };
    let paths = [
        None,
        Some(format!("rel-{unique}")),
        Some(format!("new-{unique}/a/leaf")),
        Some(format!("/{unique}/new/leaf")),
    ];
    for path in paths {
        let before = groups_with(&unique);
        println!("{path:?}");
        for hook in ["prestart", "createRuntime"] {
            let (bundle, _) = hanging(&host, bundle_at(&host, path.clone()), hook);
            refused(client.create_container(container(&id, &bundle.write())).await, Code::DeadlineExceeded, &[]);
            eventually("the clean-up is done", || !host.state_dir().join(&id).exists());
            assert_eq!(groups_with(&unique), before, "{hook} that ran into the time limit");
        }
        let mut fails = bundle_at(&host, path.clone());
        fails.config["process"]["args"] = json!(["/nonexistent"]);
        refused(client.create_container(container(&id, &fails.write())).await, Code::Unknown, &[]);
        assert_eq!(groups_with(&unique), before, "a program that is not there");

        let (bundle, reached) = hanging(&host, bundle_at(&host, path.clone()), "createRuntime");
        let bundle = bundle.write();
        let create = |host: &Host| {
            let (mut client, request) = (host.lazy_client(), container(&id, &bundle));
            tokio::spawn(async move { client.create_container(request).await })
        };
        let wait = async |reached: &Path| {
            let reached = reached.to_path_buf();
            let wait = move || eventually("the hook runs", || reached.exists());
            tokio::task::spawn_blocking(wait).await.unwrap();
            let _ = tokio::task::yield_now().await;
        };
        let call = create(&host);
        wait(&reached).await;
        let shim = children_of(host.pid())[0];
        kill_process(Pid::from_raw(shim as i32).unwrap(), Signal::KILL).unwrap();
        call.await.unwrap().unwrap_err();
        assert_eq!(groups_with(&unique), before, "the shim died");
        kill_hooks(&host);

        std::fs::remove_file(&reached).unwrap();
        let call = create(&host);
        wait(&reached).await;
        host.restart(Signal::KILL).await;
        let _ = call.await.unwrap();
        client = host.client().await;
        eventually("it is removed", || !host.state_dir().join(&id).exists());
        assert_eq!(groups_with(&unique), before, "the daemon died");

        // One that starts is where bare runtimes have it, and goes as a whole.
        let works = bundle_at(&host, path.clone()).write();
        let started = start(&mut client, &id, &works).await;
        assert_eq!(state(&mut client).await[0].pids, started.pids);
        assert!(groups_with(&unique).len() > before.len());
        kill(&mut client, &id).await;
        // Bare runtimes leave the groups above, which later containers may have.
        let above = groups_with(&unique);
        let leaf = path.as_deref().map_or(id.as_str(), |path| path.rsplit('/').next().unwrap());
        let is_left = |group: &&PathBuf| !before.contains(*group) && group.ends_with(leaf);
        assert_eq!(above.iter().filter(is_left).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
        for group in above.iter().rev().filter(|group| !before.contains(*group)) {
            std::fs::remove_dir(group).unwrap();
        }
    }
    host.finish();
    drop(own);
}

#[tokio::test]
async fn failed_starts_leave_the_groups_of_others() {
    let host = Host::with(Options { flags: vec![start_timeout()], ..Options::default() }).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]);
    let theirs: Vec<PathBuf> = roots().iter().map(|root| root.join(&bundle.cgroup()[1..])).collect();
    for group in &theirs {
        std::fs::create_dir_all(group).unwrap();
    }
    // The runtime never gets to the groups: what is there is another program's.
    let mut fails = bundle.clone();
    fails.config["root"]["path"] = "/nonexistent".into();
    client.create_container(container("c", &fails.write())).await.unwrap_err();
    let there = theirs.iter().filter(|group| group.exists()).count();
    // Bare runtimes remove what they were given before they find out that they cannot go on.
    let bare = std::process::Command::new(tests::runtime())
        .args([&format!("--root={}", host.join("bare")), "run", "--detach", "--bundle", &fails.write(), "bare"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(!bare.status.success());
    assert!(there >= theirs.iter().filter(|group| group.exists()).count());
    for group in &theirs {
        let _ = std::fs::remove_dir(group);
    }
    host.finish();
}

/// v1's freezer group of a path, or v2's group, and what freezes and thaws it.
fn freezer(path: &str) -> (PathBuf, &'static str, &'static str) {
    let below = path.trim_start_matches('/');
    if is_v2() {
        (Path::new("/sys/fs/cgroup").join(below).join("cgroup.freeze"), "1", "0")
    } else {
        (Path::new("/sys/fs/cgroup/freezer").join(below).join("freezer.state"), "FROZEN", "THAWED")
    }
}

#[tokio::test]
async fn a_start_below_a_frozen_group_ends_at_its_time_limit() {
    let host = Host::with(Options { flags: vec![start_timeout()], ..Options::default() }).await;
    let mut client = host.client().await;
    for is_in in [false, true] {
        let bundle = host.bundle(&["sleep", "1000"]);
        let path = bundle.cgroup();
        let frozen_path = if is_in { path.as_str() } else { path.rsplit_once('/').unwrap().0 };
        let (file, frozen, thawed) = freezer(frozen_path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, frozen).unwrap();
        let begun = Instant::now();
        let refusal = client.create_container(container("c", &bundle.write())).await;
        if is_in {
            // runc looks at the group itself, and refuses.
            refusal.unwrap_err();
        } else {
            refused(refusal, Code::DeadlineExceeded, &[]);
        }
        // Much longer than the limit, and much shorter than it takes to wait for processes that do not die.
        assert!(begun.elapsed() < time_limit() + Duration::from_secs(13), "{:?}", begun.elapsed());
        eventually("the clean-up is done", || !host.state_dir().join("c").exists());
        if !is_in {
            assert_eq!(
                std::fs::read_to_string(&file).unwrap().trim(),
                frozen,
                "what another program has frozen stays so"
            );
            let left: Vec<PathBuf> = directories(&path).into_iter().filter(|group| group.exists()).collect();
            assert_eq!(left, Vec::<PathBuf>::new());
        }
        let _ = std::fs::write(&file, thawed);
        let _ = std::fs::remove_dir(file.parent().unwrap());
    }
    // A process that is added while the container is frozen behind the daemon's back.
    let bundle = host.bundle(&["sleep", "1000"]);
    start(&mut client, "c", &bundle.write()).await;
    let (file, frozen, thawed) = freezer(bundle.cgroup().rsplit_once('/').unwrap().0);
    std::fs::write(&file, frozen).unwrap();
    let begun = Instant::now();
    client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap_err();
    assert!(begun.elapsed() < time_limit() + Duration::from_secs(13), "{:?}", begun.elapsed());
    std::fs::write(&file, thawed).unwrap();
    eventually("the clean-up is done", || !host.state_dir().join("c/p").exists());
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn resume_names_the_frozen_group_above() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]);
    start(&mut client, "c", &bundle.write()).await;
    let mut watch = Watch::new(&mut client).await;
    set_status(&mut client, "c", "paused").await.unwrap();
    assert_eq!(short(&watch.next().await), "c pause");
    let (file, frozen, thawed) = freezer(bundle.cgroup().rsplit_once('/').unwrap().0);
    std::fs::write(&file, frozen).unwrap();
    let group = file.parent().unwrap().to_str().unwrap().to_string();
    refused(set_status(&mut client, "c", "running").await, Code::FailedPrecondition, &["cannot resume", &group]);
    assert_eq!(state(&mut client).await[0].status, "paused");
    std::fs::write(&file, thawed).unwrap();
    set_status(&mut client, "c", "running").await.unwrap();
    assert_eq!(short(&watch.next().await), "c resume");
    // Frozen by that group alone.
    std::fs::write(&file, frozen).unwrap();
    refused(set_status(&mut client, "c", "running").await, Code::FailedPrecondition, &[&group]);
    std::fs::write(&file, thawed).unwrap();
    assert_eq!(state(&mut client).await[0].status, "running");
    if !is_v2() {
        // v1 shows the container itself as frozen, as it is.
        assert_eq!(short(&watch.next().await), "c pause");
        assert_eq!(short(&watch.next().await), "c resume");
    }
    kill(&mut client, "c").await;
    assert_eq!(short(&watch.next().await), "c exit init 137");
    host.finish();
}

#[tokio::test]
async fn a_container_whose_processes_or_groups_were_moved_is_running() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]);
    let init = start(&mut client, "c", &bundle.write()).await.processes[0].system_pid;
    let added = client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap().into_inner().system_pid;
    let mut expected = [init, added];
    expected.sort_unstable();
    let groups = directories(&bundle.cgroup());
    let move_out = |group: &Path| {
        let root = group.ancestors().find(|above| above.ends_with(bundle.cgroup().split('/').nth(1).unwrap())).unwrap();
        let root = root.parent().unwrap();
        for pid in expected {
            std::fs::write(root.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    };
    let check = async |client: &mut tests::Client, what: &str| {
        let told = state(client).await;
        assert_eq!((told[0].status.as_str(), &told[0].pids[..]), ("running", &expected[..]), "{what}");
    };
    let members = groups.iter().find(|group| is_v2() || group.starts_with("/sys/fs/cgroup/pids")).unwrap();
    move_out(members);
    check(&mut client, "moved out of the group that is read").await;
    for group in &groups {
        move_out(group);
        eventually("the group is empty", || std::fs::remove_dir(group).is_ok());
    }
    check(&mut client, "without any group").await;
    signal(&mut client, "c", "p", 9).await.unwrap();
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn processes_in_frozen_groups_below_can_be_killed() {
    if is_v2() {
        println!("SKIPPED: v2 lets frozen processes die");
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sleep", "1000"]);
    for externally in [false, true] {
        let init = start(&mut client, "c", &bundle.write()).await.processes[0].system_pid;
        let group = Path::new("/sys/fs/cgroup/freezer").join(&bundle.cgroup()[1..]);
        for name in ["p", "q", "r"] {
            let pid = client.add_process(process("c", name, &["sleep", "1000"])).await.unwrap().into_inner().system_pid;
            let below = group.join(name).join("below");
            std::fs::create_dir_all(&below).unwrap();
            std::fs::write(below.join("cgroup.procs"), pid.to_string()).unwrap();
            std::fs::write(group.join(name).join("freezer.state"), "FROZEN").unwrap();
        }
        signal(&mut client, "c", "p", 9).await.unwrap();
        assert_eq!(watch.exit("c", "p").await, 137);
        let other = std::fs::read_to_string(group.join("q/freezer.state")).unwrap();
        // The kernel may not have stopped all of them yet, which it says as FREEZING.
        assert_ne!(other.trim(), "THAWED", "what the container itself has frozen stays so");
        if externally {
            // Its end waits for the others, and nobody tells the daemon.
            kill_process(Pid::from_raw(init as i32).unwrap(), Signal::KILL).unwrap();
            let is_ending = || sys::procfs::stat(init).unwrap().is_none_or(|stat| stat.is_ending() || stat.is_dead());
            eventually("init is killed", is_ending);
        }
        signal(&mut client, "c", "init", 9).await.unwrap();
        assert_eq!(watch.exit("c", "init").await, 137);
        for group in groups_with(&bundle.cgroup()).into_iter().rev() {
            std::fs::remove_dir(group).unwrap();
        }
    }
    host.finish();
}
