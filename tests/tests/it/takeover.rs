//! Taking over from the daemon of this API that is written in Go (0.2.x), and handing back to it.
//!
//! Its place is taken by what it does to the state directory: which files it makes, truncates, reads, and what it
//! dereferences of them without a look (runtime/container.go, runtime/process.go and supervisor/supervisor.go of 0.2.9).

use crate::support::*;
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::{Host, bin, eventually, path_with_criu};

/// The other daemon, as far as the state directory shows it.
struct Theirs<'a> {
    host: &'a Host,
    /// The shims that it has started. They outlive it.
    shims: Vec<Child>,
}

/// What it keeps of a process that it finds.
#[derive(Debug, PartialEq, Eq)]
struct Loaded {
    name: String,
    pid: u32,
    has_ended: bool,
}

impl Theirs<'_> {
    fn new(host: &Host) -> Theirs<'_> {
        std::fs::create_dir_all(host.state_dir()).unwrap();
        Theirs { host, shims: Vec::new() }
    }

    fn path(&self, id: &str, name: &str) -> PathBuf {
        self.host.state_dir().join(id).join(name)
    }

    /// Its start: all events are read, then the file is truncated, and what it keeps in memory is never written again.
    fn open_journal(&self) -> usize {
        let path = self.host.state_dir().join("events.log");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).expect("one that it cannot decode keeps it from starting");
            for name in ["id", "type", "timestamp"] {
                assert!(event[name].is_string(), "{name} of {line}");
            }
            assert!(is_rfc3339(event["timestamp"].as_str().unwrap()), "{line}");
            assert!(event.get("status").is_none_or(Value::is_u64) && event.get("pid").is_none_or(Value::is_string));
        }
        std::fs::write(path, "").unwrap();
        text.lines().count()
    }

    fn tell(&self, event: &Value) {
        use std::io::Write;
        let path = self.host.state_dir().join("events.log");
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{event}").unwrap();
    }

    /// Makes a directory as it does, and starts the shim in it.
    fn start_process(&mut self, id: &str, name: &str, bundle: &str, process: &Value) -> u32 {
        let path = self.path(id, name);
        std::fs::create_dir(&path).unwrap();
        let mut object = process.clone();
        for (member, value) in [
            ("exec", (name != "init").into()),
            ("containerdStdin", "/dev/null".into()),
            ("containerdStdout", "/dev/null".into()),
            ("containerdStderr", "/dev/null".into()),
            ("runtimeArgs", self.runtime_args()),
            ("noPivotRoot", false.into()),
            ("checkpoint", "".into()),
            ("rootUID", 0.into()),
            ("rootGID", 0.into()),
        ] {
            object[member] = value;
        }
        std::fs::write(path.join("process.json"), format!("{object}\n")).unwrap();
        for fifo in ["exit", "control"] {
            tests::Fifo::new(path.join(fifo));
        }
        // It has both open before it starts the shim.
        let nonblocking = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK;
        let _exit = rustix::fs::open(
            path.join("exit"),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        let _control = rustix::fs::open(path.join("control"), nonblocking, rustix::fs::Mode::empty()).unwrap();
        let mut shim = Command::new(bin("containerd-shim"));
        shim.args([id, bundle, &tests::runtime()]).current_dir(&path).process_group(0).env("PATH", path_with_criu());
        let shim = shim.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.shims.push(shim);
        eventually("the shim has written the pid", || path.join("pid").exists());
        self.read_pid(id, name)
    }

    fn runtime_args(&self) -> Value {
        json!([format!("--root={}", self.host.join("root"))])
    }

    fn start_container(&mut self, id: &str, bundle: &tests::Bundle) -> u32 {
        let path = bundle.write();
        std::fs::create_dir(self.host.state_dir().join(id)).unwrap();
        let state = json!({
            "bundle": path, "labels": null, "stdin": "", "stdout": "", "stderr": "", "runtime": tests::runtime(),
            "runtimeArgs": self.runtime_args(), "shim": "containerd-shim", "noPivotRoot": false,
        });
        std::fs::write(self.host.state_dir().join(id).join("state.json"), format!("{state}\n")).unwrap();
        let pid = self.start_process(id, "init", &path, &bundle.config["process"]);
        let mut start = Command::new(tests::runtime());
        start.arg(format!("--root={}", self.host.join("root"))).args(["start", id]);
        assert!(start.status().unwrap().success());
        self.tell(&json!({"id": id, "type": "start-container", "timestamp": "2026-01-02T03:04:05.678901234Z"}));
        pid
    }

    fn read_pid(&self, id: &str, name: &str) -> u32 {
        // strconv.Atoi: nothing around the number.
        std::fs::read_to_string(self.path(id, name).join("pid")).unwrap().parse().unwrap()
    }

    /// Its look at what there is. Whatever cannot be read here keeps it from starting.
    fn load(&self, id: &str) -> Vec<Loaded> {
        let directory = self.host.state_dir().join(id);
        let state: Value = read_json(&directory.join("state.json"));
        for name in ["bundle", "runtime", "shim"] {
            assert!(state[name].is_string(), "{name} of {state}");
        }
        assert!(state["labels"].is_array() || state["labels"].is_null());
        assert!(state["runtimeArgs"].is_array() || state["runtimeArgs"].is_null());
        assert!(state["noPivotRoot"].is_boolean());
        let mut loaded = Vec::new();
        for entry in std::fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            // Each directory is a process to it.
            if entry.file_type().unwrap().is_dir() {
                loaded.push(self.load_process(id, entry.file_name().to_str().unwrap()));
            }
        }
        loaded.sort_by(|a, b| a.name.cmp(&b.name));
        loaded
    }

    fn load_process(&self, id: &str, name: &str) -> Loaded {
        let path = self.path(id, name);
        let process: Value = read_json(&path.join("process.json"));
        // Looked into by its State, without asking whether it is there.
        assert!(process["capabilities"].is_object(), "{process}");
        for list in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
            assert!(
                process["capabilities"].get(list).is_none_or(|list| list.is_array() || list.is_null()),
                "{process}"
            );
        }
        assert!(process["user"]["uid"].is_u64() && process["user"]["gid"].is_u64(), "{process}");
        assert!(process["args"].is_array() && process["cwd"].is_string(), "{process}");
        for member in ["containerdStdin", "containerdStdout", "containerdStderr", "checkpoint"] {
            assert!(process[member].is_string(), "{member} of {process}");
        }
        assert!(process["exec"].is_boolean() && process["noPivotRoot"].is_boolean(), "{process}");
        assert!(process["rootUID"].is_u64() && process["rootGID"].is_u64(), "{process}");
        for limit in process["rlimits"].as_array().into_iter().flatten() {
            assert!(limit["type"].is_string() && limit["soft"].is_u64() && limit["hard"].is_u64(), "{process}");
        }
        let pid = self.read_pid(id, name);
        // It compares the texts.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let starttime =
            stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(19)).unwrap_or_default().to_string();
        let has_ended = path.join("exitStatus").exists();
        if has_ended {
            std::fs::read_to_string(path.join("exitStatus")).unwrap().parse::<u32>().unwrap();
        } else {
            assert_eq!(std::fs::read_to_string(path.join("starttime")).unwrap(), starttime);
            use std::os::unix::fs::FileTypeExt;
            for fifo in ["exit", "control"] {
                assert!(path.join(fifo).metadata().unwrap().file_type().is_fifo());
            }
        }
        Loaded { name: name.into(), pid, has_ended }
    }

    /// Its start on a state directory.
    fn take_over(&self) -> Vec<Loaded> {
        self.open_journal();
        let mut loaded = Vec::new();
        for entry in std::fs::read_dir(self.host.state_dir()).unwrap().map(Result::unwrap) {
            // Each directory is a container to it.
            if entry.file_type().unwrap().is_dir() {
                loaded.extend(self.load(entry.file_name().to_str().unwrap()));
            }
        }
        loaded
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Whether Go's `time.Time` takes it.
fn is_rfc3339(text: &str) -> bool {
    let (date, rest) = text.split_at_checked(10).unwrap_or_default();
    let is_date = date
        .bytes()
        .enumerate()
        .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() });
    is_date && rest.starts_with('T') && rest.ends_with('Z') && rest.len() >= 10
}

