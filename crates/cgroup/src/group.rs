//! The groups of one container: which processes are in them, killing these, and removing the groups.

use rustix::fs::{AtFlags, unlinkat};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::files::{Directory, gone_is_done, groups_below, read_at};
use crate::held::{At, Held, Watched};
use crate::hierarchies::{Hierarchies, Host, place_in};

/// The index of one of the host's hierarchies, and the path of a group in it.
pub(crate) type Below = (usize, Arc<str>);

/// The groups of one container in the hierarchies of this host.
#[derive(Debug)]
pub struct Cgroup {
    pub(crate) host: Arc<Host>,
    pub(crate) places: Box<[Below]>,
    /// The index of the place that tells which processes are in the container.
    members: usize,
    /// Whether [`Cgroup::hold`] has been called.
    asked: AtomicBool,
    pub(crate) held: OnceLock<Held>,
    /// Whether [`Cgroup::stats`] has been called.
    pub(crate) read: AtomicBool,
    pub(crate) watched: OnceLock<Watched>,
}

/// The file that lists the processes of a group.
const PROCS: &str = "cgroup.procs";

impl Cgroup {
    pub(crate) fn new(host: Arc<Host>, places: Vec<Below>, members: usize) -> Cgroup {
        Cgroup {
            host,
            places: places.into(),
            members,
            asked: AtomicBool::new(false),
            held: OnceLock::new(),
            read: AtomicBool::new(false),
            watched: OnceLock::new(),
        }
    }

    /// Keeps open what [`Cgroup::pids_with`] and [`Cgroup::is_frozen`] read, from the second call on. For a container whose
    /// state is read again and again: this takes up to three descriptors and some 9 kB of the kernel's memory, and saves
    /// two thirds of the time. Nothing is held if groups together hold enough of what this process may open.
    pub fn hold(&self) {
        if self.held.get().is_some() || !Held::has_room() || !self.asked.swap(true, Ordering::Relaxed) {
            return;
        }
        let listed = self.listed();
        let procs = self.is_v2(listed).then(|| self.file(listed, PROCS));
        let freezer = self.freezer().map(|(place, name, _)| self.file(place, name));
        if let Some(held) = Held::open(&self.at(listed), procs, freezer) {
            let _ = self.held.set(held);
        }
    }

    /// Returns the place whose list of processes is held. This is v2's group even where v1 has the controllers, since an
    /// open `cgroup.procs` of v1 repeats an old list for a second (kernel/cgroup/cgroup-v1.c, `cgroup_pidlist_start`).
    ///
    /// v2's group must be the container's own. So it must have the path of the v1 group that [`Cgroup::pids`] reads, or the
    /// end of that path: for a relative path runc creates v1's group below its own group, and v2's below the root.
    fn listed(&self) -> &Below {
        let members = &self.places[self.members];
        let is_own = |place: &&Below| Path::new(members.1.as_ref()).ends_with(place.1.as_ref());
        self.place_v2().filter(is_own).unwrap_or(members)
    }

    /// Returns whether a place is in the v2 hierarchy.
    fn is_v2(&self, (mount, _): &Below) -> bool {
        self.host.mounts[*mount].controllers.is_empty()
    }

    /// Returns whether one of the groups is a group of `other` or below one.
    pub fn is_within(&self, other: &Cgroup) -> bool {
        let is_in = |(mount, below): &Below, (other_mount, above): &Below| {
            mount == other_mount && Path::new(below.as_ref()).starts_with(above.as_ref())
        };
        self.places.iter().any(|own| other.places.iter().any(|place| is_in(own, place)))
    }

    /// Returns the place in the v1 hierarchy of a controller.
    pub(crate) fn place_v1(&self, controller: &str) -> Option<&Below> {
        let is_it = |place: &&(usize, _)| self.host.mounts[place.0].controllers.iter().any(|name| name == controller);
        self.places.iter().find(is_it)
    }

