//! Checkpoints on disk: directories with CRIU's images, in a directory of checkpoints, which is part of a bundle or
//! named by a client.

mod criu;
mod partial;

use contract::Checkpoint;
use contract::process_files::CRIU_WORK;
pub use criu::{criu_at, criu_errors, restore_work, time_frozen};
pub use partial::Partial;
use partial::remove_unmounted;
use rustix::fs::{FileType, Gid, Mode, OFlags, fchmod, fchown, fstat, open, openat};
use rustix::io::Errno;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::PathError;
use crate::names::check_name;

/// The file with the options, and the sizes of the files.
const CONFIG: &str = "config.json";

/// The image that CRIU writes last, before it resumes or kills the processes.
const LAST_IMAGE: &str = "inventory.img";

/// The largest `config.json` of a checkpoint, and the largest statistics of CRIU, that are read.
const LARGEST_CONFIG: u64 = 4 << 20;

/// The largest `config.json` of a bundle that is read.
const LARGEST_BUNDLE_CONFIG: u64 = 16 << 20;

/// A directory that holds checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoints(PathBuf);

/// Why a checkpoint cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// A checkpoint of that name exists.
    #[error("checkpoint {0} already exists")]
    Exists(String),
    /// Another daemon is making a checkpoint of that name, or has left one whose images are complete.
    #[error("checkpoint {name} is being made, or was when its daemon died; if no process works in {} any more, remove it", path.display())]
    UnderWay {
        /// The checkpoint's name.
        name: String,
        /// The directory of the unfinished checkpoint.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] PathError),
}

impl Checkpoints {
    /// Names the checkpoints in `directory`, or those of `bundle` itself if there is no `directory`. The directory need
    /// not exist.
    pub fn new(directory: Option<&Path>, bundle: &Path) -> io::Result<Checkpoints> {
        match directory {
            Some(directory) => std::path::absolute(directory).map(Checkpoints),
            None => Ok(Checkpoints(bundle.join("checkpoints"))),
        }
    }

    /// Returns the directory of the checkpoint `name`. The caller must have checked the name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Returns the path of a checkpoint that is being removed. No checkpoint has such a name.
    fn removed(&self, name: &str) -> PathBuf {
        self.0.join(format!(".{name}.removed"))
    }

    /// Returns all checkpoints, sorted by name. A directory without a readable `config.json` is not one.
    pub fn list(&self) -> Result<Vec<Checkpoint>, PathError> {
        let failed = || PathError::new("list", &self.0);
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed())?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let Ok(name) = entry.map_err(failed())?.file_name().into_string() else { continue };
            match self.find(&name) {
                Ok(checkpoint) => found.extend(checkpoint),
                Err(e) => tracing::warn!("{e}; it is not listed"),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Returns the checkpoint of that name, if it exists.
    pub fn find(&self, name: &str) -> Result<Option<Checkpoint>, PathError> {
        let directory = self.path(name);
        if check_name(name, &[]).is_err() || !directory.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            return Ok(None);
        }
        if is_bundle(&directory) {
            return Ok(None);
        }
        read_config(&directory).map(|found| found.map(|found| Checkpoint { name: name.to_string(), ..found }))
    }

    /// Checks the sizes of a checkpoint's files and returns their sum. An error names a file that is missing or has
    /// another size than when it was written.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<u64, PathError> {
        let directory = self.path(&checkpoint.name);
        let found = sizes_in(&directory).map_err(PathError::new("list", &directory))?;
        for (name, size) in &checkpoint.files {
            let problem = match found.get(name) {
                Some(found) if found == size => continue,
                Some(found) => format!("it has {found} bytes and had {size}"),
                None => "it is missing".to_string(),
            };
            return Err(PathError::new("use", &directory.join(name))(io::Error::other(problem)));
        }
        Ok(found.values().sum())
    }

    /// Begins a checkpoint in a directory with a name that no checkpoint has. The caller must have checked the
    /// checkpoint's name.
    pub fn begin(&self, checkpoint: &Checkpoint) -> Result<Partial, BeginError> {
        std::fs::create_dir_all(&self.0).map_err(PathError::new("create", &self.0))?;
        let name = &checkpoint.name;
        // The removal of an earlier checkpoint of this name may have been interrupted.
        remove_unmounted(&self.removed(name))?;
        let finally = self.path(name);
        if finally.symlink_metadata().is_ok() {
            return Err(BeginError::Exists(name.clone()));
        }
        Partial::begin(&self.0, finally, checkpoint)
    }

    /// Gives a group read access to the checkpoint of that name. CRIU opens the images as the root of the user
    /// namespace that it restores, to which a directory of mode 0700 is closed. The access of other users does not
    /// change.
    pub fn share(&self, name: &str, group: u32) -> Result<(), PathError> {
        let directory = self.path(name);
        let share = |what: &OwnedFd, mode: u32| {
            let before = fstat(what)?.st_mode;
            fchown(what, None, Some(Gid::from_raw(group)))?;
            fchmod(what, Mode::from_raw_mode(before & 0o777 | mode))
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = open(&directory, flags | OFlags::DIRECTORY, Mode::empty()).and_then(|opened| {
            share(&opened, 0o010)?;
            Ok(opened)
        });
        let opened = opened.map_err(PathError::new("give the container's root access to", &directory))?;
        for entry in std::fs::read_dir(&directory).map_err(PathError::new("list", &directory))? {
            let name = entry.map_err(PathError::new("list", &directory))?.file_name();
            let shared = match openat(&opened, &name, flags, Mode::empty()) {
                // Do not follow a symbolic link, since its target may be any file of the host.
                Err(Errno::LOOP) => Ok(()),
                Err(e) => Err(e),
                Ok(image) => fstat(&image).and_then(|stat| {
                    // A file with another name too may be any file of the host.
                    let is_image = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1;
                    if is_image { share(&image, 0o040) } else { Ok(()) }
                }),
            };
            shared.map_err(PathError::new("give the container's root access to", &directory.join(&name)))?;
        }
        Ok(())
    }

    /// Removes the checkpoint of that name. Returns false if there is none.
    pub fn remove(&self, name: &str) -> Result<bool, PathError> {
        let directory = self.path(name);
        let is_there = || directory.symlink_metadata().is_ok_and(|found| found.is_dir());
        // A checkpoint with a damaged config is still a checkpoint. A bundle is never one.
        let is_one = || directory.join(CRIU_WORK).exists() || directory.join(LAST_IMAGE).exists();
        if check_name(name, &[]).is_err() || !is_there() || !is_one() || is_bundle(&directory) {
            return Ok(false);
        }
        // Rename it first, so that it is no checkpoint any more from now on, however long the rest takes.
        let removed = self.removed(name);
        remove_unmounted(&removed)?;
        std::fs::rename(&directory, &removed).map_err(PathError::new("remove", &directory))?;
        remove_unmounted(&removed)?;
        Ok(true)
    }
}

