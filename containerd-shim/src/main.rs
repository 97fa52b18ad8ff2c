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

mod console;
mod error;
mod event_loop;
mod files;
mod input;
mod mover;
mod oci;
mod output;
mod poller;
mod request;
mod stdio;

use std::process::ExitCode;

use error::Failure;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(id), Some(bundle), Some(runtime), None) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next())
    else {
        println!("usage: containerd-shim ID BUNDLE RUNTIME (started by containerd, in a process directory)");
        return ExitCode::from(2);
    };
    let target = oci::Target { id, bundle, runtime: runtime.into() };
    match event_loop::Shim::prepare(target).and_then(event_loop::Shim::run) {
        Ok(()) => ExitCode::SUCCESS,
        // Without a daemon there is nobody to tell.
        Err(Failure::NoDaemon) => ExitCode::FAILURE,
        Err(failure) => {
            failure.log();
            ExitCode::FAILURE
        }
    }
}
