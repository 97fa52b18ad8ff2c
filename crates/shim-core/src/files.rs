//! Small files. All paths are relative to a directory descriptor, [`CWD`] among them.

use alloc::format;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::{self, Errno};
use rustix::path::Arg;

/// Writes all of `bytes` to a file that does not block.
pub fn write_all(file: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Opens a file for writing and creates it if necessary.
pub fn create(directory: impl AsFd, path: impl Arg, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | flags;
    openat(directory, path, flags, Mode::from_raw_mode(0o666))
}

/// Replaces the content of a file. A reader may see a part of it.
pub fn write(directory: impl AsFd, path: impl Arg, content: &str) -> io::Result<()> {
    write_all(create(directory, path, OFlags::TRUNC)?, content.as_bytes())
}

/// Appends to a file.
pub fn append(directory: impl AsFd, path: impl Arg, content: &[u8]) -> io::Result<()> {
    write_all(create(directory, path, OFlags::APPEND)?, content)
}

/// Writes a file that readers see whole or not at all: writes `.<name>` and renames it. Nothing is synchronised to the disk,
/// because a shim's files do not outlive the boot.
pub fn write_whole(directory: impl AsFd, name: &str, content: &str) -> io::Result<()> {
    let temporary = format!(".{name}");
    write(&directory, &temporary[..], content)?;
    renameat(&directory, &temporary[..], &directory, name)
}

/// Removes the files in the directory at `path`, and the directory if it is empty then. Does not enter directories in it,
/// because they may be mount points.
pub fn remove_flat_directory(path: impl Arg + Copy) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(directory) = openat(CWD, path, flags, Mode::empty()) {
        for entry in Dir::read_from(&directory).into_iter().flatten().flatten() {
            let _ = unlinkat(&directory, entry.file_name(), AtFlags::empty());
        }
    }
    let _ = unlinkat(CWD, path, AtFlags::REMOVEDIR);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_file_replaces_the_one_before() {
        let path = std::env::temp_dir().join(std::format!("files-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("creates");
        let directory = std::fs::File::open(&path).expect("opens");
        for content in ["first, and longer", "second"] {
            write_whole(&directory, "a", content).expect("writes");
            assert_eq!(std::fs::read_to_string(path.join("a")).expect("reads"), content);
        }
        append(&directory, "b", b"1").and_then(|()| append(&directory, "b", b"2")).expect("appends");
        assert_eq!(std::fs::read_to_string(path.join("b")).expect("reads"), "12");
        std::fs::create_dir(path.join("below")).expect("creates");
        remove_flat_directory(&path);
        assert_eq!(std::fs::read_dir(&path).expect("lists").count(), 1, "the directory in it stays");
        std::fs::remove_dir(path.join("below")).expect("removes");
        remove_flat_directory(&path);
        assert!(!path.exists());
    }
}
