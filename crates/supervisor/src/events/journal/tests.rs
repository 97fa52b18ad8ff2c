//! The journal against its promises: the file, the order, what is kept, what subscribers get.

use super::file::DAMAGED;
use super::*;
use crate::events::subscription::Subscription;

fn event(kind: EventKind, id: &str) -> Event {
    Event {
        id: id.into(),
        kind,
        timestamp: Timestamp(0),
        pid: String::new(),
        status: 0,
        instance: format!("key-{id}"),
        oom_kills: 0,
        process: String::new(),
        was: None,
    }
}

fn lines(directory: &Path) -> usize {
    std::fs::read_to_string(directory.join(FILE)).expect("reads").lines().count()
}

#[tokio::test]
async fn file_is_brought_down_to_the_retained_count() {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(directory.path(), 10).expect("opens");
    journal.recovered();
    for n in 0..1000 {
        journal.append(event(EventKind::Oom, &n.to_string())).expect("appends");
        assert!(lines(directory.path()) > 0, "never empty");
    }
    assert_eq!(journal.lock().events.len(), 10);
    let deadline = std::time::Instant::now() + 20 * TRIM_DELAY;
    while lines(directory.path()) != 10 {
        assert!(std::time::Instant::now() < deadline, "the file is brought down");
        tokio::time::sleep(TRIM_DELAY / 20).await;
    }
    let again = Journal::open(directory.path(), 10).expect("opens");
    again.recovered();
    let kept: Vec<String> = again.lock().events.values().map(|e| e.id.clone()).collect();
    assert_eq!(kept, (990..1000).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn events_that_recovery_needs_are_not_trimmed() {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(directory.path(), 5).expect("opens");
    journal.recovered();
    journal.protect_new("key-alive");
    journal.append(event(EventKind::StartContainer, "alive")).expect("appends");
    for _ in 0..50 {
        journal.append(event(EventKind::Pause, "alive")).expect("appends");
    }
    assert!(journal.history().started.contains("key-alive"));
    assert_eq!(journal.lock().events.len(), 7, "five, the start of what is alive, and whether it is paused");
    assert!(journal.is_paused("key-alive") && !journal.is_paused("key-other"));
    let again = Journal::open(directory.path(), 5).expect("opens");
    again.protect("key-alive");
    again.recovered();
    for _ in 0..50 {
        again.append(event(EventKind::Oom, "other")).expect("appends");
    }
    assert!(again.history().started.contains("key-alive"));
    again.release_key("key-alive");
    again.append(event(EventKind::Oom, "other")).expect("appends");
    assert!(!again.history().started.contains("key-alive"));
}

#[test]
fn timestamps_increase_over_a_clock_that_went_back() {
    let directory = tempfile::tempdir().expect("tempdir");
    let future = Timestamp(Timestamp::now().0 + 3_600_000_000_000);
    let mut old = event(EventKind::Oom, "a");
    old.timestamp = future;
    let line = serde_json::to_string(&old).expect("plain data");
    std::fs::write(directory.path().join(FILE), format!("{line}\n{line}\n")).expect("writes");
    let journal = Journal::open(directory.path(), 0).expect("opens");
    let next = journal.append(event(EventKind::Oom, "b")).expect("appends");
    assert_eq!(next.timestamp, future.next().next());
}

#[test]
fn damaged_lines_are_passed_over_and_the_rest_is_kept() {
    let directory = tempfile::tempdir().expect("tempdir");
    let good = serde_json::to_string(&event(EventKind::Oom, "a")).expect("plain data");
    std::fs::write(directory.path().join(FILE), format!("{good}\nxx\n{{\"id\":\n{good}\n{{\"id\":\"cut"))
        .expect("writes");
    let journal = Journal::open(directory.path(), 0).expect("opens");
    journal.append(event(EventKind::Oom, "b")).expect("appends");
    let text = std::fs::read_to_string(directory.path().join(FILE)).expect("reads");
    let ids: Vec<String> =
        text.lines().map(|line| serde_json::from_str::<Event>(line).expect("only whole lines").id).collect();
    assert_eq!(ids, ["a", "a", "b"]);
}

#[tokio::test]
async fn nothing_is_seen_before_what_is_held() {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(directory.path(), 0).expect("opens");
    let mut live = Subscription::new(&journal, None, None, false);
    let held = journal.append_held(event(EventKind::Exit, "a")).expect("appends");
    journal.append(event(EventKind::Oom, "b")).expect("appends");
    let mut stored = Subscription::new(&journal, Some(Timestamp(0)), None, true);
    assert!(stored.next().await.expect("keeps up").is_none());
    drop(held);
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(live.next().await.expect("keeps up").expect("goes on").id.clone());
    }
    assert_eq!(ids, ["a", "b"]);
}

#[tokio::test]
async fn slow_subscriber_learns_where_to_go_on() {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(directory.path(), 10).expect("opens");
    journal.recovered();
    let mut slow = Subscription::new(&journal, None, None, false);
    let mut other = Subscription::new(&journal, None, Some("5".into()), false);
    for n in 0..10 {
        journal.append(event(EventKind::Oom, &n.to_string())).expect("appends");
    }
    let first = slow.next().await.expect("keeps up").expect("goes on");
    assert_eq!(first.id, "0");
    assert_eq!(other.next().await.expect("keeps up").expect("goes on").id, "5");
    for n in 10..20 {
        journal.append(event(EventKind::Oom, &n.to_string())).expect("appends");
    }
    let lost = slow.next().await.expect_err("nine are gone");
    assert_eq!(lost.since, first.timestamp);
    // From there on, what is stored comes, and what comes.
    let mut again = Subscription::new(&journal, Some(lost.since), None, false);
    assert_eq!(again.next().await.expect("keeps up").expect("goes on").id, "10");
}

#[tokio::test]
async fn long_replay_does_not_disturb_other_subscribers() {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(directory.path(), 0).expect("opens");
    for n in 0..5000 {
        journal.append(event(EventKind::Oom, &n.to_string())).expect("appends");
    }
    let _never_read = Subscription::new(&journal, Some(Timestamp(0)), None, false);
    let mut reader = Subscription::new(&journal, Some(Timestamp(0)), None, true);
    let mut seen = 0;
    while let Some(event) = reader.next().await.expect("keeps up") {
        assert_eq!(event.id, seen.to_string());
        seen += 1;
    }
    assert_eq!(seen, 5000);
}

#[tokio::test]
async fn nothing_is_trimmed_before_recovery_has_said_what_it_needs() {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(directory.path(), 5).expect("opens");
    journal.recovered();
    journal.protect_new("key-old");
    journal.append(event(EventKind::StartContainer, "old")).expect("appends");
    for _ in 0..10 {
        journal.append(event(EventKind::Oom, "other")).expect("appends");
    }
    let again = Journal::open(directory.path(), 5).expect("opens");
    for _ in 0..10 {
        again.append(event(EventKind::Exit, "other")).expect("appends");
    }
    again.protect("key-old");
    again.recovered();
    assert!(again.history().started.contains("key-old"));
}

#[tokio::test]
async fn more_live_processes_than_are_retained_take_nothing_from_subscribers() {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(directory.path(), 5).expect("opens");
    journal.recovered();
    for n in 0..20 {
        journal.protect_new(&format!("key-{n}"));
        journal.append(event(EventKind::StartContainer, &n.to_string())).expect("appends");
    }
    let mut live = Subscription::new(&journal, None, None, false);
    let held = journal.append_held(event(EventKind::Exit, "3")).expect("appends");
    journal.release_key("key-3");
    drop(held);
    assert_eq!(live.next().await.expect("keeps up").expect("goes on").kind, EventKind::Exit);
}

/// What is in the file, line by line.
fn ids_in_file(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join(FILE)).expect("reads");
    text.lines().map(|line| serde_json::from_str::<Event>(line).expect("only whole lines").id).collect()
}

