//! Which groups an OCI runtime makes for a container. This is the one place that decides it.
//!
//! `linux.cgroupsPath` of `config.json` leaves much to the runtime (runtime specification, config-linux, "Cgroups Path").
//! What runc 1.1 and 1.3 and crun 1.8 to 1.28 do:
//!
//! | driver | `cgroupsPath` | runc | crun |
//! |---|---|---|---|
//! | cgroupfs | `/a/b` | `/a/b` | `/a/b` |
//! | cgroupfs | `a/b`; absent: the id | v1: below the runtime's own group; v2: below the parent of that group; v2 beside v1: below the root | below the root |
//! | systemd | `slice:prefix:name` | `prefix-name.scope` in the slice, and the slice in those that its name has in it | the same, and on v2 a group `container` in it |
//! | systemd | absent | `runc-ID.scope` in `system.slice` | `crun-ID.scope` in `system.slice` |
//!
//! A program may be either runtime, whatever its name is. So all the groups that one of them would make are *candidates*. A
//! candidate may also be another program's group: [`Hierarchies::survey`] notes before the creation which of them are there,
//! and after a failed creation [`Hierarchies::remove_left`] removes only groups that are empty and were not there.

use rustix::fs::{AtFlags, statat};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::files::read;
use crate::group::remove_group;
use crate::hierarchies::{Hierarchies, Mount, Place, overlaps, parse_places};

/// What a bundle says of its container's groups, and what else decides where the runtime makes them.
#[derive(Debug, Clone, Copy)]
pub struct Requested<'a> {
    /// `linux.cgroupsPath`; empty if the bundle has none.
    pub path: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// The runtime is told to have systemd make the groups.
    pub systemd: bool,
}

/// What there was of a container's groups before its runtime was asked to make them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// This process's groups, as `/proc/<pid>/cgroup` has them, where the candidates depend on them.
    own: String,
    /// Candidates that were there.
    existing: Vec<PathBuf>,
    /// Groups above candidates that were not there.
    missing: Vec<PathBuf>,
    /// All hierarchies were looked at, there are candidates, and none of them was there.
    is_new: bool,
}

