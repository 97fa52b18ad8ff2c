//! Many containers with short lives while the daemon is killed again and again.

use crate::support::*;
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tests::{Host, Ledger, Options, Random, eventually};

/// How many; `CONTAINERD_TEST_KILLS=200` for as many kills and ten times as many containers.
fn kills() -> usize {
    std::env::var("CONTAINERD_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_are_told_once_and_truly_however_often_the_daemon_is_killed() {
    const LANES: usize = 6;
    let (kills, containers) = (kills(), 10 * kills());
    let mut random = Random::from_environment();
    println!("{containers} containers, {kills} kills, {random}");
    let flags = vec!["--retain-count=0".into(), "--log-level=info".into()];
    let mut host = Host::with(Options { flags, ..Options::default() }).await;
    let ledger = Arc::new(Ledger::new(host.lazy_client()));
    let counter = || Arc::new(AtomicUsize::new(0));
    let (next, made, killed) = (counter(), counter(), counter());
    // A bundle each: two containers cannot share a control group.
    let template = host.bundle(&[]);
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..LANES {
        let (mut client, ledger, template) = (host.lazy_client(), ledger.clone(), template.clone());
        let (next, made, killed, mut random) = (next.clone(), made.clone(), killed.clone(), random.split());
        lanes.spawn(async move {
            loop {
                // The last kill is to find some alive.
                if made.load(Ordering::SeqCst) >= containers && killed.load(Ordering::SeqCst) >= kills {
                    return;
                }
                let n = next.fetch_add(1, Ordering::SeqCst);
                let id = format!("c{n}");
                let (status, centiseconds) = (random.below(256) as u32, random.below(60));
                let script = format!("sleep 0.{centiseconds:02}; exit {status}");
                let bundle = template.copy(&id, &["sh", "-c", &script]).write();
                let created = client.create_container(container(&id, &bundle)).await;
                ledger.expect(&id, "init", created.is_ok(), &[status]);
                if let Err(status) = &created {
                    assert!(is_cut_off(status), "{status:?}");
                    // Until there is a daemon again.
                    while client.state(api::StateRequest::default()).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    continue;
                }
                made.fetch_add(1, Ordering::SeqCst);
                if random.below(3) == 0 {
                    let status = random.below(256) as u32;
                    let script = format!("exit {status}");
                    let added = client.add_process(process(&id, "p", &["sh", "-c", &script])).await;
                    // It may be killed by the container's end.
                    ledger.expect(&id, "p", added.is_ok(), &[status, 137]);
                }
            }
        });
    }
    let mut after = 0;
    for _ in 0..kills {
        // A kill for so many containers, at any moment in between.
        after += 2 + random.below(2 * containers / kills - 4);
        while made.load(Ordering::SeqCst) < after.min(containers) {
            tokio::time::sleep(Duration::from_millis(random.below(20) as u64)).await;
            assert!(!host.has_died(), "nobody has killed it: {}", host.log());
        }
        host.restart(Signal::KILL).await;
        killed.fetch_add(1, Ordering::SeqCst);
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
    let mut client = host.client().await;
    state(&mut client).await;
    ledger.all_ended().await;
    eventually("all have gone", || {
        let entries = std::fs::read_dir(host.state_dir()).unwrap().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count() == 0
    });
    assert_eq!(ledger.findings(), Vec::<String>::new(), "{random}");
    println!("{} events, {} calls", ledger.events(), next.load(Ordering::SeqCst));
    drop(ledger);
    host.finish();
}
