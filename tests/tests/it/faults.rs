//! The machine, the runtime or the shim misbehaves: a clear error, nothing left, and all well once the cause is gone.

use crate::support::*;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::{Client, FAULTS, Host, Ledger, Options, READY, children_of, ends_with, eventually};
use tonic::Code;

fn faulty(flags: &[&str]) -> Options {
    let flags = flags.iter().map(|flag| (*flag).to_string()).collect();
    Options { fake_runtime: Some(FAULTS), flags, ..Options::default() }
}

/// A container can be made, used and ended.
async fn works(host: &Host, client: &mut Client, id: &str) {
    let mut watch = Watch::new(client).await;
    sleeper(host, client, id).await;
    client.add_process(process(id, "p", &["sh", "-c", "exit 8"])).await.unwrap();
    assert_eq!(watch.exit(id, "p").await, 8);
    set_status(client, id, "paused").await.unwrap();
    set_status(client, id, "running").await.unwrap();
    signal(client, id, "init", 9).await.unwrap();
    assert_eq!(watch.exit(id, "init").await, 137);
}

/// Starts a container whose init ends with 5 when it gets SIGUSR1.
async fn start_ender(host: &Host, client: &mut Client, id: &str) {
    let out = Output::new(host);
    let mut request = container(id, &host.bundle(&["sh", "-c", &ends_with(5)]).write());
    request.stdout = out.path();
    client.create_container(request).await.unwrap();
    out.is_ready();
}

/// Adds a process `p` that ends with 6 when it gets SIGUSR1.
async fn add_ender(host: &Host, client: &mut Client, id: &str) {
    let out = Output::new(host);
    let mut request = process(id, "p", &["sh", "-c", &ends_with(6)]);
    request.stdout = out.path();
    client.add_process(request).await.unwrap();
    out.is_ready();
}

/// A file for what a process writes.
struct Output(tempfile::NamedTempFile);

impl Output {
    fn new(host: &Host) -> Output {
        Output(tempfile::NamedTempFile::new_in(host.path()).unwrap())
    }

    fn path(&self) -> String {
        self.0.path().to_str().unwrap().to_string()
    }

    fn is_ready(&self) {
        eventually("it is ready", || std::fs::read_to_string(self.0.path()).unwrap().starts_with(READY));
    }
}

/// Nothing of a container is left, so that its id can be used again.
fn nothing_of(host: &Host, id: &str) {
    assert!(!host.state_dir().join(id).exists(), "the directory of {id}");
    assert!(!host.path().join("root").join(id).exists(), "what the runtime keeps of {id}");
}