impl Survey {
    /// Whether the runtime is known to make groups that are new, which have counted nothing yet.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// As text, for a later process.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let lines = self.own.lines().map(|line| ("own", line.to_string()));
        let existing = self.existing.iter().map(|path| ("existing", path.display().to_string()));
        let missing = self.missing.iter().map(|path| ("missing", path.display().to_string()));
        for (what, line) in lines.chain(existing).chain(missing) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{what} {line}");
        }
        text
    }

    /// What [`Survey::to_text`] made.
    pub fn from_text(text: &str) -> Survey {
        let mut survey = Survey::default();
        for line in text.lines() {
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
    /// Whether the candidates depend on this process's own groups.
    fn is_relative(&self) -> bool {
        !self.path.starts_with('/')
    }

    /// Whether systemd may make the groups: it is told to, or the path has the form that only systemd's driver knows.
    fn may_be_systemd(&self) -> bool {
        self.systemd || self.path.contains(':')
    }

    /// The candidates in one hierarchy, the likeliest first. None where they cannot be known.
    fn candidates(&self, mount: &Mount, own: &[Place]) -> Vec<PathBuf> {
        // The kernel has no group with a line end in its name. Where a path with ".." leads depends on the runtime.
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

    /// The slices and units that the systemd drivers ask for.
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

/// Where systemd has services and scopes of which nothing is said.
const DEFAULT: &str = "system.slice";

fn slice_or_default(slice: &str) -> &str {
    if slice.is_empty() { DEFAULT } else { slice }
}

/// The path of a slice: systemd has `a-b.slice` in `a.slice` (systemd.slice(5)).
fn slices(slice: &str) -> String {
    let Some(name) = slice.strip_suffix(".slice").filter(|name| *name != "-") else { return String::new() };
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    ends.map(|end| format!("/{}.slice", &name[..end])).collect()
}

impl Hierarchies {
    /// Notes which groups are there that the runtime may make. To be done before it is asked to.
    pub fn survey(&self, requested: Requested<'_>) -> Survey {
        let own = if requested.is_relative() && !requested.systemd { own_groups() } else { String::new() };
        let places = parse_places(&own);
        let mut survey = Survey { own, ..Survey::default() };
        let mut some = false;
        for mount in &self.host.mounts {
            let is_there = |below: &Path| {
                // From the directory that the mount holds open: the kernel would go through the whole path each time.
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

    /// Completes what [`Hierarchies::places`] told of a container that was made in groups that were new: of a process that is
    /// just ending the kernel tells no group of v1 any more, so the candidates that are there are its groups.
    pub fn complete(&self, places: &str, requested: Requested<'_>) -> String {
        let mut lines = self.of_use(places);
        let told: Vec<usize> = parse_places(&lines).iter().filter_map(|place| Some(self.locate(place)?.0)).collect();
        let left = || self.host.mounts.iter().enumerate().filter(|(index, _)| !told.contains(index));
        if left().next().is_none() {
            return lines;
        }
        let own = parse_places(&own_groups());
        for (index, mount) in left() {
            let mut candidates = requested.candidates(mount, &own).into_iter();
            if let Some(below) = candidates.find(|below| mount.point.join(below).is_dir()) {
                // As the kernel numbers them: 0 is v2, and the numbers of the others do not matter here.
                let number = if mount.controllers.is_empty() { 0 } else { index + 1 };
                lines.push_str(&format!("{number}:{}:/{}\n", mount.controllers.join(","), below.display()));
            }
        }
        lines
    }

    /// Removes what a runtime has left of a container whose creation failed: the candidates that were not there before, with
    /// the groups below them, and with `parents` the groups above that were not there either. Only groups that are empty
    /// can be removed. False if a process is in one of the candidates.
    pub fn remove_left(&self, requested: Requested<'_>, before: &Survey, parents: bool) -> bool {
        let mut gone = true;
        for group in self.made(requested, before) {
            gone &= remove_if_empty(&group);
        }
        let mut missing: Vec<&PathBuf> = before.missing.iter().filter(|_| parents && gone).collect();
        missing.sort_unstable_by_key(|path| std::cmp::Reverse(path.components().count()));
        for above in missing {
            // Not empty if another container has its group there by now.
            let _ = std::fs::remove_dir(above);
        }
        gone
    }

    /// The processes in the candidates that were not there before.
    pub fn members_of(&self, requested: Requested<'_>, before: &Survey) -> Vec<u32> {
        let texts = self.made(requested, before).into_iter();
        let texts: Vec<String> = texts.filter_map(|group| read(&group.join("cgroup.procs")).ok().flatten()).collect();
        let mut pids: Vec<u32> =
            texts.iter().flat_map(|text| text.lines()).filter_map(|pid| pid.parse().ok()).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The candidates that were not there before, whole paths.
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

/// This process's groups. A runtime begins from them: shims and runtimes are in the groups of the daemon that starts them.
fn own_groups() -> String {
    // Without them, the root is the only place that is known.
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Removes a group with those below it, if they are empty; false if there are processes in one of them.
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
    fn candidates_are_what_the_runtimes_make() {
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
        // Without systemd it is a name as any other; a script may have told the runtime otherwise.
        let literal = Requested { path: "s.slice:p:n", id: "c", systemd: false };
        let names = ["own/d/s.slice:p:n", "s.slice:p:n", "s.slice/p-n.scope"].map(PathBuf::from);
        assert_eq!(literal.candidates(&all.host.mounts[0], &own), names);
    }

    #[test]
    fn only_empty_groups_that_were_not_there_are_removed() {
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
    fn missing_places_of_an_ended_init_are_completed() {
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
