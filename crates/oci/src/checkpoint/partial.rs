//! A checkpoint that is being made.
//!
//! Its directory has a name that no checkpoint has, and is locked (flock(2)) by the daemon and by the runtime that the
//! daemon started. So the lock shows that a runtime is still at work even if its daemon has died.

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{BeginError, CONFIG, CRIU_WORK, Checkpoint, LAST_IMAGE, read_config, sizes_in};
use crate::PathError;
use crate::container_dir::remove_all;
use crate::json::write_whole;
use crate::leftovers::unmount_below;

/// A checkpoint that is being made, with its lock.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    finally: PathBuf,
    lock: OwnedFd,
}

impl Partial {
    fn named(directory: &Path, name: &str) -> PathBuf {
        // No checkpoint's name begins with a dot.
        directory.join(format!(".{name}.partial"))
    }

    /// Creates and locks the directory of a checkpoint that is to become `finally`, in `directory`. Replaces one that
    /// was left half-made unless its images are complete.
    pub(super) fn begin(directory: &Path, finally: PathBuf, checkpoint: &Checkpoint) -> Result<Partial, BeginError> {
        let name = &checkpoint.name;
        let path = Partial::named(directory, name);
        loop {
            let is_new = match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => true,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
                Err(e) => return Err(PathError::new("create", &path)(e).into()),
            };
            let under_way = || BeginError::UnderWay { name: name.clone(), path: path.clone() };
            let Some(lock) = lock(&path, FlockOperation::NonBlockingLockExclusive)? else { return Err(under_way()) };
            if !is_same(&lock, &path) {
                // Another daemon has removed or renamed the directory meanwhile.
                continue;
            }
            let partial = Partial { path: path.clone(), finally: finally.clone(), lock };
            if !is_new {
                if partial.is_dumped() {
                    return Err(under_way());
                }
                partial.discard()?;
                continue;
            }
            // Another daemon may have finished a checkpoint of that name since the caller looked.
            if finally.symlink_metadata().is_ok() {
                partial.discard()?;
                return Err(BeginError::Exists(name.clone()));
            }
            if let Err(e) = partial.fill(checkpoint) {
                let _ = partial.discard();
                return Err(e.into());
            }
            return Ok(partial);
        }
    }

    fn fill(&self, checkpoint: &Checkpoint) -> Result<(), PathError> {
        let config = self.path.join(CONFIG);
        let text = serde_json::to_vec(checkpoint).map_err(PathError::new("write", &config))?;
        write_whole(&config, &text).map_err(PathError::new("write", &config))?;
        let work = self.work();
        std::fs::DirBuilder::new().mode(0o700).create(&work).map_err(PathError::new("create", &work))
    }

    /// Finds an unfinished checkpoint that is to become `finally`, and waits until no runtime works on it. Returns
    /// `None` if there is none.
    pub fn wait_for(finally: &Path) -> Result<Option<Partial>, PathError> {
        let (Some(directory), Some(name)) = (finally.parent(), finally.file_name().and_then(|name| name.to_str()))
        else {
            return Ok(None);
        };
        let path = Partial::named(directory, name);
        match lock(&path, FlockOperation::LockExclusive) {
            Ok(Some(lock)) if is_same(&lock, &path) => Ok(Some(Partial { path, finally: finally.to_path_buf(), lock })),
            Ok(_) => Ok(None),
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the directory for CRIU's images.
    pub fn images(&self) -> &Path {
        &self.path
    }

    /// Returns the directory in which CRIU works and leaves its logs.
    pub fn work(&self) -> PathBuf {
        self.path.join(CRIU_WORK)
    }

    /// Returns the path that the finished checkpoint gets.
    pub fn finally(&self) -> &Path {
        &self.finally
    }

    /// Returns the locked directory. The runtime inherits it, and with it the lock.
    pub(crate) fn lock(&self) -> &OwnedFd {
        &self.lock
    }

    /// Returns whether CRIU has written all images.
    pub fn is_dumped(&self) -> bool {
        self.path.join(LAST_IMAGE).metadata().is_ok_and(|image| image.len() > 0)
    }

    /// Gives the checkpoint its name. From then on it is a checkpoint.
    pub fn finish(&self) -> Result<(), PathError> {
        if let Some(checkpoint) = read_config(&self.path)? {
            // Without the sizes the checkpoint works, but damage to its files goes unnoticed until CRIU reads them.
            let files = sizes_in(&self.path).unwrap_or_default();
            let text = serde_json::to_vec(&Checkpoint { files, ..checkpoint }).unwrap_or_default();
            if let Err(e) = write_whole(&self.path.join(CONFIG), &text) {
                tracing::warn!(path = %self.path.display(), "cannot note the sizes of a checkpoint's files: {e}");
            }
        }
        let renamed = match renameat_with(CWD, &self.path, CWD, &self.finally, RenameFlags::NOREPLACE) {
            // The file system does not support the flag. The lock keeps other daemons from giving a checkpoint this
            // name.
            Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(&self.path, &self.finally),
            result => result.map_err(Into::into),
        };
        renamed.map_err(PathError::new("give its name to the finished checkpoint in", &self.path))
    }

    /// Removes the unfinished checkpoint.
    pub fn discard(&self) -> Result<(), PathError> {
        remove_unmounted(&self.path)
    }
}

/// Locks a directory. Returns `None` if another process has the lock and `how` does not wait.
fn lock(path: &Path, how: FlockOperation) -> Result<Option<OwnedFd>, PathError> {
    let failed = |e: Errno| PathError::new("lock", path)(e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = open(path, flags, Mode::empty()).map_err(failed)?;
    loop {
        match flock(&directory, how) {
            Ok(()) => return Ok(Some(directory)),
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Returns whether an open directory is the one at `path` now.
fn is_same(directory: &OwnedFd, path: &Path) -> bool {
    match (rustix::fs::fstat(directory), rustix::fs::lstat(path)) {
        (Ok(open), Ok(there)) => (open.st_dev, open.st_ino) == (there.st_dev, there.st_ino),
        _ => false,
    }
}

/// Removes a directory with all that is in it, after unmounting what a CRIU that failed may have left mounted there:
/// its own view of the control groups, which the removal would otherwise remove too.
pub(super) fn remove_unmounted(directory: &Path) -> Result<(), PathError> {
    unmount_below(directory).map_err(PathError::new("unmount everything in", directory))?;
    remove_all(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoints;

    #[test]
    fn half_made_checkpoint_is_replaced_unless_it_may_be_complete() {
        let directory = tempfile::tempdir().expect("tempdir");
        let checkpoints = Checkpoints::new(Some(directory.path()), Path::new("/nonexistent")).expect("a path");
        let wanted = Checkpoint { name: "a".into(), ..Checkpoint::default() };
        // Its daemon dies. A child that another test has just forked may keep the descriptor, and with it the lock, for
        // a moment, so unlock it explicitly.
        let leave = |left: Partial| flock(left.lock(), FlockOperation::Unlock).expect("unlocks");
        let left = checkpoints.begin(&wanted).expect("begins");
        std::fs::write(left.images().join("core-1.img"), "x").expect("writes");
        leave(left);
        let left = checkpoints.begin(&wanted).expect("begins again");
        assert!(!left.images().join("core-1.img").exists());
        std::fs::write(left.images().join(LAST_IMAGE), "x").expect("writes");
        leave(left);
        assert!(matches!(checkpoints.begin(&wanted), Err(BeginError::UnderWay { .. })));
        let found = Partial::wait_for(&checkpoints.path("a")).expect("looks").expect("is there");
        assert!(found.is_dumped());
        found.discard().expect("removes");
        assert!(Partial::wait_for(&checkpoints.path("a")).expect("looks").is_none());
    }
}
