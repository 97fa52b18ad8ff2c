//! What a runtime leaves when it is killed.
//!
//! runc protects its own binary from the container: it mounts it read-only on a file `runc.XXXXXX` beside the container's
//! state, opens that and unmounts it again (libcontainer/nsenter/cloned_binary.c). Killed in between, it leaves the
//! mount, and then neither it nor anybody else can remove the directory.

use rustix::mount::{UnmountFlags, unmount};
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Oci;

/// Unmounts what a killed runc has left of container `id`.
pub fn unmount_leftovers(oci: &Oci, id: &str) -> io::Result<()> {
    // Another supervisor's container may have the same id, under another root.
    let state = match oci.root().join(id).canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        state => state?,
    };
    for path in find(&std::fs::read_to_string("/proc/self/mountinfo")?, &state) {
        unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// The mounts of runc's own binary in the directory of the container's state.
fn find(mountinfo: &str, state: &Path) -> Vec<PathBuf> {
    let is_meant = |line: &str| {
        // proc_pid_mountinfo(5): … root, mount point, options …
        let mut fields = line.split(' ').skip(3).map(sys::procfs::unescape);
        let (root, point) = (PathBuf::from(fields.next()?), PathBuf::from(fields.next()?));
        let suffix = point.file_name()?.to_str()?.strip_prefix("runc.")?;
        let of_runc = suffix.len() == 6 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric());
        // Of anything but a file it is not.
        let of_file = root.file_name().is_some_and(|name| name != "/");
        (of_runc && of_file && point.parent()? == state).then_some(point)
    };
    mountinfo.lines().filter_map(is_meant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runcs_own_mounts_for_that_container_are_found() {
        let text = "69 27 254:0 /usr/sbin/runc /run/my\\040root/c1/runc.NOyvnU rw - ext4 /dev/vda rw\n\
            70 27 254:0 /usr/sbin/runc /run/runc/c2/runc.NOyvnU rw - ext4 /dev/vda rw\n\
            71 27 254:0 / /run/runc/c1/runc.NOyvnU rw - ext4 /dev/vda rw\n\
            72 27 254:0 /x /run/runc/c1/runc.other-name rw - ext4 /dev/vda rw\n\
            73 27 254:0 /x /c1 rw - ext4 /dev/vda rw\nrubbish\n";
        assert_eq!(find(text, Path::new("/run/my root/c1")), [PathBuf::from("/run/my root/c1/runc.NOyvnU")]);
        assert_eq!(find(text, Path::new("/run/runc/c1")), Vec::<PathBuf>::new());
        unmount_leftovers(&Oci::at("runc".into(), Vec::new()), "no-such-container").expect("nothing to do");
    }
}
