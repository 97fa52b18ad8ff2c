//! Everything that the daemon and the shim agree on, written once.
//!
//! The daemon and the shim are separate programs that talk through files and FIFOs in a process's directory. They can also be
//! of different versions: a daemon takes over the shims that its predecessor started. This crate holds what both must read
//! and write in the same way: the names of files ([`container_files`], [`process_files`]), the records in `state.json`,
//! `process.json` and a checkpoint's `config.json`, the format number, the commands on `control`, the lines of
//! `shim-log.json`, the exit statuses with a special meaning, and the command lines of the OCI runtime ([`runtime`]).
//!
//! The crate performs no input or output. It needs `alloc` but not `std`, because the shim has no `std`.
//! `docs/dev/contract.md` describes the contract in prose, with the owner and the writer of each file.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod checkpoint;
pub mod container_files;
mod container_record;
mod control;
mod failure;
mod format;
pub mod process_files;
mod process_record;
pub mod runtime;
pub mod status;

pub use checkpoint::{Checkpoint, CheckpointOptions};
pub use container_record::ContainerRecord;
pub use control::{Command, Decoder, UnknownCommand};
pub use failure::{FailureKind, error_line, warning_line};
pub use format::{FORMAT, NewerFormat, check_format, null_as_default};
pub use process_record::{BadRequest, ConsoleSize, ProcessRecord, Request, RuntimeCopy, Way};
