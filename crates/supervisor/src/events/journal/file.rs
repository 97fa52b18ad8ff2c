//! The journal's file. Lines are appended; a part of a line that a crash has left is set aside when the file is read. Any other
//! change replaces the file by a rename. If another program removes, replaces or shortens it, the next write puts back everything that is kept.

use failpoint::{Point, reach};
use rustix::fs::FileType;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::events::event::Timestamp;

/// The journal's name in the state directory.
pub(crate) const FILE: &str = "events.log";
const TEMPORARY: &str = ".events.log";

/// The file for lines that cannot be read.
pub(super) const DAMAGED: &str = ".events.damaged";

/// Once [`DAMAGED`] has so many bytes, it is begun anew.
const DAMAGED_MOST: u64 = 1 << 20;

/// The journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("event journal: {operation} {}: {source}", path.display())]
pub struct JournalError {
    operation: &'static str,
    path: PathBuf,
    pub(crate) source: io::Error,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    /// The file's device and inode, to notice that the path leads to another file.
    identity: (u64, u64),
    length: u64,
    lines: usize,
}

impl JournalFile {
    /// Opens the file in `state_dir`, or begins one; with the text that is in it.
    pub(super) fn open(state_dir: &Path) -> Result<(JournalFile, Vec<u8>), JournalError> {
        let path = state_dir.join(FILE);
        let failed = |operation| {
            let path = path.clone();
            move |source| JournalError { operation, path, source }
        };
        let text = read_or_set_aside(&path).map_err(failed("read"))?;
        let file = open_for_appending(&path).map_err(failed("open"))?;
        let identity = identity(&file).map_err(failed("look at"))?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        Ok((JournalFile { path, file, identity, length: text.len() as u64, lines }, text))
    }

    /// The number of lines, damaged ones included.
    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    pub(super) fn failed(&self, operation: &'static str, source: io::Error) -> JournalError {
        JournalError { operation, path: self.path.clone(), source }
    }

    /// Adds a line, which ends with a line feed. A write that fails leaves no part of a line.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(), JournalError> {
        if let Err(e) = self.file.write_all(line) {
            // The next line would be appended to a part of this one.
            let _ = self.file.set_len(self.length);
            return Err(self.failed("write", e));
        }
        self.length += line.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// Whether another program has removed, replaced or shortened the file, so that it must be written anew: an event that went into a
    /// file that no later daemon finds would be lost.
    pub(super) fn is_changed(&mut self) -> Result<bool, JournalError> {
        let what = match rustix::fs::lstat(&self.path) {
            Ok(stat) if (stat.st_dev, stat.st_ino) != self.identity => {
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    let why = io::Error::other("it is not a regular file");
                    set_aside(&self.path, &why).map_err(|e| self.failed("set aside", e))?;
                }
                "replaced"
            }
            Ok(stat) if (stat.st_size as u64) < self.length => "shortened",
            Ok(stat) => {
                // Another program has appended to it. Its lines are judged when the file is read again.
                self.length = stat.st_size as u64;
                return Ok(false);
            }
            Err(rustix::io::Errno::NOENT) => "removed",
            Err(_) => return Ok(false),
        };
        tracing::error!(path = %self.path.display(), "another program has {what} the event journal; it is written anew");
        Ok(true)
    }

    /// Replaces the file by this text, which has so many lines.
    pub(super) fn replace(&mut self, text: &[u8], lines: usize) -> Result<(), JournalError> {
        let temporary = self.path.with_file_name(TEMPORARY);
        let write = || {
            let _ = std::fs::remove_file(&temporary);
            let mut file = open_for_appending(&temporary)?;
            file.write_all(text)?;
            let identity = identity(&file)?;
            reach(Point::JournalShortened);
            std::fs::rename(&temporary, &self.path)?;
            reach(Point::JournalReplaced);
            Ok((file, identity))
        };
        // A file that could not be written whole must not take room.
        let written = write().inspect_err(|_| drop(std::fs::remove_file(&temporary)));
        (self.file, self.identity) = written.map_err(|e| self.failed("rewrite", e))?;
        self.length = text.len() as u64;
        self.lines = lines;
        Ok(())
    }

    /// Puts damaged lines into a file of their own, and logs that.
    pub(super) fn keep_damaged(&self, lines: &[&[u8]]) {
        let kept = self.path.with_file_name(DAMAGED);
        let result = append_damaged(&kept, lines);
        tracing::error!(
            path = %self.path.display(),
            lines = lines.len(),
            kept = %kept.display(),
            error = result.err().map(tracing::field::display),
            "set unreadable lines of the event journal aside"
        );
    }
}

fn append_damaged(path: &Path, lines: &[&[u8]]) -> io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.len() > DAMAGED_MOST) {
        std::fs::remove_file(path)?;
    }
    let mut text = Vec::new();
    for line in lines {
        let room = usize::try_from(DAMAGED_MOST).unwrap_or(usize::MAX).saturating_sub(text.len());
        text.extend_from_slice(line.get(..room).unwrap_or(line));
        text.push(b'\n');
        if text.len() as u64 > DAMAGED_MOST {
            break;
        }
    }
    open_for_appending(path)?.write_all(&text)
}

fn open_for_appending(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Device and inode.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The file's content; nothing if it is not there. What is at its path and is no regular file is renamed, so that a journal can be
/// begun there.
fn read_or_set_aside(path: &Path) -> io::Result<Vec<u8>> {
    match sys::foreign_file::read(path, u64::MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A symbolic link that leads nowhere would have the journal made somewhere else.
            match std::fs::symlink_metadata(path) {
                Ok(_) => set_aside(path, &e).map(|()| Vec::new()),
                Err(_) => Ok(Vec::new()),
            }
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput) => {
            set_aside(path, &e).map(|()| Vec::new())
        }
        result => result,
    }
}

fn set_aside(path: &Path, why: &io::Error) -> io::Result<()> {
    let now = Timestamp::now().0;
    let aside = path.with_file_name(format!("{DAMAGED}.{now}"));
    std::fs::rename(path, &aside)?;
    tracing::error!(path = %path.display(), kept = %aside.display(), "set aside what cannot be the event journal: {why}");
    Ok(())
}
