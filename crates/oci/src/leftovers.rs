//! Mounts that a killed runtime leaves in the directory with a container's state.
//!
//! To protect its own program from the container, runc mounts it read-only on a file `runc.XXXXXX` beside the
//! container's state, opens that file and unmounts it again (libcontainer/nsenter/cloned_binary.c). If runc is killed
//! in between, the mount stays, and no program can remove the directory. To restore a checkpoint, runc mounts the
//! container's root on `criu-root` in that directory (libcontainer/criu_linux.go). If runc is killed then, that mount
//! stays too, and runc's next `delete` removes everything in the container's root.

use rustix::mount::{UnmountFlags, unmount};
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Oci;

/// Where runc mounts a container's root while it restores the container.
const CRIU_ROOT: &str = "criu-root";

/// Unmounts what a killed runtime has left mounted for container `id`. No runtime may be at work on the container. An
/// error means that the runtime's `delete` must not be run.
pub fn unmount_leftovers(oci: &Oci, id: &str) -> io::Result<()> {
    // Look in the runtime's root only: another daemon's container may have the same id under another root.
    if let Some(root) = oci.root() {
        unmount_below(&root.join(id))?;
        if root.is_dir() {
            return Ok(());
        }
    }
    // The runtime may be a wrapper that passes another root to the real runtime. Look for a mount in any root.
    match mount_points()?.iter().find(|point| is_root_of(point, id)) {
        // The mount may belong to this container, or to another daemon's container with the same id.
        Some(point) => Err(io::Error::other(format!(
            "{} is mounted: if no runtime is at work there, unmount it; deleting the container would remove everything in it",
            point.display()
        ))),
        None => Ok(()),
    }
}

/// Unmounts everything that is mounted on a directory or below it.
pub(crate) fn unmount_below(directory: &Path) -> io::Result<()> {
    let directory = match directory.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        directory => directory?,
    };
    // Begin with the last mount, since later mounts cover earlier ones.
    for point in mount_points()?.iter().rev().filter(|point| point.starts_with(&directory)) {
        unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// Returns all mount points, in the order of the mounts.
fn mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(points_in(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// Parses the mount points: the fifth field of each line (proc_pid_mountinfo(5)).
fn points_in(mountinfo: &str) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(|point| PathBuf::from(sys::procfs::unescape(point))).collect()
}

/// Returns whether a mount point is where runc mounts the root of container `id` during a restore.
fn is_root_of(point: &Path, id: &str) -> bool {
    point.file_name().is_some_and(|name| name == CRIU_ROOT)
        && point.parent().and_then(Path::file_name).is_some_and(|name| name == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_parsed() {
        let text = "69 27 254:0 /usr/sbin/runc /run/my\\040root/c1/runc.NOyvnU rw - ext4 /dev/vda rw\n\
            70 27 254:0 / /run/runc/c2/criu-root rw - ext4 /dev/vda rw\nrubbish\n";
        let points = points_in(text);
        assert_eq!(points, [Path::new("/run/my root/c1/runc.NOyvnU"), Path::new("/run/runc/c2/criu-root")]);
        assert!(is_root_of(&points[1], "c2") && !is_root_of(&points[1], "c1") && !is_root_of(&points[0], "c1"));
        unmount_leftovers(&Oci::at("runc".into(), Vec::new()), "no-such-container").expect("nothing to do");
    }
}
