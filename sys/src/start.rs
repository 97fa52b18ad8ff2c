//! What a program without a C library begins with: its first instructions, a heap, and the functions that the compiler
//! calls for copies and comparisons. The program is one thread from its begin to its end, and is `main`, a C function without
//! arguments that returns the exit status.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::raw;

// As the kernel begins it (the x86-64 ABI, "Process Initialization"): the stack holds the count of arguments, the
// arguments, a null pointer, the environment, a null pointer. Copies are the CPU's own; the direction flag is clear at
// every call.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    ".globl memcpy",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".globl memmove",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    // Forward unless the destination begins within the source.
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2:",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".globl memset",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".globl memcmp",
    ".globl bcmp",
    "memcmp:",
    "bcmp:",
    "xor ecx, ecx",
    "2:",
    "cmp rcx, rdx",
    "je 3f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 2b",
    "ret",
    "3:",
    "xor eax, eax",
    "ret",
    ".globl strlen",
    "strlen:",
    "xor eax, eax",
    "2:",
    "cmp byte ptr [rdi + rax], 0",
    "je 3f",
    "inc rax",
    "jmp 2b",
    "3:",
    "ret",
    // Named by the tables of `core` and `alloc`, which are built to unwind; a program that aborts calls neither.
    ".globl rust_eh_personality",
    ".globl _Unwind_Resume",
    "rust_eh_personality:",
    "_Unwind_Resume:",
    "ud2",
    begin = sym begin,
);

unsafe extern "C" {
    safe fn main() -> c_int;
}

static STACK: AtomicPtr<usize> = AtomicPtr::new(null_mut());

extern "C" fn begin(stack: *mut usize) -> ! {
    STACK.store(stack, Ordering::Relaxed);
    raw::exit(main())
}

/// Ends the program at once.
pub fn exit(status: c_int) -> ! {
    raw::exit(status)
}

/// The strings of a list on the stack that begins `skipped` words behind its count of arguments.
fn strings(skipped: impl Fn(usize) -> usize) -> Vec<CString> {
    let stack = STACK.load(Ordering::Relaxed);
    let mut all = Vec::new();
    if stack.is_null() {
        return all;
    }
    // SAFETY: it is where the kernel has put it, and stays there for as long as the program runs. A null pointer is
    // behind the last string of each list.
    unsafe {
        let mut next = stack.add(1 + skipped(*stack)).cast::<*const c_char>();
        while !(*next).is_null() {
            all.push(CStr::from_ptr(*next).to_owned());
            next = next.add(1);
        }
    }
    all
}

/// The arguments, the program's own name first.
pub fn arguments() -> Vec<CString> {
    strings(|_| 0)
}

/// The environment's variables, as `NAME=value`.
pub fn variables() -> Vec<CString> {
    strings(|arguments| arguments + 1)
}

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

struct Heap(UnsafeCell<State>);

// SAFETY: there is only one thread. A child that shares the memory (`spawn`) does not allocate.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(State { free: [null_mut(); SIZES], next: 0, end: 0 }));

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
        let piece = if self.end == 0 { FIRST.0.get().cast() } else { map(PIECE) };
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
