//! Descriptors that stay open for groups that are read again and again.
//!
//! To open a file by its path the kernel walks the directories one by one, under locks that all groups share. That takes
//! several times as long as reading the file.

use rustix::fs::{Mode, OFlags, openat};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::files::Directory;

/// The number of descriptors that all groups together hold.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Held descriptors take at most one part in this many of the descriptors that the process may open. The rest is for
/// what cannot do without one.
const SHARE: u64 = 4;

/// A descriptor is held only while more than this many are free, since it only saves time.
const LEAST_FREE: u64 = 64;

/// How much of a held file is read at once. A file that may be longer is opened and read anew.
const PIECE: usize = 4096;

/// For at most this many containers the files of the statistics are held. A container has some eighteen of them, and
/// each open one takes 4 kB of the kernel's memory.
const WATCHED_MOST: usize = 16;

/// The number of containers whose files are held for their statistics.
static WATCHED: AtomicUsize = AtomicUsize::new(0);

/// The open files that tell which processes are in a group and whether it is frozen.
#[derive(Debug)]
pub(crate) struct Held {
    directory: OwnedFd,
    procs: Option<OwnedFd>,
    freezer: Option<OwnedFd>,
}

/// A directory, and the path of a file or directory below it.
pub(crate) type At<'a> = (BorrowedFd<'a>, PathBuf);

impl Held {
    /// Returns whether another descriptor may be held.
    pub(crate) fn has_room() -> bool {
        static MOST: OnceLock<usize> = OnceLock::new();
        let most = *MOST.get_or_init(|| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            limit.map_or(usize::MAX, |limit| usize::try_from(limit / SHARE).unwrap_or(usize::MAX))
        });
        HELD.load(Ordering::Relaxed) < most && sys::descriptors::free().is_ok_and(|free| free > LEAST_FREE)
    }

    /// Opens a group's directory and the given files. Returns `None` if the group is gone.
    pub(crate) fn open(group: &At<'_>, procs: Option<At<'_>>, freezer: Option<At<'_>>) -> Option<Held> {
        let open = |(at, path): &At<'_>, flags| openat(at, path, flags | OFlags::CLOEXEC, Mode::empty()).ok();
        let directory = open(group, OFlags::PATH | OFlags::DIRECTORY)?;
        let file = |file: At<'_>| open(&file, OFlags::RDONLY);
        let held = Held { directory, procs: procs.and_then(file), freezer: freezer.and_then(file) };
        HELD.fetch_add(held.count(), Ordering::Relaxed);
        Some(held)
    }

    fn count(&self) -> usize {
        1 + usize::from(self.procs.is_some()) + usize::from(self.freezer.is_some())
    }

    /// Returns the group's directory.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Reads which processes are in the group itself. Returns `None` if the file is not held or has to be read anew.
    pub(crate) fn procs(&self) -> Option<String> {
        text(self.procs.as_ref()?)
    }

    /// Reads the freezer's file. Returns `None` if the file is not held or has to be read anew.
    pub(crate) fn freezer(&self) -> Option<String> {
        text(self.freezer.as_ref()?)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.count(), Ordering::Relaxed);
    }
}

/// Reads a held file from its beginning. Returns `None` if it may be longer than what one read returns, or is gone.
fn text(file: &OwnedFd) -> Option<String> {
    let mut room = [MaybeUninit::uninit(); PIECE];
    let (read, left) = rustix::io::pread(file, &mut room, 0).ok()?;
    // The kernel returns whole lines. If little room is left, another line may not have fitted.
    (left.len() > PIECE / 4).then(|| String::from_utf8_lossy(read).into_owned())
}

/// Files of one directory that stay open once they have been read.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<HashMap<String, OwnedFd>>);

impl Files {
    /// Reads a file of `directory`. Returns `None` if it does not exist, cannot be held, or has to be read anew.
    pub(crate) fn read(&self, directory: &OwnedFd, name: &str) -> Option<String> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(name) {
            if !Held::has_room() {
                return None;
            }
            let file = openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
            files.insert(name.to_string(), file);
            HELD.fetch_add(1, Ordering::Relaxed);
        }
        text(files.get(name)?)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let files = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        HELD.fetch_sub(files.len(), Ordering::Relaxed);
    }
}

/// The directory, with its files, of a container whose statistics are read again and again.
#[derive(Debug)]
pub(crate) struct Watched(pub(crate) Directory);

impl Watched {
    /// Keeps the directory that `open` returns. Returns `None` if it returns none or enough containers have one.
    pub(crate) fn new(open: impl FnOnce() -> Option<Directory>) -> Option<Watched> {
        let has_room = WATCHED.fetch_add(1, Ordering::Relaxed) < WATCHED_MOST;
        let watched = has_room.then(open).flatten().map(|directory| Watched(directory.keeping_files()));
        if watched.is_none() {
            WATCHED.fetch_sub(1, Ordering::Relaxed);
        }
        watched
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHED.fetch_sub(1, Ordering::Relaxed);
    }
}
