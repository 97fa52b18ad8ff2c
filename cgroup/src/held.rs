//! What is held open of a group that is looked at again and again: the kernel goes through the directories of a path one
//! by one, with locks that all groups share, and that takes longer than what is read at the end of it.

use rustix::fs::{Mode, OFlags, openat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many descriptors are held, by all groups together.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// The share of what this process may open that is held at most: the rest is for what cannot do without.
const SHARE: u64 = 4;

/// More than the files that are read from here have.
const SHORT: usize = 32;

/// Descriptors of a group.
#[derive(Debug)]
pub(crate) struct Held {
    members: OwnedFd,
    freezer: Option<OwnedFd>,
}

impl Held {
    /// Opens the directory that tells who is in the container and the file that tells whether it is frozen. `None` if
    /// enough is held already, or a group is gone.
    pub(crate) fn open(
        (hierarchy, group): (BorrowedFd<'_>, &Path),
        freezer: Option<(BorrowedFd<'_>, &Path)>,
    ) -> Option<Held> {
        static MOST: OnceLock<usize> = OnceLock::new();
        let most = *MOST.get_or_init(|| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            limit.map_or(usize::MAX, |limit| usize::try_from(limit / SHARE).unwrap_or(usize::MAX))
        });
        if HELD.load(Ordering::Relaxed) >= most {
            return None;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let members = openat(hierarchy, group, flags, Mode::empty()).ok()?;
        let open = |(at, path)| openat(at, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        let held = Held { members, freezer: freezer.and_then(open) };
        HELD.fetch_add(held.count(), Ordering::Relaxed);
        Some(held)
    }

    fn count(&self) -> usize {
        1 + usize::from(self.freezer.is_some())
    }

    /// The directory that tells who is in the container.
    pub(crate) fn members(&self) -> BorrowedFd<'_> {
        self.members.as_fd()
    }

    /// What the freezer's file says now; `None` if it is not held, or cannot be read any more.
    pub(crate) fn freezer(&self) -> Option<String> {
        let mut room = [0; SHORT];
        let read = rustix::io::pread(self.freezer.as_ref()?, &mut room, 0).ok()?;
        Some(String::from_utf8_lossy(room.get(..read)?).into_owned())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.count(), Ordering::Relaxed);
    }
}
