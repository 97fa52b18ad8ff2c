//! Which groups an OCI runtime creates for a container. No other code knows that.
//!
//! `linux.cgroupsPath` of `config.json` leaves much to the runtime (runtime specification, config-linux, "Cgroups
//! Path"). This is where runc 1.1 and 1.3 and crun 1.8 to 1.28 create them:
//!
//! | driver | `cgroupsPath` | runc | crun |
//! |---|---|---|---|
//! | cgroupfs | `/a/b` | `/a/b` | `/a/b` |
//! | cgroupfs | `a/b`; absent: the id | v1: below the runtime's own group; v2: below the parent of that group; v2 beside v1: below the root | below the root |
//! | systemd | `slice:prefix:name` | `prefix-name.scope` in the slice, which is in the slices that its name contains | the same, and on v2 a group `container` in it |
//! | systemd | absent | `runc-ID.scope` in `system.slice` | `crun-ID.scope` in `system.slice` |
//!
//! A program may be either runtime, whatever its name is. So every group that one of them would create is a
//! *candidate*. A candidate may also be another program's group: [`Hierarchies::survey`] notes before the creation
//! which candidates exist, and after a failed creation [`Hierarchies::remove_left`] removes only candidates that did
//! not exist and have no processes.

use rustix::fs::{AtFlags, statat};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::files::read;
use crate::group::remove_group;
use crate::hierarchies::{Hierarchies, Mount, Place, overlaps, parse_places};

/// Everything that decides where the runtime creates a container's groups.
#[derive(Debug, Clone, Copy)]
pub struct Requested<'a> {
    /// `linux.cgroupsPath`; empty if the bundle has none.
    pub path: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// Whether the runtime's arguments tell it to let systemd create the groups.
    pub systemd: bool,
}

/// Which of a container's candidates existed before the runtime created the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// This process's own groups in the form of `/proc/<pid>/cgroup`, if the candidates depend on them.
    own: String,
    /// The candidates that existed.
    existing: Vec<PathBuf>,
    /// The groups above candidates that did not exist.
    missing: Vec<PathBuf>,
    /// Whether the runtime certainly creates new groups: all hierarchies are visible, and none of the candidates
    /// existed.
    is_new: bool,
}

impl Survey {
    /// Returns whether the runtime certainly creates new groups, whose counters begin at zero.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Returns the survey as text, for a later process.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let lines = self.own.split_terminator('\n').map(|line| ("own", line.to_string()));
        let existing = self.existing.iter().map(|path| ("existing", path.display().to_string()));
        let missing = self.missing.iter().map(|path| ("missing", path.display().to_string()));
        for (what, line) in lines.chain(existing).chain(missing) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{what} {line}");
        }
        text
    }

    /// Parses what [`Survey::to_text`] returned, except whether the groups are new.
    pub fn from_text(text: &str) -> Survey {
        let mut survey = Survey::default();
        // A group's name may end with a carriage return, which `lines` would take for a part of the line's end.
        for line in text.split('\n') {
            match line.split_once(' ') {
                Some(("own", line)) => survey.own = survey.own + line + "\n",
                Some(("existing", path)) => survey.existing.push(path.into()),
                Some(("missing", path)) => survey.missing.push(path.into()),
                _ => {}
            }
        }
        survey
    }
}

