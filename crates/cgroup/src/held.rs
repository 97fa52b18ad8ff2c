//! What is held open of a group that is looked at again and again: the kernel goes through the directories of a path one
//! by one, with locks that all groups share, and that takes longer than what is read at the end of it.

use rustix::fs::{Mode, OFlags, openat};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::files::Directory;

/// How many descriptors are held, by all groups together.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// The share of what this process may open that is held at most: the rest is for what cannot do without.
const SHARE: u64 = 4;

/// As many descriptors must be free as are needed more than those that only save time.
const NEEDED_MORE: u64 = 64;

/// What is read from here at once, and what the kernel has ready at once. What does not fit is read anew.
const PIECE: usize = 4096;

/// How many containers' statistics are held at most: some forty files each, of which the kernel has 4 kB of memory each.
const WATCHED_MOST: usize = 16;

/// How many are.
static WATCHED: AtomicUsize = AtomicUsize::new(0);

/// Descriptors of a container's groups.
#[derive(Debug)]
pub(crate) struct Held {
    directory: OwnedFd,
    procs: Option<OwnedFd>,
    freezer: Option<OwnedFd>,
    /// Somebody was found in the container who is not in `procs`.
    pub(crate) misses: AtomicBool,
}

/// A file or a directory, and what its path begins from.
pub(crate) type At<'a> = (BorrowedFd<'a>, PathBuf);

impl Held {
    /// Whether less is held than may be.
    pub(crate) fn has_room() -> bool {
        static MOST: OnceLock<usize> = OnceLock::new();
        let most = *MOST.get_or_init(|| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            limit.map_or(usize::MAX, |limit| usize::try_from(limit / SHARE).unwrap_or(usize::MAX))
        });
        HELD.load(Ordering::Relaxed) < most && sys::descriptors::free().is_ok_and(|free| free > NEEDED_MORE)
    }

    /// Opens a group and those of its files that are given; `None` if the group is gone.
    pub(crate) fn open(directory: &At<'_>, procs: Option<At<'_>>, freezer: Option<At<'_>>) -> Option<Held> {
        let open = |(at, path): &At<'_>, flags| openat(at, path, flags | OFlags::CLOEXEC, Mode::empty()).ok();
        let directory = open(directory, OFlags::PATH | OFlags::DIRECTORY)?;
        let file = |file: At<'_>| open(&file, OFlags::RDONLY);
        let held = Held {
            directory,
            procs: procs.and_then(file),
            freezer: freezer.and_then(file),
            misses: AtomicBool::new(false),
        };
        HELD.fetch_add(held.count(), Ordering::Relaxed);
        Some(held)
    }

    fn count(&self) -> usize {
        1 + usize::from(self.procs.is_some()) + usize::from(self.freezer.is_some())
    }

    /// The group's directory.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Who is in the group now, without those below it; `None` if that is not held, or cannot be read from here.
    pub(crate) fn procs(&self) -> Option<String> {
        text(self.procs.as_ref()?)
    }

    /// What the freezer's file says now; `None` if it is not held, or cannot be read from here.
    pub(crate) fn freezer(&self) -> Option<String> {
        text(self.freezer.as_ref()?)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.count(), Ordering::Relaxed);
    }
}

/// A file's text, from its beginning.
fn text(file: &OwnedFd) -> Option<String> {
    let mut room = [MaybeUninit::uninit(); PIECE];
    let (read, left) = rustix::io::pread(file, &mut room, 0).ok()?;
    // The kernel gives what fits of lines that it makes one by one: is there little room left, there may be more.
    (left.len() > PIECE / 4).then(|| String::from_utf8_lossy(read).into_owned())
}

/// Files of one directory that stay open once they have been read.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<HashMap<String, OwnedFd>>);

impl Files {
    /// What a file of `directory` says now; `None` if it is not there, or cannot be read from here.
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

/// The directories of a container whose statistics are asked for again and again, by the mounts of their hierarchies.
#[derive(Debug)]
pub(crate) struct Watched(Vec<(usize, Arc<Directory>)>);

impl Watched {
    /// `None` if enough containers have one.
    pub(crate) fn new(directories: impl FnOnce() -> Vec<(usize, Arc<Directory>)>) -> Option<Watched> {
        if WATCHED.fetch_add(1, Ordering::Relaxed) < WATCHED_MOST {
            return Some(Watched(directories()));
        }
        WATCHED.fetch_sub(1, Ordering::Relaxed);
        None
    }

    pub(crate) fn directory(&self, mount: usize) -> Option<Arc<Directory>> {
        self.0.iter().find(|(index, _)| *index == mount).map(|(_, directory)| directory.clone())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHED.fetch_sub(1, Ordering::Relaxed);
    }
}
