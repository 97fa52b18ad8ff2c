//! The files of a group. A group may go at any moment, and no kernel has all files: what is not there is no error.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::held::Files;

/// The text of a file below `directory`; `None` if the group is gone or does not have it.
pub(crate) fn read_at(directory: impl AsFd, path: &Path) -> io::Result<Option<String>> {
    absent_is_none(sys::small_file::read_text(directory, path).map_err(io::Error::from))
}

/// The same of a file whose path is absolute.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    read_at(CWD, path)
}

/// Writes a file below `directory` that is there.
pub(crate) fn write_at(directory: impl AsFd, path: &Path, text: &str) -> io::Result<()> {
    let file = openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, text.as_bytes())?;
    Ok(())
}

/// The groups right below one that is there (an empty path is `hierarchy` itself); none if it is gone.
pub(crate) fn groups_below(hierarchy: BorrowedFd<'_>, group: &Path) -> io::Result<Vec<PathBuf>> {
    // A directory without others in it has two links, which saves listing it.
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

/// For writing to a group that is gone.
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
            // EOPNOTSUPP: in a threaded group, or a file whose controller has been switched off.
            Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
            _ => Err(e),
        },
    }
}

/// A group's directory, held open while several of its files are read: all are then of the same group.
#[derive(Debug)]
pub(crate) struct Directory {
    opened: OwnedFd,
    /// Those of its files that stay open.
    files: Option<Files>,
}

impl Directory {
    /// The directory at `path` below `hierarchy`; `None` if it is gone.
    pub(crate) fn open(hierarchy: impl AsFd, path: &Path) -> io::Result<Option<Directory>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(hierarchy, path, flags, Mode::empty());
        let opened = absent_is_none(opened.map_err(io::Error::from))?;
        Ok(opened.map(|opened| Directory { opened, files: None }))
    }

    /// From now on its files stay open once they have been read.
    pub(crate) fn keeping_files(self) -> Directory {
        Directory { files: Some(Files::default()), ..self }
    }

    /// A file's text, empty if it is not there.
    pub(crate) fn text(&self, name: &str) -> io::Result<String> {
        if let Some(text) = self.files.as_ref().and_then(|files| files.read(&self.opened, name)) {
            return Ok(text);
        }
        Ok(absent_is_none(sys::small_file::read_text(&self.opened, name).map_err(io::Error::from))?.unwrap_or_default())
    }

    /// Whether it has a file.
    pub(crate) fn has(&self, name: &str) -> bool {
        statat(&self.opened, name, AtFlags::empty()).is_ok()
    }

    /// A file with one number; 0 if it is not there, and for `max`.
    pub(crate) fn number(&self, name: &str) -> io::Result<u64> {
        Ok(self.text(name)?.trim().parse().unwrap_or(0))
    }

    /// A file with one number, or `max`, which is the greatest; `None` if it is not there.
    pub(crate) fn limit(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(parse_limit(self.text(name)?.trim()))
    }

    /// A file of lines with a key and a number.
    pub(crate) fn keyed(&self, name: &str) -> io::Result<Vec<(String, u64)>> {
        Ok(keyed(&self.text(name)?))
    }
}

/// A number, or `max`.
pub(crate) fn parse_limit(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Lines with a key and a number; others are passed over.
pub(crate) fn keyed(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_string(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The value of a key; 0 if it is not there.
pub(crate) fn value(pairs: &[(String, u64)], key: &str) -> u64 {
    pairs.iter().find(|(name, _)| name == key).map_or(0, |(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_no_error() {
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
    fn keyed_lines() {
        assert_eq!(keyed("a 1\nb\nc x\nd 2\n"), [("a".into(), 1), ("d".into(), 2)]);
        assert_eq!(value(&keyed("a 1\n"), "a"), 1);
        assert_eq!(value(&[], "a"), 0);
    }
}
