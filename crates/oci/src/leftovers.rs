//! What a runtime leaves mounted when it is killed, in the directory where it keeps a container's state.
//!
//! runc protects its own binary from the container: it mounts it read-only on a file `runc.XXXXXX` beside the container's
//! state, opens that and unmounts it again (libcontainer/nsenter/cloned_binary.c). Killed in between, it leaves the
//! mount, and then neither it nor anybody else can remove the directory. When it restores a checkpoint it mounts the
//! container's root on `criu-root` there (libcontainer/criu_linux.go). Killed, it leaves that as well, and its next
//! `delete` removes all that is in the container's root.

use rustix::mount::{UnmountFlags, unmount};
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Oci;

/// Where runc has a container's root while it restores it.
const CRIU_ROOT: &str = "criu-root";

/// Unmounts what a killed runtime has left of container `id`. Not while a runtime is at work on it. An error says that the
/// runtime's `delete` must not be run.
pub fn unmount_leftovers(oci: &Oci, id: &str) -> io::Result<()> {
    // Another supervisor's container may have the same id, under another root.
    if let Some(root) = oci.root() {
        unmount_below(&root.join(id))?;
        if root.is_dir() {
            return Ok(());
        }
    }
    // A wrapper, which has its own idea of the root.
    match mount_points()?.iter().find(|point| is_root_of(point, id)) {
        // Its own, or another supervisor's.
        Some(point) => Err(io::Error::other(format!(
            "{} is mounted: if no runtime is at work there, unmount it; what deletes the container would remove what is in it",
            point.display()
        ))),
        None => Ok(()),
    }
}

/// Unmounts all that is mounted on a directory and in it.
pub(crate) fn unmount_below(directory: &Path) -> io::Result<()> {
    let directory = match directory.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        directory => directory?,
    };
    // Later ones are on top of earlier ones.
    for point in mount_points()?.iter().rev().filter(|point| point.starts_with(&directory)) {
        unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

fn mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(points_in(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// proc_pid_mountinfo(5): … root, mount point, options …
fn points_in(mountinfo: &str) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(|point| PathBuf::from(sys::procfs::unescape(point))).collect()
}

fn is_root_of(point: &Path, id: &str) -> bool {
    point.file_name().is_some_and(|name| name == CRIU_ROOT)
        && point.parent().and_then(Path::file_name).is_some_and(|name| name == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are() {
        let text = "69 27 254:0 /usr/sbin/runc /run/my\\040root/c1/runc.NOyvnU rw - ext4 /dev/vda rw\n\
            70 27 254:0 / /run/runc/c2/criu-root rw - ext4 /dev/vda rw\nrubbish\n";
        let points = points_in(text);
        assert_eq!(points, [Path::new("/run/my root/c1/runc.NOyvnU"), Path::new("/run/runc/c2/criu-root")]);
        assert!(is_root_of(&points[1], "c2") && !is_root_of(&points[1], "c1") && !is_root_of(&points[0], "c1"));
        unmount_leftovers(&Oci::at("runc".into(), Vec::new()), "no-such-container").expect("nothing to do");
    }
}
