//! Where this host's hierarchies are mounted, and in which of their groups a process is.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::group::Cgroup;
use crate::held::At;

/// A mounted hierarchy.
#[derive(Debug)]
pub(crate) struct Mount {
    /// The controllers of a v1 hierarchy, or its `name=` option; empty for v2.
    pub(crate) controllers: Vec<String>,
    /// The group of the hierarchy that is mounted. It is not `/` if this process runs in a container.
    pub(crate) root: String,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// `point` as an open directory, from the first use on.
    opened: OnceLock<Option<OwnedFd>>,
}

impl Mount {
    /// Returns the mount point as an open directory, with `below`. The shorter path saves the kernel noticeable time
    /// when a thousand groups are read.
    pub(crate) fn at(&self, below: impl AsRef<Path>) -> At<'_> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self.opened.get_or_init(|| openat(CWD, &self.point, flags, Mode::empty()).ok()) {
            Some(point) => (point.as_fd(), below.as_ref().into()),
            None => (CWD, self.point.join(below)),
        }
    }

    /// Returns whether a place is in this hierarchy.
    pub(crate) fn has(&self, place: &Place) -> bool {
        self.controllers == place.controllers || overlaps(self, place)
    }

    /// Returns the path of a place below the mount point. Returns `None` if the mount does not show it.
    fn below<'a>(&self, place: &'a Place) -> Option<&'a str> {
        let below = match self.root.as_str() {
            "/" => place.path.as_str(),
            root => place.path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
        };
        // The kernel shows a group outside the cgroup namespace of this process with `..`.
        (!below.split('/').any(|part| part == "..")).then_some(below)
    }
}

/// All mounted hierarchies, and this process's own places in them.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    pub(crate) host: Arc<Host>,
    own: Vec<Place>,
}

/// What all containers of the host have in common.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) mounts: Vec<Mount>,
    /// The sizes of huge pages in the controller's notation, for example `2MB`.
    pub(crate) hugepages: Vec<String>,
}

/// A group of a process: a line of `/proc/<pid>/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) controllers: Vec<String>,
    pub(crate) path: String,
}

/// The v1 controllers in whose group all processes of a container are looked for, best first. Every runtime uses them.
const MEMBERSHIP: [&str; 6] = ["pids", "freezer", "devices", "memory", "cpu", "cpuacct"];

