//! The groups of one container.

use rustix::fs::{AtFlags, unlinkat};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::files::{Directory, gone_is_done, groups_below, read_at};
use crate::held::{At, Held, Watched};
use crate::hierarchies::{Hierarchies, Host, place_in};

/// Which of the host's hierarchies, and the path in it.
pub(crate) type Below = (usize, Arc<str>);

/// The directories of one container in the hierarchies of this host.
#[derive(Debug)]
pub struct Cgroup {
    pub(crate) host: Arc<Host>,
    pub(crate) places: Box<[Below]>,
    /// The place that tells who is in the container.
    members: usize,
    /// How often it was asked to be held, and was not.
    asked: AtomicUsize,
    pub(crate) held: OnceLock<Held>,
    /// Its statistics have been asked for.
    pub(crate) read: AtomicBool,
    pub(crate) watched: OnceLock<Watched>,
}

/// How often v2's group is compared with the one that counts before it is left alone.
const TRIES: usize = 5;

/// The file of a group that tells who is in it.
const PROCS: &str = "cgroup.procs";

impl Cgroup {
    pub(crate) fn new(host: Arc<Host>, places: Vec<Below>, members: usize) -> Cgroup {
        Cgroup {
            host,
            places: places.into(),
            members,
            asked: AtomicUsize::new(0),
            held: OnceLock::new(),
            read: AtomicBool::new(false),
            watched: OnceLock::new(),
        }
    }

    /// Keeps open what [`Cgroup::pids_with`] and [`Cgroup::is_frozen`] read, for a container that is asked for both again
    /// and again, from the second time on: up to three descriptors and some 9 kB of the kernel's memory, and a fifth of the
    /// time. No more is held than a part of what this process may open.
    pub fn hold(&self) {
        if self.held.get().is_some() || !Held::has_room() {
            return;
        }
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        if asked == 0 {
            return;
        }
        let v2 = self.place_v2().filter(|place| self.is_as_good(place));
        if v2.is_none() && self.place_v2().is_some() && asked < TRIES {
            // Somebody may have come or gone just between the two readings.
            return;
        }
        let freezer = self.freezer().map(|(place, name, _)| self.file(place, name));
        let procs = v2.map(|place| self.file(place, PROCS));
        let directory = self.at(v2.unwrap_or(&self.places[self.members]));
        if let Some(held) = Held::open(&directory, procs, freezer) {
            let _ = self.held.set(held);
        }
    }

    /// Whether a place has the same processes in it as the one that tells who is in the container. Beside v1 every
    /// runtime that is known puts them into v2's group too, and v1's `cgroup.procs` cannot be held: for a second it is
    /// answered from an old list (kernel/cgroup/cgroup-v1.c, `cgroup_pidlist_start`).
    fn is_as_good(&self, place: &Below) -> bool {
        if *place == self.places[self.members] {
            return true;
        }
        let (mut pids, (hierarchy, group)) = (Vec::new(), self.at(place));
        let collected = collect(hierarchy, &group, None, &mut pids);
        pids.sort_unstable();
        collected.is_ok() && self.pids().is_ok_and(|members| members == pids)
    }

    /// Whether one of its groups is a group of `other`, or below one.
    pub fn is_within(&self, other: &Cgroup) -> bool {
        let is_in = |(mount, below): &Below, (other_mount, above): &Below| {
            mount == other_mount && Path::new(below.as_ref()).starts_with(above.as_ref())
        };
        self.places.iter().any(|own| other.places.iter().any(|place| is_in(own, place)))
    }

    /// The place in a v1 hierarchy.
    pub(crate) fn place_v1(&self, controller: &str) -> Option<&Below> {
        let is_it = |place: &&(usize, _)| self.host.mounts[place.0].controllers.iter().any(|name| name == controller);
        self.places.iter().find(is_it)
    }

