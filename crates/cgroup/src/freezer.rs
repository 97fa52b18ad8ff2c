//! Freezing: whether a container is frozen, by which group, and thawing processes so that they can be killed.
//!
//! A process that v1's freezer has frozen does not die by SIGKILL before it is thawed
//! (admin-guide/cgroup-v1/freezer-subsystem.rst). On v2 it dies at once.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::files::{gone_is_done, groups_below, read_at, write_at};
use crate::group::{Below, Cgroup};
use crate::held::Held;
use crate::hierarchies::{Hierarchies, place_in};

impl Cgroup {
    /// Returns whether the container's processes are frozen or about to be.
    pub fn is_frozen(&self) -> io::Result<bool> {
        let Some((place, name, thawed)) = self.freezer() else { return Ok(false) };
        let said = match self.held.get().and_then(Held::freezer) {
            Some(said) => Some(said),
            None => {
                let (hierarchy, file) = self.file(place, name);
                read_at(hierarchy, &file)?
            }
        };
        Ok(said.is_some_and(|state| state.trim() != thawed))
    }

    /// Returns the place and the name of the file that tells whether the container is frozen, and its content if it is
    /// not.
    pub(crate) fn freezer(&self) -> Option<(&Below, &'static str, &'static str)> {
        match (self.place_v1("freezer"), self.place_v2()) {
            (Some(freezer), _) => Some((freezer, "freezer.state", "THAWED")),
            (None, Some(unified)) => Some((unified, "cgroup.freeze", "0")),
            (None, None) => None,
        }
    }

    /// Returns whether a frozen process of the container cannot be killed, as with v1's freezer.
    pub fn holds_killed(&self) -> bool {
        self.v1("freezer").is_some()
    }

    /// Thaws the container's group and all groups below it if v1's freezer has frozen them, so that their processes can
    /// be killed. On v2 frozen processes can be killed. Returns whether a group was frozen.
    pub fn thaw_for_kill(&self) -> io::Result<bool> {
        let Some(place) = self.place_v1("freezer") else { return Ok(false) };
        let (hierarchy, group) = self.at(place);
        thaw_tree(hierarchy, &group)
    }

    /// Thaws the groups from the container's own down to the group of process `pid`, so that v1's freezer lets the
    /// process be killed. Other groups below the container's own stay as they are: the container may have frozen them
    /// itself. Returns whether the container's own group was frozen.
    pub fn thaw_process_for_kill(&self, pid: u32) -> io::Result<bool> {
        let Some((mount, below)) = self.place_v1("freezer") else { return Ok(false) };
        let Some(places) = Hierarchies::places(pid)? else { return Ok(false) };
        let found = place_in(&places, &self.host.mounts[*mount]);
        let rest = found.as_deref().and_then(|path| path.strip_prefix(below.as_ref()));
        let (hierarchy, mut group) = self.host.mounts[*mount].at(below.as_ref());
        let frozen = thaw_one(hierarchy, &group)?;
        for part in rest.filter(|rest| rest.starts_with('/')).into_iter().flat_map(|rest| rest.split('/')) {
            if !part.is_empty() {
                group.push(part);
                thaw_one(hierarchy, &group)?;
            }
        }
        Ok(frozen)
    }

    /// Returns the path of a group above the container's own that is frozen, if there is one. Nothing in the container
    /// runs before that group is thawed.
    pub fn frozen_above(&self) -> io::Result<Option<PathBuf>> {
        let of_v1 = self.place_v1("freezer").map(|place| (place, "freezer.self_freezing"));
        let of_v2 = self.place_v2().map(|place| (place, "cgroup.freeze"));
        for (place, name) in of_v1.into_iter().chain(of_v2) {
            let (hierarchy, group) = self.at(place);
            for above in group.ancestors().skip(1) {
                // The root of a hierarchy cannot be frozen.
                let is_root = above.as_os_str().is_empty() || above == self.host.mounts[place.0].point;
                if is_root {
                    break;
                }
                if read_at(hierarchy, &above.join(name))?.is_some_and(|text| text.trim() == "1") {
                    return Ok(Some(self.host.mounts[place.0].point.join(above)));
                }
            }
        }
        Ok(None)
    }

    /// Thaws the container if it is frozen.
    pub fn thaw(&self) -> io::Result<()> {
        if !self.is_frozen()? {
            return Ok(());
        }
        match (self.v1("freezer"), self.v2()) {
            (None, Some(unified)) => gone_is_done(std::fs::write(unified.join("cgroup.freeze"), "0")),
            _ => self.thaw_for_kill().map(drop),
        }
    }
}