    /// Returns the place in the v2 hierarchy.
    pub(crate) fn place_v2(&self) -> Option<&Below> {
        self.places.iter().find(|place| self.is_v2(place))
    }

    /// Returns where to open a file of a place.
    pub(crate) fn file<'a>(&'a self, place: &'a Below, name: &str) -> At<'a> {
        let (hierarchy, group) = self.at(place);
        (hierarchy, group.join(name))
    }

    /// Returns where to open the directory of a place.
    pub(crate) fn at<'a>(&'a self, (mount, below): &'a Below) -> At<'a> {
        self.host.mounts[*mount].at(below.as_ref())
    }

    /// Opens the directory of a place, for reading several files. Returns `None` if the group is gone.
    pub(crate) fn open(&self, place: &Below) -> io::Result<Option<Directory>> {
        let (hierarchy, group) = self.at(place);
        Directory::open(hierarchy, &group)
    }

    /// Returns the path of a place's directory on this host.
    fn directory(&self, (mount, below): &Below) -> PathBuf {
        self.host.mounts[*mount].point.join(below.as_ref())
    }

    /// Returns the path of the group in the v1 hierarchy of a controller.
    pub(crate) fn v1(&self, controller: &str) -> Option<PathBuf> {
        self.place_v1(controller).map(|place| self.directory(place))
    }

    /// Returns the path of the group in the v2 hierarchy.
    pub(crate) fn v2(&self) -> Option<PathBuf> {
        self.place_v2().map(|place| self.directory(place))
    }

    /// Returns the path of the group that tells which processes are in the container.
    fn members(&self) -> PathBuf {
        self.directory(&self.places[self.members])
    }

