//! Integration and fault tests, one module a feature. All start the built daemon with a real runtime.
#![allow(clippy::unwrap_used, missing_docs)]

mod budgets;
mod calls;
mod concurrency;
mod ctr;
mod errors;
mod events;
mod exits;
mod failpoints;
mod faults;
mod hostile;
mod insight;
mod kills;
mod limits;
mod listen;
mod oom;
mod output;
mod restart;
mod shim;
mod socket;
mod stats;
mod stdin;
mod steps;
mod support;
mod terminal;
mod upgrade;
