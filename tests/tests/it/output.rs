//! What a process wrote is delivered whole, in order, before its exit is told.

use crate::support::*;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use tests::{Fifo, Host, eventually};

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn expected(size: usize) -> [u8; 32] {
    digest(&std::fs::read(tests::rootfs().join(format!("data/{size}"))).unwrap())
}

/// Runs a process that writes `size` bytes to both outputs and ends at once, `times` times.
async fn flood(host: &Host, size: usize, times: usize) {
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let expected = expected(size);
    let script = format!("cat /data/{size} >&2 & cat /data/{size}; wait");
    for n in 0..times {
        let (out, err) = (host.fifo(), host.fifo());
        let (out_reader, err_reader) = (out.collect(), err.collect());
        let name = format!("p{size}-{n}");
        let mut request = process("c", &name, &["sh", "-c", &script]);
        (request.stdout, request.stderr) = (out.path(), err.path());
        client.add_process(request).await.unwrap();
        assert_eq!(watch.exit("c", &name).await, 0);
        assert_eq!(digest(&out_reader.bytes()), expected, "stdout, {size} bytes, round {n}");
        assert_eq!(digest(&err_reader.bytes()), expected, "stderr, {size} bytes, round {n}");
        for fifo in [out, err] {
            std::fs::remove_file(fifo.path()).unwrap();
        }
    }
}

#[tokio::test]
async fn up_to_1_mib_on_both_outputs_200_times_each() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    for size in [1, 4095, 4096, 65_537, 1 << 20] {
        flood(&host, size, 200).await;
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn up_to_64_mib_on_both_outputs_20_times_each() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    for size in [16 << 20, 64 << 20] {
        flood(&host, size, 20).await;
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn an_inits_output_is_whole_200_times() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    for size in [1, 1 << 20] {
        let script = format!("cat /data/{size} >&2 & cat /data/{size}; wait");
        let bundle = host.bundle(&["sh", "-c", &script]).write();
        for _ in 0..200 {
            let (out, err) = (host.fifo(), host.fifo());
            let (out_reader, err_reader) = (out.collect(), err.collect());
            let mut request = container("c", &bundle);
            (request.stdout, request.stderr) = (out.path(), err.path());
            client.create_container(request).await.unwrap();
            assert_eq!(watch.exit("c", "init").await, 0);
            assert_eq!(digest(&out_reader.bytes()), expected(size));
            assert_eq!(digest(&err_reader.bytes()), expected(size));
        }
    }
    host.finish();
}

#[tokio::test]
async fn a_terminals_output_is_whole() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let mut watch = Watch::new(&mut client).await;
    for (size, times) in [(1, 200), (4096, 200), (1 << 20, 200)] {
        let expected = expected(size);
        for n in 0..times {
            let out = host.fifo();
            let reader = out.collect();
            let name = format!("t{size}-{n}");
            let mut request = process("c", &name, &["cat", &format!("/data/{size}")]);
            request.terminal = true;
            request.stdout = out.path();
            client.add_process(request).await.unwrap();
            assert_eq!(watch.exit("c", &name).await, 0);
            assert_eq!(digest(&reader.bytes()), expected, "{size} bytes, round {n}");
            std::fs::remove_file(out.path()).unwrap();
        }
    }
    kill(&mut client, "c").await;
    host.finish();
}

/// A process `p` in a new container `c` that runs `script` with its stdout in `out`.
async fn run(host: &Host, script: &str, out: &Fifo) {
    let mut client = host.client().await;
    sleeper(host, &mut client, "c").await;
    let mut request = process("c", "p", &["sh", "-c", script]);
    request.stdout = out.path();
    client.add_process(request).await.unwrap();
}

#[tokio::test]
async fn a_grandchild_that_keeps_stdout_delays_only_that_exit() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let out = host.fifo();
    let reader = out.collect();
    run(&host, "(while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last) & echo first", &out).await;
    // Others are told meanwhile.
    client.add_process(process("c", "q", &["true"])).await.unwrap();
    let mut seen = Vec::new();
    while !seen.iter().any(|event| event == "c exit q 0") {
        seen.push(short(&watch.next().await));
    }
    assert_eq!(seen, ["c start-container", "c start-process p", "c start-process q", "c exit q 0"]);
    client.add_process(process("c", "go", &["touch", "/tmp/go"])).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 0);
    assert_eq!(reader.text(), "first\nlast\n");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_grandchild_never_delays_init() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let out = host.fifo();
    let reader = out.collect();
    let mut request = container("c", &host.bundle(&["sh", "-c", "sleep 100000 & echo first"]).write());
    request.stdout = out.path();
    client.create_container(request).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 0);
    assert_eq!(reader.text(), "first\n");
    host.finish();
}

