//! A heap for a program that has one thread and allocates little, most of it while it starts.
//!
//! Blocks have a few fixed sizes. A freed block is kept for the next allocation of its size, and the memory that blocks
//! are cut from is never returned to the kernel. Larger allocations are mappings of their own.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The smallest block.
const SMALLEST: usize = 16;

/// The largest block. A larger allocation becomes a mapping of its own.
const LARGEST: usize = 16 << 10;

/// How many sizes of blocks there are. Each size is twice the one before.
const SIZES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;

/// The smallest page size of any architecture, which is also the largest alignment that the heap provides.
const PAGE: usize = 4096;

/// How much memory is taken at once to cut blocks from. The kernel provides a page of it when the page is first
/// touched.
const PIECE: usize = 64 << 10;

/// A piece within the program's data. It comes first, since it shares a page table page with the program's other data.
#[repr(align(4096))]
struct Piece(UnsafeCell<[u8; PIECE]>);

// SAFETY: only the program's one heap uses it, and the program has one thread (see `Heap`).
unsafe impl Sync for Piece {}

static FIRST: Piece = Piece(UnsafeCell::new([0; PIECE]));

/// The header of a freed block: a pointer to the next freed block of the same size.
struct Free(*mut Free);

struct State {
    /// For each size, a list of the freed blocks.
    free: [*mut Free; SIZES],
    /// Where the unused rest of the present piece begins.
    next: *mut u8,
    /// The address at which the present piece ends.
    end: usize,
}

/// The allocator. Its program must have one thread.
pub(crate) struct Heap(UnsafeCell<State>);

// SAFETY: without std, programs have one thread (`start`), so that a shared heap is used by one thread only. A child
// process that shares the memory for a while (`spawn`) does not allocate.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) const fn new() -> Heap {
        Heap(UnsafeCell::new(State { free: [null_mut(); SIZES], next: null_mut(), end: 0 }))
    }
}

/// Returns the size of the block for a layout; `None` if the layout needs a mapping of its own.
fn size_of_block(layout: Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(SMALLEST);
    (size <= LARGEST).then(|| size.next_power_of_two())
}

