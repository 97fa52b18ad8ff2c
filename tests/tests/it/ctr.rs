//! `ctr`, as scripts and people use it.

use crate::support::*;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use tests::{Host, eventually};

fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ctr starts");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

#[tokio::test]
async fn the_commands_of_a_containers_life() {
    let host = Host::new().await;
    let bundle = host.bundle(&["sleep", "100000"]).write();
    let ctr = |arguments: &[&str]| run(host.ctr(arguments), b"");
    assert!(ok(&ctr(&["version"])).starts_with(concat!("containerd ", env!("CARGO_PKG_VERSION"), " (")));
    assert_eq!(ok(&ctr(&["containers"])), "ID   PATH   STATUS   PROCESSES\n");
    ok(&ctr(&["containers", "start", "redis", &bundle, "--label", "a=b", "-l", "c"]));
    ok(&ctr(&["containers", "exec", "--id", "redis", "--pid", "p1", "--", "sleep", "1000"]));
    let list = ok(&ctr(&["containers", "list"]));
    let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["redis", &bundle, "running", "init,p1"]);
    let json: serde_json::Value = serde_json::from_str(&ok(&ctr(&["containers", "list", "--json"]))).unwrap();
    assert_eq!(json[0]["bundlePath"], bundle.as_str());
    assert_eq!(json[0]["labels"], serde_json::json!(["a=b", "c"]));
    for arguments in [&["containers", "state"][..], &["state"]] {
        let state: serde_json::Value = serde_json::from_str(&ok(&ctr(arguments))).unwrap();
        assert!(state["containers"][0]["processes"][0]["systemPid"].is_u64());
        assert!(state["machine"]["cpus"].is_u64());
        assert_eq!(state["containers"][0]["processes"][0]["stdin"], "", "empty fields are there");
    }
    ok(&ctr(&["containers", "pause", "redis"]));
    assert!(ok(&ctr(&["containers"])).contains("paused"));
    ok(&ctr(&["containers", "resume", "redis"]));
    ok(&ctr(&["containers", "kill", "redis", "--pid", "p1", "--signal", "SIGKILL"]));
    let mut watch = Watch::new(&mut host.client().await).await;
    ok(&ctr(&["containers", "kill", "redis", "-s", "9"]));
    assert_eq!(watch.exit("redis", "init").await, 137);
    host.finish();
}

#[tokio::test]
async fn mistakes_are_said_and_told_by_the_status() {
    let host = Host::new().await;
    let ctr = |arguments: &[&str]| run(host.ctr(arguments), b"");
    let fails = |arguments: &[&str], code: i32, said: &str| {
        let output = ctr(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("[ctr] ") && stderr.contains(said), "{stderr}");
        assert!(output.stdout.is_empty());
    };
    fails(&["containers", "start", "a"], 1, "BUNDLE");
    fails(&["containers", "start", "a", "/nonexistent"], 1, "/nonexistent");
    fails(&["containers", "start", "a", "/nonexistent", "--attach"], 1, "/nonexistent");
    fails(&["containers", "kill", "none"], 1, "container not found");
    fails(&["containers", "kill", "none", "-s", "NOPE"], 1, "no signal NOPE");
    fails(&["containers", "exec", "--id", "a", "--pid", "b"], 1, "CMD");
    fails(&["nonsense"], 1, "nonsense");
    fails(&["--address", "unix:///nonexistent", "version"], 1, "is containerd running there?");
    fails(&["--address", "nonsense", "version"], 1, "unix:///path");
    fails(&["events", "--timestamp", "yesterday"], 1, "yesterday");
    let help = ctr(&["containers", "exec", "--help"]);
    assert!(ok(&help).contains("Usage: ctr containers exec"));
    assert!(ok(&ctr(&["completion", "bash"])).contains("containers"));
    host.finish();
}

