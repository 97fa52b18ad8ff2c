//! `--user NAME[:GROUP]`: users and groups by the names in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The container controls these files. They are read with a limit, and links are resolved inside the container's root.

use anyhow::{Context, Result, anyhow, bail};
use containerd_client::api;
use rustix::fs::{Mode, OFlags, open};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use sys::foreign_file;

use crate::CONFIG_LIMIT;

/// The most bytes of a file of users or groups that are read.
const LIMIT: u64 = 4 << 20;

/// The id that the kernel takes for "no change" (setreuid(2)).
const NO_ID: u32 = u32::MAX;

/// The value of `--user`: a user, and possibly a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    user: String,
    group: Option<String>,
}

impl Wanted {
    /// Parses `NAME` or `NAME:GROUP`, where either may be a number.
    pub(crate) fn parse(text: &str) -> Result<Wanted, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let is_name = |name: &str| !name.is_empty() && !name.contains([':', ',', '\n']);
        if !is_name(user) || !group.is_none_or(is_name) {
            return Err("write a user as NAME, NAME:GROUP or with numbers, such as www-data or 33:33".into());
        }
        for text in group.into_iter().chain([user]) {
            if is_digits(text) && number(text).is_none() {
                return Err(format!("{text} is not a user or group number: they go from 0 to {}", NO_ID - 1));
            }
        }
        Ok(Wanted { user: user.into(), group: group.map(str::to_string) })
    }

    /// The ids, if both are numbers. No file is needed then.
    pub(crate) fn numbers(&self) -> Option<api::User> {
        let group = self.group.as_deref()?;
        Some(api::User { uid: number(&self.user)?, gid: number(group)?, additional_gids: Vec::new() })
    }

    /// Looks up the ids. A number without an entry in the file stands for itself.
    pub(crate) fn resolve(&self, files: &Files) -> Result<api::User> {
        let id = number(&self.user);
        let passwd = match (&files.passwd, id) {
            (Ok(text), _) => text.as_str(),
            (Err(_), Some(_)) => "",
            (Err(e), None) => bail!("user {:?}: {e:#}; a number needs no file", self.user),
        };
        let entry = entries(passwd).find(|fields| {
            fields[0] == self.user || id.is_some_and(|id| fields.get(2).copied().and_then(number) == Some(id))
        });
        let (uid, primary, name) = match (entry, id) {
            (Some(fields), _) => {
                let field = |n: usize| fields.get(n).copied().and_then(number);
                let broken = || anyhow!("user {:?}: its line in the container's /etc/passwd has no numbers", self.user);
                (field(2).with_context(broken)?, field(3).with_context(broken)?, Some(fields[0]))
            }
            // The group of a user id without an entry is 0, as for `docker exec`.
            (None, Some(id)) => (id, 0, None),
            (None, None) => bail!("there is no user {:?} in the container's /etc/passwd", self.user),
        };
        let Some(group) = &self.group else {
            // A user without a name, or a container without /etc/group, has no additional groups.
            let group = files.group.as_deref().unwrap_or_default();
            let additional_gids = name.map(|name| groups_of(group, name)).unwrap_or_default();
            return Ok(api::User { uid, gid: primary, additional_gids });
        };
        let gid = match (&files.group, number(group)) {
            (_, Some(gid)) => gid,
            (Err(e), None) => bail!("group {group:?}: {e:#}; a number needs no file"),
            (Ok(text), None) => {
                let entry = entries(text).find(|fields| fields[0] == group);
                let fields =
                    entry.with_context(|| format!("there is no group {group:?} in the container's /etc/group"))?;
                let gid = fields.get(2).copied().and_then(number);
                gid.with_context(|| format!("group {group:?}: its line in the container's /etc/group has no number"))?
            }
        };
        Ok(api::User { uid, gid, additional_gids: Vec::new() })
    }
}

/// The content of a container's files of users and groups, or why they cannot be read.
pub(crate) struct Files {
    passwd: Result<String>,
    group: Result<String>,
}