#[test]
fn damaged_lines_are_kept_in_a_file_of_their_own() {
    let directory = tempfile::tempdir().expect("tempdir");
    std::fs::write(directory.path().join(FILE), "rubbish\n").expect("writes");
    drop(Journal::open(directory.path(), 0).expect("opens"));
    assert_eq!(std::fs::read_to_string(directory.path().join(DAMAGED)).expect("reads"), "rubbish\n");
    assert!(ids_in_file(directory.path()).is_empty());
}

#[test]
fn journal_that_is_removed_replaced_or_shortened_is_written_anew() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join(FILE);
    let journal = Journal::open(directory.path(), 0).expect("opens");
    let harm: [&dyn Fn(); 5] = [
        &|| std::fs::remove_file(&path).expect("removes"),
        &|| std::fs::rename(&path, directory.path().join("events.log.1")).expect("rotates"),
        &|| std::fs::write(&path, "").expect("truncates"),
        &|| {
            std::fs::remove_file(&path).expect("removes");
            std::fs::create_dir(&path).expect("makes a directory");
        },
        &|| {
            std::fs::remove_file(&path).expect("removes");
            std::fs::write(&path, "another file\n").expect("writes");
        },
    ];
    for (n, harm) in harm.iter().enumerate() {
        journal.append(event(EventKind::Oom, &format!("{n}-before"))).expect("appends");
        harm();
        journal.append(event(EventKind::Oom, &format!("{n}-after"))).expect("appends");
        assert_eq!(ids_in_file(directory.path()).len(), 2 * (n + 1));
    }
}

#[test]
fn journal_begins_anew_where_its_path_is_no_file() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join(FILE);
    let links_to = |target: &str| std::os::unix::fs::symlink(target, &path).expect("links");
    let put: [&dyn Fn(); 4] = [
        &|| std::fs::create_dir(&path).expect("makes a directory"),
        &|| {
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
                .expect("makes a FIFO")
        },
        &|| links_to("/dev/zero"),
        &|| links_to("/nonexistent/file"),
    ];
    for put in put {
        put();
        let journal = Journal::open(directory.path(), 0).expect("opens");
        journal.append(event(EventKind::Oom, "a")).expect("appends");
        assert_eq!(ids_in_file(directory.path()), ["a"]);
        std::fs::remove_file(&path).expect("removes");
    }
}

