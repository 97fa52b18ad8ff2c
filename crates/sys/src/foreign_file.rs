//! Reading a file whose path or content another program decides, for example a client, or the author of a bundle or
//! checkpoint.
//!
//! The path may name anything: a FIFO, which would block the reader forever, a device that does something when it is
//! opened or that never ends, or a file of many gigabytes. So these functions check what the file is before they open
//! it, open exactly the file that they checked, and read no more than a limit. A file system that hangs still blocks
//! the caller: call them in a thread that may be abandoned.

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Opens a regular file for reading. Follows symbolic links; their target must be a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // With O_PATH the kernel does not open the device and does not wait for the other end of a FIFO (open(2)).
    reopen_regular(&open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the regular file that `handle`, opened with `O_PATH`, stands for, whatever is at its path by now.
fn reopen_regular(handle: &OwnedFd) -> io::Result<File> {
    match FileType::from_raw_mode(fstat(handle)?.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(io::ErrorKind::IsADirectory.into()),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")),
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(open(format!("/proc/self/fd/{}", handle.as_raw_fd()), flags, Mode::empty())?))
}

/// Reads a regular file of at most `limit` bytes below `root`. Resolves symbolic links as for a process whose root
/// directory is `root`.
pub fn read_in_root(root: BorrowedFd<'_>, path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let handle = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    read_open(&reopen_regular(&handle)?, limit)
}

/// Reads a regular file of at most `limit` bytes. A longer file is an error ([`io::ErrorKind::FileTooLarge`]).
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_open(&open_regular(path)?, limit)
}

/// Reads the rest of an open file, at most `limit` bytes. A longer rest is an error ([`io::ErrorKind::FileTooLarge`]).
pub fn read_open(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(limit)).unwrap_or_default() + 1);
    // One byte more distinguishes a file that is too long from one that just fits. The size is only a hint: a FUSE file
    // system may report a wrong one.
    let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if read as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is larger than the limit of {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let directory = std::env::temp_dir().join(format!("foreign-file-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("creates");
        let at = |name: &str| directory.join(name);
        std::fs::write(at("file"), "12345").expect("writes");
        std::os::unix::fs::symlink("file", at("link")).expect("links");
        std::os::unix::fs::symlink("/dev/zero", at("zero")).expect("links");
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, 0o600.into(), 0).expect("a fifo");
        assert_eq!(read(&at("file"), 5).expect("fits"), b"12345");
        assert_eq!(read(&at("link"), 5).expect("a link to a regular file"), b"12345");
        assert_eq!(read(&at("file"), 4).expect_err("too long").kind(), io::ErrorKind::FileTooLarge);
        for name in ["zero", "fifo"] {
            assert_eq!(read(&at(name), 5).expect_err(name).kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(read(&directory, 5).expect_err("a directory").kind(), io::ErrorKind::IsADirectory);
        assert_eq!(read(&at("none"), 5).expect_err("missing").kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&directory).expect("removes");
    }

    #[test]
    fn symbolic_links_below_a_root_do_not_lead_out_of_it() {
        let directory = std::env::temp_dir().join(format!("foreign-root-{}", std::process::id()));
        let root = directory.join("root");
        std::fs::create_dir_all(root.join("etc")).expect("makes");
        std::fs::write(directory.join("secret"), "outside").expect("writes");
        std::fs::write(root.join("secret"), "inside").expect("writes");
        std::os::unix::fs::symlink("/secret", root.join("etc/absolute")).expect("links");
        std::os::unix::fs::symlink("../../../secret", root.join("etc/relative")).expect("links");
        std::os::unix::fs::symlink("/proc/self/root/etc/passwd", root.join("etc/magic")).expect("links");
        let opened = open(&root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("opens");
        for name in ["etc/absolute", "etc/relative"] {
            assert_eq!(read_in_root(std::os::fd::AsFd::as_fd(&opened), name, 100).expect("reads"), b"inside");
        }
        assert!(read_in_root(std::os::fd::AsFd::as_fd(&opened), "etc/magic", 1000).is_err());
        std::fs::remove_dir_all(&directory).expect("removes");
    }
}