#[tokio::test]
async fn what_a_runtime_may_do_instead_of_creating() {
    let host = Host::with(faulty(&["--start-timeout=2s"])).await;
    let mut client = host.client().await;
    let cases = [
        ("run:fail", Code::Unknown, "oci runtime error: it fails on purpose"),
        ("run:crash", Code::Unknown, "run ended with status 3"),
        ("run:signal-9", Code::Unknown, "run ended with signal 9"),
        ("run:signal-11", Code::Unknown, "run ended with signal 11"),
        ("run:garbage", Code::Unknown, "run ended with status 1"),
        ("run:silent", Code::Unknown, "wrote no pid file"),
        ("run:no-pid", Code::Unknown, "wrote no pid file"),
        ("run:bad-pid", Code::Unknown, "wrote no number as the pid"),
        ("run:dead-pid", Code::Unknown, "no such process"),
        ("run:hang", Code::DeadlineExceeded, "containerd: container did not start before the specified timeout"),
        ("run:stop", Code::DeadlineExceeded, "containerd: container did not start before the specified timeout"),
        ("create:fail", Code::Unknown, "oci runtime error: it fails on purpose"),
        ("create:signal-9", Code::Unknown, "create ended with signal 9"),
        ("start:fail", Code::Unknown, "oci runtime error: it fails on purpose"),
        ("start:crash", Code::Unknown, "start ended with status 3 and said nothing"),
        ("start:signal-9", Code::Unknown, "start ended with signal 9"),
        ("start:garbage", Code::Unknown, "oci runtime error"),
        ("start:hang", Code::DeadlineExceeded, "containerd: container did not start before the specified timeout"),
        ("start:stop", Code::DeadlineExceeded, "containerd: container did not start before the specified timeout"),
    ];
    let mut watch = Watch::new(&mut client).await;
    for (fault, code, text) in cases {
        println!("{fault}");
        let bundle = host.bundle(&["sleep", "1000"]).fault(fault);
        let group = (!fault.starts_with("run")).then(|| bundle.make_group());
        refused(client.create_container(container("c", &bundle.write())).await, code, &[text]);
        nothing_of(&host, "c");
        drop(group);
    }
    // Nobody has been told of any of them.
    start(&mut client, "d", &host.bundle(&["true"]).write()).await;
    assert_eq!(short(&watch.next().await), "d start-container");
    assert_eq!(watch.exit("d", "init").await, 0);
    works(&host, &mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn what_a_dead_daemon_has_stopped_half_made_does_not_stay() {
    // A runtime is killed half-way, and so is a daemon that was killing what it had begun, which is stopped by then.
    const HALF: &str = r#"here=$(dirname $0)
        case " $* " in *" run "*|*" create "*)
            group=$(cat $here/group)
            cp $(command -v sleep) "$here/runc:[2:INIT]"
            setsid "$here/runc:[2:INIT]" 1000 &
            # Stopped before that, it would not have the name by which a runtime's own process is known.
            until grep -q INIT /proc/$!/comm; do :; done
            for root in /sys/fs/cgroup/pids /sys/fs/cgroup/freezer /sys/fs/cgroup; do
                [ -e $root/cgroup.procs ] && mkdir -p $root/$group && echo $! > $root/$group/cgroup.procs
            done
            kill -STOP $!
            kill -KILL $$ ;;
        esac
        exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(HALF), ..Options::default() }).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]);
    std::fs::write(host.path().join("group"), bundle.cgroup()).unwrap();
    let refusal = client.create_container(container("c", &bundle.write())).await;
    refused(refusal, Code::Unknown, &["ended with signal 9"]);
    assert!(!host.log().contains("it is left"), "{}", host.log());
    host.finish();
}

#[tokio::test]
async fn what_is_frozen_after_its_end_is_deleted() {
    // As the `pause` of a daemon that has died may do, which is on its way when the next one finds that init has ended.
    const FREEZES: &str = r#"here=$(dirname $0)
        case " $* " in *" delete "*)
            if [ ! -e $here/frozen ]; then
                group=$(cat $here/group)
                for state in /sys/fs/cgroup/freezer/$group/freezer.state=FROZEN /sys/fs/cgroup/$group/cgroup.freeze=1; do
                    [ -e ${state%=*} ] && echo ${state#*=} > ${state%=*} && touch $here/frozen
                done
            fi ;;
        esac
        exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(FREEZES), ..Options::default() }).await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sleep", "1000"]);
    std::fs::write(host.path().join("group"), bundle.cgroup()).unwrap();
    start(&mut client, "c", &bundle.write()).await;
    signal(&mut client, "c", "init", 9).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 137);
    assert!(host.path().join("frozen").exists());
    nothing_of(&host, "c");
    host.finish();
}

