//! A container's control groups, found from one of its processes and used by plain file reads and writes.
//!
//! Version 1, version 2 and both beside each other have the same interface here. This crate starts no process. It keeps
//! no descriptor open except those that announce that memory ran out, and those of [`Cgroup::hold`] and
//! [`Cgroup::stats`]. See cgroups(7) and the kernel's `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2.rst`.
//!
//! A *hierarchy* is a mounted tree of groups, with one or more controllers. A container has a group in each hierarchy;
//! its *place* is the path of that group.

mod files;
mod freezer;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod group;
mod held;
mod hierarchies;
mod limits;
mod oom;
mod requested;
mod stats;

pub use group::Cgroup;
pub use hierarchies::Hierarchies;
pub use limits::{Changes, Conflict, Device, Field, Limit, LimitError, Setting, Value};
pub use oom::{OomDescriptors, OomSource};
pub use requested::{Requested, Survey};
pub use stats::{Blkio, BlkioEntry, Cpu, Memory, Stats, Usage, system_cpu_time};
