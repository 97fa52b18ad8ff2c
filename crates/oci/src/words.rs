//! What a program writes to stderr: a file in memory, looked at when the program has failed.
//!
//! A pipe would have to be read all the time, and would break when this daemon goes, while the program runs on.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, tell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The room that a program has, or less where this process may not make files of that size (`RLIMIT_FSIZE`). Only what is
/// written takes memory; what does not fit is refused to the program (`EPERM`).
const ROOMS: [u64; 4] = [1 << 20, 64 << 10, 4 << 10, 0];

/// As much of the end is looked at.
const TAIL: u64 = 16 << 10;

/// The file.
#[derive(Debug)]
pub(crate) struct Words(OwnedFd);

impl Words {
    pub(crate) fn new() -> io::Result<Words> {
        let file = memfd_create("stderr", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        if !ROOMS.iter().any(|room| ftruncate(&file, *room).is_ok()) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Words(file))
    }

    /// All that has been written by now, if it is not too much, or else the end of it.
    pub(crate) fn read(&self) -> String {
        // The program's descriptor is a copy of this one, and moves the same offset.
        let end = tell(&self.0).unwrap_or_default().min(ROOMS[0]);
        let start = end.saturating_sub(TAIL);
        let mut text = vec![0; usize::try_from(end - start).unwrap_or_default()];
        let mut filled = 0;
        while let Ok(n @ 1..) = rustix::io::pread(&self.0, &mut text[filled..], start + filled as u64) {
            filled += n;
        }
        text.truncate(filled);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The line that says why the program failed.
    pub(crate) fn reason(&self) -> String {
        crate::log::reason_in_words(&self.read())
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn end_of_many_words_is_kept_and_more_than_the_room_is_refused() {
        let words = Words::new().expect("makes a file");
        assert_eq!(words.read(), "");
        let mut writer = std::fs::File::from(words.as_fd().try_clone_to_owned().expect("a copy"));
        writer.write_all(b"first\n").expect("there is room");
        assert_eq!(words.read(), "first\n");
        writer.write_all(&vec![b'x'; 100_000]).expect("there is room");
        writer.write_all(b"\nlast\n\n").expect("there is room");
        assert_eq!(words.reason(), "last");
        assert_eq!(words.read().len() as u64, TAIL);
        assert!(writer.write_all(&vec![b'y'; 1 << 20]).is_err());
    }
}
