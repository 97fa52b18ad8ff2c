//! Private parsers of foreign bytes, for the targets in `fuzz/`.

use std::path::Path;
use std::sync::Arc;

use crate::events::{Event, EventKind, Journal, JournalError, Timestamp};
use crate::observe::network::{self, Interface};

/// Parses the text of `/proc/<pid>/net/dev`.
pub fn interfaces(text: &str) -> Vec<Interface> {
    network::parse(text)
}

/// Opens the journal in `state_dir` as a daemon does that starts. Returns the events that it reads.
pub fn read_journal(state_dir: &Path) -> Result<Vec<Arc<Event>>, JournalError> {
    let journal = Journal::open(state_dir, 0)?;
    Ok(journal.lock().events.values().cloned().collect())
}

/// Opens the journal in `state_dir` and records one event. Returns all events.
pub fn append_to_journal(state_dir: &Path) -> Result<Vec<Arc<Event>>, JournalError> {
    let journal = Journal::open(state_dir, 0)?;
    journal.append(Event {
        id: "fuzz".into(),
        kind: EventKind::Oom,
        timestamp: Timestamp(0),
        pid: String::new(),
        status: 0,
        instance: String::new(),
        oom_kills: 1,
        process: String::new(),
        was: None,
    })?;
    Ok(journal.lock().events.values().cloned().collect())
}
