//! System calls that rustix lacks, or takes too long a way to: by the C library where there is one, and directly where
//! there is none.

#[cfg(feature = "std")]
#[path = "hosted.rs"]
mod calls;
#[cfg(not(feature = "std"))]
#[path = "direct.rs"]
mod calls;

pub(crate) use calls::*;

/// What is done with a set of signals (sigprocmask(2)).
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "std"), allow(dead_code))]
pub(crate) enum How {
    Block,
    Unblock,
    Set,
}
