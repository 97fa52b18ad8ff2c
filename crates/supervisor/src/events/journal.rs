//! The event journal: the file `events.log` with one JSON object a line, and its newest part in memory.
//!
//! These hold at all times:
//! - A line is in the file, whole, before its event is published.
//! - Timestamps strictly increase, also over restarts and steps of the clock, and no wrong clock keeps them ([`stamp`]).
//! - What a later daemon must know of processes whose directories still exist is not trimmed.
//! - Lines that cannot be read are kept in a file of their own, and damage no others.
//!
//! An event can be *held*: it is recorded, but neither it nor any later event is published before it is released. That is for an
//! exit: the daemon removes what belongs to the process between the two. A client that sees the exit finds everything gone. A
//! daemon that starts after a crash in between finds the exit recorded, and holds it until it has removed the rest.
//!
//! Subscribers have no queue. Each has a place in the journal and takes the next event when it is ready for it.

mod file;
mod line;
mod stamp;

pub(crate) use file::FILE;
pub use file::JournalError;
use file::JournalFile;
use stamp::Moved;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

use crate::events::event::{Event, EventKind, Timestamp};

/// How long after an event the file is brought down to what is kept.
const TRIM_DELAY: Duration = Duration::from_secs(1);

/// The journal of one state directory.
#[derive(Debug)]
pub(crate) struct Journal {
    /// How many events to keep; 0 for all.
    retain: usize,
    inner: Mutex<Inner>,
    /// The timestamp of the newest published event.
    visible: watch::Sender<Timestamp>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    file: JournalFile,
    last: Timestamp,
    pub(crate) events: BTreeMap<Timestamp, Arc<Event>>,
    /// The events that may be trimmed.
    trimmable: BTreeSet<Timestamp>,
    /// The others, by the key of the process they are about.
    protected: HashMap<String, Vec<Timestamp>>,
    /// What earlier daemons have recorded, by the key of the process, until recovery has protected what it needs.
    by_key: HashMap<String, Vec<Timestamp>>,
    /// The container instances whose last freezer event is `pause`.
    paused: HashSet<String>,
    held: BTreeSet<Timestamp>,
    /// Where events are now that had an implausible timestamp.
    moved: Moved,
    /// The newest event that has been trimmed.
    pub(crate) trimmed: Option<Timestamp>,
    /// The file will be brought down soon.
    trim_is_planned: bool,
    /// Recovery has protected what it needs. Nothing is trimmed before that.
    is_recovered: bool,
    /// How many events this daemon has recorded.
    written: u64,
}

/// A recorded event that is published when this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Held {
    journal: Arc<Journal>,
    timestamp: Timestamp,
}

/// What earlier daemons have recorded of process instances.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) started: HashSet<String>,
    pub(crate) exited: HashSet<String>,
    /// The count of kills for memory in the last `oom` event.
    pub(crate) oom_kills: HashMap<String, u64>,
}

