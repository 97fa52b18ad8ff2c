//! How often the kernel has killed for memory in a container, and a descriptor that tells when to look.
//!
//! The descriptor only wakes. On v1 it is an eventfd, which fires before the kernel kills, for an out-of-memory of any
//! group above, and when the group is removed; on v2 `memory.events` also tells of much that is no kill. What decides
//! is the count of kills.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::files::{groups_below, keyed, read_at, value};
use crate::group::Cgroup;

/// A descriptor that is to be waited for.
#[derive(Debug)]
pub struct OomDescriptor {
    /// The descriptor.
    pub fd: OwnedFd,
    /// What tells by it.
    pub kind: OomSource,
}

/// What tells of an out-of-memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomSource {
    /// v1: becomes readable, and that before the kernel has killed.
    EventFd,
    /// v2: has priority data once the counts have changed.
    Events,
}

impl Cgroup {
    /// How many processes the kernel has killed for memory in this container, groups below its own included; `None` if
    /// the group is gone or the controller is not there.
    pub fn oom_kills(&self) -> io::Result<Option<u64>> {
        if let Some(place) = self.place_v1("memory") {
            let (hierarchy, group) = self.at(place);
            // On v1 each group counts its own processes only.
            return sum(hierarchy, &group);
        }
        let Some(place) = self.place_v2() else { return Ok(None) };
        let (hierarchy, file) = self.file(place, "memory.events");
        // Of the whole subtree.
        Ok(read_at(hierarchy, &file)?.map(|text| value(&keyed(&text), "oom_kill")))
    }

    /// What tells when [`Cgroup::oom_kills`] may have risen; `None` if there is no memory controller.
    pub fn watch_oom(&self) -> io::Result<Option<OomDescriptor>> {
        let open = |place, name, flags| {
            let (hierarchy, file) = self.file(place, name);
            openat(hierarchy, &file, flags | OFlags::CLOEXEC, Mode::empty())
        };
        let (place, kind) = match (self.place_v1("memory"), self.place_v2()) {
            (Some(memory), _) => (memory, OomSource::EventFd),
            (None, Some(unified)) => (unified, OomSource::Events),
            (None, None) => return Ok(None),
        };
        let name = if kind == OomSource::EventFd { "memory.oom_control" } else { "memory.events" };
        let file = match open(place, name, OFlags::RDONLY) {
            Err(Errno::NOENT) => return Ok(None),
            result => result?,
        };
        if kind == OomSource::Events {
            return Ok(Some(OomDescriptor { fd: file, kind }));
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // admin-guide/cgroup-v1/memory.rst, "OOM Control".
        let request = format!("{} {}", event.as_raw_fd(), file.as_raw_fd());
        rustix::io::write(open(place, "cgroup.event_control", OFlags::WRONLY)?, request.as_bytes())?;
        Ok(Some(OomDescriptor { fd: event, kind }))
    }
}

impl OomSource {
    /// Makes its descriptor silent until the next time.
    pub fn acknowledge(self, fd: impl AsFd) -> io::Result<()> {
        let mut buffer = [0; 256];
        let result = match self {
            OomSource::EventFd => rustix::io::read(fd, &mut buffer),
            OomSource::Events => rustix::io::pread(fd, &mut buffer, 0),
        };
        match result {
            // The group may be gone.
            Ok(_) | Err(Errno::AGAIN | Errno::NODEV) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// `oom_kill` of a group and all below it.
fn sum(hierarchy: BorrowedFd<'_>, group: &Path) -> io::Result<Option<u64>> {
    let Some(text) = read_at(hierarchy, &group.join("memory.oom_control"))? else { return Ok(None) };
    let mut kills = value(&keyed(&text), "oom_kill");
    // What cannot be counted must not look like fewer kills, or they would be told again later.
    for below in groups_below(hierarchy, group)? {
        kills = kills.saturating_add(sum(hierarchy, &below)?.unwrap_or_default());
    }
    Ok(Some(kills))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchies::test_cgroup;

    #[test]
    fn kills_are_summed_over_v1s_subtree() {
        let directory = tempfile::tempdir().expect("tempdir");
        let below = directory.path().join("a/b");
        std::fs::create_dir_all(&below).expect("creates");
        for (path, kills) in [(directory.path(), 1), (&directory.path().join("a"), 0), (&below, 5)] {
            let text = format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
            std::fs::write(path.join("memory.oom_control"), text).expect("writes");
        }
        assert_eq!(test_cgroup(&[("memory", directory.path())]).oom_kills().expect("reads"), Some(6));
        let gone = test_cgroup(&[("memory", Path::new("/nonexistent"))]);
        assert_eq!(gone.oom_kills().expect("no error"), None);
        assert!(gone.watch_oom().expect("no error").is_none());
    }

    #[test]
    fn v2_counts_kills_and_not_every_out_of_memory() {
        let directory = tempfile::tempdir().expect("tempdir");
        std::fs::write(directory.path().join("memory.events"), "max 9\noom 7\noom_kill 2\noom_group_kill 1\n")
            .expect("writes");
        let cgroup = test_cgroup(&[("", directory.path())]);
        assert_eq!(cgroup.oom_kills().expect("reads"), Some(2));
        let descriptor = cgroup.watch_oom().expect("opens").expect("is there");
        assert_eq!(descriptor.kind, OomSource::Events);
        descriptor.kind.acknowledge(&descriptor.fd).expect("reads");
    }
}
