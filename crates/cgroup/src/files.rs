//! The files of a group. A group may be removed at any moment, and no kernel has all files, so that a missing file is
//! no error.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::held::Files;

/// Reads a file below `directory`. Returns `None` if the group is gone or does not have the file.
pub(crate) fn read_at(directory: impl AsFd, path: &Path) -> io::Result<Option<String>> {
    absent_is_none(sys::small_file::read_text(directory, path).map_err(io::Error::from))
}

/// Reads a file by its absolute path. Returns `None` if the group is gone or does not have the file.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    read_at(CWD, path)
}

/// Writes to a file below `directory`, which must exist.
pub(crate) fn write_at(directory: impl AsFd, path: &Path, text: &str) -> io::Result<()> {
    let file = openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, text.as_bytes())?;
    Ok(())
}

/// Returns the paths of the groups directly below `group`; an empty path means `hierarchy` itself. Returns none if the
/// group is gone.
pub(crate) fn groups_below(hierarchy: BorrowedFd<'_>, group: &Path) -> io::Result<Vec<PathBuf>> {
    // A directory without subdirectories has two links and need not be listed.
    let stat = statat(hierarchy, group, AtFlags::EMPTY_PATH).map_err(io::Error::from);
    if absent_is_none(stat)?.is_none_or(|stat| stat.st_nlink <= 2) {
        return Ok(Vec::new());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(hierarchy, group.join("."), flags, Mode::empty()).map_err(io::Error::from);
    let Some(opened) = absent_is_none(opened)? else { return Ok(Vec::new()) };
    let mut groups = Vec::new();
    for entry in rustix::fs::Dir::new(opened)? {
        let entry = entry?;
        if entry.file_type() == FileType::Directory && !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            groups.push(group.join(OsStr::from_bytes(entry.file_name().to_bytes())));
        }
    }
    Ok(groups)
}

/// Turns the errors that writing to a removed group causes into success.
pub(crate) fn gone_is_done(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if !matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NODEV | Errno::SRCH)) => Err(e),
        _ => Ok(()),
    }
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(text) => Ok(Some(text)),
        Err(e) => match Errno::from_io_error(&e) {
            // EOPNOTSUPP: the group is threaded, or the file's controller has been switched off.
            Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
            _ => Err(e),
        },
    }
}

/// A group's open directory, for reading several files that certainly belong to the same group.
#[derive(Debug)]
pub(crate) struct Directory {
    opened: OwnedFd,
    /// The files that stay open, if files do.
    files: Option<Files>,
}

impl Directory {
    /// Opens the directory at `path` below `hierarchy`. Returns `None` if it is gone.
    pub(crate) fn open(hierarchy: impl AsFd, path: &Path) -> io::Result<Option<Directory>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(hierarchy, path, flags, Mode::empty());
        let opened = absent_is_none(opened.map_err(io::Error::from))?;
        Ok(opened.map(|opened| Directory { opened, files: None }))
    }

    /// Returns the directory changed so that its files stay open once they have been read.
    pub(crate) fn keeping_files(self) -> Directory {
        Directory { files: Some(Files::default()), ..self }
    }

    /// Reads a file. Returns an empty text if it does not exist.
    pub(crate) fn text(&self, name: &str) -> io::Result<String> {
        if let Some(text) = self.files.as_ref().and_then(|files| files.read(&self.opened, name)) {
            return Ok(text);
        }
        Ok(absent_is_none(sys::small_file::read_text(&self.opened, name).map_err(io::Error::from))?.unwrap_or_default())
    }

    /// Returns whether the file exists.
    pub(crate) fn has(&self, name: &str) -> bool {
        statat(&self.opened, name, AtFlags::empty()).is_ok()
    }

    /// Reads a file with one number. Returns 0 if it does not exist or says `max`.
    pub(crate) fn number(&self, name: &str) -> io::Result<u64> {
        Ok(self.text(name)?.trim().parse().unwrap_or(0))
    }

    /// Reads a file with one number. Returns the greatest number if it says `max`, and `None` if it does not exist.
    pub(crate) fn limit(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(parse_limit(self.text(name)?.trim()))
    }

    /// Reads a file whose lines have a key and a number.
    pub(crate) fn keyed(&self, name: &str) -> io::Result<Vec<(String, u64)>> {
        Ok(keyed(&self.text(name)?))
    }
}

/// Parses a number, or `max`, which means the greatest number.
pub(crate) fn parse_limit(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Parses lines with a key and a number. Skips other lines.
pub(crate) fn keyed(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_string(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Returns the value of a key, or 0 if there is no such key.
pub(crate) fn value(pairs: &[(String, u64)], key: &str) -> u64 {
    pairs.iter().find(|(name, _)| name == key).map_or(0, |(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_file_is_no_error() {
        let temporary = tempfile::tempdir().expect("tempdir");
        assert!(Directory::open(CWD, &temporary.path().join("none")).expect("no error").is_none());
        let directory = Directory::open(CWD, temporary.path()).expect("opens").expect("is there");
        assert_eq!(directory.text("none").expect("no error"), "");
        assert_eq!(directory.number("none").expect("no error"), 0);
        assert_eq!(directory.limit("none").expect("no error"), None);
        let long = "x".repeat(10_000);
        std::fs::write(temporary.path().join("long"), &long).expect("writes");
        assert_eq!(directory.text("long").expect("reads"), long);
        std::fs::write(temporary.path().join("max"), "max\n").expect("writes");
        assert_eq!(directory.limit("max").expect("reads"), Some(u64::MAX));
        assert_eq!(directory.number("max").expect("reads"), 0);
    }

    #[test]
    fn lines_without_a_key_and_a_number_are_skipped() {
        assert_eq!(keyed("a 1\nb\nc x\nd 2\n"), [("a".into(), 1), ("d".into(), 2)]);
        assert_eq!(value(&keyed("a 1\n"), "a"), 1);
        assert_eq!(value(&[], "a"), 0);
    }
}
