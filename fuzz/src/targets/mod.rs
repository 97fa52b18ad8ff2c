//! One file for each subject. Each target's function takes the input and panics if a parser breaks a promise.

pub(crate) mod archive;
pub(crate) mod authority;
pub(crate) mod bundle;
pub(crate) mod cgroup;
pub(crate) mod control;
pub(crate) mod files;
pub(crate) mod journal;
pub(crate) mod log;
pub(crate) mod message;
pub(crate) mod proc;
pub(crate) mod shown;
pub(crate) mod update;
pub(crate) mod user;