/// A journal whose file holds an event of the year 2048.
fn journal_of_2048(directory: &Path) -> (Arc<Journal>, Timestamp) {
    let wrong: Timestamp = "2048-03-01T00:00:00.000000007Z".parse().expect("a time");
    let mut old = event(EventKind::Oom, "old");
    old.timestamp = wrong;
    let line = serde_json::to_string(&old).expect("plain data");
    std::fs::write(directory.join(FILE), format!("{line}\n")).expect("writes");
    (Journal::open(directory, 0).expect("opens"), wrong)
}

#[tokio::test]
async fn wrong_clock_of_the_past_does_not_move_later_events() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (journal, wrong) = journal_of_2048(directory.path());
    let mut resumed = Subscription::new(&journal, Some(wrong), None, false);
    let before = Timestamp::now();
    for id in ["a", "b"] {
        let next = journal.append(event(EventKind::Oom, id)).expect("appends");
        assert!(next.timestamp >= before && next.timestamp <= Timestamp::now());
        assert_eq!(resumed.next().await.expect("keeps up").expect("goes on").id, id);
    }
    // A later supervisor still knows the place.
    journal.lock().rewrite().expect("rewrites");
    let again = Journal::open(directory.path(), 0).expect("opens");
    let mut resumed = Subscription::new(&again, Some(wrong), None, true);
    assert_eq!(resumed.next().await.expect("keeps up").expect("goes on").id, "a");
}

#[tokio::test]
async fn clock_that_comes_back_moves_what_was_written_meanwhile() {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(directory.path(), 0).expect("opens");
    journal.recovered();
    journal.append(event(EventKind::Oom, "before")).expect("appends");
    let mut live = Subscription::new(&journal, None, None, false);
    // As if the clock had been wrong while this one was written.
    let wrong = {
        let mut inner = journal.lock();
        inner.last = Timestamp::now().plus(22 * 365 * 24 * 3600 * 1_000_000_000);
        let mut event = event(EventKind::Oom, "meanwhile");
        event.timestamp = inner.last.next();
        inner.last = event.timestamp;
        inner.trimmable.insert(event.timestamp);
        inner.events.insert(event.timestamp, Arc::new(event));
        journal.publish(&inner);
        inner.last
    };
    assert_eq!(live.next().await.expect("keeps up").expect("goes on").timestamp, wrong);
    let held = journal.append_held(event(EventKind::Exit, "after")).expect("appends");
    assert!(held.timestamp <= Timestamp::now());
    drop(held);
    assert_eq!(live.next().await.expect("keeps up").expect("goes on").id, "after");
    let mut resumed = Subscription::new(&journal, Some(wrong), None, true);
    assert_eq!(resumed.next().await.expect("keeps up").expect("goes on").id, "after");
    let mut all = Subscription::new(&journal, Some(Timestamp(0)), None, true);
    let mut ids = Vec::new();
    while let Some(event) = all.next().await.expect("keeps up") {
        ids.push(event.id.clone());
    }
    assert_eq!(ids, ["before", "meanwhile", "after"]);
}

#[test]
fn moved_timestamps_stay_the_same_for_the_next_daemon() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut text = Vec::new();
    for n in 0..3 {
        // Every event is of a clock that was in 2048.
        let timestamp = Timestamp(2_461_449_600_000_000_000 + n);
        text.extend(line::encode(&Event { timestamp, ..event(EventKind::Oom, &n.to_string()) }).expect("plain data"));
    }
    std::fs::write(directory.path().join(FILE), text).expect("writes");
    let read = || -> Vec<Timestamp> {
        Journal::open(directory.path(), 0).expect("opens").lock().events.keys().copied().collect()
    };
    let first = read();
    assert!(first.len() == 3 && first[2] <= Timestamp::now());
    assert_eq!(read(), first);
}

#[test]
fn exit_of_an_earlier_daemon_is_held_until_the_rest_is_removed() {
    let directory = tempfile::tempdir().expect("tempdir");
    {
        let journal = Journal::open(directory.path(), 0).expect("opens");
        for (kind, id) in [(EventKind::Exit, "a"), (EventKind::Oom, "b")] {
            journal.append(event(kind, id)).expect("appends");
        }
    }
    let journal = Journal::open(directory.path(), 0).expect("opens");
    let visible = || journal.lock().events.range(..=*journal.watch().borrow()).count();
    assert_eq!(visible(), 2);
    assert!(journal.hold_exit("key-b").is_none(), "it has no exit");
    let held = journal.hold_exit("key-a").expect("recorded");
    assert_eq!(visible(), 0, "neither the exit nor what follows it");
    drop(held);
    assert_eq!(visible(), 2);
}
