//! The error of this crate: which operation failed, and with which error of the kernel.

use alloc::string::String;
use core::fmt;
use sys::{Errno, Explained};

/// A system call that failed.
#[derive(Debug)]
pub struct Error {
    /// What was being done, on what: `open stdin /path`.
    pub operation: String,
    /// The kernel's error.
    pub source: Errno,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, Explained(self.source))
    }
}

/// Adds the operation to an error of the kernel.
pub trait Context<T> {
    /// `operation` is only called if there is an error.
    fn context(self, operation: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn context(self, operation: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error { operation: operation(), source })
    }
}
