//! Kernel objects behind safe interfaces, one object per file.
//!
//! This is the only crate that contains `unsafe`, and it does so only where rustix has no safe function. It knows
//! nothing of containers and allocates little. The daemon, the shim and the client share it.
//!
//! Without the feature `std` the crate needs no C library. It then provides what no program can do without: the first
//! instructions, a heap and `memcpy` (the module `start`). The shim is built this way: a host runs thousands of shims, and a C
//! library would add a third to the time that each of them takes to start.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod activation;
#[cfg(feature = "std")]
pub mod allocator;
pub mod child;
pub mod clock;
#[cfg(feature = "std")]
pub mod closed;
#[cfg(feature = "std")]
pub mod descriptors;
pub mod environment;
mod errno;
pub mod exhausted;
#[cfg(feature = "std")]
pub mod foreign_file;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(any(not(feature = "std"), test))]
mod heap;
#[cfg(feature = "std")]
pub mod huge_pages;
#[cfg(feature = "std")]
pub mod limits;
pub mod pidfd;
pub mod procfs;
mod raw;
#[cfg(feature = "std")]
pub mod seccomp;
pub mod shown;
pub mod signal;
pub mod small_file;
#[cfg(feature = "std")]
pub mod socket_path;
pub mod spawn;
pub mod stack;
#[cfg(not(feature = "std"))]
pub mod start;
mod stdio;
#[cfg(feature = "tokio")]
pub mod watched;

pub use errno::Explained;
pub use stdio::{stderr, stdin, stdout};

/// The error number of a system call that failed.
pub use rustix::io::Errno;
