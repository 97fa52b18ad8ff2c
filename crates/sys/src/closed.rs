//! Which of a program's first three descriptors were closed when it was started.
//!
//! std opens `/dev/null` in their place before `main`, so that no file that the program opens becomes its stdout
//! (library/std/src/sys/pal/unix/mod.rs, `sanitize_standard_fds`). What the program writes then is lost without an error. A
//! program whose output matters asks here.

use std::sync::atomic::{AtomicBool, Ordering};

static STDOUT: AtomicBool = AtomicBool::new(false);

/// Whether stdout was closed when this program was started.
pub fn stdout() -> bool {
    STDOUT.load(Ordering::Relaxed)
}

/// Runs before std: the C library calls what this section lists before `main` (ELF gABI, "Initialization and Termination
/// Functions"), which is where std begins.
// SAFETY: the section holds pointers to functions of the C ABI that take no arguments they must look at, and this is one. It uses
// nothing that is initialised later: one system call, and an atomic in static memory.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: F_GETFD reads the flags of a descriptor, and fails with EBADF if the number is none.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    STDOUT.store(flags == -1, Ordering::Relaxed);
}
