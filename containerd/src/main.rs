//! `containerd`, the daemon.
//!
//! This program is thin: it reads its flags, opens its socket, maps the gRPC API onto the supervisor, and stops when
//! it is told to. All that concerns containers is in the `supervisor` crate.

mod authority;
mod convert;
mod daemon;
mod errors;
mod events;
mod flags;
mod listen;
mod logging;
mod service;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let flags = flags::Flags::parse();
    logging::init(&flags);
    match daemon::run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}