impl Requested<'_> {
    /// Returns whether the candidates depend on this process's own groups.
    fn is_relative(&self) -> bool {
        !self.path.starts_with('/')
    }

    /// Returns whether systemd may create the groups: the arguments say so, or the path has the form of the systemd
    /// driver.
    fn may_be_systemd(&self) -> bool {
        self.systemd || self.path.contains(':')
    }

    /// Returns the candidates in one hierarchy, the likeliest first. Returns none if they cannot be known.
    fn candidates(&self, mount: &Mount, own: &[Place]) -> Vec<PathBuf> {
        // The kernel allows no newline in a group's name. Where a path with ".." leads depends on the runtime.
        let is_known = mount.root == "/" && !self.path.contains('\n') && !self.path.split('/').any(|part| part == "..");
        let mut found: Vec<PathBuf> = Vec::new();
        if !is_known {
            return found;
        }
        let mut add = |base: &str, name: &str| {
            let parts = base.split('/').chain(name.split('/')).filter(|part| !part.is_empty() && *part != ".");
            let path: PathBuf = parts.collect();
            if !path.as_os_str().is_empty() && !found.contains(&path) {
                found.push(path);
            }
        };
        if !self.systemd {
            if self.is_relative() {
                let name = if self.path.is_empty() { self.id } else { self.path };
                let is_its = |place: &&Place| place.controllers == mount.controllers || overlaps(mount, place);
                let own = own.iter().find(is_its).map_or("", |place| place.path.as_str());
                if mount.controllers.is_empty() {
                    add(own.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent), name);
                }
                add(own, name);
                add("", name);
            } else {
                add("", self.path);
            }
        }
        if self.may_be_systemd() {
            for (slice, unit) in self.units() {
                add(&slices(slice), &unit);
            }
        }
        found
    }

    /// Returns the slices and units that the runtimes' systemd drivers request.
    fn units(&self) -> Vec<(&str, String)> {
        let parts: Vec<&str> = self.path.splitn(3, ':').collect();
        match parts[..] {
            [""] => ["runc", "crun"].map(|prefix| (DEFAULT, format!("{prefix}-{}.scope", self.id))).to_vec(),
            [name] => vec![(DEFAULT, format!("{name}.scope"))],
            [slice, name] => vec![(slice_or_default(slice), format!("{name}.scope"))],
            [slice, _, name] if name.ends_with(".slice") => vec![(slice_or_default(slice), name.to_string())],
            [slice, prefix, name] => vec![(slice_or_default(slice), format!("{prefix}-{name}.scope"))],
            _ => Vec::new(),
        }
    }
}

/// The slice in which systemd puts units that name none.
const DEFAULT: &str = "system.slice";

fn slice_or_default(slice: &str) -> &str {
    if slice.is_empty() { DEFAULT } else { slice }
}

/// Returns the path of a slice. systemd puts `a-b.slice` into `a.slice` (systemd.slice(5)).
fn slices(slice: &str) -> String {
    let Some(name) = slice.strip_suffix(".slice").filter(|name| *name != "-") else { return String::new() };
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    ends.map(|end| format!("/{}.slice", &name[..end])).collect()
}

impl Hierarchies {
    /// Notes which candidates exist. Call this before the runtime creates the container.
    pub fn survey(&self, requested: Requested<'_>) -> Survey {
        let own = if requested.is_relative() && !requested.systemd { own_groups() } else { String::new() };
        let places = parse_places(&own);
        let mut survey = Survey { own, ..Survey::default() };
        let mut some = false;
        for mount in &self.host.mounts {
            let is_there = |below: &Path| {
                // Start from the mount's open directory, which saves the kernel the walk to the mount point.
                let (hierarchy, group) = mount.at(below);
                statat(hierarchy, &group, AtFlags::empty()).is_ok()
            };
            for candidate in requested.candidates(mount, &places) {
                some = true;
                if is_there(&candidate) {
                    survey.existing.push(mount.point.join(candidate));
                    continue;
                }
                let above = candidate.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
                for missing in above.take_while(|above| !is_there(above)).map(|above| mount.point.join(above)) {
                    if !survey.missing.contains(&missing) {
                        survey.missing.push(missing);
                    }
                }
            }
        }
        let sees_all = self.host.mounts.iter().all(|mount| mount.root == "/");
        survey.is_new = sees_all && some && survey.existing.is_empty() && !requested.may_be_systemd();
        survey
    }