impl Files {
    /// Reads the files below the root directory `root`.
    pub(crate) fn of(root: &OwnedFd) -> Files {
        let read = |path: &str| {
            let bytes = foreign_file::read_in_root(root.as_fd(), path, LIMIT);
            let bytes = bytes.with_context(|| format!("read /{path} of the container"))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Files { passwd: read("etc/passwd"), group: read("etc/group") }
    }
}

/// Opens the root directory of a process.
pub(crate) fn root_of(pid: u32) -> std::io::Result<OwnedFd> {
    open_directory(Path::new(&format!("/proc/{pid}/root")))
}

/// Opens the root directory of a bundle.
pub(crate) fn root_of_bundle(bundle: &Path) -> Result<OwnedFd> {
    let config = bundle.join("config.json");
    let text = foreign_file::read(&config, CONFIG_LIMIT).with_context(|| format!("read {}", config.display()))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("read {}", config.display()))?;
    let root = bundle.join(value["root"]["path"].as_str().unwrap_or("rootfs"));
    open_directory(&root).with_context(|| format!("open {}", root.display()))
}

pub(crate) fn open_directory(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn number(text: &str) -> Option<u32> {
    // `str::parse` also accepts "+1", which is a name here.
    text.parse().ok().filter(|number| is_digits(text) && *number != NO_ID)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The entries of passwd(5) or group(5), split into fields. An entry has at least one field.
fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split(':').map(str::trim).collect())
}

/// The ids of the groups that list a user as a member.
fn groups_of(group: &str, name: &str) -> Vec<u32> {
    let has = |fields: &Vec<&str>| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name));
    entries(group).filter(has).filter_map(|fields| fields.get(2).copied().and_then(number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        let passwd = "# users\nroot:x:0:0:root:/root:/bin/sh\n\nwww-data:x:33:33::/:\n1000:x:7:8::/:\nbroken:x\n\
            max:x:4294967295:1::/:\n";
        let group =
            "root:x:0:\nwww-data:x:33:\nadm:x:4:syslog,www-data\nssl:x:110:www-data,\nhuge:x:4294967295:www-data\n";
        Files { passwd: Ok(passwd.into()), group: Ok(group.into()) }
    }

    fn missing() -> Files {
        Files { passwd: Err(anyhow!("no /etc/passwd")), group: Err(anyhow!("no /etc/group")) }
    }

    fn resolve(text: &str, files: &Files) -> Result<(u32, u32, Vec<u32>), String> {
        let user = Wanted::parse(text)?.resolve(files).map_err(|e| format!("{e:#}"))?;
        Ok((user.uid, user.gid, user.additional_gids))
    }

    #[test]
    fn names_and_numbers_resolve_to_ids() {
        let all = [
            ("root", (0, 0, vec![])),
            ("www-data", (33, 33, vec![4, 110])),
            ("33", (33, 33, vec![4, 110])),
            ("www-data:adm", (33, 4, vec![])),
            ("www-data:9", (33, 9, vec![])),
            ("1234", (1234, 0, vec![])),
            ("1234:adm", (1234, 4, vec![])),
            ("0:0", (0, 0, vec![])),
            // The first entry counts whose name or id is the number.
            ("1000", (7, 8, vec![])),
        ];
        for (text, user) in all {
            assert_eq!(resolve(text, &files()), Ok(user), "{text}");
        }
    }

    #[test]
    fn numbers_need_no_files() {
        assert_eq!(resolve("5", &missing()), Ok((5, 0, vec![])));
        assert_eq!(resolve("5:6", &missing()), Ok((5, 6, vec![])));
        assert!(resolve("www-data", &missing()).expect_err("is a name").contains("no /etc/passwd"));
        assert!(resolve("5:adm", &missing()).expect_err("is a name").contains("no /etc/group"));
        assert!(Wanted::parse("5:6").expect("parses").numbers().is_some());
        assert!(Wanted::parse("5").expect("parses").numbers().is_none());
    }

    #[test]
    fn unknown_broken_and_special_ids_are_refused() {
        for text in ["", ":", "a:", ":a", "a:b:c", "a,b"] {
            assert!(Wanted::parse(text).is_err(), "{text}");
        }
        for text in ["4294967295", "0:4294967295", "99999999999", "root:99999999999"] {
            let said = Wanted::parse(text).expect_err("no such number");
            assert!(said.contains("they go from 0 to 4294967294"), "{said}");
        }
        for text in ["nobody", "www-data:nogroup", "broken", "max", "www-data:huge", "-1", "+1"] {
            assert!(resolve(text, &files()).is_err(), "{text}");
        }
    }
}
