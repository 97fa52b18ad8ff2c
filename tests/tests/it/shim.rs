//! The shim by itself, as the contract has it: any daemon of this design could have started it.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::{Host, Options, bin, eventually};

/// A process directory that a shim can work in.
struct Directory {
    path: PathBuf,
    exit: std::fs::File,
}

impl Directory {
    fn new(host: &Host, bundle: &str) -> Directory {
        let path = host.path().join("state/c/init");
        std::fs::create_dir_all(&path).unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(Path::new(bundle).join("config.json")).unwrap()).unwrap();
        let mut process = config["process"].clone();
        let root = format!("--root={}", host.join("root"));
        for (name, value) in [
            ("exec", false.into()),
            ("containerdStdin", "".into()),
            ("containerdStdout", "".into()),
            ("containerdStderr", "".into()),
            ("runtimeArgs", vec![root].into()),
            ("noPivotRoot", false.into()),
            ("checkpoint", "".into()),
            ("rootUID", 0.into()),
            ("rootGID", 0.into()),
        ] {
            process[name] = value;
        }
        std::fs::write(path.join("process.json"), process.to_string()).unwrap();
        for name in ["exit", "control"] {
            tests::Fifo::new(path.join(name));
        }
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let exit = std::fs::File::options().read(true).custom_flags(nonblocking).open(path.join("exit")).unwrap();
        Directory { path, exit }
    }

    fn start(&self, bundle: &str) -> Child {
        let mut command = Command::new(bin("containerd-shim"));
        command.args(["c", bundle, &tests::runtime()]).current_dir(&self.path).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path.join(name)).unwrap_or_default()
    }
}

#[test]
fn it_keeps_the_contract_of_its_directory() {
    let host = Host::prepare(Options::default());
    let bundle = host.bundle(&["sh", "-c", "exit 9"]).write();
    let mut directory = Directory::new(&host, &bundle);
    let mut shim = directory.start(&bundle);
    eventually("the pid is there", || directory.path.join("pid").exists());
    let pid: u32 = directory.read("pid").parse().expect("decimal, no newline");
    let starttime: u64 = directory.read("starttime").parse().unwrap();
    assert_eq!(sys::procfs::stat(pid).unwrap().unwrap().starttime, starttime);
    assert!(directory.exit.read(&mut [0; 1]).is_err(), "the shim holds exit open and writes nothing");
    let root = format!("--root={}", host.join("root"));
    assert!(Command::new(tests::runtime()).args([&root, "start", "c"]).status().unwrap().success());
    assert!(shim.wait().unwrap().success());
    assert_eq!(directory.read("exitStatus"), "9");
    assert_eq!(directory.exit.read(&mut [0; 1]).unwrap(), 0, "exit is closed");
    assert!(Command::new(tests::runtime()).args([&root, "delete", "c"]).status().unwrap().success());
}

#[test]
fn without_a_daemon_it_gives_up_at_once() {
    let host = Host::prepare(Options::default());
    let bundle = host.bundle(&["true"]).write();
    let Directory { path, exit } = Directory::new(&host, &bundle);
    drop(exit);
    let mut shim = Command::new(bin("containerd-shim"));
    let status = shim.args(["c", &bundle, &tests::runtime()]).current_dir(&path).status().unwrap();
    assert!(!status.success());
    assert!(!path.join("pid").exists() && !path.join("log.json").exists(), "no runtime has been run");
}

#[test]
fn what_stops_it_is_written_down() {
    let host = Host::prepare(Options::default());
    let bundle = host.bundle(&["true"]).write();
    let directory = Directory::new(&host, &bundle);
    std::fs::write(directory.path.join("process.json"), "{nonsense").unwrap();
    assert!(!directory.start(&bundle).wait().unwrap().success());
    let said = directory.read("shim-log.json");
    let line: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("process.json"), "{said}");
}

#[test]
fn only_sigkill_ends_it_and_its_runtime_goes_with_it() {
    let host = Host::prepare(Options {
        fake_runtime: Some(r#"echo $$ > "$(dirname $0)/runtime-pid"; exec sleep 100000"#),
        ..Options::default()
    });
    let bundle = host.bundle(&["true"]).write();
    let directory = Directory::new(&host, &bundle);
    let mut command = Command::new(bin("containerd-shim"));
    command.args(["c", &bundle, &host.join("fake-runtime")]).current_dir(&directory.path);
    let mut shim = command.stdin(Stdio::null()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&shim);
    eventually("the runtime runs", || std::fs::metadata(host.join("runtime-pid")).is_ok_and(|m| m.len() > 1));
    let runtime: u32 = std::fs::read_to_string(host.join("runtime-pid")).unwrap().trim().parse().unwrap();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::HUP, rustix::process::Signal::INT] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    assert!(shim.try_wait().unwrap().is_none());
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    shim.wait().unwrap();
    eventually("the runtime is gone", || sys::procfs::stat(runtime).unwrap().is_none_or(|stat| stat.is_dead()));
}