    /// Completes the places of a container whose groups are new. The kernel no longer reports the v1 groups of a
    /// process that is ending, so this adds the existing candidate of each hierarchy that is missing from `places`.
    pub fn complete(&self, places: &str, requested: Requested<'_>) -> String {
        let mut lines = self.of_use(places);
        let known: Vec<usize> = parse_places(&lines).iter().filter_map(|place| Some(self.locate(place)?.0)).collect();
        let left = || self.host.mounts.iter().enumerate().filter(|(index, _)| !known.contains(index));
        if left().next().is_none() {
            return lines;
        }
        let own = parse_places(&own_groups());
        for (index, mount) in left() {
            let mut candidates = requested.candidates(mount, &own).into_iter();
            if let Some(below) = candidates.find(|below| mount.point.join(below).is_dir()) {
                // The kernel gives v2 the number 0. The numbers of other hierarchies do not matter here.
                let number = if mount.controllers.is_empty() { 0 } else { index + 1 };
                lines.push_str(&format!("{number}:{}:/{}\n", mount.controllers.join(","), below.display()));
            }
        }
        lines
    }

    /// Removes the groups that a runtime left behind when it failed to create a container: the candidates that did not
    /// exist before, with the groups below them, and with `parents` also the groups above that did not exist. Groups
    /// with processes stay. Returns false if a process is in one of the candidates.
    pub fn remove_left(&self, requested: Requested<'_>, before: &Survey, parents: bool) -> bool {
        let mut gone = true;
        for group in self.made(requested, before) {
            gone &= remove_if_empty(&group);
        }
        let mut missing: Vec<&PathBuf> = before.missing.iter().filter(|_| parents && gone).collect();
        missing.sort_unstable_by_key(|path| std::cmp::Reverse(path.components().count()));
        for above in missing {
            // This fails if another container has its group there by now.
            let _ = std::fs::remove_dir(above);
        }
        gone
    }