#[tokio::test]
async fn what_a_runtime_may_do_to_a_container_that_runs() {
    let host = Host::with(faulty(&["--start-timeout=2s"])).await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    start(&mut client, "c", &host.bundle(&["sleep", "1000"]).write()).await;
    let set = |fault: &str| std::fs::write(host.join("fault"), fault).unwrap();
    let cases = [
        ("exec:fail", Code::Unknown, "oci runtime error: it fails on purpose"),
        ("exec:signal-9", Code::Unknown, "exec ended with signal 9"),
        ("exec:silent", Code::Unknown, "wrote no pid file"),
        ("exec:bad-pid", Code::Unknown, "wrote no number as the pid"),
        ("exec:hang", Code::DeadlineExceeded, "did not start before the specified timeout"),
        ("exec:stop", Code::DeadlineExceeded, "did not start before the specified timeout"),
    ];
    for (fault, code, text) in cases {
        println!("{fault}");
        set(fault);
        refused(client.add_process(process("c", "p", &["sleep", "1000"])).await, code, &[text]);
        assert!(!host.state_dir().join("c/p").exists(), "{fault}");
    }
    for (fault, code, text) in [
        ("pause:fail", Code::Unknown, "it fails on purpose"),
        ("pause:hang", Code::DeadlineExceeded, "pause did not end within"),
        ("pause:stop", Code::DeadlineExceeded, "pause did not end within"),
        ("pause:garbage", Code::Unknown, "oci runtime error"),
    ] {
        println!("{fault}");
        set(fault);
        refused(set_status(&mut client, "c", "paused").await, code, &[text]);
        assert_eq!(state(&mut client).await[0].status, "running");
    }
    // What ran into the time limit has been killed, and what it had started too.
    assert_eq!(children_of(host.pid()).len(), 1, "the shim alone");
    // A runtime that crashes is asked again; one that refuses is not, and what it keeps is its own affair.
    set("delete:signal-9");
    signal(&mut client, "c", "init", 9).await.unwrap();
    let reached = host.join("reached");
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    eventually("the delete has crashed", || read(&reached).trim() == "delete");
    set("none");
    assert_eq!(watch.exit("c", "init").await, 137);
    nothing_of(&host, "c");
    works(&host, &mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn what_a_killed_runc_has_mounted_is_unmounted() {
    const MOUNTS: &str = r#"
mount_here() {
    mkdir -p "$(dirname $0)/root/$1"
    touch "$(dirname $0)/root/$1/runc.Ab12Cd"
    mount --bind "$(command -v $RUNTIME)" "$(dirname $0)/root/$1/runc.Ab12Cd"
}
case " $* " in
*" run "*half*) mount_here half; sleep 100000 ;;
*" exec "*) mount_here c; sleep 100000 ;;
esac
exec $RUNTIME "$@""#;
    let flags = vec!["--start-timeout=5s".into()];
    let mut host = Host::with(Options { fake_runtime: Some(MOUNTS), flags, ..Options::default() }).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]).write();
    refused(client.create_container(container("half", &bundle)).await, Code::DeadlineExceeded, &["did not start"]);
    nothing_of(&host, "half");
    sleeper(&host, &mut client, "c").await;
    refused(client.add_process(process("c", "p", &["true"])).await, Code::DeadlineExceeded, &["did not start"]);
    let is_mounted = |path: &str| {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(4) == Some(path))
    };
    let (left, of_others) = (host.join("root/c/runc.Ab12Cd"), host.join("other/c/runc.Ab12Cd"));
    assert!(is_mounted(&left));
    // Another supervisor's container may have the same id.
    std::fs::create_dir_all(host.join("other/c")).unwrap();
    std::fs::write(&of_others, "").unwrap();
    rustix::mount::mount_bind(tests::bin("containerd-shim"), &of_others).unwrap();
    // The next daemon does not know what was cut off.
    host.restart(Signal::KILL).await;
    client = host.client().await;
    kill(&mut client, "c").await;
    nothing_of(&host, "c");
    assert!(is_mounted(&of_others));
    rustix::mount::unmount(&of_others, rustix::mount::UnmountFlags::DETACH).unwrap();
    host.finish();
}

/// The shim that works in a process's directory.
fn shim_of(host: &Host, id: &str, process: &str) -> Pid {
    let directory = host.state_dir().join(id).join(process);
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let works_there = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory);
    pids.find(works_there).and_then(Pid::from_raw).expect("a shim")
}

