//! Calls don't wait for each other.

use crate::support::*;
use std::time::{Duration, Instant};
use tests::{Host, Options};
use tonic::Code;

/// Containers whose id has `slow` in it hang in the runtime's step that the file `hang` names.
const HANGING: &str = r#"
step=$(cat "$(dirname $0)/hang" 2>/dev/null || echo none)
case " $* " in *" $step "*slow*) touch "$(dirname $0)/hung"; exec sleep 100000;; esac
exec $RUNTIME "$@""#;

fn hang_in(host: &Host, step: &str) {
    let _ = std::fs::remove_file(host.join("hung"));
    std::fs::write(host.join("hang"), step).unwrap();
}

/// Waits until the runtime hangs.
async fn hung(host: &Host) {
    let path = host.join("hung");
    let wait = move || tests::eventually("the runtime hangs", || std::fs::exists(&path).unwrap());
    tokio::task::spawn_blocking(wait).await.unwrap();
}

/// What others do meanwhile, in far less time than the hanging call has.
async fn others_go_on(host: &Host, limit: Duration) {
    let mut client = host.client().await;
    let begun = Instant::now();
    let mut watch = Watch::new(&mut client).await;
    let id = host.name("other");
    start(&mut client, &id, &host.bundle(&["sleep", "1000"]).write()).await;
    client.add_process(process(&id, "p", &["true"])).await.unwrap();
    assert_eq!(watch.exit(&id, "p").await, 0);
    set_status(&mut client, &id, "paused").await.unwrap();
    set_status(&mut client, &id, "running").await.unwrap();
    state(&mut client).await;
    signal(&mut client, &id, "init", 9).await.unwrap();
    assert_eq!(watch.exit(&id, "init").await, 137);
    assert!(begun.elapsed() < limit, "others waited: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_call_that_hangs_delays_nobody_and_ends_at_its_timeout() {
    let limit = Duration::from_secs(6);
    let flags = vec![format!("--start-timeout={}s", limit.as_secs())];
    let host = Host::with(Options { flags, fake_runtime: Some(HANGING), ..Options::default() }).await;
    let client = host.client().await;
    for step in ["run", "start"] {
        hang_in(&host, step);
        let begun = Instant::now();
        let (mut caller, bundle) = (client.clone(), host.bundle(&["sleep", "1000"]));
        let _group = (step == "start").then(|| bundle.make_group());
        let bundle = bundle.write();
        let call = tokio::spawn(async move { caller.create_container(container("slow", &bundle)).await });
        hung(&host).await;
        others_go_on(&host, limit).await;
        refused(call.await.unwrap(), Code::DeadlineExceeded, &["did not start before the specified timeout"]);
        assert!(begun.elapsed() >= limit && begun.elapsed() < 2 * limit, "{:?}", begun.elapsed());
    }
    hang_in(&host, "none");
    sleeper(&host, &mut client.clone(), "slow").await;
    hang_in(&host, "exec");
    let mut caller = client.clone();
    let call = tokio::spawn(async move { caller.add_process(process("slow", "p", &["true"])).await });
    hung(&host).await;
    others_go_on(&host, limit).await;
    // Signals and the state of the container itself are not held up either.
    signal(&mut client.clone(), "slow", "init", 28).await.unwrap();
    assert_eq!(state(&mut client.clone()).await.len(), 1);
    refused(call.await.unwrap(), Code::DeadlineExceeded, &["did not start before the specified timeout"]);
    hang_in(&host, "pause");
    let mut caller = client.clone();
    let call = tokio::spawn(async move { set_status(&mut caller, "slow", "paused").await });
    hung(&host).await;
    others_go_on(&host, limit).await;
    refused(call.await.unwrap(), Code::DeadlineExceeded, &["pause did not end within"]);
    hang_in(&host, "delete");
    let mut watch = Watch::new(&mut client.clone()).await;
    signal(&mut client.clone(), "slow", "init", 9).await.unwrap();
    hung(&host).await;
    others_go_on(&host, limit).await;
    hang_in(&host, "none");
    assert_eq!(watch.exit("slow", "init").await, 137, "once the delete has succeeded");
    host.finish();
}

#[tokio::test]
async fn execs_in_one_container_run_side_by_side() {
    // Each exec of the runtime waits until all five are under way.
    const MEETING: &str = r#"
case " $* " in *" exec "*)
    d=$(dirname $0)/meeting; mkdir -p $d; touch $d/$$
    while [ $(ls $d | wc -l) -lt 5 ]; do sleep 0.01; done;;
esac
exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(MEETING), ..Options::default() }).await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..5 {
        let mut client = client.clone();
        calls.spawn(async move { client.add_process(process("c", &format!("p{n}"), &["true"])).await });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
    kill(&mut client, "c").await;
    assert_eq!(watch.exit("c", "init").await, 137);
    host.finish();
}

#[tokio::test]
async fn starts_run_side_by_side() {
    const MEETING: &str = r#"
case " $* " in *" run "*)
    d=$(dirname $0)/meeting; mkdir -p $d; touch $d/$$
    while [ $(ls $d | wc -l) -lt 10 ]; do sleep 0.01; done;;
esac
exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(MEETING), ..Options::default() }).await;
    let client = host.client().await;
    let mut watch = Watch::new(&mut client.clone()).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..10 {
        let (mut client, bundle) = (client.clone(), host.bundle(&["true"]).write());
        calls.spawn(async move { start(&mut client, &format!("c{n}"), &bundle).await });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    let mut exits = 0;
    while exits < 10 {
        exits += usize::from(watch.next().await.r#type == "exit");
    }
    host.finish();
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_a_whole_container_or_none() {
    let host = Host::new().await;
    let mut watch = Watch::new(&mut host.client().await).await;
    for n in 0..10 {
        let mut client = host.client().await;
        let (id, bundle) = (format!("c{n}"), host.bundle(&["sleep", "1000"]).write());
        let request = container(&id, &bundle);
        let call = tokio::spawn(async move { client.create_container(request).await });
        tokio::time::sleep(Duration::from_millis(2 * n)).await;
        call.abort();
        let _ = call.await;
    }
    // Whatever was begun is carried through.
    let mut client = host.client().await;
    let mut settled = Vec::new();
    while watch_settles(&mut watch).await {
        settled = state(&mut client).await;
    }
    for container in &settled {
        assert_eq!(container.status, "running");
        kill(&mut client, &container.id).await;
    }
    host.finish();
}

/// Whether something still comes.
async fn watch_settles(watch: &mut Watch) -> bool {
    !watch.silent_for(Duration::from_millis(500)).await
}
