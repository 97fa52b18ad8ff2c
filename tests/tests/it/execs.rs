//! Added processes: what they have from their container.

use crate::support::*;
use serde_json::json;
use std::process::{Command, Stdio};
use tests::{Host, path_with_criu};
use tonic::Code;

/// Shows what the kernel knows of a process that a container's settings decide.
const SHOW: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status; cat /proc/self/limits \
                    /proc/self/oom_score_adj; umask; pwd; env | sort";

/// What a script says that an added process runs.
async fn said(host: &Host, client: &mut tests::Client, change: impl FnOnce(&mut api::AddProcessRequest)) -> String {
    let mut watch = Watch::new(client).await;
    let stdout = host.fifo();
    let reader = stdout.collect();
    let name = host.name("p");
    let mut request = process("c", &name, &["sh", "-c", SHOW]);
    request.stdout = stdout.path();
    change(&mut request);
    client.add_process(request).await.unwrap();
    assert_eq!(watch.exit("c", &name).await, 0);
    reader.text()
}

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"))
}

fn strict(host: &Host) -> tests::Bundle {
    let capabilities = json!(["CAP_KILL", "CAP_CHOWN"]);
    let sets = json!({
        "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        "inheritable": capabilities, "ambient": capabilities,
    });
    host.bundle(&["sleep", "100000"])
        .process("capabilities", sets)
        .process("user", json!({"uid": 0, "gid": 0, "additionalGids": [9, 10], "umask": 0o27}))
        .process("rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]))
        .process("env", json!(["PATH=/bin", "WHO=container"]))
        .process("cwd", json!("/data"))
        .process("oomScoreAdj", json!(321))
}

fn is_crun() -> bool {
    tests::runtime().rsplit('/').next().is_some_and(|name| name.starts_with("crun"))
}

/// runc 1.1 leaves the umask of an exec as it is, and crun 1.8 its score for the OOM killer.
fn of_this_runtime() -> (&'static str, &'static str) {
    if is_crun() { ("0027", "0") } else { ("0022", "321") }
}

#[tokio::test]
async fn a_bare_request_gets_what_the_runtimes_own_exec_gives() {
    let host = Host::new().await;
    let mut client = host.client().await;
    start(&mut client, "c", &strict(&host).write()).await;
    let ours = said(&host, &mut client, |_| {}).await;
    let (umask, score) = of_this_runtime();
    for (name, value) in [
        ("NoNewPrivs", "1"),
        ("Groups", "9 10"),
        ("CapEff", "0000000000000021"),
        ("CapBnd", "0000000000000021"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        // The Go 1.19 in runc 1.1 may raise the soft limit to the hard one, at any moment of its start.
        ("Max open files", if is_crun() { "100 " } else { "200 " }),
        (score, ""),
        (umask, ""),
        ("/data", ""),
        ("WHO=container", ""),
    ] {
        assert!(line(&ours, name).contains(value), "{name} in {ours}");
    }
    let mut bare = Command::new(tests::runtime());
    bare.arg(format!("--root={}", host.join("root"))).args(["exec", "c", "sh", "-c", SHOW]);
    let bare = bare.env("PATH", path_with_criu()).stdin(Stdio::null()).output().unwrap();
    let bare = String::from_utf8(bare.stdout).unwrap();
    // runc 1.1 hands on the inheritable and ambient ones, and the Go 1.19 in it may raise the soft limit of files.
    let all_but_inheritable = |text: &str| -> String {
        let others = ["CapInh", "CapAmb", "Max open files"];
        let is_same = |line: &&str| !others.iter().any(|other| line.starts_with(other));
        text.lines().filter(is_same).collect::<Vec<_>>().join("\n")
    };
    // crun's own `exec` takes much less from the bundle.
    if !is_crun() {
        assert_eq!(all_but_inheritable(&ours), all_but_inheritable(&bare));
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_request_changes_what_it_names_and_nothing_else() {
    let host = Host::new().await;
    let mut client = host.client().await;
    start(&mut client, "c", &strict(&host).write()).await;
    let ours = said(&host, &mut client, |request| {
        request.user = Some(api::User { uid: 5, gid: 6, additional_gids: vec![7] });
        request.env = vec!["PATH=/bin".into(), "WHO=exec".into()];
        request.cwd = "/tmp".into();
        request.capabilities = vec!["CAP_KILL".into()];
        request.rlimits = vec![api::Rlimit { r#type: "RLIMIT_NOFILE".into(), soft: 50, hard: 60 }];
    })
    .await;
    let (umask, score) = of_this_runtime();
    for (name, value) in [
        ("Uid", "5"),
        ("Gid", "6"),
        ("Groups", "7"),
        ("CapBnd", "0000000000000020"),
        ("CapInh", "0000000000000000"),
        ("Max open files", if is_crun() { "50 " } else { "60 " }),
        ("NoNewPrivs", "1"),
        (umask, ""),
        (score, ""),
        ("/tmp", ""),
        ("WHO=exec", ""),
    ] {
        assert!(line(&ours, name).contains(value), "{name} in {ours}");
    }
    kill(&mut client, "c").await;
    host.finish();
}

/// A program that ends with its effective user id as its status (ELF, x86-64): busybox gives up such rights by itself.
#[cfg(target_arch = "x86_64")]
fn euid_program() -> Vec<u8> {
    const START: u64 = 0x40_0000;
    // geteuid(2) is number 107, exit(2) number 60.
    let code = [0xb8, 107, 0, 0, 0, 0x0f, 0x05, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for number in [2_u16, 62] {
        file.extend(number.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for number in [START + 120, 64, 0] {
        file.extend(number.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for number in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(number.to_le_bytes());
    }
    // One segment, which can be read and executed: the whole file.
    for number in [1_u32, 5] {
        file.extend(number.to_le_bytes());
    }
    let size = 120 + code.len() as u64;
    for number in [0, START, START, size, size, 0x1000] {
        file.extend(number.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn a_setuid_program_in_an_exec_gains_nothing_where_the_container_forbids_it() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    for (forbidden, effective) in [(true, 5), (false, 0)] {
        let mount = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nodev"]});
        let mut bundle = host.bundle(&["sleep", "100000"]).process("noNewPrivileges", forbidden.into());
        bundle.config["mounts"][3] = mount;
        let started = start(&mut client, "c", &bundle.write()).await;
        let path = format!("/proc/{}/root/tmp/euid", started.processes[0].system_pid);
        std::fs::write(&path, euid_program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
        let mut request = process("c", "p", &["/tmp/euid"]);
        request.user = Some(api::User { uid: 5, gid: 5, additional_gids: Vec::new() });
        client.add_process(request).await.unwrap();
        assert_eq!(watch.exit("c", "p").await, effective, "{forbidden}");
        kill(&mut client, "c").await;
    }
    host.finish();
}

#[tokio::test]
async fn settings_of_an_exec_are_those_of_the_container_at_its_creation() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let bundle = strict(&host);
    let path = bundle.write();
    start(&mut client, "c", &path).await;
    // Neither a changed bundle nor another daemon makes a difference.
    bundle.process("noNewPrivileges", false.into()).process("rlimits", json!([])).write();
    host.restart(rustix::process::Signal::KILL).await;
    let mut client = host.client().await;
    let ours = said(&host, &mut client, |_| {}).await;
    assert!(line(&ours, "NoNewPrivs").contains('1') && line(&ours, "Max open files").contains("200 "), "{ours}");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn process_json_always_has_capabilities() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut bundle = host.bundle(&["sleep", "100000"]);
    bundle.config["process"].as_object_mut().unwrap().remove("capabilities");
    start(&mut client, "c", &bundle.write()).await;
    client.add_process(process("c", "p", &["sleep", "100000"])).await.unwrap();
    for name in ["init", "p"] {
        let text = std::fs::read(host.state_dir().join("c").join(name).join("process.json")).unwrap();
        let object: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert!(object["capabilities"].is_object(), "{name}: {object}");
    }
    let shown = state(&mut client).await.remove(0);
    assert!(shown.processes.iter().all(|process| process.capabilities.is_empty()));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_terminal_has_its_size_before_its_program_runs() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let sized = |bundle: tests::Bundle| bundle.process("consoleSize", json!({"width": 100, "height": 50}));
    for _ in 0..5 {
        for (width, height, of_bundle, expected) in
            [(0, 0, false, "24 80"), (132, 43, false, "43 132"), (0, 0, true, "50 100"), (132, 43, true, "43 132")]
        {
            let stdout = host.fifo();
            let reader = stdout.collect();
            let bundle = host.bundle(&["stty", "size"]).terminal();
            let bundle = if of_bundle { sized(bundle) } else { bundle };
            let mut request = container("c", &bundle.write());
            (request.stdout, request.width, request.height) = (stdout.path(), width, height);
            client.create_container(request).await.unwrap();
            assert_eq!(watch.exit("c", "init").await, 0);
            assert_eq!(reader.text().trim(), expected, "{width} {height} {of_bundle}");
        }
    }
    sleeper(&host, &mut client, "c").await;
    for (width, height, expected) in [(0, 0, "24 80"), (132, 43, "43 132")] {
        for n in 0..10 {
            let stdout = host.fifo();
            let reader = stdout.collect();
            let name = format!("p{width}-{n}");
            // crun gives an exec its size a moment after its program may have begun, in which stty says nothing.
            let script = if is_crun() { "until stty size 2>/dev/null | grep .; do :; done" } else { "stty size" };
            let mut request = process("c", &name, &["sh", "-c", script]);
            (request.terminal, request.stdout, request.width, request.height) = (true, stdout.path(), width, height);
            client.add_process(request).await.unwrap();
            assert_eq!(watch.exit("c", &name).await, 0);
            assert_eq!(reader.text().trim(), expected);
        }
    }
    let mut request = process("c", "p", &["true"]);
    request.width = 65_536;
    refused(client.add_process(request).await, Code::InvalidArgument, &["width"]);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn signals_that_the_daemons_starter_ignores_are_handed_on_to_no_process() {
    // The shell ignores SIGHUP, SIGINT, SIGQUIT and SIGTERM, and what it starts does too.
    let script = r#"trap '' HUP INT QUIT TERM; exec "$0" "$@""#;
    let wrapper = ["sh", "-c", script].map(String::from).to_vec();
    let host = Host::with(tests::Options { wrapper, ..tests::Options::default() }).await;
    let mut client = host.client().await;
    let stdout = host.fifo();
    let reader = stdout.collect();
    // Not by a shell, which ignores some by itself.
    let show = ["grep", "SigIgn", "/proc/self/status"];
    let mut watch = Watch::new(&mut client).await;
    let mut request = container("c", &host.bundle(&show).write());
    request.stdout = stdout.path();
    client.create_container(request).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 0);
    let of_init = reader.text();
    let pid = sleeper(&host, &mut client, "c").await.processes[0].system_pid;
    // What a shim ignores its runtime begins with, which may hand it on or not.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let shim = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).unwrap().to_string();
    let of_shim = std::fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    let of_exec = said(&host, &mut client, |request| request.args = show.map(String::from).to_vec()).await;
    for (process, said) in [("init", of_init), ("shim", of_shim), ("exec", of_exec)] {
        let mask = u64::from_str_radix(line(&said, "SigIgn").split_whitespace().nth(1).unwrap(), 16).unwrap();
        // Signals 1, 2, 3 and 15.
        assert_eq!(mask & 0x4007, 0, "{process}: {said}");
    }
    kill(&mut client, "c").await;
    host.finish();
}
