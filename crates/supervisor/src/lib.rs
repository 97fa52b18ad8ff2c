//! Containers and their processes: what state they are in, what has happened to them, and how a new daemon finds them again.
//!
//! [`Supervisor`] is the door to this crate. Behind it are services, each of which is given what it needs when it is made:
//!
//! - `events`: the journal of events and its subscribers;
//! - `container`: a container, its processes, and the table of their lifecycle;
//! - `host`: what is there once for all containers, such as the registry of ids and the known runtimes;
//! - `operations`: one file for each thing that is done to a container;
//! - `recovery`: what a new daemon does with the containers of an earlier one;
//! - `observe`: reading what containers are and what they use.
//!
//! No two files import each other in a circle. `supervisor` makes the services and imports all; nothing imports it.
//!
//! These hold at all times:
//! - An event is in the journal's file before any subscriber can see it, and what proves an exit stays on disk until the exit
//!   is in the journal.
//! - State changes and events come from one table (`container::lifecycle`); no other code makes them.
//! - Operations that change a container run one after the other, except that execs run side by side. Signals wait for nothing.
//!   Operations on different containers never wait for each other. No mutex is held while the daemon waits for a runtime or a shim.
//! - An operation that has begun runs to its end, also if its caller goes away.
//!
//! The crate knows nothing of gRPC, of flags or of any API's policy.

mod config;
mod container;
mod error;
mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod host;
mod observe;
mod operations;
mod recovery;
mod supervisor;

pub use cgroup::{Blkio, BlkioEntry, Changes, Cpu, Device, Field, Limit, LimitError, Memory, Setting, Stats, Usage};
pub use config::Config;
pub use container::info::{ContainerInfo, ProcessInfo};
pub use container::lifecycle::State;
pub use error::Error;
pub use events::{Event, EventKind, JournalError, Lost, Subscription, Timestamp};
pub use host::metrics::Metrics;
pub use host::tasks::{Task, TaskGuard, Tasks, in_call};
pub use host::timer::{Reading, Timer};
pub use observe::network::Interface;
pub use observe::stats::ContainerStats;
pub use oci::{Checkpoint, ProcessSpec, Rlimit, Stdio, TerminalSize, User};
pub use operations::create::CreateContainer;
pub use operations::exec::{CreateProcess, Created};
pub use supervisor::Supervisor;
