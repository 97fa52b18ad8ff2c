//! Where this host has its hierarchies mounted, and where in them a process is.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::group::Cgroup;
use crate::held::At;

/// One mounted hierarchy.
#[derive(Debug)]
pub(crate) struct Mount {
    /// The controllers of a v1 hierarchy, or its `name=…`; empty for v2.
    pub(crate) controllers: Vec<String>,
    /// The directory of the hierarchy that is mounted; not `/` if this process runs in a container.
    pub(crate) root: String,
    pub(crate) point: PathBuf,
    /// `point`, from when a file was first looked at from there.
    opened: OnceLock<Option<OwnedFd>>,
}

impl Mount {
    /// Where to look for `below`: from a directory that is held open the kernel has a shorter way, which is felt when
    /// a thousand groups are looked at.
    pub(crate) fn at(&self, below: impl AsRef<Path>) -> At<'_> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self.opened.get_or_init(|| openat(CWD, &self.point, flags, Mode::empty()).ok()) {
            Some(point) => (point.as_fd(), below.as_ref().into()),
            None => (CWD, self.point.join(below)),
        }
    }

    /// Whether a place is in this hierarchy.
    pub(crate) fn has(&self, place: &Place) -> bool {
        self.controllers == place.controllers || overlaps(self, place)
    }

    /// The path of a place below the mount; `None` if it is not to be seen here.
    fn below<'a>(&self, place: &'a Place) -> Option<&'a str> {
        let below = match self.root.as_str() {
            "/" => place.path.as_str(),
            root => place.path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
        };
        // Outside the cgroup namespace of this process.
        (!below.split('/').any(|part| part == "..")).then_some(below)
    }
}

/// All mounted hierarchies, and this process's own place in them.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    pub(crate) host: Arc<Host>,
    own: Vec<Place>,
}

/// What all containers of a host have in common.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) mounts: Vec<Mount>,
    /// The sizes of huge pages as the controller writes them: `2MB`, `1GB`.
    pub(crate) hugepages: Vec<String>,
}

/// A line of `/proc/<pid>/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) controllers: Vec<String>,
    pub(crate) path: String,
}

/// The v1 controllers by which a container's processes are told, best first: those that every runtime uses.
const MEMBERSHIP: [&str; 6] = ["pids", "freezer", "devices", "memory", "cpu", "cpuacct"];

