//! Event streams: live, stored, by id, from a moment; and what becomes of who does not keep up.

use crate::support::*;
use api::{EventsRequest, Timestamp};
use tests::{Host, Options};
use tonic::Code;

fn from(timestamp: Option<Timestamp>, stored_only: bool, id: &str) -> EventsRequest {
    EventsRequest { timestamp, stored_only, id: id.into() }
}

#[tokio::test]
async fn stored_events_come_from_a_moment_on_and_by_id() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut live = Watch::new(&mut client).await;
    let bundle = host.bundle(&["true"]).write();
    for id in ["a", "b", "a"] {
        start(&mut client, id, &bundle).await;
        live.exit(id, "init").await;
    }
    let all = stored(&mut client).await;
    let expected = ["a start-container", "a exit init 0", "b start-container", "b exit init 0"];
    assert_eq!(all.iter().map(short).collect::<Vec<_>>(), [&expected[..], &expected[..2]].concat());
    let since = Watch::with(&mut client, from(all[2].timestamp, true, "")).await.rest().await;
    assert_eq!(since, all[3..], "only those that are newer");
    let of_b = Watch::with(&mut client, from(all[0].timestamp, true, "b")).await.rest().await;
    assert_eq!(of_b, all[2..4]);
    // First the stored ones, then what comes.
    let mut both = Watch::with(&mut client, from(all[4].timestamp, false, "a")).await;
    assert_eq!(both.next().await, all[5]);
    // In another control group, which the end of the one does not take from the other.
    start(&mut client, "b", &host.bundle(&["true"]).write()).await;
    start(&mut client, "a", &bundle).await;
    assert_eq!(short(&both.next().await), "a start-container");
    assert_eq!(both.exit("a", "init").await, 0);
    let mut ended = std::collections::HashSet::new();
    while ended.len() < 2 {
        let event = live.next().await;
        if event.r#type == "exit" {
            ended.insert(event.id);
        }
    }
    host.finish();
}

#[tokio::test]
async fn gos_zero_time_is_no_moment() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let text = "invalid parameter: StoredOnly cannot be specified without setting a valid Timestamp";
    let zero = Timestamp { seconds: -62_135_596_800, nanos: 0 };
    for timestamp in [None, Some(zero)] {
        let result = client.events(from(timestamp, true, "")).await.map(|_| ());
        refused(result, Code::InvalidArgument, &[text]);
    }
    let mut first = Watch::new(&mut client).await;
    start(&mut client, "a", &host.bundle(&["true"]).write()).await;
    first.exit("a", "init").await;
    let mut live = Watch::with(&mut client, from(Some(zero), false, "")).await;
    start(&mut client, "b", &host.bundle(&["true"]).write()).await;
    assert_eq!(live.next().await.id, "b", "only what comes");
    live.exit("b", "init").await;
    host.finish();
}

#[tokio::test]
async fn the_journal_survives_kills_and_is_kept_to_its_count() {
    let options = Options { flags: vec!["--retain-count=20".into()], ..Options::default() };
    let mut host = Host::with(options).await;
    let bundle = host.bundle(&["true"]).write();
    let mut expected = Vec::new();
    for round in 0..6 {
        let mut client = host.client().await;
        let mut live = Watch::new(&mut client).await;
        for n in 0..4 {
            let id = format!("c{round}-{n}");
            start(&mut client, &id, &bundle).await;
            for _ in 0..2 {
                expected.push(live.next().await);
            }
        }
        host.restart(rustix::process::Signal::KILL).await;
        let log = std::fs::read_to_string(host.state_dir().join("events.log")).unwrap();
        assert!(!log.is_empty() && log.ends_with('\n'));
    }
    let all = stored(&mut host.client().await).await;
    assert_eq!(all, expected[expected.len() - 20..]);
    tests::eventually("the file is brought down", || {
        std::fs::read_to_string(host.state_dir().join("events.log")).unwrap().lines().count() == 20
    });
    host.finish();
}

