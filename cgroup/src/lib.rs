//! A container's control groups, found from one of its processes and used by plain file reads and writes.
//!
//! v1, v2 and both beside each other look the same from outside. Nothing here starts a process, and nothing
//! keeps a descriptor open. See cgroups(7) and the kernel's `admin-guide/cgroup-v1`, `cgroup-v2.rst`.

mod group;
mod hierarchies;

pub use group::Cgroup;
pub use hierarchies::Hierarchies;