fn names(loaded: &[Loaded]) -> Vec<&str> {
    loaded.iter().map(|process| process.name.as_str()).collect()
}

fn added(args: &[&str]) -> Value {
    json!({"terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/", "capabilities": {}})
}

async fn has(client: &mut tests::Client, processes: &[&str]) {
    let containers = state(client).await;
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0].status, "running");
    let mut found: Vec<&str> = containers[0].processes.iter().map(|process| process.pid.as_str()).collect();
    found.sort_unstable();
    assert_eq!(found, processes);
}

#[tokio::test]
async fn a_container_of_the_go_daemon_is_taken_over_and_can_be_taken_back() {
    let mut host = Host::prepare(tests::Options::default());
    let bundle =
        host.bundle(&["sleep", "100000"]).process("rlimits", json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]));
    let pid = {
        let mut theirs = Theirs::new(&host);
        let pid = theirs.start_container("c", &bundle);
        theirs.start_process("c", "p1", bundle.path().to_str().unwrap(), &added(&["sleep", "100000"]));
        theirs.tell(&json!({"id": "c", "type": "start-process", "timestamp": "2026-01-02T03:04:06Z", "pid": "p1"}));
        pid
    };
    host.start().await;
    let mut client = host.client().await;
    has(&mut client, &["init", "p1"]).await;
    client.add_process(process("c", "p2", &["sleep", "100000"])).await.unwrap();
    has(&mut client, &["init", "p1", "p2"]).await;
    host.stop(rustix::process::Signal::TERM);
    // Back to theirs: it finds all of them.
    let loaded = Theirs::new(&host).load("c");
    assert_eq!(names(&loaded), ["init", "p1", "p2"]);
    assert!(loaded[0].pid == pid && loaded.iter().all(|process| !process.has_ended));
    // And to ours once more, which ends it.
    host.start().await;
    let mut client = host.client().await;
    has(&mut client, &["init", "p1", "p2"]).await;
    kill(&mut client, "c").await;
    host.finish();
}

/// The Go daemon truncates the journal when it starts, so that a container's start is in no file any more.
#[tokio::test]
async fn a_container_survives_the_way_to_the_go_daemon_and_back() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "100000"]);
    let started = start(&mut client, "c", &bundle.write()).await;
    client.add_process(process("c", "p1", &["sleep", "100000"])).await.unwrap();
    for round in 0..2 {
        host.stop(rustix::process::Signal::TERM);
        let name = format!("theirs-{round}");
        {
            let mut theirs = Theirs::new(&host);
            let loaded = theirs.take_over();
            assert_eq!(
                loaded.iter().find(|process| process.name == "init").unwrap().pid,
                started.processes[0].system_pid
            );
            theirs.start_process("c", &name, bundle.path().to_str().unwrap(), &added(&["sleep", "100000"]));
            let event = json!({"id": "c", "type": "start-process", "timestamp": "2026-01-02T03:04:06Z", "pid": name});
            theirs.tell(&event);
        }
        host.start().await;
        client = host.client().await;
        let mut expected = vec!["init", "p1", "theirs-0"];
        if round == 1 {
            expected.push("theirs-1");
        }
        has(&mut client, &expected).await;
    }
    kill(&mut client, "c").await;
    host.finish();
}
