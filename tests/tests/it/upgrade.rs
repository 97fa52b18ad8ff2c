//! The program is replaced by another one while it runs.

use crate::support::*;
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tests::{FAULTS, Host, Ledger, Options, bin, children_of, eventually, runtime};

/// Copies a program to where it can be replaced.
fn install(host: &Host, name: &str) {
    let (new, to) = (host.join(&format!(".{name}")), host.join(name));
    // By another process, as in `tests::write_program`.
    assert!(std::process::Command::new("cp").arg(bin(name)).arg(&new).status().unwrap().success());
    std::fs::rename(new, to).unwrap();
}

fn program_of(pid: u32) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

/// A host whose programs are in its own directory.
async fn installed(fake_runtime: Option<&'static str>) -> Host {
    let mut host = Host::prepare(Options { own_programs: true, fake_runtime, ..Options::default() });
    for name in ["containerd", "containerd-shim"] {
        install(&host, name);
    }
    host.start().await;
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_refused_for_longer_than_a_second() {
    let host = installed(Some(FAULTS)).await;
    let mut client = host.client().await;
    let ledger = Ledger::new(host.lazy_client());
    sleeper(&host, &mut client, "c").await;
    client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap();
    // Clients that never stop asking, over connections of their own and over new ones.
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for fresh in [false, false, true] {
        let (stop, socket) = (stop.clone(), host.lazy_client());
        let connect = {
            let host_path = host.join("socket");
            move || tests::client_at(&host_path)
        };
        callers.spawn(async move {
            let (mut client, mut longest, mut last, mut failed) = (socket, Duration::ZERO, Instant::now(), 0);
            while !stop.load(Ordering::SeqCst) {
                if fresh {
                    client = connect();
                }
                match client.state(api::StateRequest::default()).await {
                    Ok(_) => {
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                    Err(status) => {
                        assert!(is_cut_off(&status), "{status:?}");
                        failed += 1;
                    }
                }
            }
            (longest.max(last.elapsed()), failed)
        });
    }
    // And containers that are made all the while.
    let maker = {
        let (stop, mut client, template) = (stop.clone(), host.lazy_client(), host.bundle(&[]));
        tokio::spawn(async move {
            let mut made = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let id = format!("made{n}");
                let bundle = template.copy(&id, &["sh", "-c", "exit 3"]).write();
                made.push((id.clone(), client.create_container(container(&id, &bundle)).await.is_ok()));
            }
            made
        })
    };
    let pid = host.pid();
    for round in 0..5 {
        // One of them while a runtime hangs, whose call is given time and then cut off.
        let hanging = (round == 4).then(|| {
            let (mut client, bundle) = (host.lazy_client(), host.bundle(&["true"]).fault("run:hang").write());
            tokio::spawn(async move { client.create_container(container("hangs", &bundle)).await })
        });
        if hanging.is_some() {
            let reached = host.join("reached");
            eventually("the runtime hangs", || std::fs::exists(&reached).unwrap());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = program_of(pid);
        install(&host, "containerd");
        install(&host, "containerd-shim");
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::HUP).unwrap();
        eventually("it is another program", || program_of(pid) != before);
        if let Some(hanging) = hanging {
            hanging.await.unwrap().expect_err("it was cut off");
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::SeqCst);
    while let Some(caller) = callers.join_next().await {
        let (longest, failed) = caller.unwrap();
        println!("longest wait for an answer {longest:?}, {failed} calls cut off");
        assert!(longest < Duration::from_secs(1), "{longest:?}");
    }
    let made = maker.await.unwrap();
    println!("{} containers made, {} calls cut off", made.len(), made.iter().filter(|(_, ok)| !ok).count());
    for (id, acknowledged) in &made {
        ledger.expect(id, "init", *acknowledged, &[3]);
    }
    assert_eq!(host.pid(), pid);
    // The shims are its children as before, and are reaped.
    signal(&mut client, "c", "p", 9).await.unwrap();
    assert_eq!(ledger.exit("c", "p").await, 137);
    signal(&mut client, "c", "init", 9).await.unwrap();
    ledger.all_ended().await;
    eventually("no child is left", || children_of(pid).is_empty());
    assert_eq!(ledger.findings(), Vec::<String>::new());
    drop(ledger);
    host.finish();
}

#[tokio::test]
async fn what_does_not_run_replaces_nothing() {
    let host = installed(None).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let before = program_of(host.pid());
    let broken = host.join(".broken");
    std::fs::write(&broken, "rubbish").unwrap();
    std::fs::rename(&broken, host.join("containerd")).unwrap();
    kill_process(Pid::from_raw(host.pid() as i32).unwrap(), Signal::HUP).unwrap();
    eventually("it says so", || host.log().contains("not replaced, still serving"));
    assert_eq!(program_of(host.pid()), before);
    kill(&mut client, "c").await;
    host.finish();
}

/// Installs a script as the daemon's program.
fn install_script(host: &Host, script: &str) {
    let new = host.path().join(".script");
    tests::write_program(&new, &format!("#!/bin/sh\nHOST={}\n{script}\n", host.path().display()));
    std::fs::rename(new, host.join("containerd")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn program_that_does_not_serve_replaces_nothing() {
    let host = installed(None).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let (pid, program) = (host.pid(), program_of(host.pid()));
    for (n, (script, reason)) in [
        ("echo cannot begin >&2; exit 1", "ended with status 1: cannot begin"),
        ("exit 0", "ended with status 0"),
        ("kill -9 $$", "ended with status 137"),
        ("exec sleep 100000", "does not serve after"),
    ]
    .into_iter()
    .enumerate()
    {
        install_script(&host, &format!(r#"[ "$1" = --version ] && exec echo 9.9; {script}"#));
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::HUP).unwrap();
        // It serves all the while.
        eventually("it says so", || host.log().matches("not replaced, still serving").count() == n + 1);
        assert!(host.log().contains(reason), "{reason} in {}", host.log());
        assert_eq!((host.pid(), program_of(pid)), (pid, program));
        assert_eq!(state(&mut client).await.len(), 1);
        assert!(!host.state_dir().join(".rehearsal").exists());
    }
    let [_shim] = children_of(pid)[..] else { panic!("one shim, and nothing of what was tried") };
    // A good one still does.
    install(&host, "containerd");
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::HUP).unwrap();
    eventually("it is another program", || program_of(pid) != program);
    kill(&mut host.client().await, "c").await;
    host.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn program_that_fails_at_its_real_start_gives_way_to_the_one_before() {
    let host = installed(None).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let (pid, program) = (host.pid(), program_of(host.pid()));
    // One that finds no shim: there is none beside it.
    for directory in ["good", "bad"] {
        std::fs::create_dir(host.path().join(directory)).unwrap();
        let copied = std::process::Command::new("cp").arg(bin("containerd")).arg(host.path().join(directory)).status();
        assert!(copied.unwrap().success());
    }
    std::os::unix::fs::symlink(host.join("containerd-shim"), host.join("good/containerd-shim")).unwrap();
    let script = r#"case "$*" in --version|*.rehearsal*) exec $HOST/good/containerd "$@";; esac; exec $HOST/bad/containerd "$@""#;
    install_script(&host, script);
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::HUP).unwrap();
    eventually("it says so", || host.log().contains("going back to the previous program"));
    eventually("it serves again", || host.log().matches(" serving ").count() >= 2);
    let mut client = host.client().await;
    assert_eq!(state(&mut client).await.len(), 1);
    assert_eq!((host.pid(), program_of(pid)), (pid, program));
    kill(&mut client, "c").await;
    // It can be replaced as before.
    install(&host, "containerd");
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::HUP).unwrap();
    eventually("it is another program", || program_of(pid) != program);
    state(&mut host.client().await).await;
    host.finish();
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let mut host = Host::prepare(Options { own_programs: true, ..Options::default() });
    for name in ["containerd", "containerd-shim"] {
        install(&host, name);
    }
    let path = host.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(tests::LIMIT)).unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_string()
    };
    host.set_env("NOTIFY_SOCKET", &path);
    host.start().await;
    assert_eq!(told(), "READY=1");
    kill_process(Pid::from_raw(host.pid() as i32).unwrap(), Signal::HUP).unwrap();
    assert!(told().starts_with("RELOADING=1"));
    assert_eq!(told(), "READY=1");
    sleeper(&host, &mut host.client().await, "c").await;
    kill(&mut host.client().await, "c").await;
    host.stop(Signal::TERM);
    assert_eq!(told(), "STOPPING=1");
    assert!(Path::new(&path).exists());
    host.start().await;
    host.finish();
}

#[tokio::test]
async fn a_runtime_runs_from_a_copy_of_the_program_as_it_is_now() {
    let directory = tempfile::tempdir().unwrap();
    // It may be named by a path.
    let runtime = runtime();
    let name = runtime.rsplit('/').next().unwrap();
    let program = directory.path().join(name);
    // Another program each time: what is behind the end of an ELF file is nothing to it.
    let install = |more: &str| {
        let script =
            r#"cat "$(command -v "$0")" > "$1.new"; printf %s "$2" >> "$1.new"; chmod 755 "$1.new"; mv "$1.new" "$1""#;
        let mut command = std::process::Command::new("sh");
        assert!(command.args(["-c", script, &runtime]).arg(&program).arg(more).status().unwrap().success());
        program.metadata().unwrap().len()
    };
    install("");
    let path = program.to_str().unwrap().to_string();
    let host = Host::with(Options { runtime: Some(path), ..Options::default() }).await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let seen = host.path().join("seen");
    let look = format!("readlink /proc/$PPID/exe > {0}; stat -L -c %s /proc/$PPID/exe >> {0}", seen.display());
    let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", look]});
    for more in ["", "x", "yy"] {
        let length = install(more);
        // The copy is made while the first ones are started from the file.
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < tests::LIMIT, "no copy is run");
            let id = host.name("c");
            let mut bundle = host.bundle(&["true"]);
            bundle.config["hooks"] = serde_json::json!({"createRuntime": [hook]});
            start(&mut client, &id, &bundle.write()).await;
            assert_eq!(watch.exit(&id, "init").await, 0);
            let text = std::fs::read_to_string(&seen).unwrap();
            let (file, size) = text.trim().split_once('\n').unwrap();
            assert_eq!(size.parse(), Ok(length), "{file}");
            if file.starts_with("/memfd:") && file.contains(name) {
                break;
            }
        }
    }
    host.finish();
}
