//! Where this host has its hierarchies mounted, and where in them a process is.

use std::io;
use std::path::PathBuf;

use crate::group::Cgroup;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// The controllers of a v1 hierarchy, or its `name=…`; empty for v2.
    controllers: Vec<String>,
    /// The directory of the hierarchy that is mounted; not `/` if this process runs in a container.
    root: String,
    point: PathBuf,
}

/// All mounted hierarchies, and this process's own place in them.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    mounts: Vec<Mount>,
    own: Vec<Place>,
}

/// A line of `/proc/<pid>/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    controllers: Vec<String>,
    path: String,
}

/// The v1 controllers by which a container's processes are told, best first: those that every runtime uses.
const MEMBERSHIP: [&str; 6] = ["pids", "freezer", "devices", "memory", "cpu", "cpuacct"];

impl Hierarchies {
    /// Reads the mounts of this process.
    pub fn read() -> io::Result<Hierarchies> {
        let mounts = parse_mounts(&std::fs::read_to_string("/proc/self/mountinfo")?);
        let own = parse_places(&std::fs::read_to_string("/proc/self/cgroup")?);
        Ok(Hierarchies { mounts, own })
    }

    /// The groups of process `pid`; `None` if it is gone or has no group of its own.
    pub fn of_process(&self, pid: u32) -> io::Result<Option<Cgroup>> {
        let Some(text) = sys::procfs::read(pid, "cgroup")? else { return Ok(None) };
        let places = parse_places(&text);
        let find = |controller: &str| {
            let place = places.iter().find(|p| p.controllers.iter().any(|c| c == controller))?;
            self.directory(place)
        };
        let unified = places.iter().find(|p| p.controllers.is_empty()).and_then(|p| self.directory(p));
        let members = MEMBERSHIP.iter().find_map(|controller| find(controller)).or_else(|| unified.clone());
        Ok(members.map(|members| Cgroup::new(members, find("freezer"), unified)))
    }

    /// Where a place is on this host's file system; `None` if it is this process's own, or not to be seen.
    fn directory(&self, place: &Place) -> Option<PathBuf> {
        if self.own.contains(place) {
            return None;
        }
        let mount = self.mounts.iter().find(|m| m.controllers == place.controllers || overlaps(m, place))?;
        let below = match mount.root.as_str() {
            "/" => place.path.as_str(),
            root => place.path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
        };
        // Outside the cgroup namespace of this process.
        if below.split('/').any(|part| part == "..") {
            return None;
        }
        Some(mount.point.join(below.trim_start_matches('/')))
    }
}

fn overlaps(mount: &Mount, place: &Place) -> bool {
    !place.controllers.is_empty() && mount.controllers.iter().any(|c| place.controllers.contains(c))
}

/// proc_pid_mountinfo(5).
fn parse_mounts(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, point) = (unescape(left.next()?), unescape(left.next()?));
            let mut right = right.split(' ');
            let kind = right.next()?;
            let options = right.nth(1)?;
            let controllers = match kind {
                "cgroup2" => Vec::new(),
                // Controllers are mount options among others, which are no controllers of any process.
                "cgroup" => options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).map(String::from).collect(),
                _ => return None,
            };
            Some(Mount { controllers, root, point: point.into() })
        })
        .collect()
}

/// cgroups(7), "/proc/pid/cgroup".
fn parse_places(text: &str) -> Vec<Place> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let controllers = parts.nth(1)?.split(',').filter(|c| !c.is_empty()).map(String::from).collect();
            Some(Place { controllers, path: parts.next()?.to_string() })
        })
        .collect()
}

/// Blanks are written as octal numbers.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// For tests with directories of their own.
#[cfg(test)]
pub(crate) fn test_hierarchies(mounts: &str, own: &str) -> Hierarchies {
    Hierarchies { mounts: parse_mounts(mounts), own: parse_places(own) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 24 0:27 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids\n\
        32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
        34 24 0:30 / /tmp rw - tmpfs tmpfs rw\n";

    fn place(controllers: &[&str], path: &str) -> Place {
        Place { controllers: controllers.iter().map(|c| (*c).to_string()).collect(), path: path.into() }
    }

    #[test]
    fn places_are_found_under_their_mounts() {
        let all = test_hierarchies(HYBRID, "8:pids:/\n0::/\n");
        let dir = |p: &Place| all.directory(p);
        assert_eq!(dir(&place(&["pids"], "/c1")), Some("/sys/fs/cgroup/pids/c1".into()));
        assert_eq!(dir(&place(&["cpu", "cpuacct"], "/a/b")), Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into()));
        assert_eq!(dir(&place(&[], "/x")), Some("/sys/fs/cgroup/unified/x".into()));
        assert_eq!(dir(&place(&["pids"], "/")), None, "our own");
        assert_eq!(dir(&place(&["pids"], "/../x")), None, "outside the namespace");
        assert_eq!(dir(&place(&["memory"], "/x")), None, "not mounted");
    }

    #[test]
    fn a_mount_of_a_part_is_taken_into_account() {
        let mounts = "1 2 0:3 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let all = test_hierarchies(mounts, "0::/docker/abc\n");
        assert_eq!(all.directory(&place(&[], "/docker/abc/x y")), Some("/sys/fs/cgroup/x y".into()));
        assert_eq!(all.directory(&place(&[], "/docker/abcd")), None);
    }
}
