//! A reader of the journal.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::watch;

use crate::event::{Event, Timestamp};
use crate::journal::Journal;

/// The reader was so slow that events it has not seen are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("events after {since} were missed; subscribe again from there")]
pub struct Lost {
    /// The last that was seen, or where the reader began.
    pub since: Timestamp,
}

/// A place in the journal. It holds no events but those that were stored when it was made; it may be read as slowly
/// as its owner likes, and costs the supervisor nothing while it is not read.
#[derive(Debug)]
pub struct Subscription {
    journal: Arc<Journal>,
    visible: watch::Receiver<Timestamp>,
    stored: VecDeque<Arc<Event>>,
    /// All up to here has been given, or is in `stored`.
    place: Timestamp,
    last_given: Timestamp,
    id: Option<String>,
    stored_only: bool,
}

impl Subscription {
    pub(crate) fn new(journal: &Arc<Journal>, from: Option<Timestamp>, id: Option<String>, stored_only: bool) -> Self {
        let visible = journal.watch();
        let inner = journal.lock();
        let place = inner.visible();
        let from = from.map(|from| inner.place(from));
        let stored = match from {
            Some(from) if from < place => inner
                .events
                .range((Bound::Excluded(from), Bound::Included(place)))
                .map(|(_, event)| event)
                .filter(|event| id.as_ref().is_none_or(|id| event.id == *id))
                .cloned()
                .collect(),
            _ => VecDeque::new(),
        };
        drop(inner);
        // A start in the future means what is newer than that.
        let place = from.map_or(place, |from| place.max(from));
        let last_given = from.unwrap_or(place);
        Subscription { journal: journal.clone(), visible, stored, place, last_given, id, stored_only }
    }

    /// The next event, when there is one; `None` at the end of the stored ones, if only these were asked for.
    pub async fn next(&mut self) -> Result<Option<Arc<Event>>, Lost> {
        loop {
            if let Some(event) = self.take()? {
                self.last_given = event.timestamp;
                return Ok(Some(event));
            }
            if self.stored_only || self.visible.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    fn take(&mut self) -> Result<Option<Arc<Event>>, Lost> {
        if let Some(event) = self.stored.pop_front() {
            return Ok(Some(event));
        }
        if self.stored_only {
            return Ok(None);
        }
        // What becomes visible from here on wakes.
        self.visible.mark_unchanged();
        let inner = self.journal.lock();
        let visible = inner.visible();
        // The clock may have been wrong when the last event was given.
        self.place = inner.place(self.place);
        if visible <= self.place {
            return Ok(None);
        }
        if inner.trimmed.is_some_and(|trimmed| trimmed > self.place) {
            return Err(Lost { since: self.last_given });
        }
        for (timestamp, event) in inner.events.range((Bound::Excluded(self.place), Bound::Included(visible))) {
            self.place = *timestamp;
            if self.id.as_ref().is_none_or(|id| event.id == *id) {
                return Ok(Some(event.clone()));
            }
        }
        self.place = visible;
        Ok(None)
    }
}
