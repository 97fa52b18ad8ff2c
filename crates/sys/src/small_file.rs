//! Reading small files, of the kernel's or of ours, by three system calls: std asks for the size first, which the kernel does
//! not know of its own files, and for an end after the end.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{self, Errno};

/// More than most have.
const PIECE: usize = 4096;

/// Reads a file below `directory` ([`rustix::fs::CWD`] for the working directory, or an absolute path).
pub fn read(directory: impl AsFd, path: impl rustix::path::Arg) -> io::Result<Vec<u8>> {
    let file = openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // On the stack: what is allocated is no more than what there is, and small enough for no lock to be taken.
    let mut piece = [MaybeUninit::uninit(); PIECE];
    let mut bytes = Vec::new();
    loop {
        match rustix::io::read(&file, &mut piece) {
            Ok((read, _)) => {
                let read: &[u8] = read;
                bytes.extend_from_slice(read);
                // The kernel gives all that there is and fits: if half of the room is left, that was the end.
                if read.len() < PIECE / 2 {
                    return Ok(bytes);
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The same as text; what is not UTF-8 is replaced, as a process may give itself any bytes as its name.
pub fn read_text(directory: impl AsFd, path: impl rustix::path::Arg) -> io::Result<String> {
    let bytes = read(directory, path)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;

    #[test]
    fn all_of_it_is_read_however_long() {
        let path = std::env::temp_dir().join(format!("small-file-{}", std::process::id()));
        for length in [0, 1, 2047, 2048, 4095, 4096, 4097, 100_000] {
            std::fs::write(&path, "x".repeat(length)).expect("writes");
            assert_eq!(read(CWD, &path).expect("reads").len(), length);
        }
        std::fs::write(&path, b"a\xffb").expect("writes");
        assert_eq!(read_text(CWD, &path).expect("reads"), "a\u{fffd}b");
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(read(CWD, &path).expect_err("gone").kind(), std::io::ErrorKind::NotFound);
        let maps = std::fs::read_to_string("/proc/self/mountinfo").expect("reads");
        assert_eq!(read_text(CWD, "/proc/self/mountinfo").expect("reads"), maps);
    }
}
