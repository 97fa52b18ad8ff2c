//! What the daemon's starter gave it: nothing of that reaches shims and containers, nor harms the daemon.

use crate::support::*;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use tests::{Host, Options, children_of};
use tonic::Code;

/// A host whose daemon is started by a shell that has done this before.
async fn started_after(script: &str) -> Host {
    let wrapper = ["sh", "-c", &format!("{script}; exec \"$0\" \"$@\"")].map(String::from).into();
    Host::with(Options { wrapper, ..Options::default() }).await
}

fn status_of(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_string()
}

#[tokio::test]
async fn ignored_signals_reach_neither_shims_nor_containers() {
    let mut host = started_after("trap '' HUP INT QUIT USR2 CHLD TERM XFSZ").await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let init = sleeper(&host, &mut client, "c").await.processes[0].system_pid;
    let added = client.add_process(process("c", "p", &["sleep", "100000"])).await.unwrap().into_inner().system_pid;
    let shims = children_of(host.pid());
    assert_eq!(shims.len(), 2);
    for pid in shims.into_iter().chain([init, added]) {
        assert_eq!(status_of(pid, "SigIgn"), "0000000000000000", "{pid}");
    }
    signal(&mut client, "c", "p", 3).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 131, "SIGQUIT ends it");
    kill(&mut client, "c").await;
    // Its own signals work as ever.
    host.restart(rustix::process::Signal::TERM).await;
    host.finish();
}

#[tokio::test]
async fn deadly_limits_reach_neither_the_daemon_nor_containers() {
    // In units of 512 bytes, and in seconds. A runtime could not even write its own state.
    let host = started_after("ulimit -S -f 8; ulimit -S -t 1").await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sh", "-c", "cat /proc/self/limits; dd if=/dev/zero bs=1k count=64"]).write();
    let output = host.path().join("output");
    std::fs::write(&output, "").unwrap();
    let stdout = output.to_str().unwrap().to_string();
    let request = api::CreateContainerRequest { stdout, ..container("c", &bundle) };
    client.create_container(request).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 0);
    let written = std::fs::read(&output).unwrap();
    assert!(written.len() > 64 << 10, "{} bytes of output", written.len());
    let limits = String::from_utf8_lossy(&written[..1024]).into_owned();
    for limit in ["Max file size", "Max cpu time"] {
        let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["unlimited", "unlimited"], "{line}");
    }
    // What the config.json says is kept.
    let rlimits = serde_json::json!([{"type": "RLIMIT_FSIZE", "soft": 4096, "hard": 8192}]);
    let bundle = host.bundle(&["sleep", "100000"]).process("rlimits", rlimits).write();
    let init = start(&mut client, "c", &bundle).await.processes[0].system_pid;
    let limits = std::fs::read_to_string(format!("/proc/{init}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["4096", "8192"], "{line}");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn hard_limit_of_file_sizes_does_not_end_the_daemon() {
    // It is kept where the daemon may not raise it (without CAP_SYS_RESOURCE).
    let host = started_after("ulimit -f 16").await;
    let mut client = host.client().await;
    state(&mut client).await;
    // The journal is longer than any file of the daemon's may be.
    let mut journal = std::fs::File::options().append(true).open(host.state_dir().join("events.log")).unwrap();
    journal.write_all("x\n".repeat(32 << 10).as_bytes()).unwrap();
    let refusal = client.create_container(container("c", &host.bundle(&["true"]).write())).await;
    refused(refusal, Code::Internal, &["events.log", "File too large"]);
    assert!(state(&mut client).await.is_empty());
    drop(client);
    host.finish();
}

#[tokio::test]
async fn umask_of_the_starter_opens_no_file() {
    let host = started_after("umask 0").await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    client.add_process(process("c", "p", &["sleep", "100000"])).await.unwrap();
    let mut directories = vec![host.state_dir()];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            assert_eq!(metadata.permissions().mode() & 0o022, 0, "{}", entry.path().display());
            files += 1;
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    assert!(files > 10);
    kill(&mut client, "c").await;
    host.finish();
}
