//! What a program without a C library begins with: its first instructions, a heap ([`crate::heap`]), and the functions that the
//! compiler calls for copies and comparisons. The program is one thread from its begin to its end, and is `main`, a C function without
//! arguments that returns the exit status.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::ffi::{CStr, c_char, c_int};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::heap::Heap;
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

#[global_allocator]
static HEAP: Heap = Heap::new();
