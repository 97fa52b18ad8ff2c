//! A runtime's stderr: a file in memory that the daemon reads if the runtime fails.
//!
//! A pipe would have to be read all the time. It would also break when the daemon ends, while the runtime runs on.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, tell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The possible sizes of the file. The first one that this process may create (`RLIMIT_FSIZE`) is used. Only what the
/// program writes takes memory. A write beyond the size fails with `EPERM`.
const ROOMS: [u64; 4] = [1 << 20, 64 << 10, 4 << 10, 0];

/// How much of the end is read.
const TAIL: u64 = 16 << 10;

/// The file that a program has as its stderr.
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

    /// Returns what the program has written so far, or the end of it if it is long.
    pub(crate) fn read(&self) -> String {
        // The program's descriptor is a duplicate of this one, so that both have the same offset.
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

    /// Returns the line that says why the program failed.
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
    fn end_of_long_output_is_read_and_a_write_beyond_the_size_fails() {
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