#[tokio::test]
async fn a_process_outside_that_holds_stdout_delays_nothing_after_init() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let out = host.fifo();
    let reading = {
        let out = out.clone();
        tokio::task::spawn_blocking(move || {
            let mut reader = out.reader();
            let mut line = [0; 6];
            reader.read_exact(&mut line).unwrap();
            reader
        })
    };
    let mut request = container("c", &host.bundle(&["sh", "-c", "echo first; sleep 100000"]).write());
    request.stdout = out.path();
    let started = client.create_container(request).await.unwrap().into_inner().container.unwrap();
    let pid = started.processes[0].system_pid;
    let outside = std::fs::File::options().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
    let mut reader = reading.await.unwrap();
    signal(&mut client, "c", "init", 9).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 137);
    assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0, "the shim has gone");
    drop(outside);
    host.finish();
}

#[tokio::test]
async fn a_reader_may_go_and_another_may_come() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let out = host.fifo();
    let first = {
        let out = out.clone();
        std::thread::spawn(move || {
            let mut line = [0; 6];
            out.reader().read_exact(&mut line).unwrap();
            line
        })
    };
    let mut watch = Watch::new(&mut client).await;
    run(&host, "echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; cat /data/1048576", &out).await;
    assert_eq!(&first.join().unwrap(), b"first\n");
    client.add_process(process("c", "go", &["touch", "/tmp/go"])).await.unwrap();
    assert_eq!(watch.exit("c", "go").await, 0);
    // The process is blocked now, or soon.
    let second = out.collect();
    assert_eq!(watch.exit("c", "p").await, 0);
    assert_eq!(digest(&second.bytes()), expected(1 << 20));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_slow_reader_delays_the_exit_and_state_says_stopped() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let out = host.fifo();
    let mut reader = out.reader_now();
    let mut request =
        container("c", &host.bundle(&["sh", "-c", "cat /data/1048576 & sleep 0.2; kill $!; exit 3"]).write());
    request.stdout = out.path();
    client.create_container(request).await.unwrap();
    assert_eq!(watch.next().await.r#type, "start-container");
    let deadline = Instant::now() + tests::LIMIT;
    while state(&mut client).await[0].status != "stopped" {
        assert!(Instant::now() < deadline);
    }
    assert!(watch.silent_for(Duration::from_millis(300)).await, "what it wrote has not been taken");
    let mut taken = 0;
    let mut buffer = vec![0; 65536];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => taken += n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => tokio::task::yield_now().await,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(taken > 65536, "{taken}");
    assert_eq!(watch.exit("c", "init").await, 3);
    host.finish();
}

#[tokio::test]
async fn output_that_nobody_reads_is_dropped_after_15_seconds() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let out = host.fifo();
    let mut request = container("c", &host.bundle(&["echo", "hello"]).write());
    request.stdout = out.path();
    client.create_container(request).await.unwrap();
    let ended = Instant::now();
    assert_eq!(watch.exit("c", "init").await, 0);
    let waited = ended.elapsed();
    assert!(waited > Duration::from_secs(14) && waited < Duration::from_secs(20), "{waited:?}");
    assert!(host.log().contains("nobody has read it"), "{}", host.log());
    host.finish();
}

#[tokio::test]
async fn a_reader_that_comes_late_gets_everything() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let out = host.fifo();
    let mut request = container("c", &host.bundle(&["cat", "/data/65537"]).write());
    request.stdout = out.path();
    client.create_container(request).await.unwrap();
    assert_eq!(watch.next().await.r#type, "start-container");
    assert!(watch.silent_for(Duration::from_millis(500)).await);
    let reader = out.collect();
    assert_eq!(watch.exit("c", "init").await, 0);
    assert_eq!(digest(&reader.bytes()), expected(65_537));
    host.finish();
}

