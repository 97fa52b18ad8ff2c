//! How processes end, and in which order that is told.

use crate::support::*;
use tests::{Host, Options};

#[tokio::test]
async fn exit_codes_and_signals_come_back_true() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    for code in [0, 1, 7, 127, 255] {
        let id = format!("exit-{code}");
        start(&mut client, &id, &host.bundle(&["sh", "-c", &format!("exit {code}")]).write()).await;
        assert_eq!(watch.exit(&id, "init").await, code);
    }
    sleeper(&host, &mut client, "host").await;
    for code in [0, 1, 7, 127, 255] {
        let name = format!("e{code}");
        client.add_process(process("host", &name, &["sh", "-c", &format!("exit {code}")])).await.unwrap();
        assert_eq!(watch.exit("host", &name).await, code);
    }
    for number in [1, 2, 6, 9, 11, 15, 34, 64] {
        let name = format!("s{number}");
        client.add_process(process("host", &name, &["sleep", "1000"])).await.unwrap();
        signal(&mut client, "host", &name, number).await.unwrap();
        assert_eq!(watch.exit("host", &name).await, 128 + number);
    }
    kill(&mut client, "host").await;
    host.finish();
}

#[tokio::test]
async fn start_comes_before_exit_500_times_with_the_id_used_again_at_once() {
    let host = Host::with(Options { flags: vec!["--retain-count=2000".into()], ..Options::default() }).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["/bin/true"]).write();
    let mut watch = Watch::new(&mut client).await;
    for n in 0..500 {
        let started = start(&mut client, "same", &bundle).await;
        assert_eq!(started.processes[0].pid, "init");
        assert_eq!(short(&watch.next().await), "same start-container", "round {n}");
        assert_eq!(short(&watch.next().await), "same exit init 0", "round {n}");
        assert!(!host.state_dir().join("same").exists(), "whoever sees the exit finds everything gone");
    }
    let all = stored(&mut client).await;
    assert_eq!(all.len(), 1000);
    let times: Vec<_> = all.iter().map(|e| e.timestamp.unwrap()).map(|t| (t.seconds, t.nanos)).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "timestamps strictly increase");
    host.finish();
}

#[tokio::test]
async fn ten_at_once_that_end_at_once_all_start() {
    let host = Host::new().await;
    let client = host.client().await;
    let bundle = |n: usize| host.bundle(&["sh", "-c", &format!("exit {n}")]).write();
    for round in 0..10 {
        let mut watch = Watch::new(&mut client.clone()).await;
        let mut starts = tokio::task::JoinSet::new();
        for n in 0..10 {
            let (mut client, bundle) = (client.clone(), bundle(n));
            starts.spawn(async move { start(&mut client, &format!("c{n}"), &bundle).await });
        }
        while let Some(started) = starts.join_next().await {
            started.unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..20 {
            seen.push(short(&watch.next().await));
        }
        for n in 0..10 {
            let place = |what: String| seen.iter().position(|event| *event == what);
            let started = place(format!("c{n} start-container"));
            let ended = place(format!("c{n} exit init {n}"));
            assert!(started.is_some() && started < ended, "round {round}: {seen:?}");
        }
    }
    host.finish();
}

#[tokio::test]
async fn an_added_process_exits_before_init_200_times() {
    let host = Host::with(Options { flags: vec!["--retain-count=0".into()], ..Options::default() }).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "1000"]).write();
    let mut watch = Watch::new(&mut client).await;
    for n in 0..200 {
        start(&mut client, "c", &bundle).await;
        client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap();
        signal(&mut client, "c", "init", 9).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(short(&watch.next().await));
        }
        assert_eq!(seen, ["c start-container", "c start-process p", "c exit p 137", "c exit init 137"], "round {n}");
    }
    host.finish();
}

#[tokio::test]
async fn a_container_without_a_pid_namespace_takes_all_its_processes_with_it() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let out = host.fifo();
    let script = "sleep 100000 & sleep 100000 & echo ready; exec sleep 100000";
    let bundle = host.bundle(&["sh", "-c", script]).without_namespace("pid").write();
    let reader = out.collect();
    let mut request = container("c", &bundle);
    request.stdout = out.path();
    client.create_container(request).await.unwrap();
    client.add_process(process("c", "p", &["sh", "-c", "sleep 100000 & exec sleep 100000"])).await.unwrap();
    let pids = state(&mut client).await[0].pids.clone();
    assert!(pids.len() >= 4, "{pids:?}");
    let mut watch = Watch::new(&mut client).await;
    signal(&mut client, "c", "init", 9).await.unwrap();
    assert_eq!(short(&watch.next().await), "c exit p 137");
    assert_eq!(short(&watch.next().await), "c exit init 137");
    assert_eq!(reader.text(), "ready\n");
    host.finish();
}

#[tokio::test]
async fn an_exec_that_meets_the_containers_end_delays_it_by_nothing() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["true"]).write();
    let mut watch = Watch::new(&mut client).await;
    let mut late = 0;
    for _ in 0..100 {
        start(&mut client, "c", &bundle).await;
        let mut added = client.clone();
        let exec = tokio::spawn(async move { added.add_process(process("c", "p", &["true"])).await });
        let begun = std::time::Instant::now();
        assert_eq!(watch.exit("c", "init").await, 0);
        late += usize::from(begun.elapsed() > std::time::Duration::from_secs(10));
        // It ran or it did not; its name is free in any case.
        let _ = exec.await.unwrap();
    }
    assert_eq!(late, 0);
    host.finish();
}

#[tokio::test]
async fn failed_exec_leaves_no_zombie_that_the_end_of_its_container_would_wait_for() {
    let host = Host::with(tests::Options {
        fake_runtime: Some(tests::FAULTS),
        flags: vec!["--start-timeout=2s".into()],
        ..Default::default()
    })
    .await;
    let mut client = host.client().await;
    let init = sleeper(&host, &mut client, "c").await.processes[0].system_pid;
    for n in 0..20 {
        let missing = process("c", &format!("p{n}"), &["/no/such/program"]);
        client.add_process(missing).await.expect_err("there is no such program");
        assert!(zombies_in_namespace_of(init).is_empty(), "the shim reaps what the runtime has left");
    }
    // The process runs when the daemon gives up on its start.
    std::fs::write(host.join("fault"), "exec:late").unwrap();
    refused(client.add_process(process("c", "late", &["sleep", "1000"])).await, tonic::Code::DeadlineExceeded, &[]);
    assert!(zombies_in_namespace_of(init).is_empty());
    std::fs::write(host.join("fault"), "none").unwrap();
    kill(&mut client, "c").await;
    host.finish();
}