impl Hierarchies {
    /// Reads this process's mounts and its own groups.
    pub fn read() -> io::Result<Hierarchies> {
        let mounts = parse_mounts(&std::fs::read_to_string("/proc/self/mountinfo")?);
        let own = parse_places(&std::fs::read_to_string("/proc/self/cgroup")?);
        let host = Arc::new(Host { mounts, hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")) });
        Ok(Hierarchies { host, own })
    }

    /// Returns these hierarchies with this process's present places in addition to its earlier ones: another program
    /// may have moved it.
    pub fn here(&self) -> Hierarchies {
        let now = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut all = self.clone();
        all.own.extend(parse_places(&now).into_iter().filter(|place| !self.own.contains(place)));
        all
    }

    /// Reads the groups of process `pid` from `/proc/<pid>/cgroup`, for [`Hierarchies::cgroup`]. Returns `None` if the
    /// process is gone.
    pub fn places(pid: u32) -> io::Result<Option<String>> {
        Ok(sys::procfs::read(pid, "cgroup")?)
    }

    /// Returns the lines of [`Hierarchies::places`] that name a group which this host shows and which is not this
    /// process's own. The later process that reads them may itself be in another group.
    pub fn of_use(&self, places: &str) -> String {
        let is_of_use = |line: &&str| parse_places(line).iter().any(|place| self.locate(place).is_some());
        places.split('\n').filter(is_of_use).map(|line| format!("{line}\n")).collect()
    }

    /// Returns the groups that [`Hierarchies::places`] has read. Returns `None` if this host shows none of them, or all
    /// are this process's own.
    pub fn cgroup(&self, places: &str) -> Option<Cgroup> {
        let mut found: Vec<(usize, Arc<str>)> = Vec::new();
        for place in parse_places(places) {
            let Some((index, below)) = self.locate(&place) else { continue };
            // The path is mostly the same in all hierarchies, so that one copy of it suffices.
            let shared = found.iter().find(|(_, path)| path.as_ref() == below).map(|(_, path)| path.clone());
            found.push((index, shared.unwrap_or_else(|| below.into())));
        }
        let has =
            |name: &str| found.iter().position(|(i, _)| self.host.mounts[*i].controllers.iter().any(|c| c == name));
        let unified = || found.iter().position(|(i, _)| self.host.mounts[*i].controllers.is_empty());
        let members = MEMBERSHIP.iter().find_map(|name| has(name)).or_else(unified)?;
        Some(Cgroup::new(self.host.clone(), found, members))
    }

    /// Returns the index of a place's hierarchy, and its path below the mount point. Returns `None` if the place is
    /// this process's own or no mount shows it.
    pub(crate) fn locate<'a>(&self, place: &'a Place) -> Option<(usize, &'a str)> {
        if self.own.contains(place) {
            return None;
        }
        let index = self.host.mounts.iter().position(|mount| mount.has(place))?;
        let below = self.host.mounts[index].below(place)?;
        // The root of a hierarchy is no container's group. On v1 the kernel reports it for a process that is ending.
        let below = below.trim_matches('/');
        (!below.is_empty()).then_some((index, below))
    }
}

/// Returns a process's path in one hierarchy, without the leading slash, given what [`Hierarchies::places`] has read.
/// Returns `None` if the mount does not show that group.
pub(crate) fn place_in(places: &str, mount: &Mount) -> Option<String> {
    let place = parse_places(places).into_iter().find(|place| mount.has(place))?;
    mount.below(&place).map(|below| below.trim_matches('/').to_string())
}

/// Returns the sizes of huge pages that the kernel has pools of, in the notation of the files `hugetlb.<size>.*`.
fn hugepages(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut kilobytes: Vec<u64> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok())
        .collect();
    kilobytes.sort_unstable();
    // mm/hugetlb_cgroup.c, mem_fmt.
    let named = |kb: &u64| match kb {
        kb if *kb >= 1 << 20 => format!("{}GB", kb >> 20),
        kb if *kb >= 1 << 10 => format!("{}MB", kb >> 10),
        kb => format!("{kb}KB"),
    };
    kilobytes.iter().map(named).collect()
}

/// Returns whether a mount has one of the place's controllers.
pub(crate) fn overlaps(mount: &Mount, place: &Place) -> bool {
    !place.controllers.is_empty() && mount.controllers.iter().any(|c| place.controllers.contains(c))
}

/// Parses the hierarchies from `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)), each once.
fn parse_mounts(text: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in all_mounts(text) {
        // Other programs may mount a hierarchy a second time, as CRIU does while it restores a container. The first
        // mount is the system's, but a later one that shows the whole hierarchy is better than one that shows a part.
        match mounts.iter_mut().find(|known| known.controllers == mount.controllers) {
            None => mounts.push(mount),
            Some(known) if known.root != "/" && mount.root == "/" => *known = mount,
            Some(_) => {}
        }
    }
    mounts
}

fn all_mounts(text: &str) -> impl Iterator<Item = Mount> {
    text.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (sys::procfs::unescape(left.next()?), sys::procfs::unescape(left.next()?));
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1)?;
        let controllers = match kind {
            "cgroup2" => Vec::new(),
            // The controllers are among the mount options. No process has a controller called `rw` or `ro`, nor any of
            // the other options.
            "cgroup" => options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).map(String::from).collect(),
            _ => return None,
        };
        Some(Mount { controllers, root, point: point.into(), opened: OnceLock::new() })
    })
}

/// Parses `/proc/<pid>/cgroup` (cgroups(7), "/proc/pid/cgroup").
pub(crate) fn parse_places(text: &str) -> Vec<Place> {
    // A path may end with a carriage return, which `lines` would take for a part of the line's end.
    text.split('\n')
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let controllers = parts.nth(1)?.split(',').filter(|c| !c.is_empty()).map(String::from).collect();
            Some(Place { controllers, path: parts.next()?.to_string() })
        })
        .collect()
}

/// Returns hierarchies for a test, from the text of its own mountinfo and of its own groups.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn test_hierarchies(mounts: &str, own: &str) -> Hierarchies {
    let host = Host { mounts: parse_mounts(mounts), hugepages: vec!["2MB".into()] };
    Hierarchies { host: Arc::new(host), own: parse_places(own) }
}

