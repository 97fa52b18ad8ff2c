//! OOM kills: how many processes of a container the kernel has killed because memory ran out, and a descriptor that
//! announces that the count may have risen.
//!
//! Only the count decides. On v1 the descriptor is an eventfd, which the kernel signals before it kills, when memory
//! runs out in any group above, and when the group is removed. On v2 it is `memory.events`, which also changes for
//! events that are no kill.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use crate::files::{groups_below, keyed, read_at, value};
use crate::group::{Below, Cgroup};
use crate::hierarchies::{Hierarchies, Mount};

/// The open files that report OOM kills in a container's own group.
///
/// They belong to this group whatever happens to its path. Once the group is removed the count cannot be read any more,
/// so the caller must keep the last one.
#[derive(Debug, Clone)]
pub struct OomDescriptors {
    /// The descriptor to wait for.
    pub wakes: Arc<OwnedFd>,
    /// How to wait for `wakes`.
    pub kind: OomSource,
    /// The file that [`Cgroup::oom_kills_by`] reads. On v2 it is the same as `wakes`.
    pub counts: Arc<OwnedFd>,
}

/// The kind of descriptor that announces that the count may have risen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomSource {
    /// v1's eventfd. It becomes readable before the kernel kills.
    EventFd,
    /// v2's `memory.events`. It has priority data from a change of its counts until it is read.
    Events,
}

/// The files with the count: v1's and v2's.
const NAMES: [&str; 2] = ["memory.oom_control", "memory.events"];

impl Cgroup {
    /// Reads how many processes the kernel has OOM-killed in this container, including the groups below its own.
    /// Returns `None` if the group is gone or there is no memory controller.
    pub fn oom_kills(&self) -> io::Result<Option<u64>> {
        match self.memory() {
            Some((place, OomSource::EventFd)) => {
                let (hierarchy, group) = self.at(place);
                // Each v1 group counts its own processes only.
                sum(hierarchy, &group)
            }
            Some((place, OomSource::Events)) => {
                let (hierarchy, file) = self.file(place, NAMES[1]);
                // The file counts the whole subtree.
                Ok(read_at(hierarchy, &file)?.map(|text| oom_kill(&text)))
            }
            None => Ok(None),
        }
    }

    /// Does what [`Cgroup::oom_kills`] does, by the open file [`OomDescriptors::counts`]. Returns `None` once the group
    /// is removed. Reading v2's file also ends the priority data of [`OomDescriptors::wakes`] until the counts change
    /// again.
    pub fn oom_kills_by(&self, counts: impl AsFd) -> io::Result<Option<u64>> {
        let mut room = [0; 512];
        let read = match rustix::io::pread(counts, &mut room, 0) {
            Ok(read) => read,
            Err(Errno::NODEV) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let mut kills = oom_kill(&String::from_utf8_lossy(&room[..read]));
        if let Some((place, OomSource::EventFd)) = self.memory() {
            let (hierarchy, group) = self.at(place);
            for below in groups_below(hierarchy, &group)? {
                kills = kills.saturating_add(sum(hierarchy, &below)?.unwrap_or_default());
            }
        }
        Ok(Some(kills))
    }

    /// Opens the descriptors that announce when [`Cgroup::oom_kills`] may have risen. Returns `None` if there is no
    /// memory controller.
    pub fn watch_oom(&self) -> io::Result<Option<OomDescriptors>> {
        let Some((place, kind)) = self.memory() else { return Ok(None) };
        let open = |name, flags| {
            let (hierarchy, file) = self.file(place, name);
            openat(hierarchy, &file, flags | OFlags::CLOEXEC, Mode::empty())
        };
        let counts = match open(if kind == OomSource::EventFd { NAMES[0] } else { NAMES[1] }, OFlags::RDONLY) {
            Err(Errno::NOENT) => return Ok(None),
            result => Arc::new(result?),
        };
        if kind == OomSource::Events {
            return Ok(Some(OomDescriptors { wakes: counts.clone(), kind, counts }));
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // admin-guide/cgroup-v1/memory.rst, "OOM Control".
        let request = format!("{} {}", event.as_raw_fd(), counts.as_raw_fd());
        rustix::io::write(open("cgroup.event_control", OFlags::WRONLY)?, request.as_bytes())?;
        Ok(Some(OomDescriptors { wakes: Arc::new(event), kind, counts }))
    }

    /// Returns whether the container has a memory group, so that the kernel counts its OOM kills.
    pub fn counts_oom_kills(&self) -> bool {
        self.memory().is_some()
    }

    /// Returns the group whose memory the kernel counts. If a v1 hierarchy has the controller, v2's groups count
    /// nothing.
    fn memory(&self) -> Option<(&Below, OomSource)> {
        let is_memory = |mount: &Mount| mount.controllers.iter().any(|name| name == "memory");
        if self.host.mounts.iter().any(is_memory) {
            return self.place_v1("memory").map(|place| (place, OomSource::EventFd));
        }
        self.place_v2().map(|place| (place, OomSource::Events))
    }
}

impl Hierarchies {
    /// Returns where a shim finds the memory group of its process: the v1 controller (empty for v2), a colon, and the
    /// mount point of the hierarchy. Returns `None` if the mount shows only a part of the hierarchy.
    pub fn memory_mount(&self) -> Option<String> {
        let mount_of = |is_it: &dyn Fn(&Mount) -> bool| self.host.mounts.iter().find(|mount| is_it(mount));
        let v1 =
            mount_of(&|mount| mount.controllers.iter().any(|name| name == "memory")).map(|mount| ("memory", mount));
        let v2 = || mount_of(&|mount| mount.controllers.is_empty()).map(|mount| ("", mount));
        let (controller, mount) = v1.or_else(v2)?;
        (mount.root == "/").then(|| format!("{controller}:{}", mount.point.display()))
    }
}

impl OomDescriptors {
    /// Makes `wakes` unready until the next announcement. On v2 reading the count does that.
    pub fn acknowledge(kind: OomSource, wakes: impl AsFd) -> io::Result<()> {
        if kind == OomSource::Events {
            return Ok(());
        }
        match rustix::io::read(wakes, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Returns the count of OOM kills in a file's text.
fn oom_kill(text: &str) -> u64 {
    value(&keyed(text), "oom_kill")
}

/// Adds up the OOM kills of a v1 group and of all groups below it.
fn sum(hierarchy: BorrowedFd<'_>, group: &Path) -> io::Result<Option<u64>> {
    let Some(text) = read_at(hierarchy, &group.join("memory.oom_control"))? else { return Ok(None) };
    let mut kills = oom_kill(&text);
    // An error must not look like fewer kills, or the supervisor would report the same kills again later.
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
    fn oom_kills_of_v1_are_summed_over_the_subtree() {
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
    fn oom_events_of_v2_without_a_kill_do_not_count() {
        let directory = tempfile::tempdir().expect("tempdir");
        std::fs::write(directory.path().join("memory.events"), "max 9\noom 7\noom_kill 2\noom_group_kill 1\n")
            .expect("writes");
        let cgroup = test_cgroup(&[("", directory.path())]);
        assert_eq!(cgroup.oom_kills().expect("reads"), Some(2));
        let descriptors = cgroup.watch_oom().expect("opens").expect("is there");
        assert_eq!(descriptors.kind, OomSource::Events);
        assert_eq!(cgroup.oom_kills_by(&descriptors.counts).expect("reads"), Some(2));
    }
}