impl Journal {
    /// Opens the journal in `state_dir`, or begins one. Nothing is trimmed before [`Journal::recovered`].
    pub(crate) fn open(state_dir: &Path, retain: usize) -> Result<Arc<Journal>, JournalError> {
        let (file, text) = JournalFile::open(state_dir)?;
        let (mut parsed, damaged) = line::parse(&text);
        let (mut moved, now) = (Moved::default(), Timestamp::now());
        let is_moved = parsed.iter().any(|event| event.timestamp > stamp::latest_plausible(now));
        stamp::settle(&mut parsed, None, now, &mut moved);
        if !damaged.is_empty() {
            file.keep_damaged(&damaged);
        }
        let events: BTreeMap<Timestamp, Arc<Event>> =
            parsed.into_iter().map(|event| (event.timestamp, Arc::new(event))).collect();
        let last = events.keys().next_back().copied().unwrap_or_default();
        let (mut by_key, mut paused) = (HashMap::<String, Vec<Timestamp>>::new(), HashSet::new());
        for event in events.values() {
            by_key.entry(event.key().to_string()).or_default().push(event.timestamp);
            note_paused(&mut paused, event);
        }
        let mut inner = Inner {
            file,
            last,
            trimmable: events.keys().copied().collect(),
            events,
            protected: HashMap::new(),
            by_key,
            paused,
            held: BTreeSet::new(),
            moved,
            trimmed: None,
            trim_is_planned: false,
            is_recovered: false,
            written: 0,
        };
        // Without it, the next daemon could move the same events to other timestamps, and subscribers would see them again.
        if is_moved || !damaged.is_empty() || !(text.is_empty() || text.ends_with(b"\n")) {
            inner.rewrite()?;
        }
        let (visible, _) = watch::channel(last);
        Ok(Arc::new(Journal { retain, inner: Mutex::new(inner), visible }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds this lock can panic half-way through a change that matters.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Timestamp> {
        self.visible.subscribe()
    }

    /// How many events have been recorded since the journal was opened.
    pub(crate) fn written(&self) -> u64 {
        self.lock().written
    }

    /// How many subscriptions there are.
    pub(crate) fn subscribers(&self) -> usize {
        self.visible.receiver_count()
    }

    /// What has been recorded so far.
    pub(crate) fn history(&self) -> History {
        let mut history = History::default();
        for event in self.lock().events.values() {
            let key = key_or_name(event.key(), &event.id, event.name());
            match event.kind {
                EventKind::Exit => drop(history.exited.insert(key)),
                EventKind::StartContainer | EventKind::StartProcess => {
                    history.exited.remove(&key);
                    history.started.insert(key);
                }
                EventKind::Oom => drop(history.oom_kills.insert(key, event.oom_kills)),
                _ => {}
            }
        }
        history
    }

    /// The starts of a container id's processes whose exits have not been recorded, added processes first.
    pub(crate) fn open_of(&self, id: &str) -> Vec<Arc<Event>> {
        let mut open: Vec<Arc<Event>> = Vec::new();
        for event in self.lock().events.values().filter(|event| event.id == id && event.is_lifecycle()) {
            let same = |other: &Arc<Event>| (other.key(), other.name()) == (event.key(), event.name());
            open.retain(|other| !same(other));
            if event.kind != EventKind::Exit {
                open.push(event.clone());
            }
        }
        open.sort_by_key(|event| event.kind == EventKind::StartContainer);
        open
    }

    /// Keeps what is recorded of the process `key` until [`Journal::release_key`].
    pub(crate) fn protect(&self, key: &str) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let of_key: Vec<&Arc<Event>> = match inner.is_recovered {
            false => inner.by_key.get(key).into_iter().flatten().filter_map(|at| inner.events.get(at)).collect(),
            true => inner.events.values().filter(|event| event.key() == key).collect(),
        };
        let lifecycle = of_key.iter().filter(|event| event.is_lifecycle());
        let freezer = of_key.iter().rfind(|event| event.is_freezer());
        let timestamps: Vec<Timestamp> = lifecycle.chain(freezer).map(|event| event.timestamp).collect();
        for timestamp in &timestamps {
            inner.trimmable.remove(timestamp);
        }
        inner.protected.insert(key.to_string(), timestamps);
    }

    /// Whether the last freezer event of a container is `pause`.
    pub(crate) fn is_paused(&self, instance: &str) -> bool {
        self.lock().paused.contains(instance)
    }

    /// Does what [`Journal::protect`] does, for a process of which nothing has been recorded yet.
    pub(crate) fn protect_new(&self, key: &str) {
        self.lock().protected.insert(key.to_string(), Vec::new());
    }

    /// The directory of the process is gone: what was recorded of it may be trimmed.
    pub(crate) fn release_key(self: &Arc<Self>, key: &str) {
        let mut inner = self.lock();
        inner.paused.remove(key);
        if let Some(timestamps) = inner.protected.remove(key) {
            inner.trimmable.extend(timestamps);
        }
        self.trim(&mut inner);
    }

    /// Recovery has protected everything that it found.
    pub(crate) fn recovered(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.is_recovered = true;
        inner.by_key = HashMap::new();
        self.trim(&mut inner);
    }

    /// Records an event, which is given its timestamp here, and publishes it. Only [`crate::container::transition`] calls this.
    pub(crate) fn append(self: &Arc<Self>, event: Event) -> Result<Arc<Event>, JournalError> {
        let mut inner = self.lock();
        let event = self.write(&mut inner, event)?;
        self.publish(&inner);
        Ok(event)
    }

    /// Records an event, and publishes it when the result is dropped. Only [`crate::container::transition`] calls this.
    pub(crate) fn append_held(self: &Arc<Self>, event: Event) -> Result<Held, JournalError> {
        let mut inner = self.lock();
        let event = self.write(&mut inner, event)?;
        inner.held.insert(event.timestamp);
        Ok(Held { journal: self.clone(), timestamp: event.timestamp })
    }

    /// Holds the exit of process `key` that an earlier daemon has recorded, until the result is dropped: what belongs to the process is
    /// still there. `None` if no such exit is recorded.
    pub(crate) fn hold_exit(self: &Arc<Self>, key: &str) -> Option<Held> {
        let mut inner = self.lock();
        let is_it = |event: &&Arc<Event>| {
            event.kind == EventKind::Exit && key_or_name(event.key(), &event.id, event.name()) == key
        };
        let timestamp = inner.events.values().rfind(is_it)?.timestamp;
        inner.held.insert(timestamp);
        self.publish(&inner);
        Some(Held { journal: self.clone(), timestamp })
    }

    fn write(self: &Arc<Self>, inner: &mut Inner, mut event: Event) -> Result<Arc<Event>, JournalError> {
        let now = Timestamp::now();
        if inner.last > stamp::latest_plausible(now) {
            inner.move_implausible(now);
        }
        event.timestamp = stamp::next(inner.last, now);
        if inner.file.is_changed()? {
            inner.rewrite()?;
        }
        let line = line::encode(&event).map_err(|e| inner.file.failed("write", e.into()))?;
        inner.file.append(&line)?;
        inner.written += 1;
        inner.last = event.timestamp;
        let event = Arc::new(event);
        inner.events.insert(event.timestamp, event.clone());
        note_paused(&mut inner.paused, &event);
        match inner.protected.get_mut(event.key()).filter(|_| event.is_lifecycle() || event.is_freezer()) {
            Some(timestamps) => {
                if event.is_freezer() {
                    // Only the last of these matters.
                    let is_freezer = |timestamp: &Timestamp| inner.events[timestamp].is_freezer();
                    if let Some(earlier) = timestamps.iter().position(is_freezer) {
                        inner.trimmable.insert(timestamps.swap_remove(earlier));
                    }
                }
                timestamps.push(event.timestamp);
            }
            None => drop(inner.trimmable.insert(event.timestamp)),
        }
        self.trim(inner);
        Ok(event)
    }

    fn publish(&self, inner: &Inner) {
        self.visible.send_replace(inner.visible());
    }

    /// Forgets surplus events, and plans to bring the file down, so that the caller does not wait for that.
    fn trim(self: &Arc<Self>, inner: &mut Inner) {
        if self.retain == 0 || !inner.is_recovered {
            return;
        }
        // Protected events do not count: subscribers have as much time with many live processes as with few.
        let visible = inner.visible();
        while inner.trimmable.len() > self.retain {
            let Some(oldest) = inner.trimmable.first().copied().filter(|oldest| *oldest <= visible) else { break };
            inner.trimmable.remove(&oldest);
            inner.events.remove(&oldest);
            inner.trimmed = inner.trimmed.max(Some(oldest));
        }
        let excess = inner.file.lines().saturating_sub(inner.events.len());
        if excess > self.retain.max(64) {
            if let Err(e) = inner.rewrite() {
                tracing::warn!("{e}; it is tried again");
            }
        } else if excess > 0 && !inner.trim_is_planned {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                inner.trim_is_planned = true;
                let journal = self.clone();
                runtime.spawn(async move {
                    tokio::time::sleep(TRIM_DELAY).await;
                    let mut inner = journal.lock();
                    inner.trim_is_planned = false;
                    if let Err(e) = inner.rewrite() {
                        tracing::warn!("{e}; it is tried again");
                    }
                });
            }
        }
    }
}

impl Inner {
    /// Replaces the file by what is kept.
    fn rewrite(&mut self) -> Result<(), JournalError> {
        let mut text = Vec::new();
        for event in self.events.values() {
            text.extend(line::encode(event).map_err(|e| self.file.failed("rewrite", e.into()))?);
        }
        self.file.replace(&text, self.events.len())
    }