/// Maps `size` bytes; a null pointer if that fails.
fn map(size: usize) -> *mut u8 {
    // SAFETY: the kernel chooses an address where nothing is mapped.
    let mapped = unsafe { mmap_anonymous(null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    mapped.map_or(null_mut(), |address| address.cast())
}

impl State {
    /// Returns a block of `size`, which is one of the sizes; a null pointer if there is no memory.
    fn take(&mut self, size: usize) -> *mut u8 {
        let free = &mut self.free[(size / SMALLEST).ilog2() as usize];
        if let Some(block) = NonNull::new(*free) {
            // SAFETY: `give` put the block into the list and wrote a `Free` into it. Nobody has used the block since
            // then.
            *free = unsafe { block.read() }.0;
            return block.as_ptr().cast();
        }
        // Sizes are powers of two and pieces begin at a page, so that this aligns a block to its size or to a page.
        let skipped = self.next.addr().next_multiple_of(size.min(PAGE)) - self.next.addr();
        let block = self.next.wrapping_add(skipped);
        if block.addr() + size <= self.end {
            self.next = block.wrapping_add(size);
            return block;
        }
        // There is one static piece, and tests have several heaps.
        let is_first = self.end == 0 && !cfg!(test);
        let piece = if is_first { FIRST.0.get().cast() } else { map(PIECE) };
        if !piece.is_null() {
            self.next = piece.wrapping_add(size);
            self.end = piece.addr() + PIECE;
        }
        piece
    }

    /// Takes back a block of `size` that [`State::take`] returned.
    fn give(&mut self, block: *mut u8, size: usize) {
        let free = &mut self.free[(size / SMALLEST).ilog2() as usize];
        let block = block.cast::<Free>();
        // SAFETY: the block came from `take`, so that it has at least 16 bytes and is aligned to 16. Its user has given
        // it up.
        unsafe { block.write(Free(*free)) };
        *free = block;
    }
}

// SAFETY: a block is at least as large and as aligned as its layout, belongs to one allocation at a time, and keeps its
// content until it is freed. No function unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > PAGE {
            return null_mut();
        }
        match size_of_block(layout) {
            // SAFETY: there is one thread, and `take` does not allocate, so that this is the only reference to the
            // state.
            Some(size) => unsafe { &mut *self.0.get() }.take(size),
            None => map(layout.size()),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match size_of_block(layout) {
            // SAFETY: there is one thread, and `give` does not allocate, so that this is the only reference to the
            // state.
            Some(size) => unsafe { &mut *self.0.get() }.give(block, size),
            // SAFETY: `alloc` mapped exactly this many bytes there, and the caller no longer uses them.
            None => drop(unsafe { munmap(block.cast(), layout.size()) }),
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `new_size`, rounded up to the alignment, does not overflow `isize`.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let size = size_of_block(layout);
        if size.is_some() && size == size_of_block(new) {
            return block;
        }
        // SAFETY: `moved` and `block` are two live allocations, which do not overlap, and both have at least the
        // smaller of the two sizes. The caller gives up `block`, whose layout it has passed.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the next number of a pseudo-random sequence (xorshift).
    fn next(number: &mut u64) -> usize {
        *number ^= *number << 13;
        *number ^= *number >> 7;
        *number ^= *number << 17;
        (*number >> 11) as usize
    }

    #[test]
    fn live_blocks_are_aligned_and_keep_their_content() {
        let heap = Heap::new();
        let mut number = 88_172_645_463_325_252;
        let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
        // Miri is slow: fewer rounds and smaller blocks, of which few become mappings of their own.
        let (rounds, sizes) =
            if cfg!(miri) { (1000, [40, 100, 600, 20_000]) } else { (20_000, [40, 600, 9000, 40_000]) };
        for round in 0..rounds {
            let size = 1 + next(&mut number) % sizes[next(&mut number) % 4];
            let layout = Layout::from_size_align(size, 1 << (next(&mut number) % 13)).expect("small");
            let fill = round as u8;
            // SAFETY: each block is passed back with the layout that it has, and is removed from the list before that.
            // All bytes of a block in the list have been written.
            unsafe {
                match next(&mut number) % 4 {
                    0 | 1 if live.len() < 200 => {
                        let block = heap.alloc(layout);
                        assert!(!block.is_null() && block.addr() % layout.align() == 0, "{layout:?}");
                        block.write_bytes(fill, size);
                        live.push((block, layout, fill));
                    }
                    2 if !live.is_empty() => {
                        let (block, old, fill) = live.swap_remove(next(&mut number) % live.len());
                        let moved = heap.realloc(block, old, size);
                        let kept = core::slice::from_raw_parts(moved, size.min(old.size()));
                        assert!(kept.iter().all(|byte| *byte == fill), "{old:?} became {size}");
                        moved.write_bytes(fill, size);
                        let layout = Layout::from_size_align(size, old.align()).expect("small");
                        live.push((moved, layout, fill));
                    }
                    _ => {
                        if let Some((block, layout, fill)) = live.pop() {
                            let bytes = core::slice::from_raw_parts(block, layout.size());
                            assert!(bytes.iter().all(|byte| *byte == fill), "{layout:?}");
                            heap.dealloc(block, layout);
                        }
                    }
                }
            }
        }
        // SAFETY: the size is not zero.
        assert!(unsafe { heap.alloc(Layout::from_size_align(16, 8192).expect("valid")) }.is_null());
    }

    #[test]
    fn freed_block_is_reused() {
        let heap = Heap::new();
        let layout = Layout::from_size_align(3000, 8).expect("small");
        // SAFETY: each block is passed back at once, with the layout that it has.
        let mut blocks: Vec<usize> = (0..if cfg!(miri) { 100 } else { 10_000 })
            .map(|_| unsafe {
                let block = heap.alloc(layout);
                heap.dealloc(block, layout);
                block.addr()
            })
            .collect();
        blocks.dedup();
        assert_eq!(blocks.len(), 1);
    }
}
