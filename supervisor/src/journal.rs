//! The event journal: `events.log`, one JSON object a line, and its newest part in memory.
//!
//! What always holds:
//! - a line is in the file, whole, before its event can be seen; a write that fails leaves no part of a line;
//! - the file is replaced by a rename only, so that it is never half-written or empty;
//! - timestamps strictly increase, over restarts and steps of the clock too;
//! - what a later supervisor must know of processes whose directory still exists is not trimmed.
//!
//! An event can be *held*: it is in the file, but neither it nor any later one is seen before it is released. That
//! is for an exit: what belongs to the process is removed between the two, so that whoever sees the exit finds
//! everything gone, and whoever starts after a crash in between finds the exit told.
//!
//! Subscribers have no queue. Each has a place in the journal and takes the next event when it is ready for it.

use failpoint::{Point, reach};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

use crate::event::{Event, EventKind, Timestamp};

/// The journal's name in the state directory.
pub(crate) const FILE: &str = "events.log";
const TEMPORARY: &str = ".events.log";

/// How long after an event the file is brought down to what is kept.
const TRIM_DELAY: Duration = Duration::from_secs(1);

/// The journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("event journal: {operation} {}: {source}", path.display())]
pub struct JournalError {
    operation: &'static str,
    path: PathBuf,
    pub(crate) source: io::Error,
}

/// The journal of one state directory.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// 0 for all.
    retain: usize,
    inner: Mutex<Inner>,
    /// The newest event that may be seen.
    visible: watch::Sender<Timestamp>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    file: File,
    length: u64,
    lines: usize,
    last: Timestamp,
    pub(crate) events: BTreeMap<Timestamp, Arc<Event>>,
    /// Those of them that may be trimmed.
    trimmable: BTreeSet<Timestamp>,
    /// The others, by the process they are about.
    protected: HashMap<String, Vec<Timestamp>>,
    /// What an earlier supervisor has told, by the process it is about, until recovery has protected what it needs.
    by_key: HashMap<String, Vec<Timestamp>>,
    /// The container instances of which the last that was told is that they are paused.
    paused: HashSet<String>,
    held: BTreeSet<Timestamp>,
    /// The newest event that is no longer here.
    pub(crate) trimmed: Option<Timestamp>,
    /// The file will be brought down soon.
    trim_planned: bool,
    /// Recovery has protected what it needs; before that nothing may be trimmed.
    recovered: bool,
    /// Events that were written here.
    written: u64,
}

/// An event that is in the journal and that nobody sees before this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Held {
    journal: Arc<Journal>,
    timestamp: Timestamp,
}

/// What the journal of an earlier supervisor says of process instances.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) started: HashSet<String>,
    pub(crate) exited: HashSet<String>,
    /// Kills for memory, as they were counted when the last were told of.
    pub(crate) oom_kills: HashMap<String, u64>,
}

impl Journal {
    /// Opens the journal in `state_dir`, or begins one. Nothing is trimmed before [`Journal::recovered`].
    pub(crate) fn open(state_dir: &Path, retain: usize) -> Result<Arc<Journal>, JournalError> {
        let path = state_dir.join(FILE);
        let failed = |operation| {
            let path = path.clone();
            move |source| JournalError { operation, path, source }
        };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(failed("read")(e)),
        };
        let (events, damaged) = parse(&text);
        if damaged > 0 {
            tracing::warn!(path = %path.display(), lines = damaged, "passed over unreadable lines of the event journal");
        }
        let file = open_for_appending(&path).map_err(failed("open"))?;
        let last = events.keys().next_back().copied().unwrap_or_default();
        let (mut by_key, mut paused) = (HashMap::<String, Vec<Timestamp>>::new(), HashSet::new());
        for event in events.values() {
            by_key.entry(event.key().to_string()).or_default().push(event.timestamp);
            note_paused(&mut paused, event);
        }
        let inner = Inner {
            length: text.len() as u64,
            lines: events.len() + damaged,
            file,
            last,
            trimmable: events.keys().copied().collect(),
            events,
            protected: HashMap::new(),
            by_key,
            paused,
            held: BTreeSet::new(),
            trimmed: None,
            trim_planned: false,
            recovered: false,
            written: 0,
        };
        let (visible, _) = watch::channel(last);
        let journal = Journal { path, retain, inner: Mutex::new(inner), visible };
        if damaged > 0 || !(text.is_empty() || text.ends_with(b"\n")) {
            journal.rewrite(&mut journal.lock())?;
        }
        Ok(Arc::new(journal))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds this lock can panic half-way through a change that matters.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Timestamp> {
        self.visible.subscribe()
    }

