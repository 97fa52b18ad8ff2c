//! `events.log`, which any program may have damaged.

use supervisor::Event;
use supervisor::fuzzing::{append_to_journal, read_journal};

use crate::scratch;

pub(crate) fn run(input: &[u8]) {
    let directory = scratch::directory();
    scratch::write(&directory.path().join("events.log"), input);
    let read = read_journal(directory.path()).expect("a damaged journal does not keep a daemon from starting");
    check_order(read.iter().map(AsRef::as_ref));
    let again = read_journal(directory.path()).expect("opens");
    assert_eq!(again.len(), read.len(), "the next daemon reads as many events");
    // Timestamps far in the future are moved to the present, if there is no plausible one to move them behind.
    if read.iter().all(|event| event.was.is_none()) {
        assert_eq!(again, read, "the next daemon reads the same events");
    }
    let appended = append_to_journal(directory.path()).expect("appends");
    check_order(appended.iter().map(AsRef::as_ref));
    assert_eq!(appended.len(), read.len() + 1, "one event more");
    assert_eq!(appended.last().map(|event| event.id.as_str()), Some("fuzz"), "a new event is the last one");
}

fn check_order<'a>(events: impl Iterator<Item = &'a Event>) {
    let timestamps: Vec<i64> = events.map(|event| event.timestamp.0).collect();
    assert!(timestamps.is_sorted_by(|a, b| a < b), "timestamps strictly increase");
}
