//! Containers and their processes: what they are doing, what has happened to them, and how they are found again.
//!
//! The lifecycle is that of the OCI runtime specification, with create, start, kill and delete as separate steps
//! for a container and for each process added to it. What an API makes of these (that an exit deletes, say) it
//! says when it creates a container; nothing here knows of any API, of gRPC or of flags.
//!
//! What always holds:
//! - an event is in the journal's file before anybody sees it, and what proves an exit stays until the exit is
//!   in the journal;
//! - calls on one container are put in order, calls on different ones never wait for each other, and no mutex is
//!   held while a runtime or a shim is waited for;
//! - an operation that was begun is carried through whether or not its caller is still there.

mod aside;
mod checkpoint;
mod config;
mod container;
mod deletion;
mod disk;
mod error;
mod event;
mod exec;
mod exit;
mod journal;
mod lifecycle;
mod metrics;
mod network;
mod once;
mod oom;
mod pid_watch;
mod process;
mod recovery;
mod requests;
mod snapshot;
mod start;
mod stats;
mod subscription;
mod supervisor;
mod tasks;
mod timer;
mod update;

pub use cgroup::{Blkio, BlkioEntry, Changes, Cpu, Device, Field, Limit, LimitError, Memory, Setting, Stats, Usage};
pub use config::Config;
pub use container::{CreateContainer, OnExit};
pub use error::Error;
pub use event::{Event, EventKind, Timestamp};
pub use exec::CreateProcess;
pub use journal::JournalError;
pub use lifecycle::State;
pub use metrics::Metrics;
pub use network::Interface;
pub use oci::{Checkpoint, ProcessSpec, Rlimit, Stdio, TerminalSize, User};
pub use snapshot::{ContainerInfo, ProcessInfo};
pub use start::carried_through;
pub use stats::ContainerStats;
pub use subscription::{Lost, Subscription};
pub use supervisor::Supervisor;
pub use tasks::{Task, TaskGuard, Tasks, with_runtime_time};
pub use timer::{Reading, Timer};
