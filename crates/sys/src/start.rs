//! The start of a program without a C library: its first instructions, its heap ([`crate::heap`]), and the functions
//! that the compiler calls for copies and comparisons.
//!
//! The program has one thread from start to end. It defines `main`, a C function without arguments that returns the
//! exit status.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::ffi::{CStr, c_char, c_int};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::heap::Heap;
use crate::raw;

// The kernel starts a program with this stack (x86-64 ABI, "Process Initialization"): the count of arguments, the
// arguments, a null pointer, the environment, a null pointer. The copies use the CPU's string instructions. The ABI
// says that the direction flag is clear at every call.
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
    // Copy forward unless the destination begins within the source.
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
    // The unwind tables of `core` and `alloc` refer to these. A program that aborts on panic calls neither.
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

/// Ends the program at once with `status`.
pub fn exit(status: c_int) -> ! {
    raw::exit(status)
}

/// Returns the strings of a list on the initial stack. `skipped` is given the count of arguments and returns how many
/// words behind that count the list begins.
fn strings(skipped: impl Fn(usize) -> usize) -> Vec<CString> {
    let stack = STACK.load(Ordering::Relaxed);
    let mut all = Vec::new();
    if stack.is_null() {
        return all;
    }
    // SAFETY: `begin` stored the stack pointer with which the kernel started the program, and nothing writes to that
    // part of the stack afterwards. Both lists consist of valid C strings and end with a null pointer, where the loop
    // stops. With `arguments + 1` words skipped, the list behind the arguments' null pointer is the environment.
    unsafe {
        let mut next = stack.add(1 + skipped(*stack)).cast::<*const c_char>();
        while !(*next).is_null() {
            all.push(CStr::from_ptr(*next).to_owned());
            next = next.add(1);
        }
    }
    all
}

/// Returns the arguments. The first one is the program's own name.
pub fn arguments() -> Vec<CString> {
    strings(|_| 0)
}

/// Returns the environment variables in the form `NAME=value`.
pub fn variables() -> Vec<CString> {
    strings(|arguments| arguments + 1)
}

#[global_allocator]
static HEAP: Heap = Heap::new();
