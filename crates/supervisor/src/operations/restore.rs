//! Restoring a container from a checkpoint: finding the checkpoint, and what is special about a start from it.

use oci::{Ability, Bundle, Checkpoint, Checkpoints, Oci};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::container::{Container, Process};
use crate::error::{Error, check_name};
use crate::host::runtimes::Runtimes;
use crate::operations::dump::{explain, require_criu};

/// A checkpoint that a container is to be restored from.
#[derive(Debug)]
pub(crate) struct Restorable {
    pub(crate) path: PathBuf,
    /// The options that it was made with.
    pub(crate) checkpoint: Checkpoint,
    /// Its size.
    pub(crate) bytes: u64,
}

/// Finds a checkpoint. `directory` holds it, in place of the bundle's own directory of checkpoints.
pub(crate) fn find(name: &str, directory: Option<&Path>, bundle: &Bundle) -> Result<Restorable, Error> {
    check_name("checkpoint", name, &[])?;
    let places = Checkpoints::new(directory, &bundle.path).map_err(Error::system("find the checkpoints"))?;
    let path = places.path(name);
    let Some(checkpoint) = places.find(name).map_err(Error::CheckpointDamaged)? else {
        return Err(Error::CheckpointNotFound { path });
    };
    let bytes = places.check(&checkpoint).map_err(Error::CheckpointDamaged)?;
    // In a user namespace CRIU reads the images as the container's root.
    let group = (bundle.root_gid != 0).then_some(bundle.root_gid);
    if let Some(Err(e)) = group.map(|group| places.share(name, group)) {
        // If CRIU can read them as they are, on a read-only file system for example, nothing need be changed.
        tracing::warn!(checkpoint = %path.display(), "{e}; CRIU may not be able to read it in the user namespace");
    }
    Ok(Restorable { path, checkpoint, bytes })
}

/// Refuses a checkpoint that the runtime cannot restore with its flags.
pub(crate) async fn check(runtimes: &Runtimes, oci: &Oci, checkpoint: &Checkpoint) -> Result<(), Error> {
    runtimes.check_ability(oci, Ability::Restore).await?;
    for flag in checkpoint.options().needs() {
        runtimes.check_ability(oci, Ability::RestoreFlag(flag)).await?;
    }
    require_criu()
}

/// How long a restore may take because of the checkpoint's size, as a slow disk needs.
pub(crate) fn time_for(bytes: u64) -> Duration {
    const BYTES_A_SECOND: u64 = 20 << 20;
    Duration::from_secs(bytes / BYTES_A_SECOND)
}

/// The error of a failed restore. CRIU's log is kept beside the checkpoint's own log.
pub(crate) async fn why_it_failed(container: &Container, init: &Process, failed: Error) -> Error {
    let log = oci::restore_work(init.dir.path()).join("restore.log");
    let kept = Path::new(&*container.origin.checkpoint).join(oci::process_files::CRIU_WORK).join("restore.log");
    explain(failed, log, kept).await
}