#[tokio::test]
async fn a_stopped_shim_delays_nobody_and_nothing_is_lost() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    for id in ["c", "d"] {
        sleeper(&host, &mut client, id).await;
    }
    let (c, d) = (shim_of(&host, "c", "init"), shim_of(&host, "d", "init"));
    for shim in [c, d] {
        kill_process(shim, Signal::STOP).unwrap();
    }
    // It is not asked for anything.
    works(&host, &mut client, "e").await;
    let last = stored(&mut client).await.pop().unwrap().timestamp;
    drop(watch);
    host.stop(Signal::KILL);
    // A group that is orphaned while it is stopped goes on (setpgid(2)): stopped again, for the next daemon to find.
    for shim in [c, d] {
        kill_process(shim, Signal::STOP).unwrap();
    }
    host.start().await;
    let mut client = host.client().await;
    let containers = state(&mut client).await;
    assert_eq!(containers.iter().map(|c| c.status.as_str()).collect::<Vec<_>>(), ["running"; 2]);
    let request = api::EventsRequest { timestamp: last, stored_only: false, id: String::new() };
    watch = Watch::with(&mut client, request).await;
    for id in ["c", "d"] {
        signal(&mut client, id, "init", 15).await.unwrap();
        signal(&mut client, id, "init", 9).await.unwrap();
    }
    // Nobody has said how they ended; that they have is seen.
    let is_stopped = async |client: &mut Client| state(client).await.iter().all(|c| c.status == "stopped");
    while !is_stopped(&mut client).await {}
    let early = tokio::time::timeout(Duration::from_millis(100), watch.next()).await;
    assert!(early.is_err(), "{early:?}");
    // One goes on, the other one is cleared away: both tell the truth.
    kill_process(c, Signal::CONT).unwrap();
    assert_eq!(short(&watch.next().await), "c exit init 137");
    refused(signal(&mut client, "d", "init", 15).await, Code::NotFound, &["no such process"]);
    signal(&mut client, "d", "init", 9).await.unwrap();
    assert_eq!(short(&watch.next().await), "d exit init 137");
    nothing_of(&host, "d");
    host.finish();
}

#[tokio::test]
async fn a_container_whose_files_are_broken_is_set_aside_and_can_be_cleared() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let ids = ["fine", "garbage", "newer", "no-process", "odd-process", "odd-status"];
    for id in ids {
        sleeper(&host, &mut client, id).await;
    }
    client.add_process(process("garbage", "p", &["sleep", "1000"])).await.unwrap();
    client.add_process(process("fine", "broken", &["sleep", "1000"])).await.unwrap();
    let last = stored(&mut client).await.pop().unwrap().timestamp;
    host.stop(Signal::KILL);
    let file = |name: &str| host.state_dir().join(name);
    std::fs::write(file("garbage/state.json"), "{rubbish").unwrap();
    let edit = |name: &str, member: &str, value: serde_json::Value| {
        let mut object: serde_json::Value = serde_json::from_slice(&std::fs::read(file(name)).unwrap()).unwrap();
        object[member] = value;
        std::fs::write(file(name), object.to_string()).unwrap();
    };
    edit("newer/state.json", "version", 99.into());
    std::fs::remove_file(file("no-process/init/process.json")).unwrap();
    std::fs::write(file("odd-process/init/pid"), "many").unwrap();
    std::fs::create_dir(file("odd-status/init/exitStatus")).unwrap();
    std::fs::write(file("fine/broken/process.json"), "").unwrap();
    // No daemon has made this directory.
    std::fs::create_dir_all(file("nobody/init")).unwrap();
    let begun = Instant::now();
    host.start().await;
    let mut client = host.client().await;
    let containers = state(&mut client).await;
    println!("start with broken containers: {:?}", begun.elapsed());
    let seen: Vec<(String, String)> = containers.iter().map(|c| (c.id.clone(), c.status.clone())).collect();
    let expected = [
        ("fine", "running"),
        ("garbage", "broken"),
        ("newer", "broken"),
        ("no-process", "running"),
        ("odd-process", "running"),
        ("odd-status", "running"),
    ];
    assert_eq!(seen, expected.map(|(id, status)| (id.to_string(), status.to_string())));
    assert!(containers[3].bundle_path.contains("bundle"), "what can be read is told");
    refused(
        signal(&mut client, "newer", "init", 15).await,
        Code::FailedPrecondition,
        &["a newer containerd", "SIGKILL"],
    );
    refused(set_status(&mut client, "garbage", "paused").await, Code::FailedPrecondition, &["broken", "state.json"]);
    let again = host.bundle(&["true"]).write();
    refused(client.create_container(container("garbage", &again)).await, Code::AlreadyExists, &["garbage"]);
    let log = host.log();
    for (level, id) in
        [("ERROR", "garbage"), ("ERROR", "newer"), ("ERROR", "no-process"), ("WARN", "odd-process"), ("WARN", "nobody")]
    {
        assert!(log.lines().any(|line| line.contains(level) && line.contains(id)), "{id}: {log}");
    }
    // The rest is served, and each is removed when somebody says so.
    let request = api::EventsRequest { timestamp: last, stored_only: false, id: String::new() };
    let mut watch = Watch::with(&mut client, request).await;
    // What a process was started with can be unknown, and the process is looked after all the same.
    signal(&mut client, "fine", "broken", 9).await.unwrap();
    assert_eq!(short(&watch.next().await), "fine exit broken 137");
    kill(&mut client, "fine").await;
    assert_eq!(short(&watch.next().await), "fine exit init 137");
    signal(&mut client, "garbage", "init", 9).await.unwrap();
    assert_eq!(short(&watch.next().await), "garbage exit p 137");
    assert_eq!(short(&watch.next().await), "garbage exit init 137");
    nothing_of(&host, "garbage");
    for (id, status) in [("newer", 137), ("no-process", 137), ("odd-process", 137)] {
        signal(&mut client, id, "init", 9).await.unwrap();
        assert_eq!(watch.exit(id, "init").await, status, "{id}");
        nothing_of(&host, id);
    }
    signal(&mut client, "odd-status", "init", 9).await.unwrap();
    assert_eq!(watch.exit("odd-status", "init").await, 255, "nobody could write it down");
    refused(signal(&mut client, "nobody", "init", 9).await, Code::NotFound, &["nobody"]);
    refused(client.create_container(container("nobody", &again)).await, Code::AlreadyExists, &["nobody"]);
    assert!(host.state_dir().join("nobody/init").exists(), "it is left alone");
    std::fs::remove_dir_all(host.state_dir().join("nobody")).unwrap();
    assert!(state(&mut client).await.is_empty());
    host.finish();
}

