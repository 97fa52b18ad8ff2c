//! Reading what containers are and what they use, without starting a process.

pub(crate) mod network;
pub(crate) mod snapshot;
pub(crate) mod stats;
