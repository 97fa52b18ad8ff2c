//! Applying the lifecycle's table: the only place where a state changes and where an event is recorded.
//!
//! An event is recorded before its state is taken, both under the lock of the state. If the journal cannot be written, the
//! state stays as it was, and the caller tries again or gives up.

use oci::INIT;
use std::sync::Arc;

use crate::container::lifecycle::{Effect, Happened, Recorded, Silent, State, step};
use crate::container::{Container, Process};
use crate::events::{Event, EventKind, Held, Journal, JournalError, Timestamp};

/// What came of something that happened without an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Change {
    /// It fitted the state, which has changed.
    Done,
    /// It fitted, and the caller must now remove every trace of the container or process.
    MustDiscard,
    /// It did not fit the state, which stays as it is.
    Unfitting,
}

/// What came of something that happened with an event.
#[derive(Debug)]
#[must_use]
pub(crate) enum Recording {
    /// Recorded and published.
    Published,
    /// Recorded. The event is published when this is dropped.
    Held { _until_dropped: Held },
    /// It did not fit the state. Nothing has been recorded.
    Unfitting,
}

impl Recording {
    /// Whether it fitted the state, and the event has been recorded.
    pub(crate) fn is_done(&self) -> bool {
        !matches!(self, Recording::Unfitting)
    }
}

fn change(state: &mut State, happened: Silent) -> Change {
    let Some((next, effect)) = step(*state, Happened::Silent(happened)) else { return Change::Unfitting };
    *state = next;
    match effect {
        Effect::Discard => Change::MustDiscard,
        _ => Change::Done,
    }
}

fn record(
    state: &mut State,
    journal: &Arc<Journal>,
    happened: Recorded,
    event: impl FnOnce() -> Event,
) -> Result<Recording, JournalError> {
    let Some((next, _)) = step(*state, Happened::Recorded(happened)) else { return Ok(Recording::Unfitting) };
    let recording = match happened {
        // What belongs to the process is still being removed.
        Recorded::Cleared { .. } => Recording::Held { _until_dropped: journal.append_held(event())? },
        _ => {
            journal.append(event())?;
            Recording::Published
        }
    };
    *state = next;
    Ok(recording)
}

impl Container {
    /// Changes the state, if what has happened fits it.
    pub(crate) fn change(&self, happened: Silent) -> Change {
        change(&mut self.lock().state, happened)
    }

    /// Records an event and then changes the state, if what has happened fits it.
    pub(crate) fn record(&self, journal: &Arc<Journal>, happened: Recorded) -> Result<Recording, JournalError> {
        record(&mut self.lock().state, journal, happened, || self.event(happened, None))
    }

    fn event(&self, happened: Recorded, added: Option<&Process>) -> Event {
        let (kind, status, oom_kills) = match happened {
            Recorded::Started if added.is_some() => (EventKind::StartProcess, 0, 0),
            Recorded::Started => (EventKind::StartContainer, 0, 0),
            Recorded::Paused => (EventKind::Pause, 0, 0),
            Recorded::Resumed => (EventKind::Resume, 0, 0),
            Recorded::OomKilled { kills } => (EventKind::Oom, 0, kills),
            Recorded::Cleared { status } => (EventKind::Exit, status, 0),
        };
        let pid = match (added, happened) {
            (Some(process), _) => process.name.clone(),
            (None, Recorded::Cleared { .. }) => INIT.to_string(),
            (None, _) => String::new(),
        };
        Event {
            id: self.id.clone(),
            kind,
            timestamp: Timestamp::default(),
            pid,
            status,
            instance: self.origin.instance.to_string(),
            oom_kills,
            process: added.map(|process| process.key.clone()).unwrap_or_default(),
            was: None,
        }
    }
}

impl Process {
    /// Changes the state of an added process, if what has happened fits it.
    pub(crate) fn change(&self, happened: Silent) -> Change {
        change(&mut self.lock(), happened)
    }

    /// Records an event of an added process and then changes its state, if what has happened fits it.
    pub(crate) fn record(
        &self,
        container: &Container,
        journal: &Arc<Journal>,
        happened: Recorded,
    ) -> Result<Recording, JournalError> {
        record(&mut self.lock(), journal, happened, || container.event(happened, Some(self)))
    }
}

