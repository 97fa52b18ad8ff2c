//! Files in memory in few large pieces: a program that is started from one has its pages mapped several at a time.

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::io;
use std::os::fd::AsFd;
use std::ptr::null_mut;

/// The kernel's size of a huge page.
const SIZE: &str = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";

/// madvise(2), `MADV_COLLAPSE` (Linux 6.1), which neither rustix nor libc has.
const COLLAPSE: libc::c_int = 25;

/// A range of addresses that is this process's own and given back at the end.
struct Range(*mut libc::c_void, usize);

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: the range is a mapping of ours, of which nothing outlives this.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}

/// Moves the first `length` bytes of a file in memory into huge pages, as many as are whole, however the system is set: that
/// is asked for. The rest stays as it is. Takes some milliseconds, and is an error where the kernel cannot do it.
pub fn collapse(file: impl AsFd, length: usize) -> io::Result<()> {
    let size = size()?;
    let whole = length.checked_div(size).unwrap_or_default() * size;
    if whole == 0 {
        return Ok(());
    }
    let (_room, at) = map(file, whole, size)?;
    // SAFETY: the range is mapped and ours; the call changes where the kernel has the pages, and not what is in them.
    let result = unsafe { libc::madvise(at, whole, COLLAPSE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn size() -> io::Result<usize> {
    std::fs::read_to_string(SIZE)?.trim().parse().map_err(io::Error::other)
}

/// Maps the first `whole` bytes of a file at a multiple of `size`, to be read. It is there as long as the range is.
fn map(file: impl AsFd, whole: usize, size: usize) -> io::Result<(Range, *mut libc::c_void)> {
    // Room in which there is such a place.
    let room = whole + size;
    // SAFETY: an address that the kernel chooses is nobody's.
    let room = Range(unsafe { mmap_anonymous(null_mut(), room, ProtFlags::empty(), MapFlags::PRIVATE) }?, room);
    let at = room.0.wrapping_byte_add(room.0.align_offset(size));
    // SAFETY: it lies in the room, which is ours.
    unsafe { mmap(at, whole, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, file, 0) }?;
    Ok((room, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_is_what_it_was_and_what_is_too_small_is_left() {
        let file = File::from(memfd_create("x", MemfdFlags::CLOEXEC).expect("memfd"));
        let content: Vec<u8> = (0..5_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        file.write_all_at(&content, 0).expect("writes");
        match collapse(&file, content.len()) {
            Ok(()) => {
                let size = size().expect("there are huge pages");
                let (_room, at) = map(&file, content.len() / size * size, size).expect("maps");
                // SAFETY: it is mapped, and nobody shortens the file.
                assert_eq!(unsafe { at.cast::<u8>().read_volatile() }, content[0]);
                let smaps = std::fs::read_to_string("/proc/self/smaps").expect("reads");
                let own = smaps.split_once(&format!("\n{:x}-", at.addr())).expect("is mapped").1;
                let huge = own.lines().find_map(|line| line.strip_prefix("ShmemPmdMapped:")).expect("is told");
                assert_eq!(huge.trim(), format!("{} kB", size >> 10), "what was touched is one huge page");
            }
            // A machine that has no room for one just now, a kernel without them, or one that is too old.
            Err(e) => {
                let no_room = [libc::ENOMEM, libc::EAGAIN, libc::EBUSY].map(Some).contains(&e.raw_os_error());
                let release = rustix::system::uname().release().to_string_lossy().into_owned();
                let number = |at| release.split('.').nth(at).and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
                let is_old = (number(0), number(1)) < (6, 1) || !std::path::Path::new(SIZE).exists();
                assert!(no_room || is_old, "Linux {release} can do it: {e}");
                eprintln!("SKIPPED: this machine makes no huge pages of a file: {e}");
            }
        }
        let mut read = vec![0; content.len()];
        file.read_exact_at(&mut read, 0).expect("reads");
        assert!(read == content);
        if std::path::Path::new(SIZE).exists() {
            collapse(&file, 1000).expect("nothing to do");
        }
    }
}
