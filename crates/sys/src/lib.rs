//! Kernel objects behind safe faces, one a file.
//!
//! This is the only crate with `unsafe` in it, and all of that is for what rustix lacks. It knows nothing
//! of containers, allocates little, and is shared by the daemon, the shim and the client.
//!
//! Without the feature `std` it needs no C library, and brings what a program cannot do without: its first
//! instructions, a heap and `memcpy` ([`start`]). That is for the shim, of which there are thousands, and of which
//! each start would cost a third more with a C library's.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod activation;
#[cfg(feature = "std")]
pub mod allocator;
pub mod child;
pub mod clock;
#[cfg(feature = "std")]
pub mod descriptors;
pub mod environment;
mod errno;
pub mod exhausted;
#[cfg(feature = "std")]
pub mod foreign_file;
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

/// What a system call failed with.
pub use rustix::io::Errno;