#[tokio::test]
async fn lines_are_as_the_contract_has_them() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut live = Watch::new(&mut client).await;
    start(&mut client, "a", &host.bundle(&["sh", "-c", "exit 7"]).write()).await;
    live.exit("a", "init").await;
    let log = std::fs::read_to_string(host.state_dir().join("events.log")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[0]["id"].as_str(), lines[0]["type"].as_str()), (Some("a"), Some("start-container")));
    assert!(lines[0].get("pid").is_none() && lines[0].get("status").is_none());
    assert_eq!((lines[1]["pid"].as_str(), lines[1]["status"].as_u64()), (Some("init"), Some(7)));
    assert!(lines[1]["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(lines[0]["instance"], lines[1]["instance"]);
    host.finish();
}

/// Makes events quickly: a pause and a resume for each round.
async fn make_events(client: &mut tests::Client, rounds: usize) {
    for _ in 0..rounds {
        set_status(client, "c", "paused").await.unwrap();
        set_status(client, "c", "running").await.unwrap();
    }
}

#[tokio::test]
async fn who_never_reads_stops_nobody_and_is_told_what_was_missed() {
    let options = Options { flags: vec!["--retain-count=50".into()], ..Options::default() };
    let host = Host::with(options).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let mut reader = Watch::new(&mut client).await;
    // Streams with a small window, which are not read from.
    let mut slow = host.client_with_window(300).await;
    let mut never = Vec::new();
    for _ in 0..50 {
        never.push(Watch::new(&mut slow).await);
    }
    make_events(&mut client, 100).await;
    let mut all = Vec::new();
    for n in 0..200 {
        all.push(reader.next().await);
        assert_eq!(short(&all[n]), if n % 2 == 0 { "c pause" } else { "c resume" });
    }
    for mut watch in never {
        let mut seen = Vec::new();
        let status = loop {
            match watch.try_next().await {
                Ok(Some(event)) => seen.push(event),
                Ok(None) => panic!("never a silent end"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::DataLoss, "{status:?}");
        assert_eq!(seen, all[..seen.len()], "no gap before that");
        let words = status.message().split_whitespace();
        let since = words.filter_map(|word| word.parse::<supervisor::Timestamp>().ok()).next();
        let since = since.expect("the message has the moment to go on from");
        if let Some(timestamp) = seen.last().and_then(|event| event.timestamp) {
            assert_eq!(since.0, timestamp.seconds * 1_000_000_000 + i64::from(timestamp.nanos));
        }
        let moment = Timestamp { seconds: since.0 / 1_000_000_000, nanos: (since.0 % 1_000_000_000) as i32 };
        let mut again = Watch::with(&mut client, from(Some(moment), false, "")).await;
        // The last one is kept beside the fifty: it says whether the container is paused.
        assert_eq!(again.next().await, all[149], "the oldest that is kept");
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn more_stored_events_than_any_queue_are_replayed() {
    let options = Options { flags: vec!["--retain-count=0".into()], ..Options::default() };
    let mut host = Host::prepare(options);
    std::fs::create_dir(host.state_dir()).unwrap();
    let line = |n: u32| {
        format!(
            "{{\"id\":\"old-{n}\",\"type\":\"oom\",\"timestamp\":\"2020-01-01T00:00:00.{n:09}Z\",\"instance\":\"x\"}}\n"
        )
    };
    let text: String = (0..20_000).map(line).collect();
    std::fs::write(host.state_dir().join("events.log"), text).unwrap();
    host.start().await;
    let mut client = host.client().await;
    let mut never_read = Watch::with(&mut client, from(Some(Timestamp { seconds: 1, nanos: 0 }), false, "")).await;
    let mut live = Watch::new(&mut host.client().await).await;
    let all = stored(&mut host.client().await).await;
    assert_eq!(all.len(), 20_000);
    assert!(all.iter().enumerate().all(|(n, event)| event.id == format!("old-{n}")));
    start(&mut client, "a", &host.bundle(&["true"]).write()).await;
    assert_eq!(live.exit("a", "init").await, 0);
    for event in &all {
        assert_eq!(never_read.next().await, *event);
    }
    assert_eq!(never_read.exit("a", "init").await, 0);
    host.finish();
}