    /// The place in the v2 hierarchy.
    pub(crate) fn place_v2(&self) -> Option<&Below> {
        self.places.iter().find(|place| self.host.mounts[place.0].controllers.is_empty())
    }

    /// A file of a place.
    pub(crate) fn file<'a>(&'a self, place: &'a Below, name: &str) -> At<'a> {
        let (hierarchy, group) = self.at(place);
        (hierarchy, group.join(name))
    }

    /// Where to look for a place.
    pub(crate) fn at<'a>(&'a self, (mount, below): &'a Below) -> At<'a> {
        self.host.mounts[*mount].at(below.as_ref())
    }

    /// A place, to read several of its files; `None` if it is gone.
    pub(crate) fn open(&self, place: &Below) -> io::Result<Option<Directory>> {
        let (hierarchy, group) = self.at(place);
        Directory::open(hierarchy, &group)
    }

    fn directory(&self, (mount, below): &Below) -> PathBuf {
        self.host.mounts[*mount].point.join(below.as_ref())
    }

    /// Its directory in the v1 hierarchy of a controller.
    pub(crate) fn v1(&self, controller: &str) -> Option<PathBuf> {
        self.place_v1(controller).map(|place| self.directory(place))
    }

    /// Its directory in the v2 hierarchy.
    pub(crate) fn v2(&self) -> Option<PathBuf> {
        self.place_v2().map(|place| self.directory(place))
    }

    /// The directory that tells who is in the container.
    fn members(&self) -> PathBuf {
        self.directory(&self.places[self.members])
    }

