//! What is held open of a group that is looked at again and again: the kernel goes through the directories of a path one
//! by one, with locks that all groups share, and that takes longer than what is read at the end of it.

use rustix::fs::{Mode, OFlags, openat};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many descriptors are held, by all groups together.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// The share of what this process may open that is held at most: the rest is for what cannot do without.
const SHARE: u64 = 4;

/// What is read from here at once. Of a container with more processes than fit the group is read anew.
const PIECE: usize = 2048;

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
        HELD.load(Ordering::Relaxed) < most
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
    // Is there no room left, there may be more.
    (!left.is_empty()).then(|| String::from_utf8_lossy(read).into_owned())
}