    /// Returns the processes in the candidates that did not exist before.
    pub fn members_of(&self, requested: Requested<'_>, before: &Survey) -> Vec<u32> {
        let texts = self.made(requested, before).into_iter();
        let texts: Vec<String> = texts.filter_map(|group| read(&group.join("cgroup.procs")).ok().flatten()).collect();
        let mut pids: Vec<u32> =
            texts.iter().flat_map(|text| text.lines()).filter_map(|pid| pid.parse().ok()).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Returns the absolute paths of the candidates that did not exist before.
    fn made(&self, requested: Requested<'_>, before: &Survey) -> Vec<PathBuf> {
        let own = parse_places(&before.own);
        let of = |mount: &Mount| {
            let candidates = requested.candidates(mount, &own).into_iter();
            candidates.map(|below| mount.point.join(below)).collect::<Vec<_>>()
        };
        let all = self.host.mounts.iter().flat_map(of);
        all.filter(|group| !before.existing.contains(group)).collect()
    }
}

/// Reads this process's own groups. Runtimes create groups relative to them: the daemon's shims and runtimes are in the
/// daemon's groups.
fn own_groups() -> String {
    // If they cannot be read, the candidates in the root remain.
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Removes a group with those below it if they have no processes. Returns false if they have.
fn remove_if_empty(group: &Path) -> bool {
    let busy = Some(rustix::io::Errno::BUSY.raw_os_error());
    remove_group(rustix::fs::CWD, group).err().is_none_or(|e| e.raw_os_error() != busy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchies::test_hierarchies;

    fn requested<'a>(path: &'a str, id: &'a str) -> Requested<'a> {
        Requested { path, id, systemd: path.contains(':') }
    }

    fn mount(kind: &str, point: &Path) -> String {
        let kind = if kind.is_empty() { "cgroup2 cgroup2 rw".into() } else { format!("cgroup cgroup rw,{kind}") };
        format!("31 24 0:27 / {} rw - {kind}\n", point.display())
    }

    #[test]
    fn survey_is_read_back_from_its_text() {
        let survey = Survey {
            own: "8:pids:/a\r\n0::/\n".into(),
            existing: vec!["/sys/fs/cgroup/pids/a b".into(), "/sys/fs/cgroup/pids/c\r".into()],
            missing: vec!["/sys/fs/cgroup/pids/d\r".into()],
            is_new: false,
        };
        assert_eq!(Survey::from_text(&survey.to_text()), survey);
        assert_eq!(Survey::from_text("other x\n\n"), Survey::default());
    }

    #[test]
    fn candidates_are_the_groups_that_runtimes_create() {
        let mounts = mount("pids", Path::new("/p")) + &mount("", Path::new("/u"));
        let all = test_hierarchies(&mounts, "");
        let own = parse_places("8:pids:/own/d\n0::/own/d\n");
        let check = |path: &str, v1: &[&str], v2: &[&str]| {
            for (mount, expected) in all.host.mounts.iter().zip([v1, v2]) {
                let found = requested(path, "c").candidates(mount, &own);
                assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{path}");
            }
        };
        check("/a//b/./", &["a/b"], &["a/b"]);
        check("", &["own/d/c", "c"], &["own/c", "own/d/c", "c"]);
        check("a/b", &["own/d/a/b", "a/b"], &["own/a/b", "own/d/a/b", "a/b"]);
        check("a/../b", &[], &[]);
        check("/", &[], &[]);
        let scope = ["a.slice/a-b.slice/p-n.scope"];
        check("a-b.slice:p:n", &scope, &scope);
        check(":p:n", &["system.slice/p-n.scope"], &["system.slice/p-n.scope"]);
        check("-.slice:p:n.slice", &["n.slice"], &["n.slice"]);
        let absent = Requested { path: "", id: "c", systemd: true };
        let scopes = ["system.slice/runc-c.scope", "system.slice/crun-c.scope"].map(PathBuf::from);
        assert_eq!(absent.candidates(&all.host.mounts[0], &own), scopes);
        // Without systemd this is an ordinary name, but a wrapper may tell the runtime to use systemd.
        let literal = Requested { path: "s.slice:p:n", id: "c", systemd: false };
        let names = ["own/d/s.slice:p:n", "s.slice:p:n", "s.slice/p-n.scope"].map(PathBuf::from);
        assert_eq!(literal.candidates(&all.host.mounts[0], &own), names);
    }

    #[test]
    fn only_new_groups_without_processes_are_removed() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("a")).expect("creates");
        std::fs::create_dir_all(at("theirs/c")).expect("creates");
        let all = test_hierarchies(&mount("pids", directory.path()), "");
        let new = all.survey(requested("/a/new/c", "c"));
        let old = all.survey(requested("/theirs/c", "c"));
        assert!(new.is_new() && !old.is_new());
        assert!(!all.survey(requested("a.slice:x:c", "c")).is_new() && !all.survey(requested("../x", "c")).is_new());
        assert_eq!(new.missing, [at("a/new")]);
        let kept = |survey: &Survey| Survey::from_text(&survey.to_text());
        assert_eq!(kept(&new), Survey { is_new: false, ..new.clone() });
        assert_eq!(kept(&old), old);
        std::fs::create_dir_all(at("a/new/c/container")).expect("the runtime makes it");
        assert!(all.remove_left(requested("/theirs/c", "c"), &kept(&old), true) && at("theirs/c").exists());
        assert!(all.remove_left(requested("/a/new/c", "c"), &kept(&new), false) && at("a/new").exists());
        assert!(all.remove_left(requested("/a/new/c", "c"), &kept(&new), true));
        assert!(at("a").exists() && !at("a/new").exists());
        for nothing in ["/", "../x"] {
            assert!(all.remove_left(requested(nothing, "c"), &Survey::default(), true) && directory.path().exists());
        }
    }

    #[test]
    fn missing_places_of_an_ending_init_are_completed() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        for name in ["pids/c", "memory/c", "unified/c", "cpu/x"] {
            std::fs::create_dir_all(at(name)).expect("creates");
        }
        let mounts = ["pids", "memory", "cpu"].map(|name| mount(name, &at(name))).concat() + &mount("", &at("unified"));
        let all = test_hierarchies(&mounts, "8:pids:/\n6:cpu:/\n0::/\n");
        let found = "8:pids:/\n6:cpu:/\n0::/c\n";
        assert_eq!(all.complete(found, requested("/c", "c")), "0::/c\n1:pids:/c\n2:memory:/c\n");
        assert_eq!(all.complete("7:pids:/b\n3:x:/y\n", requested("/x", "c")), "7:pids:/b\n3:cpu:/x\n");
        assert_eq!(all.complete("", requested("/new", "c")), "");
    }
}
