//! `containerd-shim`: the parent of one container process.
//!
//! Started by the daemon as `<shim> <container id> <bundle> <runtime>` with the process directory as its
//! working directory. It runs the OCI runtime, moves the process's stdio, obeys `control`, reaps the process
//! and writes down how it ended. It lives exactly as long as the process and its output do, whether or not a
//! daemon is there.
//!
//! What always holds: one thread; one epoll loop that never blocks on anything a client or the process
//! decides; all signals blocked, so that nothing but SIGKILL ends it; `exit` stays open for writing until
//! `exitStatus` is there.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod console;
mod error;
mod event_loop;
mod files;
mod input;
mod mover;
mod oci;
mod oom;
mod output;
mod poller;
mod request;
mod stdio;
mod terminal_end;

use error::Failure;

/// The C library calls this, or `sys::start` where there is none. std's own preparations before `main` are of no use here, and
/// cost more than all that the shim does before it starts the runtime: a reading of `/proc/self/maps` and a stack for signal
/// handlers.
// SAFETY: no other item of the program has this name, and whoever calls it expects it with this meaning.
#[cfg(not(test))]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn main() -> core::ffi::c_int {
    run()
}

/// What is a fault of the program itself is written down before it ends.
#[cfg(not(feature = "std"))]
#[panic_handler]
fn end(panic: &core::panic::PanicInfo<'_>) -> ! {
    Failure::Panic(alloc::format!("{panic}")).log();
    sys::start::exit(101)
}

/// Runs the event loop, which needs a page or two of the stack, after giving back what the preparation has used of it.
#[allow(unsafe_code)]
#[cfg_attr(test, allow(dead_code))]
fn wait(shim: event_loop::Shim) -> Result<(), Failure> {
    // SAFETY: this is the program's only thread, on the main thread's stack, below which the kernel maps nothing close.
    // Nothing points below this frame: `shim` is in this frame or in a caller's.
    unsafe { sys::stack::give_back() };
    shim.run()
}

/// The program; its exit status.
#[cfg_attr(test, allow(dead_code))]
fn run() -> i32 {
    let mut arguments = sys::environment::arguments().into_iter().skip(1);
    let (Some(id), Some(bundle), Some(runtime), None) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next())
    else {
        const USAGE: &str =
            "usage: containerd-shim ID BUNDLE RUNTIME (started by containerd, in a process directory)\n";
        let _ = files::write_all(sys::stdout(), USAGE.as_bytes());
        return 2;
    };
    let target = oci::Target { id, bundle, runtime };
    match event_loop::Shim::prepare(target).and_then(wait) {
        Ok(()) => 0,
        // Without a daemon there is nobody to tell.
        Err(Failure::NoDaemon) => 1,
        Err(failure) => {
            failure.log();
            1
        }
    }
}