impl Hierarchies {
    /// Lets a process die that has been sent SIGKILL while v1's freezer holds it. Moves it into this process's own
    /// group, where it is thawed and dies before it runs any more of its program. For processes that a failed creation
    /// left behind in a group which has to stay frozen.
    pub fn free_killed(&self, pid: u32) -> io::Result<()> {
        let Some(mount) = self.host.mounts.iter().find(|mount| mount.controllers.iter().any(|c| c == "freezer")) else {
            return Ok(());
        };
        let Some(group) = Hierarchies::places(pid)?.and_then(|places| place_in(&places, mount)) else { return Ok(()) };
        let (hierarchy, directory) = mount.at(&group);
        if read_at(hierarchy, &directory.join("freezer.state"))?.is_none_or(|state| state.trim() == "THAWED") {
            return Ok(());
        }
        let own = place_in(&std::fs::read_to_string("/proc/self/cgroup")?, mount).unwrap_or_default();
        let (hierarchy, directory) = mount.at(own);
        gone_is_done(write_at(hierarchy, &directory.join("cgroup.procs"), &pid.to_string()))
    }
}

/// Thaws a group of v1's freezer and all groups below it. Returns whether one was frozen.
fn thaw_tree(hierarchy: BorrowedFd<'_>, group: &Path) -> io::Result<bool> {
    let mut frozen = thaw_one(hierarchy, group)?;
    for below in groups_below(hierarchy, group)? {
        frozen |= thaw_tree(hierarchy, &below)?;
    }
    Ok(frozen)
}

/// Thaws one group of v1's freezer if it is frozen or freezing. Returns whether it was.
fn thaw_one(hierarchy: BorrowedFd<'_>, group: &Path) -> io::Result<bool> {
    let path = group.join("freezer.state");
    if read_at(hierarchy, &path)?.is_none_or(|state| state.trim() == "THAWED") {
        return Ok(false);
    }
    gone_is_done(write_at(hierarchy, &path, "THAWED"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchies::{test_cgroup, test_hierarchies};

    /// Writes a file and creates the directories above it.
    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
        std::fs::write(path, text).expect("writes");
    }

    #[test]
    fn frozen_group_is_recognised_and_thawed_on_both_versions() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path();
        let v1 = test_cgroup(&[("freezer", path)]);
        for (text, frozen) in [("FROZEN\n", true), ("FREEZING\n", true), ("THAWED\n", false)] {
            std::fs::write(path.join("freezer.state"), text).expect("writes");
            assert_eq!(v1.is_frozen().expect("reads"), frozen);
        }
        let below = path.join("a/b");
        std::fs::create_dir_all(&below).expect("creates");
        assert!(!v1.thaw_for_kill().expect("nothing to do"));
        for group in [path, &below] {
            std::fs::write(group.join("freezer.state"), "FROZEN\n").expect("writes");
        }
        assert!(v1.thaw_for_kill().expect("writes"));
        for group in [path, &below] {
            assert_eq!(std::fs::read_to_string(group.join("freezer.state")).expect("reads"), "THAWED\n");
        }
        let v2 = test_cgroup(&[("", path)]);
        std::fs::write(path.join("cgroup.freeze"), "1\n").expect("writes");
        assert!(v2.is_frozen().expect("reads"));
        v2.thaw().expect("writes");
        assert!(!v2.is_frozen().expect("reads"));
    }

    #[test]
    fn frozen_group_above_the_container_is_named() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mounts = |kind: &str| format!("1 2 0:3 / {} rw - {kind}\n", directory.path().display());
        for (kind, place, file) in [
            ("cgroup cgroup rw,freezer", "1:freezer:/a/b/c\n", "freezer.self_freezing"),
            ("cgroup2 cgroup2 rw", "0::/a/b/c\n", "cgroup.freeze"),
        ] {
            let cgroup = test_hierarchies(&mounts(kind), "").cgroup(place).expect("a group");
            write(&directory.path().join("a/b/c"), file, "1\n");
            write(&directory.path().join("a/b"), file, "0\n");
            assert_eq!(cgroup.frozen_above().expect("reads"), None, "its own");
            write(&directory.path().join("a"), file, "1\n");
            assert_eq!(cgroup.frozen_above().expect("reads"), Some(directory.path().join("a")));
        }
    }
}
