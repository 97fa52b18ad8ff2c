//! System calls that rustix lacks, or that rustix makes in a slower way. With std they go through the C library;
//! without std they are made directly.

#[cfg(feature = "std")]
#[path = "hosted.rs"]
mod calls;
#[cfg(not(feature = "std"))]
#[path = "direct.rs"]
mod calls;

pub(crate) use calls::*;

/// How [`set_mask`] combines a set of signals with the thread's mask (sigprocmask(2)).
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "std"), allow(dead_code))]
pub(crate) enum How {
    Block,
    Unblock,
    Set,
}