#[tokio::test]
async fn attached_without_a_terminal() {
    let host = Host::new().await;
    let script = "cat; echo error >&2; exit 7";
    let bundle = host.bundle(&["sh", "-c", script]).write();
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let output = run(host.ctr(&["containers", "start", "--attach", "c", &bundle]), &bytes);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert!(output.stdout == bytes);
    assert_eq!(output.stderr, b"error\n");
    sleeper(&host, &mut host.client().await, "c").await;
    let exec = |arguments: &[&str], input: &[u8]| {
        run(host.ctr(&[&["containers", "exec", "--id", "c", "--pid", "p", "-a"], arguments].concat()), input)
    };
    assert!(exec(&["cat"], &bytes).stdout == bytes);
    let output = exec(
        &["-e", "X=1", "-u", "5", "-g", "6", "--cwd", "/data", "sh", "-c", "echo $X $PATH; id -u; id -g; pwd"],
        b"",
    );
    assert_eq!(ok(&output), "1 /bin\n5\n6\n/data\n");
    assert_eq!(exec(&["sh", "-c", "kill -9 $$"], b"").status.code(), Some(137));
    for size in [1, 1 << 20, 16 << 20] {
        let output = exec(&["cat", &format!("/data/{size}")], b"");
        assert_eq!(output.stdout.len(), size);
        assert!(output.stdout == std::fs::read(tests::rootfs().join(format!("data/{size}"))).unwrap());
    }
    kill(&mut host.client().await, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_session_outlives_its_daemon() {
    let mut host = Host::new().await;
    let bundle = host.bundle(&["sh", "-c", "echo first; read x; echo $x; exit 3"]).write();
    for signal in [Signal::TERM, Signal::KILL] {
        let mut command = host.ctr(&["containers", "start", "--attach", "c", &bundle]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut line = [0; 6];
        stdout.read_exact(&mut line).unwrap();
        host.stop(signal);
        child.stdin.take().unwrap().write_all(b"second\n").unwrap();
        let mut line = [0; 7];
        stdout.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"second\n");
        assert!(child.try_wait().unwrap().is_none(), "its exit status is not known yet");
        host.start().await;
        eventually("ctr has ended", || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
    host.finish();
}

#[tokio::test]
async fn events_are_shown_as_they_come() {
    let host = Host::new().await;
    let bundle = host.bundle(&["true"]).write();
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    start(&mut client, "before", &bundle).await;
    watch.exit("before", "init").await;
    let show = |arguments: &[&str]| host.ctr(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut all = show(&["events", "--timestamp", "2020-01-01T00:00:00Z"]);
    let lines = read_lines(&mut all, 3);
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["TIME", "TYPE", "ID", "PID", "STATUS"]);
    let exit: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(exit[1..], ["exit", "before", "init", "0"]);
    let mut one = show(&["containers", "watch", "b", "--json"]);
    // It has subscribed when it is connected; its first event comes after that.
    let mut seen = None;
    // Its end must not take the other one's control group away.
    let other = host.bundle(&["true"]).write();
    while seen.is_none() {
        start(&mut client, "a", &other).await;
        start(&mut client, "b", &bundle).await;
        watch.exit("b", "init").await;
        seen = try_line(&mut one);
    }
    let event: serde_json::Value = serde_json::from_str(&seen.unwrap()).unwrap();
    assert_eq!((event["id"].as_str(), event["type"].as_str()), (Some("b"), Some("start-container")));
    for mut child in [all, one] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    host.finish();
}

fn read_line(out: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while out.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    text(&line)
}

fn read_lines(child: &mut Child, count: usize) -> Vec<String> {
    (0..count).map(|_| read_line(child.stdout.as_mut().unwrap())).collect()
}

/// A line, if one comes soon.
fn try_line(child: &mut Child) -> Option<String> {
    let out = child.stdout.as_mut().unwrap();
    let mut polled = [rustix::event::PollFd::new(out, rustix::event::PollFlags::IN)];
    let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    let ready = rustix::event::poll(&mut polled, Some(&soon)).unwrap() > 0;
    ready.then(|| read_line(out))
}

/// A terminal of our own, with `ctr` on it.
pub(crate) struct Session {
    master: File,
    slave: File,
    pub(crate) child: Child,
}

impl Session {
    fn start(command: Command) -> Session {
        Session::sized(command, 0, 0)
    }

    /// As [`Session::start`], on a terminal that has a size.
    pub(crate) fn sized(mut command: Command, columns: u16, rows: u16) -> Session {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let clone = || Stdio::from(slave.try_clone().unwrap());
        let child = command.stdin(clone()).stdout(clone()).stderr(clone()).spawn().unwrap();
        Session { master: master.into(), slave, child }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
        // The terminal is not ctr's controlling one, so that the kernel does not send this.
        kill_process(Pid::from_child(&self.child), Signal::WINCH).unwrap();
    }

    fn read_until(&mut self, expected: &str) -> String {
        let mut got = String::new();
        let mut byte = [0];
        while !got.contains(expected) {
            self.master.read_exact(&mut byte).unwrap();
            got.push(byte[0] as char);
        }
        got
    }
}

#[tokio::test]
async fn attached_with_a_terminal() {
    let host = Host::new().await;
    sleeper(&host, &mut host.client().await, "c").await;
    // The signal interrupts the shell's read.
    let script =
        "trap 'stty size' WINCH; echo ready; while :; do read x && echo got:$x; [ \"$x\" = end ] && exit 6; done";
    let command = host.ctr(&["containers", "exec", "--id", "c", "--pid", "p", "-at", "sh", "-c", script]);
    let mut session = Session::start(command);
    session.read_until("ready\r\n");
    assert!(session.is_raw(), "what is typed goes through unchanged");
    session.resize(111, 37);
    session.master.write_all(b"one\n").unwrap();
    let said = session.read_until("got:one\r\n");
    let said = if said.contains("37 111") { said } else { session.read_until("37 111") };
    assert!(said.contains("37 111"));
    session.master.write_all(b"end\n").unwrap();
    eventually("ctr has ended", || session.child.try_wait().unwrap().is_some());
    assert_eq!(session.child.wait().unwrap().code(), Some(6));
    assert!(!session.is_raw(), "the terminal is given back");
    kill(&mut host.client().await, "c").await;
    host.finish();
}

#[tokio::test]
async fn the_terminal_is_given_back_whatever_ends_ctr() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1] {
        let name = host.name("p");
        let exec = ["containers", "exec", "--id", "c", "--pid", &name, "-at", "sh", "-c", "echo ready; sleep 1000"];
        let mut session = Session::start(host.ctr(&exec));
        session.read_until("ready\r\n");
        assert!(session.is_raw());
        kill_process(Pid::from_child(&session.child), signal).unwrap();
        eventually("ctr has ended", || session.child.try_wait().unwrap().is_some());
        let status = session.child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal.as_raw()));
        assert!(!session.is_raw(), "after {signal:?}");
    }
    // A start that fails, too.
    let exec = ["containers", "exec", "--id", "c", "--pid", "bad", "-at", "/nonexistent"];
    let mut session = Session::start(host.ctr(&exec));
    session.read_until("oci runtime error");
    assert_eq!(session.child.wait().unwrap().code(), Some(1));
    assert!(!session.is_raw());
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_terminal_for_the_process_without_one_of_ones_own() {
    let host = Host::new().await;
    let bundle = host.bundle(&["sh", "-c", "tty; read x; echo $x; exit 2"]).terminal().write();
    let output = run(host.ctr(&["containers", "start", "-a", "c", &bundle]), b"hello\n");
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stdout);
    assert!(said.contains("/dev/pts/") && said.ends_with("hello\r\n"), "{said:?}");
    host.finish();
}

#[tokio::test]
async fn who_reads_no_more_ends_ctr_and_nothing_is_left_in_tmp() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let temporary = host.join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = host.ctr(&["containers", "exec", "--id", "c", "--pid", "p", "-a", "cat", "/dev/zero"]);
    let mut child = command.env("TMPDIR", &temporary).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 100]).unwrap();
    eventually("ctr has ended", || child.try_wait().unwrap().is_some());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(Signal::PIPE.as_raw()));
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    kill(&mut client, "c").await;
    host.finish();
}
