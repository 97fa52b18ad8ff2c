//! Reading the journal, as one subscriber does.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::watch;

use crate::events::event::{Event, Timestamp};
use crate::events::journal::Journal;

/// The subscriber was so slow that events it has not seen are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("events after {since} were missed; subscribe again from there")]
pub struct Lost {
    /// The timestamp of the last event that it has seen, or where it began.
    pub since: Timestamp,
}

/// A place in the journal. It holds only the events that were stored when it was made. Its owner may read as slowly as it likes; the
/// subscription costs the supervisor nothing meanwhile.
#[derive(Debug)]
pub struct Subscription {
    journal: Arc<Journal>,
    visible: watch::Receiver<Timestamp>,
    stored: VecDeque<Arc<Event>>,
    /// Everything up to here has been returned, or is in `stored`.
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
        // A beginning in the future means the events that are newer than that.
        let place = from.map_or(place, |from| place.max(from));
        let last_given = from.unwrap_or(place);
        Subscription { journal: journal.clone(), visible, stored, place, last_given, id, stored_only }
    }

    /// Waits for the next event. `None` at the end of the stored events, if the client asked only for these.
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
        // An event that is published from here on wakes the subscriber.
        self.visible.mark_unchanged();
        let inner = self.journal.lock();
        let visible = inner.visible();
        // The clock may have been wrong when the last event was returned, and the event may have moved since.
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