/// Returns a container's groups in directories of a test. Each is in a hierarchy of its own with the given controllers;
/// no controllers mean v2.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn test_cgroup(directories: &[(&str, &Path)]) -> Cgroup {
    let (mut mounts, mut places) = (String::new(), String::new());
    for (controllers, path) in directories {
        let kind = if controllers.is_empty() { "cgroup2 cgroup2 rw" } else { "cgroup cgroup rw," };
        let (parent, name) = (path.parent().expect("a parent"), path.file_name().expect("a name"));
        mounts.push_str(&format!("1 2 0:3 / {} rw - {kind}{controllers}\n", parent.display()));
        places.push_str(&format!("1:{controllers}:/{}\n", name.to_string_lossy()));
    }
    test_hierarchies(&mounts, "").cgroup(&places).expect("a group")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 24 0:27 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids\n\
        32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
        34 24 0:30 / /tmp rw - tmpfs tmpfs rw\n";

    #[test]
    fn path_that_ends_with_a_carriage_return_is_another_group() {
        let all = test_hierarchies(HYBRID, "8:pids:/\n0::/\n");
        let places = "8:pids:/c1\r\n0::/c1\r\n";
        assert_eq!(all.of_use(places), places);
        let group = all.cgroup(places).expect("a group");
        assert_eq!(group.v1("pids"), Some("/sys/fs/cgroup/pids/c1\r".into()));
    }

    #[test]
    fn places_are_found_under_their_mounts() {
        let all = test_hierarchies(HYBRID, "8:pids:/\n0::/\n");
        let group = all.cgroup("8:pids:/c1\n3:cpu,cpuacct:/a/b\n0::/x\n9:memory:/x\n").expect("a group");
        assert_eq!(group.v1("pids"), Some("/sys/fs/cgroup/pids/c1".into()));
        assert_eq!(group.v1("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into()));
        assert_eq!(group.v1("cpuacct"), group.v1("cpu"));
        assert_eq!(group.v2(), Some("/sys/fs/cgroup/unified/x".into()));
        assert_eq!(group.v1("memory"), None, "not mounted");
        assert!(all.cgroup("8:pids:/\n0::/\n").is_none(), "our own");
        assert!(all.cgroup("8:pids:/../x\n").is_none(), "outside the namespace");
        assert!(all.cgroup("3:cpu,cpuacct:/\n").is_none(), "the whole hierarchy");
        assert_eq!(all.of_use("8:pids:/\n3:cpu,cpuacct:/\n8:pids:/a\n0::/x\n5:x:/y\n"), "8:pids:/a\n0::/x\n");
    }

    #[test]
    fn hierarchy_that_is_mounted_twice_is_listed_once() {
        let twice = format!(
            "30 24 0:27 /part /jail rw - cgroup cgroup rw,pids\n{HYBRID}\
             35 24 0:27 / /run/c/criu.work/.criu.cgyard.x/pids rw - cgroup none rw,pids\n\
             36 24 0:29 / /run/c/criu.work/.criu.cgyard.x/unified rw - cgroup2 none rw\n"
        );
        let all = test_hierarchies(&twice, "");
        let points: Vec<&Path> = all.host.mounts.iter().map(|mount| mount.point.as_path()).collect();
        assert_eq!(
            points,
            ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"].map(Path::new)
        );
    }

    #[test]
    fn places_are_found_below_a_mount_of_a_subtree() {
        let mounts = "1 2 0:3 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let all = test_hierarchies(mounts, "0::/docker/abc\n");
        let group = all.cgroup("0::/docker/abc/x y\n").expect("a group");
        assert_eq!(group.v2(), Some("/sys/fs/cgroup/x y".into()));
        assert!(all.cgroup("0::/docker/abcd\n").is_none());
    }

    #[test]
    fn huge_page_sizes_have_the_notation_of_the_kernel() {
        let directory = tempfile::tempdir().expect("tempdir");
        for name in ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB", "other"] {
            std::fs::create_dir(directory.path().join(name)).expect("creates");
        }
        assert_eq!(hugepages(directory.path()), ["64KB", "2MB", "1GB"]);
        assert!(hugepages(Path::new("/nonexistent")).is_empty());
    }
}