#[tokio::test]
async fn a_newer_state_directory_is_refused() {
    let mut host = Host::new().await;
    host.stop(Signal::TERM);
    let version = host.state_dir().join(".version");
    assert_eq!(std::fs::read_to_string(&version).unwrap(), "1\n");
    std::fs::write(&version, "2\n").unwrap();
    let declaration = host.state_dir().join(".directory");
    let ours = std::fs::read_to_string(&declaration).unwrap();
    // As a newer daemon writes it.
    let newer = ours.replace("\"format\":1", "\"format\":2");
    let (body, _) = newer.split_once(",\"crc\"").unwrap();
    std::fs::write(&declaration, oci::checksum::seal(format!("{body}}}").into_bytes())).unwrap();
    assert!(
        !host.try_start().await || {
            eventually("it has ended", || host.has_died());
            true
        }
    );
    assert!(host.log().contains("a newer containerd wrote it (format 2, and this one knows 1)"), "{}", host.log());
    std::fs::write(&declaration, ours).unwrap();
    // One damaged file does not matter.
    host.start().await;
    works(&host, &mut host.client().await, "c").await;
    assert_eq!(std::fs::read_to_string(&version).unwrap(), "1\n");
    host.finish();
}

/// Mounts a file system that can be filled, in place of the state directory.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn mount(path: &Path) -> Small<'_> {
        std::fs::create_dir_all(path).unwrap();
        let data = c"size=1m,mode=711";
        rustix::mount::mount("small", path, "tmpfs", rustix::mount::MountFlags::empty(), data).unwrap();
        Small(path)
    }

    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join(".filling")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join(".filling")).unwrap();
    }

    fn set_read_only(&self, is: bool) {
        let mut flags = rustix::mount::MountFlags::empty();
        flags.set(rustix::mount::MountFlags::RDONLY, is);
        rustix::mount::mount_remount(self.0, flags, "size=1m").unwrap();
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_or_read_only_state_directory() {
    let mut host = Host::prepare(Options::default());
    let directory = host.state_dir();
    let small = Small::mount(&directory);
    host.start().await;
    let mut client = host.client().await;
    let ledger = Ledger::new(host.lazy_client());
    for (read_only, id) in [(false, "full"), (true, "read-only")] {
        start_ender(&host, &mut client, id).await;
        add_ender(&host, &mut client, id).await;
        if read_only {
            // While a daemon has a file open there, no file system can be made read-only.
            let (init, added) = (find(&host, id, "init"), find(&host, id, "p"));
            host.stop(Signal::KILL);
            small.set_read_only(true);
            for pid in [added, init] {
                kill_process(pid, Signal::USR1).unwrap();
                let number = pid.as_raw_nonzero().get() as u32;
                eventually("it has been reaped", || sys::procfs::stat(number).unwrap().is_none());
            }
            if host.try_start().await {
                eventually("it has ended", || host.has_died());
            }
            assert!(host.log().contains("Read-only file system"), "{}", host.log());
            small.set_read_only(false);
            host.start().await;
        } else {
            small.fill();
            let bundle = host.bundle(&["true"]).write();
            let full = &["No space left on device"];
            refused(client.create_container(container("more", &bundle)).await, Code::ResourceExhausted, full);
            refused(client.add_process(process(id, "more", &["true"])).await, Code::ResourceExhausted, full);
            // What only reads works on, and so do signals.
            assert_eq!(state(&mut client).await.len(), 1);
            let added = find(&host, id, "p");
            signal(&mut client, id, "p", 10).await.unwrap();
            // What is still there when its init ends is killed by the kernel, whatever it was about to do.
            let number = added.as_raw_nonzero().get() as u32;
            eventually("it has been reaped", || sys::procfs::stat(number).unwrap().is_none());
            signal(&mut client, id, "init", 10).await.unwrap();
            let is_stopped = async |client: &mut Client| state(client).await[0].status == "stopped";
            while !is_stopped(&mut client).await {}
            assert!(!ledger.has_ended(id, "init"), "what cannot be written has not happened");
            host.restart(Signal::KILL).await;
            assert_eq!(state(&mut client).await.len(), 1);
            small.make_room();
        }
        assert_eq!((ledger.exit(id, "p").await, ledger.exit(id, "init").await), (6, 5));
        nothing_of(&host, id);
        works(&host, &mut client, &format!("after-{id}")).await;
    }
    assert_eq!(ledger.findings(), Vec::<String>::new());
    drop(ledger);
    host.stop(Signal::TERM);
    drop(small);
    host.start().await;
    host.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_are_left_are_kept_for_ending_what_runs() {
    // As many as a daemon with a few containers needs, and some.
    const LIMIT: usize = 80;
    let wrapper = ["prlimit".into(), format!("--nofile={LIMIT}:{LIMIT}")].to_vec();
    let host = Host::with(Options { wrapper, ..Options::default() }).await;
    let mut client = host.client().await;
    let ledger = Ledger::new(host.lazy_client());
    for n in 0..3 {
        start_ender(&host, &mut client, &format!("c{n}")).await;
    }
    add_ender(&host, &mut client, "c0").await;
    let open = || std::fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap().count();
    // More than there are.
    let socket = host.path().join("socket");
    let greedy: Vec<_> = (0..LIMIT).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    state(&mut client).await;
    assert!(open() < LIMIT - 8, "connections take all but a reserve: {}", open());
    let bundle = host.bundle(&["true"]).write();
    let texts = ["RLIMIT_NOFILE", "80", "LimitNOFILE"];
    refused(client.create_container(container("more", &bundle)).await, Code::ResourceExhausted, &texts);
    refused(client.add_process(process("c1", "more", &["true"])).await, Code::ResourceExhausted, &texts);
    // Signals, exits and deletions go on.
    for (id, process) in [("c0", "p"), ("c0", "init"), ("c1", "init")] {
        signal(&mut client, id, process, 10).await.unwrap();
    }
    assert_eq!((ledger.exit("c0", "p").await, ledger.exit("c0", "init").await), (6, 5));
    kill_process(shim_of(&host, "c2", "init"), Signal::KILL).unwrap();
    assert_eq!((ledger.exit("c1", "init").await, ledger.exit("c2", "init").await), (5, 137));
    for id in ["c0", "c1", "c2"] {
        nothing_of(&host, id);
    }
    eventually("no child is left", || children_of(host.pid()).is_empty());
    drop(greedy);
    works(&host, &mut client, "more").await;
    assert_eq!(ledger.findings(), Vec::<String>::new());
    drop(ledger);
    host.finish();
}

#[tokio::test]
async fn as_many_as_can_be_started_can_be_killed() {
    let wrapper = ["prlimit", "--nofile=64:64"].map(String::from).to_vec();
    let host = Host::with(Options { wrapper, ..Options::default() }).await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sleep", "1000"]);
    let mut started = 0;
    loop {
        let copy = bundle.copy(&format!("copy{started}"), &["sleep", "1000"]);
        match client.create_container(container(&format!("c{started}"), &copy.write())).await {
            Ok(_) => started += 1,
            Err(refusal) => {
                refused::<()>(Err(refusal), Code::ResourceExhausted, &["RLIMIT_NOFILE"]);
                break;
            }
        }
    }
    println!("{started} containers with 64 descriptors");
    assert!(started > 2);
    for n in 0..started {
        // Each client has a connection of its own.
        signal(&mut host.client().await, &format!("c{n}"), "init", 9).await.unwrap();
    }
    let mut ended = 0;
    while ended < started {
        let event = watch.next().await;
        if event.r#type == "exit" {
            assert_eq!(event.status, 137);
            nothing_of(&host, &event.id);
            ended += 1;
        }
    }
    drop(watch);
    host.finish();
}

#[tokio::test]
async fn starts_and_output_need_no_inotify() {
    for refused in ["inotify_init1=24", "inotify_add_watch=28"] {
        let wrapper = [env!("CARGO_BIN_EXE_refusing"), refused, "--"].map(String::from).to_vec();
        let host = Host::with(Options { wrapper, ..Options::default() }).await;
        let mut client = host.client().await;
        works(&host, &mut client, "c").await;
        // A reader that comes after the end.
        let mut watch = Watch::new(&mut client).await;
        let out = host.fifo();
        let mut request = container("d", &host.bundle(&["echo", "late"]).write());
        request.stdout = out.path();
        client.create_container(request).await.unwrap();
        while state(&mut client).await.iter().any(|container| container.status == "running") {}
        assert_eq!(out.collect().text(), "late\n");
        assert_eq!(watch.exit("d", "init").await, 0);
        host.finish();
    }
}

/// The host's pid of a process, as its shim has written it.
fn find(host: &Host, id: &str, process: &str) -> Pid {
    let text = std::fs::read_to_string(host.state_dir().join(id).join(process).join("pid")).unwrap();
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

/// A control group for the daemon alone.
pub(crate) struct Group(pub(crate) std::path::PathBuf);

impl Group {
    pub(crate) fn new(controller: &str, name: &str) -> Option<Group> {
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        if !v1.exists() {
            // Limits of v2 need the controller in the groups above, which are not ours to change.
            eprintln!("SKIPPED: no {controller} hierarchy of version 1 here");
            return None;
        }
        let path = v1.join(format!("{name}-daemon"));
        std::fs::create_dir(&path).unwrap();
        Some(Group(path))
    }

    fn set(&self, file: &str, value: &str) {
        std::fs::write(self.0.join(file), value).unwrap();
    }

    fn add(&self, pid: u32) {
        self.set("cgroup.procs", &pid.to_string());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_processes_left() {
    let host = Host::new().await;
    let name = host.path().file_name().unwrap().to_str().unwrap().to_string();
    let Some(group) = Group::new("pids", &name) else { return };
    let mut client = host.client().await;
    let ledger = Ledger::new(host.lazy_client());
    for n in 0..2 {
        start_ender(&host, &mut client, &format!("c{n}")).await;
    }
    // The daemon without its shims and containers; it has its threads and no more.
    group.add(host.pid());
    group.set("pids.max", "1");
    let bundle = host.bundle(&["true"]).write();
    let unavailable = &["Resource temporarily unavailable"];
    refused(client.create_container(container("more", &bundle)).await, Code::ResourceExhausted, unavailable);
    refused(client.add_process(process("c0", "more", &["true"])).await, Code::ResourceExhausted, unavailable);
    refused(set_status(&mut client, "c0", "paused").await, Code::ResourceExhausted, unavailable);
    // What needs no process goes on, many at a time too.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut client = client.clone();
        calls.spawn(async move { state(&mut client).await.len() });
    }
    while let Some(found) = calls.join_next().await {
        assert_eq!(found.unwrap(), 2);
    }
    signal(&mut client, "c0", "init", 10).await.unwrap();
    eventually("it has ended", || host.state_dir().join("c0/init/exitStatus").exists());
    assert!(!ledger.has_ended("c0", "init"), "the runtime's delete cannot be run");
    group.set("pids.max", "max");
    assert_eq!(ledger.exit("c0", "init").await, 5);
    nothing_of(&host, "c0");
    works(&host, &mut client, "more").await;
    signal(&mut client, "c1", "init", 10).await.unwrap();
    assert_eq!(ledger.exit("c1", "init").await, 5);
    assert_eq!(ledger.findings(), Vec::<String>::new());
    drop(ledger);
    host.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_for_memory_is_followed_by_another() {
    let mut host = Host::new().await;
    let name = host.path().file_name().unwrap().to_str().unwrap().to_string();
    let Some(group) = Group::new("memory", &name) else { return };
    let mut client = host.client().await;
    let ledger = Ledger::new(host.lazy_client());
    start_ender(&host, &mut client, "c").await;
    // Less than the requests take that it is about to get.
    group.set("memory.limit_in_bytes", "8M");
    group.add(host.pid());
    // Large requests at a time, which wait for a runtime that hangs in none of them: their bundles do not exist.
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..60 {
        let mut client = host.lazy_client();
        calls.spawn(async move {
            let mut request = container(&format!("big{n}"), "/nonexistent");
            request.labels = vec!["x".repeat(1 << 20); 3];
            while client.create_container(request.clone()).await.is_err_and(|e| e.code() == Code::InvalidArgument) {}
        });
    }
    while calls.join_next().await.is_some() {}
    eventually("it is killed for memory", || host.has_died());
    host.start().await;
    assert_eq!(state(&mut client).await.len(), 1);
    works(&host, &mut client, "d").await;
    signal(&mut client, "c", "init", 10).await.unwrap();
    assert_eq!(ledger.exit("c", "init").await, 5);
    assert_eq!(ledger.findings(), Vec::<String>::new());
    drop(ledger);
    host.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_die_in_the_middle_of_any_call() {
    let host = Host::with(faulty(&[])).await;
    let mut client = host.client().await;
    let ledger = Ledger::new(host.lazy_client());
    start_ender(&host, &mut client, "c").await;
    // Each call is cut off while its runtime is at work, and carried through all the same.
    std::fs::write(host.join("fault"), "run:slow,exec:slow,pause:slow,resume:slow,update:slow").unwrap();
    let reached = host.join("reached");
    let bundle = host.bundle(&["sleep", "1000"]).write();
    let steps = ["exec", "pause", "resume", "update", "run"];
    for step in steps {
        let _ = std::fs::remove_file(&reached);
        let (mut caller, bundle) = (host.client().await, bundle.clone());
        let call = tokio::spawn(async move {
            let limits = Some(api::UpdateResource { pids_limit: 50, ..Default::default() });
            let update = api::UpdateContainerRequest { id: "c".into(), resources: limits, ..Default::default() };
            match step {
                "exec" => caller.add_process(process("c", "p", &["sleep", "1000"])).await.err(),
                "pause" => set_status(&mut caller, "c", "paused").await.err(),
                "resume" => set_status(&mut caller, "c", "running").await.err(),
                "update" => caller.update_container(update).await.err(),
                _ => caller.create_container(container("d", &bundle)).await.err(),
            }
        });
        eventually("the runtime is at work", || {
            std::fs::read_to_string(&reached).is_ok_and(|reached| reached.trim() == step)
        });
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        match step {
            "exec" => ledger.wait(step, |all| all.iter().any(|e| e.r#type == "start-process").then_some(())).await,
            "pause" | "resume" => ledger.wait(step, |all| all.iter().any(|e| e.r#type == step).then_some(())).await,
            "run" => ledger.wait(step, |all| all.iter().any(|e| e.id == "d").then_some(())).await,
            _ => {}
        }
    }
    // Streams, many of them, without a word.
    for _ in 0..50 {
        let mut other = host.client().await;
        drop(Watch::new(&mut other).await);
    }
    std::fs::write(host.join("fault"), "none").unwrap();
    for id in ["c", "d"] {
        signal(&mut client, id, "init", 9).await.unwrap();
        assert_eq!(ledger.exit(id, "init").await, 137);
    }
    assert_eq!(ledger.findings(), Vec::<String>::new());
    drop(ledger);
    host.finish();
}
