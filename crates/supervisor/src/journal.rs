//! The event journal: `events.log`, one JSON object a line, and its newest part in memory.
//!
//! What always holds:
//! - a line is in the file, whole, before its event can be seen; a write that fails leaves no part of a line;
//! - this program replaces the file by a rename only, so that it is never half-written or empty. If another program
//!   removes, replaces or shortens the file, the next write puts back all that is kept;
//! - timestamps strictly increase, over restarts and steps of the clock too, and no wrong clock keeps them ([`stamp`]);
//! - what a later supervisor must know of processes whose directory still exists is not trimmed;
//! - lines that cannot be read are kept in a file of their own, and take nothing else along.
//!
//! An event can be *held*: it is in the file, but neither it nor any later one is seen before it is released. That
//! is for an exit: what belongs to the process is removed between the two, so that whoever sees the exit finds
//! everything gone, and whoever starts after a crash in between finds the exit told.
//!
//! Subscribers have no queue. Each has a place in the journal and takes the next event when it is ready for it.

mod line;
mod stamp;

use failpoint::{Point, reach};
use rustix::fs::FileType;
use stamp::Moved;
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

/// Where lines go that cannot be read.
const DAMAGED: &str = ".events.damaged";

/// Once [`DAMAGED`] has as many bytes, it is begun anew.
const DAMAGED_MOST: u64 = 1 << 20;

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
    /// The file's device and inode, to notice that the path leads to another file.
    identity: (u64, u64),
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
    /// Where events are now that had an implausible timestamp.
    moved: Moved,
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
        let text = match read_or_set_aside(&path) {
            Ok(text) => text,
            Err(e) => return Err(failed("read")(e)),
        };
        let (mut parsed, damaged) = line::parse(&text);
        let mut moved = Moved::default();
        stamp::settle(&mut parsed, None, Timestamp::now(), &mut moved);
        if !damaged.is_empty() {
            let kept = keep_damaged(state_dir, &damaged);
            tracing::error!(
                path = %path.display(),
                lines = damaged.len(),
                kept = %state_dir.join(DAMAGED).display(),
                error = kept.err().map(tracing::field::display),
                "set unreadable lines of the event journal aside"
            );
        }
        let file = open_for_appending(&path).map_err(failed("open"))?;
        let identity = identity(&file).map_err(failed("look at"))?;
        let lines = parsed.len() + damaged.len();
        let events: BTreeMap<Timestamp, Arc<Event>> =
            parsed.into_iter().map(|event| (event.timestamp, Arc::new(event))).collect();
        let last = events.keys().next_back().copied().unwrap_or_default();
        let (mut by_key, mut paused) = (HashMap::<String, Vec<Timestamp>>::new(), HashSet::new());
        for event in events.values() {
            by_key.entry(event.key().to_string()).or_default().push(event.timestamp);
            note_paused(&mut paused, event);
        }
        let inner = Inner {
            length: text.len() as u64,
            identity,
            lines,
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
            trim_planned: false,
            recovered: false,
            written: 0,
        };
        let (visible, _) = watch::channel(last);
        let journal = Journal { path, retain, inner: Mutex::new(inner), visible };
        if !damaged.is_empty() || !(text.is_empty() || text.ends_with(b"\n")) {
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
        let now = Timestamp::now();
        if inner.last > stamp::latest_plausible(now) {
            inner.move_implausible(now);
        }
        event.timestamp = stamp::next(inner.last, now);
        let failed = |source| JournalError { operation: "write", path: self.path.clone(), source };
        self.restore_if_changed(inner)?;
        let line = line::encode(&event).map_err(|e| failed(e.into()))?;
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

    /// Writes the file anew if another program has removed, replaced or shortened it. An event that went into a file that
    /// no later supervisor finds would be lost.
    fn restore_if_changed(&self, inner: &mut Inner) -> Result<(), JournalError> {
        let what = match rustix::fs::lstat(&self.path) {
            Ok(stat) if (stat.st_dev, stat.st_ino) != inner.identity => {
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    let why = io::Error::other("it is not a regular file");
                    let failed = |source| JournalError { operation: "set aside", path: self.path.clone(), source };
                    set_aside(&self.path, &why).map_err(failed)?;
                }
                "replaced"
            }
            Ok(stat) if (stat.st_size as u64) < inner.length => "shortened",
            Ok(stat) => {
                // Another program has appended to it. Its lines are judged when the file is read again.
                inner.length = stat.st_size as u64;
                return Ok(());
            }
            Err(rustix::io::Errno::NOENT) => "removed",
            Err(_) => return Ok(()),
        };
        tracing::error!(path = %self.path.display(), "another program has {what} the event journal; it is written anew");
        self.rewrite(inner)
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
            text.extend(line::encode(event).map_err(|e| failed(e.into()))?);
        }
        let write = || {
            let _ = std::fs::remove_file(&temporary);
            let mut file = open_for_appending(&temporary)?;
            file.write_all(&text)?;
            let identity = identity(&file)?;
            reach(Point::JournalShortened);
            std::fs::rename(&temporary, &self.path)?;
            reach(Point::JournalReplaced);
            Ok((file, identity))
        };
        // What could not be written whole takes no room.
        let written = write().inspect_err(|_| drop(std::fs::remove_file(&temporary)));
        (inner.file, inner.identity) = written.map_err(failed)?;
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

    /// Where a place in the journal is by now: one that a subscriber has, or that a client names.
    pub(crate) fn place(&self, place: Timestamp) -> Timestamp {
        self.moved.find(place, self.last)
    }

    /// Moves the events whose timestamps are implausible, now that the clock is right again.
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

/// Device and inode.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The file's content; nothing if it is not there. What stands at its path and is no regular file is given another name,
/// so that the journal can be begun anew.
fn read_or_set_aside(path: &Path) -> io::Result<Vec<u8>> {
    match sys::foreign_file::read(path, u64::MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A symbolic link that leads nowhere would have the journal made somewhere else.
            match std::fs::symlink_metadata(path) {
                Ok(_) => set_aside(path, &e).map(|()| Vec::new()),
                Err(_) => Ok(Vec::new()),
            }
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput) => {
            set_aside(path, &e).map(|()| Vec::new())
        }
        result => result,
    }
}

fn set_aside(path: &Path, why: &io::Error) -> io::Result<()> {
    let now = Timestamp::now().0;
    let aside = path.with_file_name(format!("{DAMAGED}.{now}"));
    std::fs::rename(path, &aside)?;
    tracing::error!(path = %path.display(), kept = %aside.display(), "set aside what cannot be the event journal: {why}");
    Ok(())
}

/// Appends damaged lines to a file of their own.
fn keep_damaged(state_dir: &Path, lines: &[&[u8]]) -> io::Result<()> {
    let path = state_dir.join(DAMAGED);
    if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.len() > DAMAGED_MOST) {
        std::fs::remove_file(&path)?;
    }
    let mut text = Vec::new();
    for line in lines {
        let room = usize::try_from(DAMAGED_MOST).unwrap_or(usize::MAX).saturating_sub(text.len());
        text.extend_from_slice(line.get(..room).unwrap_or(line));
        text.push(b'\n');
        if text.len() as u64 > DAMAGED_MOST {
            break;
        }
    }
    open_for_appending(&path)?.write_all(&text)
}

#[cfg(test)]
mod tests;
