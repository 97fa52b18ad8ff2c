//! What is done to containers: one file for each operation, and for parts that several share (`launch`, `dump`). An operation that
//! needs services is itself one, which is given them when it is made.

pub(crate) mod checkpoint;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod dump;
pub(crate) mod exec;
pub(crate) mod exit;
pub(crate) mod freezer;
pub(crate) mod launch;
pub(crate) mod oom;
pub(crate) mod remove;
pub(crate) mod restore;
pub(crate) mod signal;
pub(crate) mod update;
