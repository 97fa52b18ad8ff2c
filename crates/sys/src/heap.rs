//! A heap for programs of one thread that allocate little, most of it at their begin: blocks of a few sizes, each of which is
//! given out again when it has been given back, out of pieces that are never given back.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The smallest block, the largest one that is not a mapping of its own, and how many sizes there are between them.
const SMALLEST: usize = 16;
const LARGEST: usize = 16 << 10;
const SIZES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;

/// What is taken at once for blocks. The kernel gives a page only when it is touched.
const PIECE: usize = 64 << 10;

/// The first piece: beside the program's other data, which share a page of the page tables.
#[repr(align(4096))]
struct Piece(UnsafeCell<[u8; PIECE]>);

// SAFETY: as of `Heap`, which gives it out.
unsafe impl Sync for Piece {}

static FIRST: Piece = Piece(UnsafeCell::new([0; PIECE]));

struct Free(*mut Free);

/// Blocks of twice the size each; what is freed is given out again at the same size.
struct State {
    free: [*mut Free; SIZES],
    next: usize,
    end: usize,
}

/// What a program allocates from.
pub(crate) struct Heap(UnsafeCell<State>);

// SAFETY: there is only one thread. A child that shares the memory (`spawn`) does not allocate.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) const fn new() -> Heap {
        Heap(UnsafeCell::new(State { free: [null_mut(); SIZES], next: 0, end: 0 }))
    }
}

/// Which size a layout takes; `None` for a mapping of its own.
fn size_of_block(layout: Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(SMALLEST);
    (size <= LARGEST).then(|| size.next_power_of_two())
}

fn map(size: usize) -> *mut u8 {
    // SAFETY: a new mapping at an address that the kernel chooses is nobody's.
    let mapped = unsafe { mmap_anonymous(null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    mapped.map_or(null_mut(), |address| address.cast())
}

impl State {
    fn take(&mut self, size: usize) -> *mut u8 {
        let free = &mut self.free[(size / SMALLEST).ilog2() as usize];
        if let Some(block) = NonNull::new(*free) {
            // SAFETY: what is in the list was put there by `give`, which has written the next one into it.
            *free = unsafe { block.read() }.0;
            return block.as_ptr().cast();
        }
        // All sizes are powers of two, and a piece begins at a page: blocks up to one page are aligned to their size.
        let at = self.next.next_multiple_of(size.min(4096));
        if at + size <= self.end {
            self.next = at + size;
            return core::ptr::with_exposed_provenance_mut(at);
        }
        // Tests have several heaps, and this is one.
        let is_first = self.end == 0 && !cfg!(test);
        let piece = if is_first { FIRST.0.get().cast() } else { map(PIECE) };
        if !piece.is_null() {
            self.next = piece.expose_provenance() + size;
            self.end = piece.addr() + PIECE;
        }
        piece
    }

    fn give(&mut self, block: *mut u8, size: usize) {
        let free = &mut self.free[(size / SMALLEST).ilog2() as usize];
        let block = block.cast::<Free>();
        // SAFETY: it is a block of ours, large enough and aligned for a pointer, that nobody uses any more.
        unsafe { block.write(Free(*free)) };
        *free = block;
    }
}

// SAFETY: blocks are as large and as aligned as asked for, are given out to one at a time, and nothing unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // What is aligned to more than a page is asked for by nothing here.
        if layout.align() > 4096 {
            return null_mut();
        }
        match size_of_block(layout) {
            // SAFETY: one thread, and `take` calls nothing that allocates.
            Some(size) => unsafe { &mut *self.0.get() }.take(size),
            None => map(layout.size()),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match size_of_block(layout) {
            // SAFETY: as above; the caller gives back what it was given.
            Some(size) => unsafe { &mut *self.0.get() }.give(block, size),
            // SAFETY: it is a mapping of this size, which nobody uses any more.
            None => drop(unsafe { munmap(block.cast(), layout.size()) }),
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is a valid one for this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let size = size_of_block(layout);
        if size.is_some() && size == size_of_block(new) {
            return block;
        }
        // SAFETY: two blocks, of which the smaller size is copied; the old one is the caller's to give back.
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

    /// Numbers that look random.
    fn next(number: &mut u64) -> usize {
        *number ^= *number << 13;
        *number ^= *number >> 7;
        *number ^= *number << 17;
        (*number >> 11) as usize
    }

    #[test]
    fn blocks_are_aligned_apart_and_keep_what_is_in_them() {
        let heap = Heap::new();
        let mut number = 88_172_645_463_325_252;
        let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
        for round in 0..20_000_usize {
            let size = 1 + next(&mut number) % [40, 600, 9000, 40_000][next(&mut number) % 4];
            let layout = Layout::from_size_align(size, 1 << (next(&mut number) % 13)).expect("small");
            let fill = round as u8;
            // SAFETY: what is given back and changed is what was given, with the layout that it has; nothing is used later.
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
        // SAFETY: a layout that no block may have.
        assert!(unsafe { heap.alloc(Layout::from_size_align(16, 8192).expect("valid")) }.is_null());
    }

    #[test]
    fn what_is_given_back_is_given_out_again() {
        let heap = Heap::new();
        let layout = Layout::from_size_align(3000, 8).expect("small");
        // SAFETY: each block is given back as it was given, and not used.
        let mut blocks: Vec<usize> = (0..10_000)
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