/// Returns the sizes of the regular files in a checkpoint except its `config.json`.
fn sizes_in(directory: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (Ok(name), metadata) = (entry.file_name().into_string(), entry.metadata()?) else { continue };
        if metadata.is_file() && name != CONFIG {
            sizes.insert(name, metadata.len());
        }
    }
    Ok(sizes)
}

/// Reads a checkpoint's `config.json`. Returns `None` if there is none.
fn read_config(directory: &Path) -> Result<Option<Checkpoint>, PathError> {
    let path = directory.join(CONFIG);
    let text = match sys::foreign_file::read(&path, LARGEST_CONFIG) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(PathError::new("read", &path))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(PathError::new("read", &path))
}

/// Returns whether a directory is an OCI bundle, which also has a `config.json` (OCI runtime specification, config.md).
fn is_bundle(directory: &Path) -> bool {
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "ociVersion")]
        _oci_version: serde::de::IgnoredAny,
    }
    sys::foreign_file::read(&directory.join(CONFIG), LARGEST_BUNDLE_CONFIG)
        .is_ok_and(|text| serde_json::from_slice::<Config>(&text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Checkpoint {
        Checkpoint { name: name.into(), tcp: true, empty_ns: vec!["network".into()], ..Checkpoint::default() }
    }

    #[test]
    fn checkpoint_exists_from_when_it_is_finished() {
        let directory = tempfile::tempdir().expect("tempdir");
        let checkpoints = Checkpoints::new(None, directory.path()).expect("a path");
        assert_eq!(checkpoints.list().expect("no directory"), []);
        let begun = checkpoints.begin(&named("a")).expect("begins");
        assert_eq!(checkpoints.list().expect("lists"), []);
        assert!(matches!(checkpoints.begin(&named("a")), Err(BeginError::UnderWay { .. })));
        std::fs::write(begun.images().join("pages-1.img"), "x").expect("writes");
        begun.finish().expect("finishes");
        let listed = checkpoints.list().expect("lists");
        let files = BTreeMap::from([("pages-1.img".to_string(), 1)]);
        assert_eq!(listed, [Checkpoint { files, ..named("a") }]);
        assert_eq!(checkpoints.check(&listed[0]).expect("is whole"), 1);
        std::fs::write(checkpoints.path("a").join("pages-1.img"), "").expect("writes");
        assert!(checkpoints.check(&listed[0]).expect_err("is damaged").to_string().contains("pages-1.img"));
        assert!(matches!(checkpoints.begin(&named("a")), Err(BeginError::Exists(_))));
        assert!(checkpoints.remove("a").expect("removes"));
        assert!(!checkpoints.remove("a").expect("is gone"));
        assert_eq!(std::fs::read_dir(directory.path().join("checkpoints")).expect("lists").count(), 0);
    }

    #[test]
    fn only_checkpoints_are_found_and_removed() {
        let directory = tempfile::tempdir().expect("tempdir");
        let outside = directory.path().join("outside");
        std::fs::create_dir(&outside).expect("makes");
        std::fs::write(outside.join(CONFIG), "{}").expect("writes");
        let inside = directory.path().join("inside");
        std::fs::create_dir(&inside).expect("makes");
        std::os::unix::fs::symlink(&outside, inside.join("link")).expect("links");
        std::fs::create_dir(inside.join("other")).expect("makes");
        std::fs::create_dir_all(inside.join("bundle/criu.work")).expect("makes");
        std::fs::write(inside.join("bundle").join(CONFIG), r#"{"ociVersion":"1.0.2"}"#).expect("writes");
        let checkpoints = Checkpoints::new(Some(&inside), Path::new("/")).expect("a path");
        for name in ["../outside", "link", "other", "bundle", "", "."] {
            assert!(!checkpoints.remove(name).expect("refuses"), "{name}");
            assert_eq!(checkpoints.find(name).expect("refuses"), None, "{name}");
        }
        assert!(outside.join(CONFIG).exists());
        assert!(inside.join("other").exists() && inside.join("bundle").join(CONFIG).exists());
        assert_eq!(checkpoints.list().expect("lists"), []);
    }

    #[test]
    fn flags_follow_from_the_options() {
        assert_eq!(named("a").options().flags(), ["--tcp-established", "--empty-ns", "network"]);
    }
}
