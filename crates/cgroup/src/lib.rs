//! A container's control groups, found from one of its processes and used by plain file reads and writes.
//!
//! v1, v2 and both beside each other look the same from outside. Nothing here starts a process, and nothing keeps a
//! descriptor open but what waits for an out-of-memory and what [`Cgroup::hold`] and [`Cgroup::stats`] say. See cgroups(7) and the
//! kernel's `admin-guide/cgroup-v1`, `cgroup-v2.rst`.

mod files;
mod freezer;
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
