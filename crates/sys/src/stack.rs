//! The stack of a program that has a deep beginning and a shallow life.

use core::ffi::c_void;
use rustix::mm::{Advice, madvise};

/// The largest page of any architecture.
#[cfg(not(target_arch = "x86_64"))]
const PAGE: usize = 64 << 10;
#[cfg(target_arch = "x86_64")]
const PAGE: usize = 4096;

/// What may have been used below the caller.
const DEPTH: usize = 64 << 10;

/// Gives the kernel back what earlier calls have used of this thread's stack, below the caller. It gives pages of zeros
/// for it when they are used again.
pub fn give_back() {
    let here = 0u8;
    let here = core::ptr::from_ref(core::hint::black_box(&here)).addr();
    // The page of this function's own frame, and the next one, in which what it calls has its own.
    let end = (here & !(PAGE - 1)).saturating_sub(PAGE);
    let start = end.saturating_sub(DEPTH.next_multiple_of(PAGE));
    // SAFETY: a stack grows down. What is more than a page below a live frame is in no other one: the system call needs none,
    // no signal handler is on this stack, and nobody else knows of it. Nothing else is mapped so near below a stack
    // (Documentation/admin-guide/kernel-parameters.txt, `stack_guard_gap`: 256 pages).
    let _ =
        unsafe { madvise(core::ptr::with_exposed_provenance_mut::<c_void>(start), end - start, Advice::LinuxDontNeed) };
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

    /// How many of the pages below are there (mincore(2) does not tell of anonymous ones): `/proc/self/pagemap`, bit 63.
    fn pages_below() -> usize {
        use std::os::unix::fs::FileExt;
        let here = 0u8;
        let here = core::ptr::from_ref(core::hint::black_box(&here)).addr() / PAGE;
        let map = std::fs::File::open("/proc/self/pagemap").expect("opens");
        let is_there = |page: usize| {
            let mut entry = [0; 8];
            map.read_exact_at(&mut entry, page as u64 * 8).is_ok() && u64::from_le_bytes(entry) >> 63 == 1
        };
        (here - DEPTH / PAGE..here - 1).filter(|page| is_there(*page)).count()
    }

    #[test]
    fn what_was_used_is_given_back_and_can_be_used_again() {
        if PAGE != 4096 {
            eprintln!("SKIPPED: how large a page is here is not known");
            return;
        }
        // A thread's stack has room below it that nobody has used.
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
            let used = deep(20);
            let before = pages_below();
            give_back();
            let after = pages_below();
            assert!(before >= 8, "{before} pages were used");
            // What looking takes is used again.
            assert!(after + 4 <= before, "{after} of {before} pages are there");
            assert_eq!(deep(20), used);
        });
        thread.expect("starts").join().expect("does not panic");
    }
}
