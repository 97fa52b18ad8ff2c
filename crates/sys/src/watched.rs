//! Descriptors registered with tokio's event loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `fd` for readability, which includes a hang-up. Must be called within a tokio runtime.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// Does what [`readable`] does for a descriptor that has other owners too.
pub fn readable_shared(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    register_shared(fd, Interest::READABLE)
}

/// Registers `fd` for priority data, by which the kernel announces that one of its own files has changed. Must be
/// called within a tokio runtime.
pub fn priority_shared(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    register_shared(fd, Interest::PRIORITY)
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and names the same file until it is dropped. The AsyncFd owns it and deregisters it
    // before it drops it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(io::Error::from)
}

fn register_shared(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the OwnedFd is open and names the same file as long as one Arc of it exists, since an Arc gives out
    // shared references only. The AsyncFd holds an Arc of its own and deregisters the descriptor before it drops that
    // Arc.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(io::Error::from)
}
