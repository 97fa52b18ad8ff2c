//! Reading small files of the kernel's or of our own with few system calls and one allocation.
//!
//! std would ask for the file's size first, and the kernel reports none for the files that it generates.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{self, Errno};

/// How much is read at once. Most files are shorter.
const PIECE: usize = 4096;

/// Reads a file below `directory` to its end. `directory` is [`rustix::fs::CWD`] for an absolute path and for a path
/// relative to the working directory.
///
/// The file must be the kernel's or written by this program: nothing limits how much of it is read. For a file that another
/// program wrote use [`read_at_most`].
pub fn read(directory: impl AsFd, path: impl rustix::path::Arg) -> io::Result<Vec<u8>> {
    read_at_most(directory, path, usize::MAX)
}

/// Does what [`read`] does for a file of at most `limit` bytes. A longer file is an error (`EFBIG`).
pub fn read_at_most(directory: impl AsFd, path: impl rustix::path::Arg, limit: usize) -> io::Result<Vec<u8>> {
    let file = openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    read_to_end(&file, limit)
}

/// Reads until the kernel reports the end of the file, however little each read returns: from a file that the kernel
/// generates a read returns whole lines only, at most a page of them (fs/seq_file.c, `seq_read_iter`), so that a long line
/// makes the read before it short.
fn read_to_end(file: impl AsFd, limit: usize) -> io::Result<Vec<u8>> {
    // The buffer is on the stack, so that the vector gets no larger than its content.
    let mut piece = [MaybeUninit::uninit(); PIECE];
    let mut bytes = Vec::new();
    loop {
        match rustix::io::read(&file, &mut piece) {
            Ok(([], _)) => return Ok(bytes),
            Ok((read, _)) if read.len() > limit - bytes.len() => return Err(Errno::FBIG),
            Ok((read, _)) => bytes.extend_from_slice(read),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Reads a file as [`read`] does and returns it as text. Bytes that are not UTF-8 are replaced: a process may choose any
/// bytes as its name.
pub fn read_text(directory: impl AsFd, path: impl rustix::path::Arg) -> io::Result<String> {
    let bytes = read(directory, path)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::pipe::PipeFlags;
    use rustix::thread::UnshareFlags;
    use std::ffi::CString;
    use std::path::PathBuf;

    fn temporary(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("small-file-{name}-{}", std::process::id()))
    }

    #[test]
    fn file_of_any_length_is_read_to_its_end() {
        let path = temporary("length");
        for length in [0, 1, 2047, 2048, 4095, 4096, 4097, 100_000] {
            std::fs::write(&path, "x".repeat(length)).expect("writes");
            assert_eq!(read(CWD, &path).expect("reads").len(), length);
            assert_eq!(read_at_most(CWD, &path, length).expect("fits").len(), length);
            if length > 0 {
                assert_eq!(read_at_most(CWD, &path, length - 1), Err(Errno::FBIG), "{length}");
            }
        }
        std::fs::write(&path, b"a\xffb").expect("writes");
        assert_eq!(read_text(CWD, &path).expect("reads"), "a\u{fffd}b");
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(read(CWD, &path).expect_err("gone").kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn endless_file_is_refused_at_the_limit() {
        assert_eq!(read_at_most(CWD, "/dev/zero", 100_000), Err(Errno::FBIG));
    }

    #[test]
    fn short_read_is_not_taken_for_the_end() {
        // From a pipe in packet mode each read returns one write (pipe(2), `O_DIRECT`).
        let flags = PipeFlags::DIRECT | PipeFlags::CLOEXEC;
        let (reader, writer) = rustix::pipe::pipe_with(flags).expect("pipe");
        let expected: Vec<u8> = (0..10).flat_map(|n| vec![n; 1000]).collect();
        for packet in expected.chunks(1000) {
            rustix::io::write(&writer, packet).expect("there is room");
        }
        drop(writer);
        assert_eq!(read_to_end(&reader, usize::MAX).expect("reads"), expected);
    }

    /// Mounts overlays on `points` with a few and with many of `layers` in turn, in a mount namespace of this thread's own, and
    /// returns what [`read_text`] makes of the mountinfo. `None` where this user or kernel cannot mount an overlay.
    fn read_mountinfo_with_overlays(points: &[String], layers: &[String]) -> Option<String> {
        // SAFETY: the function is unsafe for the sake of CLONE_FILES, which is not asked for. This flag gives the thread a
        // mount namespace, a root and a working directory of its own.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.ok()?;
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).expect("makes mounts private");
        for (point, count) in points.iter().zip([5, 14].into_iter().cycle()) {
            std::fs::create_dir_all(point).expect("creates");
            let options = CString::new(format!("lowerdir={}", layers[..count].join(":"))).expect("no zero byte");
            mount("overlay", point.as_str(), "overlay", MountFlags::empty(), options.as_c_str()).ok()?;
        }
        Some(read_text(CWD, "/proc/thread-self/mountinfo").expect("reads"))
    }

    /// A line of mountinfo names all layers of an overlay. Where a line of 1,300 bytes comes before one of 3,000, a read
    /// returns the first alone.
    #[test]
    fn mountinfo_with_long_lines_is_read_to_its_end() {
        let top = temporary("overlay");
        let at = |name: String| top.join(name).display().to_string();
        let layers: Vec<String> = (10..24).map(|n| at(format!("{n}{}", "l".repeat(180)))).collect();
        layers.iter().for_each(|layer| std::fs::create_dir_all(layer).expect("creates"));
        let points: Vec<String> = (0..8).map(|n| at(format!("point-{n}"))).collect();
        let mounting = std::thread::spawn({
            let (points, layers) = (points.clone(), layers.clone());
            move || read_mountinfo_with_overlays(&points, &layers)
        });
        // The namespace and its mounts end with the thread.
        let mountinfo = mounting.join().expect("does not panic");
        std::fs::remove_dir_all(&top).expect("removes");
        let Some(mountinfo) = mountinfo else {
            eprintln!("SKIPPED: this user or kernel cannot mount an overlay");
            return;
        };
        for point in &points {
            assert!(mountinfo.lines().any(|line| line.split(' ').nth(4) == Some(point)), "{point}");
        }
    }
}