    /// Every process in the container, groups below its own included. Empty once the group is gone.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        let (hierarchy, group) = self.at(&self.places[self.members]);
        collect(hierarchy, &group, None, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// The same, by what is held open ([`Cgroup::hold`]), as long as all are there who are known to be in the container
    /// while they live. Where v2 is beside v1 it does not tell of somebody who was put into v1's group alone.
    pub fn pids_with(&self, known: &[u32]) -> io::Result<Vec<u32>> {
        let Some(held) = self.held.get().filter(|held| !held.misses.load(Ordering::Relaxed)) else {
            return self.pids();
        };
        let mut pids = Vec::new();
        collect(held.directory(), Path::new(""), held.procs(), &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        let misses = |pid: &&u32| pids.binary_search(pid).is_err();
        if !known.iter().any(|pid| misses(&pid)) {
            return Ok(pids);
        }
        // They have ended, or are in the one hierarchy and not in the other; or this group is gone, and there is another
        // one of its name.
        let members = self.pids()?;
        if members.iter().filter(|pid| known.contains(pid)).any(|pid| misses(&pid)) {
            held.misses.store(true, Ordering::Relaxed);
        }
        Ok(members)
    }

    /// Every process that is in the container in any hierarchy. Another program may have moved a process out of one of the
    /// groups, or have removed groups by hand.
    ///
    /// Only groups that have the same path as the one that [`Cgroup::pids`] reads count: a runtime makes the container's
    /// groups by one path, and a group of another path may be shared with others.
    pub fn pids_anywhere(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for place in self.same_path() {
            let (hierarchy, group) = self.at(place);
            collect(hierarchy, &group, None, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// The places with the path of the one that tells which processes are in the container.
    fn same_path(&self) -> impl Iterator<Item = &Below> {
        let path = &self.places[self.members].1;
        self.places.iter().filter(move |(_, below)| below == path)
    }

    /// Whether the kernel has process `pid` in one of the groups that [`Cgroup::pids_anywhere`] reads.
    pub fn is_member(&self, pid: u32) -> io::Result<bool> {
        let Some(places) = Hierarchies::places(pid)? else { return Ok(false) };
        let is_in = |(mount, below): &Below| {
            let found = place_in(&places, &self.host.mounts[*mount]);
            let rest = found.as_deref().and_then(|path| path.strip_prefix(below.as_ref()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        Ok(self.same_path().any(is_in))
    }

    /// Sends SIGKILL to everything in the container.
    pub fn kill(&self) -> io::Result<()> {
        let members = self.members();
        if self.v2().as_ref() == Some(&members) {
            let kill = members.join("cgroup.kill");
            if kill.exists() {
                return gone_is_done(std::fs::write(kill, "1"));
            }
        }
        self.thaw_for_kill()?;
        let mut failed = Ok(());
        // A process that forks meanwhile is seen in the next round; what is killed forks no more.
        for _ in 0..100 {
            let pids = self.pids_anywhere()?;
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                // One that cannot be killed does not protect the others.
                failed = self.kill_member(pid);
            }
        }
        failed
    }

    /// Removes its directories with the groups below them, after all that was in them has ended. An error says that a group is
    /// still in use.
    pub fn remove(&self) -> io::Result<()> {
        let mut failed = Ok(());
        for place in &self.places {
            let (hierarchy, group) = self.at(place);
            // One hierarchy that cannot be cleaned does not keep the others.
            failed = failed.and(remove_group(hierarchy, &group));
        }
        failed
    }

    /// The number may be somebody else's by now: opened first, then looked up once more, then signalled.
    fn kill_member(&self, pid: u32) -> io::Result<()> {
        let Some(stat) = sys::procfs::stat(pid)? else { return Ok(()) };
        let Some(process) = sys::pidfd::PidFd::open(pid, stat.starttime)? else { return Ok(()) };
        if !self.is_member(pid)? {
            return Ok(());
        }
        match process.send(9) {
            Err(e) if e.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => Err(e),
            _ => Ok(()),
        }
    }
}

/// Removes a group and those below it, which must all be empty. A group that is gone is no error.
pub(crate) fn remove_group(hierarchy: BorrowedFd<'_>, group: &Path) -> io::Result<()> {
    for below in groups_below(hierarchy, group)? {
        remove_group(hierarchy, &below)?;
    }
    gone_is_done(unlinkat(hierarchy, group, AtFlags::REMOVEDIR).map_err(io::Error::from))
}

/// Adds who is in a group and in those below it; `text` is what its file says, where that is known.
fn collect(hierarchy: BorrowedFd<'_>, group: &Path, text: Option<String>, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match text {
        Some(text) => text,
        // Absent once the group is removed; EOPNOTSUPP in a threaded group, whose processes its domain lists.
        None => match read_at(hierarchy, &group.join(PROCS))? {
            Some(text) => text,
            None => return Ok(()),
        },
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    for below in groups_below(hierarchy, group)? {
        collect(hierarchy, &below, None, pids)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchies::{test_cgroup, test_hierarchies};

    #[test]
    fn groups_below_count_and_missing_ones_are_empty() {
        let directory = tempfile::tempdir().expect("tempdir");
        let below = directory.path().join("a/b");
        std::fs::create_dir_all(&below).expect("creates");
        std::fs::write(directory.path().join("cgroup.procs"), "12\n7\n").expect("writes");
        std::fs::write(directory.path().join("a/cgroup.procs"), "").expect("writes");
        std::fs::write(below.join("cgroup.procs"), "9\n12\n0\n").expect("writes");
        let cgroup = test_cgroup(&[("pids", directory.path())]);
        assert_eq!(cgroup.pids().expect("reads"), [7, 9, 12]);
        let gone = test_cgroup(&[("freezer", Path::new("/nonexistent"))]);
        assert_eq!(gone.pids().expect("no error"), []);
        assert!(!gone.is_frozen().expect("no error"));
        gone.kill().expect("nothing to kill");
    }

    /// Writes files in directories that need not be there.
    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
        std::fs::write(path, text).expect("writes");
    }

    #[test]
    fn what_is_held_says_the_same() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("group");
        let write = |name: &str, text: &str| write(&path, name, text);
        for (controllers, file, frozen, thawed) in
            [("pids,freezer", "freezer.state", "FREEZING\n", "THAWED\n"), ("", "cgroup.freeze", "1\n", "0\n")]
        {
            write(PROCS, "12\n7\n");
            write(file, thawed);
            let cgroup = test_cgroup(&[(controllers, &path)]);
            cgroup.hold();
            assert!(cgroup.held.get().is_none(), "once is not often");
            cgroup.hold();
            cgroup.hold();
            let held = cgroup.held.get().expect("is held");
            assert!(held.freezer().is_some() && held.procs().is_some() == controllers.is_empty());
            assert_eq!(cgroup.pids_with(&[7]).expect("reads"), [7, 12]);
            assert!(!cgroup.is_frozen().expect("reads"));
            write(file, frozen);
            write("a/cgroup.procs", "9\n");
            assert_eq!(cgroup.pids_with(&[7]).expect("reads"), [7, 9, 12]);
            assert!(cgroup.is_frozen().expect("reads"));
            assert_eq!(cgroup.pids_with(&[7, 8]).expect("reads"), [7, 9, 12], "one that has ended");
            let many: String = (1..=1000).map(|pid| format!("{pid}\n")).collect();
            write(PROCS, &many);
            assert_eq!(cgroup.pids_with(&[7]).expect("reads").len(), 1000);
            // Nobody has it any more, and then another has its name.
            std::fs::remove_dir_all(&path).expect("removes");
            write(PROCS, "5\n");
            assert_eq!(cgroup.pids_with(&[5]).expect("reads"), [5]);
            std::fs::remove_dir_all(&path).expect("removes");
            assert_eq!(cgroup.pids_with(&[5]).expect("no error"), []);
        }
        let gone = test_cgroup(&[("pids", Path::new("/nonexistent"))]);
        gone.hold();
        gone.hold();
        assert!(gone.held.get().is_none());
    }

    #[test]
    fn v2_beside_v1_is_read_as_long_as_it_has_who_is_known() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (v1, v2) = (directory.path().join("v1"), directory.path().join("v2"));
        let held = || {
            let cgroup = test_cgroup(&[("pids", &v1), ("", &v2)]);
            cgroup.hold();
            cgroup.hold();
            cgroup
        };
        write(&v1, PROCS, "7\n8\n");
        write(&v2, PROCS, "8\n");
        let differ = held();
        assert!(differ.held.get().is_none(), "it may be another time");
        (0..TRIES).for_each(|_| differ.hold());
        assert!(differ.held.get().is_some_and(|held| held.procs().is_none()));
        assert_eq!(differ.pids_with(&[8]).expect("reads"), [7, 8]);
        write(&v1, PROCS, "8\n");
        let same = held();
        assert!(same.held.get().is_some_and(|held| held.procs().is_some()));
        write(&v2, PROCS, "8\n9\n");
        assert_eq!(same.pids_with(&[8]).expect("reads"), [8, 9]);
        // Somebody is put into v1's group alone.
        write(&v1, PROCS, "8\n10\n");
        assert_eq!(same.pids_with(&[8, 10]).expect("reads"), [8, 10]);
        assert_eq!(same.pids_with(&[8]).expect("reads"), [8, 10], "v2 is asked no more");
    }

    #[test]
    fn processes_that_were_moved_out_of_one_group_are_found_in_the_others() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        write(&at("pids/c"), PROCS, "");
        write(&at("memory/c"), PROCS, "7\n");
        write(&at("cpu/shared"), PROCS, "8\n");
        let mount = |name: &str| format!("1 2 0:3 / {} rw - cgroup cgroup rw,{name}\n", at(name).display());
        let mounts = ["pids", "memory", "cpu"].map(mount).concat();
        let cgroup = test_hierarchies(&mounts, "").cgroup("1:pids:/c\n2:memory:/c\n3:cpu:/shared\n").expect("a group");
        assert_eq!(cgroup.pids().expect("reads"), []);
        assert_eq!(cgroup.pids_anywhere().expect("reads"), [7], "not what another path has");
    }
}