    /// How many events have been written since the journal was opened.
    pub(crate) fn written(&self) -> u64 {
        self.lock().written
    }

    /// How many subscriptions there are.
    pub(crate) fn subscribers(&self) -> usize {
        self.visible.receiver_count()
    }

    /// What has been told so far.
    pub(crate) fn told(&self) -> Told {
        let mut told = Told::default();
        for event in self.lock().events.values() {
            let key = key_or_name(event.key(), &event.id, event.name());
            match event.kind {
                EventKind::Exit => drop(told.exited.insert(key)),
                EventKind::StartContainer | EventKind::StartProcess => {
                    told.exited.remove(&key);
                    told.started.insert(key);
                }
                EventKind::Oom => drop(told.oom_kills.insert(key, event.oom_kills)),
                _ => {}
            }
        }
        told
    }

    /// The processes of a container id whose start has been told and whose end has not, added ones first.
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

    /// Keeps what is told of the process `key` until [`Journal::release_key`].
    pub(crate) fn protect(&self, key: &str) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let of_key: Vec<&Arc<Event>> = match inner.recovered {
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

    /// Whether the last that was told of a container's freezer is that it is paused.
    pub(crate) fn is_paused(&self, instance: &str) -> bool {
        self.lock().paused.contains(instance)
    }

    /// As [`Journal::protect`], for a process of which nothing has been told yet.
    pub(crate) fn protect_new(&self, key: &str) {
        self.lock().protected.insert(key.to_string(), Vec::new());
    }

    /// The directory of the process is gone: what was told of it may be trimmed.
    pub(crate) fn release_key(self: &Arc<Self>, key: &str) {
        let mut inner = self.lock();
        inner.paused.remove(key);
        if let Some(timestamps) = inner.protected.remove(key) {
            inner.trimmable.extend(timestamps);
        }
        self.trim(&mut inner);
    }

    /// Recovery has protected all that it found.
    pub(crate) fn recovered(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.recovered = true;
        inner.by_key = HashMap::new();
        self.trim(&mut inner);
    }

    /// Writes an event, whose timestamp is given here, and shows it.
    pub(crate) fn append(self: &Arc<Self>, event: Event) -> Result<Arc<Event>, JournalError> {
        let mut inner = self.lock();
        let event = self.write(&mut inner, event)?;
        self.show(&inner);
        Ok(event)
    }

    /// Writes an event and shows it only when the result is dropped.
    pub(crate) fn append_held(self: &Arc<Self>, event: Event) -> Result<Held, JournalError> {
        let mut inner = self.lock();
        let event = self.write(&mut inner, event)?;
        inner.held.insert(event.timestamp);
        Ok(Held { journal: self.clone(), timestamp: event.timestamp })
    }

    fn write(self: &Arc<Self>, inner: &mut Inner, mut event: Event) -> Result<Arc<Event>, JournalError> {
        event.timestamp = Timestamp::now().max(inner.last.next());
        let failed = |source| JournalError { operation: "write", path: self.path.clone(), source };
        let mut line = serde_json::to_vec(&event).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        if let Err(e) = inner.file.write_all(&line) {
            // A part of a line must not stay, or the next one would be appended to it.
            let _ = inner.file.set_len(inner.length);
            return Err(failed(e));
        }
        inner.length += line.len() as u64;
        inner.lines += 1;
        inner.written += 1;
        inner.last = event.timestamp;
        let event = Arc::new(event);
        inner.events.insert(event.timestamp, event.clone());
        note_paused(&mut inner.paused, &event);
        match inner.protected.get_mut(event.key()).filter(|_| event.is_lifecycle() || event.is_freezer()) {
            Some(timestamps) => {
                if event.is_freezer() {
                    // Of these only the last says something.
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

    fn show(&self, inner: &Inner) {
        self.visible.send_replace(inner.visible());
    }

    /// Forgets what is too much, and plans to bring the file down, off the path of whoever appends.
    fn trim(self: &Arc<Self>, inner: &mut Inner) {
        if self.retain == 0 || !inner.recovered {
            return;
        }
        // What is protected does not count: many live processes leave subscribers as much time as few.
        let visible = inner.visible();
        while inner.trimmable.len() > self.retain {
            let Some(oldest) = inner.trimmable.first().copied().filter(|oldest| *oldest <= visible) else { break };
            inner.trimmable.remove(&oldest);
            inner.events.remove(&oldest);
            inner.trimmed = inner.trimmed.max(Some(oldest));
        }
        let excess = inner.lines.saturating_sub(inner.events.len());
        if excess > self.retain.max(64) {
            if let Err(e) = self.rewrite(inner) {
                tracing::warn!("{e}; it is tried again");
            }
        } else if excess > 0 && !inner.trim_planned {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                inner.trim_planned = true;
                let journal = self.clone();
                runtime.spawn(async move {
                    tokio::time::sleep(TRIM_DELAY).await;
                    let mut inner = journal.lock();
                    inner.trim_planned = false;
                    if let Err(e) = journal.rewrite(&mut inner) {
                        tracing::warn!("{e}; it is tried again");
                    }
                });
            }
        }
    }

    /// Replaces the file by what is kept.
    fn rewrite(&self, inner: &mut Inner) -> Result<(), JournalError> {
        let temporary = self.path.with_file_name(TEMPORARY);
        let failed = |source| JournalError { operation: "rewrite", path: self.path.clone(), source };
        let mut text = Vec::new();
        for event in inner.events.values() {
            serde_json::to_writer(&mut text, event.as_ref()).map_err(|e| failed(e.into()))?;
            text.push(b'\n');
        }
        let write = || {
            let _ = std::fs::remove_file(&temporary);
            let mut file = open_for_appending(&temporary)?;
            file.write_all(&text)?;
            reach(Point::JournalShortened);
            std::fs::rename(&temporary, &self.path)?;
            reach(Point::JournalReplaced);
            Ok(file)
        };
        // What could not be written whole takes no room.
        inner.file = write().inspect_err(|_| drop(std::fs::remove_file(&temporary))).map_err(failed)?;
        inner.length = text.len() as u64;
        inner.lines = inner.events.len();
        Ok(())
    }
}

impl Inner {
    /// The newest event that may be seen: the one before the first that is held.
    pub(crate) fn visible(&self) -> Timestamp {
        match self.held.first() {
            Some(held) => Timestamp(held.0.saturating_sub(1)),
            None => self.last,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.journal.lock();
        inner.held.remove(&self.timestamp);
        self.journal.show(&inner);
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

/// The key of a process; for what an older daemon left, which wrote none, its names, which no key looks like.
pub(crate) fn key_or_name(key: &str, id: &str, process: &str) -> String {
    if key.is_empty() { format!("{id}/{process}") } else { key.to_string() }
}

fn open_for_appending(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The events of a file, and how many lines were none.
fn parse(text: &[u8]) -> (BTreeMap<Timestamp, Arc<Event>>, usize) {
    let mut events: BTreeMap<Timestamp, Arc<Event>> = BTreeMap::new();
    let mut damaged = 0;
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(mut event) = serde_json::from_slice::<Event>(line) else {
            damaged += 1;
            continue;
        };
        // The order of the file counts, whatever clock an older daemon had.
        if let Some(last) = events.keys().next_back() {
            event.timestamp = event.timestamp.max(last.next());
        }
        events.insert(event.timestamp, Arc::new(event));
    }
    (events, damaged)
}

#[cfg(test)]
mod tests;