    /// The newest event that may be published: the one before the first that is held.
    pub(crate) fn visible(&self) -> Timestamp {
        match self.held.first() {
            Some(held) => Timestamp(held.0.saturating_sub(1)),
            None => self.last,
        }
    }

    /// Where a place in the journal is now that a subscriber has or a client names.
    pub(crate) fn place(&self, place: Timestamp) -> Timestamp {
        self.moved.find(place, self.last)
    }

    /// Moves the events that have implausible timestamps, now that the clock is right again.
    fn move_implausible(&mut self, now: Timestamp) {
        let latest = stamp::latest_plausible(now);
        let wrong = self.events.split_off(&latest.next());
        let last_right = self.events.keys().next_back().copied();
        let after = last_right.max(self.trimmed.filter(|trimmed| *trimmed <= latest));
        let mut events: Vec<Event> = wrong.into_values().map(Arc::unwrap_or_clone).collect();
        let was: Vec<Timestamp> = events.iter().map(|event| event.timestamp).collect();
        stamp::settle(&mut events, after, now, &mut self.moved);
        let is: HashMap<Timestamp, Timestamp> =
            was.into_iter().zip(events.iter().map(|event| event.timestamp)).collect();
        tracing::warn!(
            events = events.len(),
            "the clock was wrong and is not any more: moved the timestamps of events"
        );
        let moved = |timestamp: &Timestamp| is.get(timestamp).copied().unwrap_or(*timestamp);
        self.trimmable = self.trimmable.iter().map(moved).collect();
        self.held = self.held.iter().map(moved).collect();
        for timestamps in self.protected.values_mut().chain(self.by_key.values_mut()) {
            timestamps.iter_mut().for_each(|timestamp| *timestamp = moved(timestamp));
        }
        self.events.extend(events.into_iter().map(|event| (event.timestamp, Arc::new(event))));
        let last = self.events.keys().next_back().copied();
        self.last = last.or(after).unwrap_or_else(|| now.plus(-1));
        if self.trimmed > Some(latest) {
            self.trimmed = after;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.journal.lock();
        if !inner.held.remove(&self.timestamp) {
            let moved = inner.place(self.timestamp);
            inner.held.remove(&moved);
        }
        self.journal.publish(&inner);
    }
}

fn note_paused(paused: &mut HashSet<String>, event: &Event) {
    match event.kind {
        EventKind::Pause => {
            paused.insert(event.instance.clone());
        }
        EventKind::Resume => {
            paused.remove(&event.instance);
        }
        _ => {}
    }
}

/// The key of a process. Older daemons wrote none; then the names stand for it, and no key looks like them.
pub(crate) fn key_or_name(key: &str, id: &str, process: &str) -> String {
    if key.is_empty() { format!("{id}/{process}") } else { key.to_string() }
}

#[cfg(test)]
mod tests;
