//! `containerd`, the daemon. `src/main.rs` is the program; the code is a library so that `fuzz/` can reach its parsers.
//!
//! This program reads its flags, opens its sockets, maps the gRPC API onto the supervisor, and stops when a signal asks for it.
//! Everything that concerns containers is in the crate `supervisor`.

mod authority;
mod convert;
mod daemon;
mod dump;
mod errors;
mod events;
mod flags;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
mod listen;
mod load;
mod logging;
mod metrics;
mod places;
mod profile;
mod replace;
mod service;
mod tls;
mod wire;

use std::process::ExitCode;

/// Runs the daemon that the arguments of this process describe, until a signal stops it.
pub fn main() -> ExitCode {
    let flags = flags::Flags::read();
    // Before the log opens a descriptor: see `sys::activation::take`.
    let inherited = listen::Inherited::take();
    let (log, level) = match logging::init(&flags) {
        Ok(logging) => logging,
        Err(e) => {
            eprintln!("containerd: cannot set up the log: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let code = match daemon::run(&flags, inherited, &log, level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    };
    log.flush();
    code
}