    /// Reads which processes are in the container, including those in groups below its own. Returns none once the group
    /// is gone.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        let (hierarchy, group) = self.at(&self.places[self.members]);
        collect(hierarchy, &group, None, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Does what [`Cgroup::pids`] does, by what [`Cgroup::hold`] keeps open. `known` are processes that were in the container
    /// before. If one of them is missing, it has ended, or is in v1's group alone, or the open group was removed and another
    /// one has its path: then this reads the group anew. A process that another program has put into v1's group alone is not
    /// found otherwise.
    pub fn pids_with(&self, known: &[u32]) -> io::Result<Vec<u32>> {
        let Some(held) = self.held.get() else { return self.pids() };
        let mut pids = Vec::new();
        collect(held.directory(), Path::new(""), held.procs(), &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        if known.iter().all(|pid| pids.binary_search(pid).is_ok()) { Ok(pids) } else { self.pids() }
    }

    /// Reads which processes are in the container in any hierarchy: another program may have moved a process out of one
    /// of the groups, or have removed a group.
    ///
    /// This reads only groups with the path of the group that [`Cgroup::pids`] reads. A runtime creates the container's
    /// groups with one path, and other containers may share a group with another path.
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

    /// Returns the places with the path of the group that [`Cgroup::pids`] reads.
    fn same_path(&self) -> impl Iterator<Item = &Below> {
        let path = &self.places[self.members].1;
        self.places.iter().filter(move |(_, below)| below == path)
    }

    /// Returns whether process `pid` is in one of the groups that [`Cgroup::pids_anywhere`] reads, or below one.
    pub fn is_member(&self, pid: u32) -> io::Result<bool> {
        let Some(places) = Hierarchies::places(pid)? else { return Ok(false) };
        let is_in = |(mount, below): &Below| {
            let found = place_in(&places, &self.host.mounts[*mount]);
            let rest = found.as_deref().and_then(|path| path.strip_prefix(below.as_ref()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        Ok(self.same_path().any(is_in))
    }

    /// Sends SIGKILL to every process in the container.
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
        // The next round finds the children of a process that has forked meanwhile. A killed process does not fork.
        for _ in 0..100 {
            let pids = self.pids_anywhere()?;
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                // Go on with the others if one cannot be killed.
                failed = self.kill_member(pid);
            }
        }
        failed
    }

    /// Removes the groups and those below them. All of their processes must have ended. An error means that a group is
    /// still in use.
    pub fn remove(&self) -> io::Result<()> {
        let mut failed = Ok(());
        for place in &self.places {
            let (hierarchy, group) = self.at(place);
            // Go on with the other hierarchies if one fails.
            failed = failed.and(remove_group(hierarchy, &group));
        }
        failed
    }

    /// Sends SIGKILL to a process that was in the container. Another process may have its pid by now, so this opens the
    /// process, checks that it is in the container, and signals what it has opened.
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

/// Removes a group and those below it, which must all be without processes. A group that is gone is no error.
pub(crate) fn remove_group(hierarchy: BorrowedFd<'_>, group: &Path) -> io::Result<()> {
    for below in groups_below(hierarchy, group)? {
        remove_group(hierarchy, &below)?;
    }
    gone_is_done(unlinkat(hierarchy, group, AtFlags::REMOVEDIR).map_err(io::Error::from))
}

/// Adds the processes in a group and in those below it to `pids`. `text` is the content of the group's own list, if it
/// has been read already.
fn collect(hierarchy: BorrowedFd<'_>, group: &Path, text: Option<String>, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match text {
        Some(text) => text,
        // The file is gone once the group is removed. The kernel refuses to read it in a threaded group, whose
        // processes are listed by the domain above.
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
    fn pids_include_groups_below_and_missing_groups_have_none() {
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

    /// Writes a file and creates the directories above it.
    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
        std::fs::write(path, text).expect("writes");
    }

    #[test]
    fn held_files_say_what_the_group_says() {
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
            assert_eq!(cgroup.pids_with(&[7, 8]).expect("reads"), [7, 9, 12], "8 has ended");
            let many: String = (1..=1000).map(|pid| format!("{pid}\n")).collect();
            write(PROCS, &many);
            assert_eq!(cgroup.pids_with(&[7]).expect("reads").len(), 1000);
            // The group is removed, and another one gets its path.
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
    fn v2_group_beside_v1_is_read_only_if_it_is_the_containers_own() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (v1, v2) = (directory.path().join("v1"), directory.path().join("v2"));
        let mounts = [("cgroup cgroup rw,pids", &v1), ("cgroup2 cgroup2 rw", &v2)];
        let mounts = mounts.map(|(kind, at)| format!("1 2 0:3 / {} rw - {kind}\n", at.display())).concat();
        write(&v1.join("a/c"), PROCS, "7\n8\n");
        for (path, found) in [("a/c", vec![8]), ("c", vec![8]), ("b/c", vec![7, 8]), ("x", vec![7, 8])] {
            write(&v2.join(path), PROCS, "8\n");
            let places = format!("1:pids:/a/c\n0::/{path}\n");
            let cgroup = test_hierarchies(&mounts, "").cgroup(&places).expect("a group");
            assert_eq!(cgroup.pids_with(&[8]).expect("reads"), [7, 8], "nothing is held yet");
            (0..2).for_each(|_| cgroup.hold());
            assert_eq!(cgroup.pids_with(&[8]).expect("reads"), found, "{path}");
            assert_eq!(cgroup.pids_with(&[7, 8]).expect("reads"), [7, 8], "7 is in v1's group alone");
        }
    }

    #[test]
    fn process_that_was_moved_out_of_one_group_is_found_in_another() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        write(&at("pids/c"), PROCS, "");
        write(&at("memory/c"), PROCS, "7\n");
        write(&at("cpu/shared"), PROCS, "8\n");
        let mount = |name: &str| format!("1 2 0:3 / {} rw - cgroup cgroup rw,{name}\n", at(name).display());
        let mounts = ["pids", "memory", "cpu"].map(mount).concat();
        let cgroup = test_hierarchies(&mounts, "").cgroup("1:pids:/c\n2:memory:/c\n3:cpu:/shared\n").expect("a group");
        assert_eq!(cgroup.pids().expect("reads"), []);
        assert_eq!(cgroup.pids_anywhere().expect("reads"), [7], "a group with another path does not count");
    }
}
