//! Huge pages for files in memory. A program that is run from such a file starts faster, since the kernel maps many of
//! its pages at once.

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::io;
use std::os::fd::AsFd;
use std::ptr::null_mut;

/// The kernel's size of a huge page.
const SIZE: &str = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";

/// madvise(2), `MADV_COLLAPSE` (Linux 6.1), which neither rustix nor libc has.
const COLLAPSE: libc::c_int = 25;

/// A mapping that is unmapped when this value is dropped.
struct Range(*mut libc::c_void, usize);

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: `map` created the mapping and gives its addresses out only beside this value, which its callers drop
        // after their last use of them.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}

/// Moves the first `length` bytes of a file in memory into huge pages, as many as they fill. The rest stays in small
/// pages. This works whatever the system's setting for transparent huge pages is. Takes some milliseconds; an error
/// means that the kernel cannot do it.
pub fn collapse(file: impl AsFd, length: usize) -> io::Result<()> {
    let size = size()?;
    let whole = length.checked_div(size).unwrap_or_default() * size;
    if whole == 0 {
        return Ok(());
    }
    let (_room, at) = map(file, whole, size)?;
    // SAFETY: `at` and the `whole` bytes behind it are mapped as long as `_room` lives. The call moves the pages in
    // physical memory and changes none of their content.
    let result = unsafe { libc::madvise(at, whole, COLLAPSE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn size() -> io::Result<usize> {
    std::fs::read_to_string(SIZE)?.trim().parse().map_err(io::Error::other)
}

/// Maps the first `whole` bytes of a file for reading, at an address that is a multiple of `size`. The address is valid
/// as long as the returned range.
fn map(file: impl AsFd, whole: usize, size: usize) -> io::Result<(Range, *mut libc::c_void)> {
    // A reservation of `size` more bytes contains such an address.
    let room = whole + size;
    // SAFETY: the kernel chooses an address where nothing is mapped.
    let room = Range(unsafe { mmap_anonymous(null_mut(), room, ProtFlags::empty(), MapFlags::PRIVATE) }?, room);
    let at = room.0.wrapping_byte_add(room.0.align_offset(size));
    // SAFETY: the range from `at` lies within the reservation that was just made, which nothing uses yet: `at` is less
    // than `size` bytes behind its beginning.
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
    fn collapsed_file_keeps_its_content() {
        let file = File::from(memfd_create("x", MemfdFlags::CLOEXEC).expect("memfd"));
        let content: Vec<u8> = (0..5_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        file.write_all_at(&content, 0).expect("writes");
        match collapse(&file, content.len()) {
            Ok(()) => {
                let size = size().expect("there are huge pages");
                let (_room, at) = map(&file, content.len() / size * size, size).expect("maps");
                // SAFETY: `at` is mapped for reading as long as `_room` lives, and this test, the only owner of the
                // file, does not truncate it.
                assert_eq!(unsafe { at.cast::<u8>().read_volatile() }, content[0]);
                let smaps = std::fs::read_to_string("/proc/self/smaps").expect("reads");
                let own = smaps.split_once(&format!("\n{:x}-", at.addr())).expect("is mapped").1;
                let huge = own.lines().find_map(|line| line.strip_prefix("ShmemPmdMapped:")).expect("a field of smaps");
                assert_eq!(huge.trim(), format!("{} kB", size >> 10), "one huge page was touched");
            }
            // The machine has no free huge page now, or the kernel has none or is too old.
            Err(e) => {
                let no_room = [libc::ENOMEM, libc::EAGAIN, libc::EBUSY].map(Some).contains(&e.raw_os_error());
                let release = rustix::system::uname().release().to_string_lossy().into_owned();
                let number = |at| release.split('.').nth(at).and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
                let is_old = (number(0), number(1)) < (6, 1) || !std::path::Path::new(SIZE).exists();
                assert!(no_room || is_old, "Linux {release} can do it: {e}");
                eprintln!("SKIPPED: this machine cannot put a file into huge pages: {e}");
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
