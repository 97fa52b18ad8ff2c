//! Reading files whose paths or contents others decide: a bundle's, or a container's own.
//!
//! Nothing but a regular file is opened, so that a FIFO cannot make this program wait and opening a device has no effect,
//! and no more is read than the limit.

use rustix::fd::AsRawFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// The size of a `config.json` that is read.
pub(crate) const CONFIG_LIMIT: u64 = 16 << 20;

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_regular(openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())?, limit)
}

/// Reads a regular file of at most `limit` bytes below `root`. Links are followed as a process would follow them that has
/// `root` as its root directory.
pub(crate) fn read_in_root(root: BorrowedFd<'_>, path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    read_regular(openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?, limit)
}

/// `handle` was opened with `O_PATH`: what was looked at is what is read.
fn read_regular(handle: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    if FileType::from_raw_mode(fstat(&handle)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("is no regular file"));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(open(format!("/proc/self/fd/{}", handle.as_raw_fd()), flags, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("file"), "12345").expect("writes");
        symlink("file", path("link")).expect("links");
        rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("makes a fifo");
        assert_eq!(read(&path("file"), 5).expect("reads"), b"12345");
        assert_eq!(read(&path("link"), 5).expect("reads"), b"12345");
        let said = |path: &Path, limit| read(path, limit).expect_err("is refused").to_string();
        assert!(said(&path("file"), 4).contains("larger"));
        for other in [path("fifo"), "/dev/zero".into(), directory.path().to_path_buf()] {
            assert!(said(&other, 5).contains("no regular file"));
        }
    }

    #[test]
    fn links_in_a_root_stay_in_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("etc")).expect("makes");
        std::fs::write(directory.path().join("secret"), "outside").expect("writes");
        std::fs::write(root.join("secret"), "inside").expect("writes");
        symlink("/secret", root.join("etc/absolute")).expect("links");
        symlink("../../../secret", root.join("etc/relative")).expect("links");
        symlink("/proc/self/root/etc/passwd", root.join("etc/magic")).expect("links");
        let opened = open(&root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("opens");
        for name in ["etc/absolute", "etc/relative"] {
            assert_eq!(read_in_root(opened.as_fd(), name, 100).expect("reads"), b"inside");
        }
        assert!(read_in_root(opened.as_fd(), "etc/magic", 1000).is_err());
    }
}