impl Hierarchies {
    /// Reads the mounts of this process.
    pub fn read() -> io::Result<Hierarchies> {
        let mounts = parse_mounts(&std::fs::read_to_string("/proc/self/mountinfo")?);
        let own = parse_places(&std::fs::read_to_string("/proc/self/cgroup")?);
        let host = Arc::new(Host { mounts, hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")) });
        Ok(Hierarchies { host, own })
    }

    /// These hierarchies, with this process's place as it is now beside the one that it had: another program may have moved it.
    pub fn here(&self) -> Hierarchies {
        let now = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut all = self.clone();
        all.own.extend(parse_places(&now).into_iter().filter(|place| !self.own.contains(place)));
        all
    }

    /// What the kernel says of the groups of process `pid`, for [`Hierarchies::cgroup`]; `None` if it is gone.
    pub fn places(pid: u32) -> io::Result<Option<String>> {
        Ok(sys::procfs::read(pid, "cgroup")?)
    }

    /// Of what [`Hierarchies::places`] told, the lines that are of use: whoever reads them later may be elsewhere.
    pub fn of_use(&self, places: &str) -> String {
        let is_of_use = |line: &&str| parse_places(line).iter().any(|place| self.locate(place).is_some());
        places.lines().filter(is_of_use).map(|line| format!("{line}\n")).collect()
    }

    /// The groups that [`Hierarchies::places`] told of; `None` if none of them is to be seen, or all are this
    /// process's own.
    pub fn cgroup(&self, places: &str) -> Option<Cgroup> {
        let mut found: Vec<(usize, Arc<str>)> = Vec::new();
        for place in parse_places(places) {
            let Some((index, below)) = self.locate(&place) else { continue };
            // The same in all hierarchies, mostly.
            let shared = found.iter().find(|(_, path)| path.as_ref() == below).map(|(_, path)| path.clone());
            found.push((index, shared.unwrap_or_else(|| below.into())));
        }
        let has =
            |name: &str| found.iter().position(|(i, _)| self.host.mounts[*i].controllers.iter().any(|c| c == name));
        let unified = || found.iter().position(|(i, _)| self.host.mounts[*i].controllers.is_empty());
        let members = MEMBERSHIP.iter().find_map(|name| has(name)).or_else(unified)?;
        Some(Cgroup::new(self.host.clone(), found, members))
    }

    /// The hierarchy of a place, and its path below the mount; `None` if it is this process's own, or not to be seen.
    pub(crate) fn locate<'a>(&self, place: &'a Place) -> Option<(usize, &'a str)> {
        if self.own.contains(place) {
            return None;
        }
        let index = self.host.mounts.iter().position(|mount| mount.has(place))?;
        let below = self.host.mounts[index].below(place)?;
        // The whole hierarchy is nobody's: on v1 the kernel shows it for processes that are just ending.
        let below = below.trim_matches('/');
        (!below.is_empty()).then_some((index, below))
    }
}

/// Where a process is in one hierarchy, of what [`Hierarchies::places`] told of it, without the slash that it begins with;
/// `None` if that is not to be seen from here.
pub(crate) fn place_in(places: &str, mount: &Mount) -> Option<String> {
    let place = parse_places(places).into_iter().find(|place| mount.has(place))?;
    mount.below(&place).map(|below| below.trim_matches('/').to_string())
}

/// The sizes for which the kernel has pools, as `hugetlb.<size>.…` files are named.
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

pub(crate) fn overlaps(mount: &Mount, place: &Place) -> bool {
    !place.controllers.is_empty() && mount.controllers.iter().any(|c| place.controllers.contains(c))
}

/// proc_pid_mountinfo(5).
fn parse_mounts(text: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in all_mounts(text) {
        // Each hierarchy once: others may have it elsewhere too, as CRIU does for as long as it restores something. The first
        // one is the system's, unless only a part of the hierarchy is to be seen there.
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
            // Controllers are mount options among others, which are no controllers of any process.
            "cgroup" => options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).map(String::from).collect(),
            _ => return None,
        };
        Some(Mount { controllers, root, point: point.into(), opened: OnceLock::new() })
    })
}

/// cgroups(7), "/proc/pid/cgroup".
pub(crate) fn parse_places(text: &str) -> Vec<Place> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let controllers = parts.nth(1)?.split(',').filter(|c| !c.is_empty()).map(String::from).collect();
            Some(Place { controllers, path: parts.next()?.to_string() })
        })
        .collect()
}

/// For tests with directories of their own.
#[cfg(test)]
pub(crate) fn test_hierarchies(mounts: &str, own: &str) -> Hierarchies {
    let host = Host { mounts: parse_mounts(mounts), hugepages: vec!["2MB".into()] };
    Hierarchies { host: Arc::new(host), own: parse_places(own) }
}

/// A container's groups in directories of a test: each a hierarchy with these controllers, none meaning v2.
#[cfg(test)]
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
    fn a_hierarchy_that_is_mounted_twice_is_one() {
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
    fn a_mount_of_a_part_is_taken_into_account() {
        let mounts = "1 2 0:3 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let all = test_hierarchies(mounts, "0::/docker/abc\n");
        let group = all.cgroup("0::/docker/abc/x y\n").expect("a group");
        assert_eq!(group.v2(), Some("/sys/fs/cgroup/x y".into()));
        assert!(all.cgroup("0::/docker/abcd\n").is_none());
    }

    #[test]
    fn huge_pages_are_named_as_the_kernel_names_them() {
        let directory = tempfile::tempdir().expect("tempdir");
        for name in ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB", "other"] {
            std::fs::create_dir(directory.path().join(name)).expect("creates");
        }
        assert_eq!(hugepages(directory.path()), ["64KB", "2MB", "1GB"]);
        assert!(hugepages(Path::new("/nonexistent")).is_empty());
    }
}