/// Records the exit of a process of a broken container. `start` is the event of its start.
pub(crate) fn record_exit_of_broken(
    start: &Event,
    journal: &Arc<Journal>,
    status: u32,
) -> Result<Recording, JournalError> {
    let exit = || Event {
        kind: EventKind::Exit,
        pid: start.name().to_string(),
        status,
        timestamp: Timestamp::default(),
        was: None,
        ..start.clone()
    };
    record(&mut { State::Broken }, journal, Recorded::Cleared { status }, exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::lifecycle::tests::any_happening;
    use crate::container::tests::{container, process};
    use proptest::prelude::*;

    fn kinds(journal: &Journal) -> Vec<EventKind> {
        journal.lock().events.values().map(|event| event.kind).collect()
    }

    proptest! {
        #[test]
        fn events_of_a_container_are_in_order_whatever_happens(
            happenings in prop::collection::vec(any_happening(), 0..60)
        ) {
            let directory = tempfile::tempdir().expect("tempdir");
            let journal = Journal::open(directory.path(), 0).expect("opens");
            let container = container(directory.path(), "c");
            let (mut discarded, mut adopted, mut starts_paused) = (false, false, false);
            for happened in happenings {
                let before = container.state();
                match happened {
                    Happened::Silent(what) => {
                        let change = container.change(what);
                        prop_assert_eq!(change == Change::Unfitting, container.state() == before);
                        discarded |= change == Change::MustDiscard;
                        let is_adopted = matches!(what, Silent::Adopted | Silent::AdoptedPaused | Silent::FoundDead);
                        adopted |= is_adopted && change == Change::Done;
                        starts_paused |= what == Silent::AdoptedPaused && change == Change::Done;
                    }
                    Happened::Recorded(what) => {
                        let count = kinds(&journal).len();
                        let is_done = container.record(&journal, what).expect("writes").is_done();
                        prop_assert_eq!(kinds(&journal).len(), count + usize::from(is_done));
                    }
                }
            }
            let all = kinds(&journal);
            prop_assert!(!discarded || all.is_empty(), "no client was told of it: {:?}", all);
            if !all.is_empty() && !adopted {
                prop_assert_eq!(all[0], EventKind::StartContainer);
            }
            let count = |kind| all.iter().filter(|one| **one == kind).count();
            prop_assert!(count(EventKind::StartContainer) <= 1);
            prop_assert!(count(EventKind::Exit) == 0
                || (count(EventKind::Exit) == 1 && all.last() == Some(&EventKind::Exit)));
            let pauses = count(EventKind::Pause) + usize::from(starts_paused);
            prop_assert!(pauses == count(EventKind::Resume) || pauses == count(EventKind::Resume) + 1);
        }
    }

    #[test]
    fn exit_is_published_when_the_recording_is_dropped() {
        let directory = tempfile::tempdir().expect("tempdir");
        let journal = Journal::open(directory.path(), 0).expect("opens");
        let container = container(directory.path(), "c");
        let process = process(&container, "p");
        assert_eq!(process.change(Silent::Created), Change::Done);
        assert!(process.record(&container, &journal, Recorded::Started).expect("writes").is_done());
        assert_eq!(process.change(Silent::Ended), Change::Done);
        let started = *journal.watch().borrow();
        let held = process.record(&container, &journal, Recorded::Cleared { status: 7 }).expect("writes");
        assert!(*journal.watch().borrow() <= started.next(), "not published yet");
        let exit = journal.lock().events.values().next_back().cloned().expect("recorded");
        assert_eq!((exit.kind, exit.status, exit.name()), (EventKind::Exit, 7, "p"));
        drop(held);
        assert_eq!(*journal.watch().borrow(), exit.timestamp);
    }

    #[test]
    fn state_stays_when_the_journal_cannot_be_written() {
        let directory = tempfile::tempdir().expect("tempdir");
        let journal = Journal::open(directory.path(), 0).expect("opens");
        let container = container(directory.path(), "c");
        assert_eq!(container.change(Silent::Created), Change::Done);
        // The journal writes its file anew when it is gone, which needs the directory.
        std::fs::remove_dir_all(directory.path()).expect("removes");
        assert!(container.record(&journal, Recorded::Started).is_err());
        assert_eq!(container.state(), State::Created);
    }
}
