//! What a shim is made of, whatever protocol it serves and however many containers it looks after.
//!
//! ```text
//!  Process ── when a process is over: it has ended and its output has been delivered
//!   └ Streams ── the stdio of one process; accepts its terminal on a ConsoleSocket
//!      ├ Input ──┬ Mover ── moves bytes by splice(2) or a buffer
//!      │         └ TerminalEnd ── the end of a terminal's input
//!      └ Output ── Mover
//!  Poller, OomCount, runtime, strays, files
//! ```
//!
//! A shim has an event loop of its own. It owns the [`Poller`](poller::Poller), chooses the tokens, reaps the children, and tells
//! each [`Process`](process::Process) what happens to it. It calls [`Process::advance`](process::Process::advance) whenever the
//! poller reports the process's token or the process's deadline has passed.
//!
//! What always holds, so that one program can have many containers:
//!
//! - Nothing here is global. No function uses the working directory: paths and descriptors are parameters.
//! - Nothing here reaps a child, blocks a signal or waits, except [`oom::OomCount::wait_for_removal`]. The user says which child has
//!   ended.
//! - Nothing here writes a log. Warnings go to a callback ([`Warn`]).
//! - No function blocks on what a client or a container's process decides.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod console;
mod error;
pub mod files;
mod input;
mod mover;
pub mod oom;
mod output;
pub mod poller;
pub mod process;
pub mod runtime;
pub mod stdio;
pub mod strays;
pub mod streams;
mod terminal_end;

pub use error::{Context, Error};

/// Takes a warning: something went wrong and the shim goes on. The text is for a log.
pub type Warn<'a> = &'a dyn Fn(&str);
