//! Kernel objects behind safe faces, one a file.
//!
//! This is the only crate with `unsafe` in it, and all of that is for what rustix lacks. It knows nothing
//! of containers, allocates little, and is shared by the daemon, the shim and the client.

pub mod activation;
pub mod allocator;
pub mod child;
pub mod descriptors;
pub mod exhausted;
pub mod pidfd;
pub mod procfs;
pub mod signal;
pub mod small_file;
pub mod spawn;
#[cfg(feature = "tokio")]
pub mod watched;