#[tokio::test]
async fn a_plain_file_is_appended_to_by_both_outputs() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let path = host.join("output");
    std::fs::File::create(&path).unwrap().write_all(b"before\n").unwrap();
    let mut request = container("c", &host.bundle(&["sh", "-c", "echo out; echo err >&2; cat /data/1048576"]).write());
    (request.stdout, request.stderr) = (path.clone(), path.clone());
    client.create_container(request).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 0);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 7 + 4 + 4 + (1 << 20));
    assert!(bytes.starts_with(b"before\n"));
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("out\n") && text.contains("err\n"));
    host.finish();
}

#[tokio::test]
async fn a_killed_exec_whose_output_nobody_takes_delays_init_15_seconds_at_most() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let out = host.fifo();
    // A reader that never reads: an exec's exit waits for it, until init has ended.
    let reader = out.reader_now();
    run(&host, "cat /data/1048576", &out).await;
    let pid = state(&mut client).await[0].processes[1].system_pid;
    eventually("the process is blocked in its full pipe", || {
        sys::procfs::read(pid, "wchan").unwrap().is_some_and(|wchan| wchan.contains("pipe"))
    });
    let killed = Instant::now();
    signal(&mut client, "c", "init", 9).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 137);
    assert_eq!(watch.exit("c", "init").await, 137);
    assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
    drop(reader);
    host.finish();
}

#[tokio::test]
async fn a_process_goes_on_when_its_client_has_gone_and_waits_for_one_that_is_slow() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let started = sleeper(&host, &mut client, "c").await;
    let tmp = std::path::PathBuf::from(format!("/proc/{}/root/tmp", started.processes[0].system_pid));
    // More than the FIFO and the process's pipe take.
    let script = |name: &str| {
        format!(
            "head -c 1000000 /dev/zero; touch /tmp/{name}.done; while [ ! -e /tmp/{name}.go ]; do sleep 0.05; done; echo last"
        )
    };
    let mut fifos = Vec::new();
    let mut readers = Vec::new();
    for (name, terminal) in [("left", false), ("unlinked", false), ("terminal", true), ("slow", false)] {
        let stdout = host.fifo();
        let mut request = process("c", name, &["sh", "-c", &script(name)]);
        (request.stdout, request.terminal) = (stdout.path(), terminal);
        let mut reader = stdout.reader_now();
        client.add_process(request).await.unwrap();
        if name == "slow" {
            readers.push(reader);
        } else {
            let mut some = [0; 1000];
            eventually("it writes", || reader.read(&mut some).is_ok_and(|n| n > 0));
            drop(reader);
        }
        if name == "unlinked" {
            std::fs::remove_file(stdout.path()).unwrap();
        }
        fifos.push(stdout);
    }
    for name in ["left", "unlinked", "terminal"] {
        eventually(&format!("{name} goes on"), || tmp.join(format!("{name}.done")).exists());
    }
    assert!(!tmp.join("slow.done").exists(), "nothing is dropped as long as there is a reader");
    // One that comes later gets what was kept, and what comes then.
    let (opened, is_open) = std::sync::mpsc::channel();
    let fifo = fifos[0].clone();
    let reading = std::thread::spawn(move || {
        let mut reader = fifo.reader();
        opened.send(()).unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    is_open.recv().unwrap();
    for name in ["left", "unlinked", "terminal"] {
        std::fs::write(tmp.join(format!("{name}.go")), "").unwrap();
    }
    assert_eq!(watch.exit("c", "left").await, 0);
    let bytes = reading.join().unwrap();
    assert!(bytes.len() < 1_000_000 && bytes.ends_with(b"last\n"), "{} bytes", bytes.len());
    let mut slow = readers.remove(0);
    rustix::io::ioctl_fionbio(&slow, false).unwrap();
    std::fs::write(tmp.join("slow.go"), "").unwrap();
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        slow.read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert_eq!(watch.exit("c", "slow").await, 0);
    let bytes = reading.join().unwrap();
    assert!(bytes.len() == 1_000_005 && bytes.ends_with(b"last\n"), "{} bytes", bytes.len());
    kill(&mut client, "c").await;
    host.finish();
}
