//! `containerd-shim`: the parent of one container process.
//!
//! The daemon starts it as `<shim> <container id> <bundle> <runtime>`, with the process's directory as its working directory. The
//! shim runs the OCI runtime, moves the process's stdio, obeys `control`, reaps the process, and writes down how the process ended.
//! It lives as long as the process and its output do, whether or not a daemon runs.
//!
//! This crate is the shim's contract with the daemon: its arguments, its files and FIFOs, its log. The crate `shim-core` does the
//! rest. `contract` has what both sides of the contract must agree on.
//!
//! What always holds: there is one thread; one epoll loop never blocks on anything that a client or the process decides; all
//! signals are blocked, so that only SIGKILL ends the shim; `exit` stays open for writing until `exitStatus` is there.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod error;
mod event_loop;
mod files;
mod request;
mod runtime;

use error::Failure;

/// The C library calls this, or `sys::start` where there is none. std's preparations before Rust's `main` are of no use here, and
/// they cost more than all that the shim does before it starts the runtime: std reads `/proc/self/maps` and makes a stack for signal
/// handlers.
// SAFETY: no other item of the program has this name, and both callers expect a C function without arguments under it.
#[cfg(not(test))]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn main() -> core::ffi::c_int {
    run()
}

/// Writes a fault of the program itself into the shim's log and ends the program.
#[cfg(not(feature = "std"))]
#[panic_handler]
fn end(panic: &core::panic::PanicInfo<'_>) -> ! {
    Failure::Panic(alloc::format!("{panic}")).log();
    sys::start::exit(101)
}

/// Gives back what the preparation has used of the stack: waiting needs a page or two.
#[allow(unsafe_code)]
#[cfg_attr(test, allow(dead_code))]
fn give_back_stack() {
    // SAFETY: this is the program's only thread, on the main thread's stack, below which the kernel maps nothing close.
    // Nothing points below this frame: it has no variables, and its callers' variables are above it.
    unsafe { sys::stack::give_back() };
}

/// Runs the program. Returns its exit status.
#[cfg_attr(test, allow(dead_code))]
fn run() -> i32 {
    let mut arguments = sys::environment::arguments().into_iter().skip(1);
    let (Some(id), Some(bundle), Some(runtime), None) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next())
    else {
        const USAGE: &str =
            "usage: containerd-shim ID BUNDLE RUNTIME (started by containerd, in a process directory)\n";
        let _ = shim_core::files::write_all(sys::stdout(), USAGE.as_bytes());
        return 2;
    };
    let target = runtime::Target { id, bundle, runtime };
    match event_loop::run(target, give_back_stack) {
        Ok(()) => 0,
        // Without a daemon the log has no reader.
        Err(Failure::NoDaemon) => 1,
        Err(failure) => {
            failure.log();
            1
        }
    }
}
