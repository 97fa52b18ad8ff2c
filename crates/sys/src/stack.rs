//! The stack of a program that needs much of it while it starts, and little afterwards.

use core::ffi::c_void;
use rustix::mm::{Advice, madvise};

/// The largest page size of the architecture.
#[cfg(not(target_arch = "x86_64"))]
const PAGE: usize = 64 << 10;
#[cfg(target_arch = "x86_64")]
const PAGE: usize = 4096;

/// How much of the stack below the caller [`give_back`] returns to the kernel.
pub const DEPTH: usize = 64 << 10;

/// Returns to the kernel the pages that earlier calls have used of this thread's stack, up to [`DEPTH`] bytes below the
/// caller. When the stack grows there again, the kernel provides pages of zeros.
///
/// # Safety
///
/// The [`DEPTH`] bytes below the caller's frame must belong to the calling thread's stack or be unmapped, since
/// whatever is mapped there is overwritten with zeros. No pointer into them may be used afterwards.
///
/// The main thread's stack always meets the first condition: it grows on demand, and the kernel maps nothing else
/// within 256 pages below it (Documentation/admin-guide/kernel-parameters.txt, `stack_guard_gap`). A thread that a
/// library created has a stack of a fixed size, with other mappings close below: there the caller must know how much of
/// it is left.
pub unsafe fn give_back() {
    let here = 0u8;
    let here = core::ptr::from_ref(core::hint::black_box(&here)).addr();
    // Keep the page of this function's own frame and the page below it, where `madvise` has its frame.
    let end = (here & !(PAGE - 1)).saturating_sub(PAGE);
    let start = end.saturating_sub(DEPTH.next_multiple_of(PAGE));
    let start = core::ptr::with_exposed_provenance_mut::<c_void>(start);
    // SAFETY: stacks grow down, so that the range, which ends more than a page below a live frame, holds no frame in
    // use: `madvise` is a single system call whose frame is in the page above. The caller promises that the range is
    // stack or unmapped, and that nothing points into it.
    let _ = unsafe { madvise(start, DEPTH.next_multiple_of(PAGE), Advice::LinuxDontNeed) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn deep(levels: usize) -> u64 {
        let room = core::hint::black_box([levels as u8; 2048]);
        let below = if levels == 0 { 0 } else { deep(levels - 1) };
        below + u64::from(core::hint::black_box(room)[7])
    }

    /// Counts the pages below the caller that are in memory, by bit 63 of `/proc/self/pagemap`. mincore(2) does not
    /// report anonymous pages.
    fn pages_below() -> usize {
        use std::os::unix::fs::FileExt;
        let here = 0u8;
        let here = core::ptr::from_ref(core::hint::black_box(&here)).addr() / PAGE;
        let map = std::fs::File::open("/proc/self/pagemap").expect("opens");
        let is_present = |page: usize| {
            let mut entry = [0; 8];
            map.read_exact_at(&mut entry, page as u64 * 8).is_ok() && u64::from_le_bytes(entry) >> 63 == 1
        };
        (here - DEPTH / PAGE..here - 1).filter(|page| is_present(*page)).count()
    }

    #[test]
    fn used_stack_pages_are_returned_and_can_be_used_again() {
        if PAGE != 4096 {
            eprintln!("SKIPPED: the page size of this machine is not known");
            return;
        }
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
            let used = deep(20);
            let before = pages_below();
            // SAFETY: the thread has a stack of 1 MiB and has used a small part of it, so that all of the range is
            // stack. The frames of `deep` and `pages_below`, which were in the range, are gone.
            unsafe { give_back() };
            let after = pages_below();
            assert!(before >= 8, "{before} pages were used");
            // `pages_below` uses some pages itself.
            assert!(after + 4 <= before, "{after} of {before} pages are present");
            assert_eq!(deep(20), used);
        });
        thread.expect("starts").join().expect("does not panic");
    }
}
