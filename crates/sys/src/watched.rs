//! A descriptor that tokio waits on.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for `fd` becoming readable, a hang-up included. Must be called within a tokio runtime.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// [`readable`] for a descriptor that others have too.
pub fn readable_shared(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    register_shared(fd, Interest::READABLE)
}

/// Waits for `fd` having priority data, as files of the kernel do that have changed. Must be called within a tokio
/// runtime.
pub fn priority_shared(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    register_shared(fd, Interest::PRIORITY)
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and names the same descriptor, until it is dropped, which the AsyncFd does
    // after it has deregistered it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(io::Error::from)
}

fn register_shared(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the OwnedFd is open, and names the same descriptor, for as long as there is an Arc of it, and nothing takes it
    // out of the Arc; the AsyncFd drops its own Arc after it has deregistered the descriptor.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(io::Error::from)
}
