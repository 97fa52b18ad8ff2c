//! What the tests stand on: a daemon of one's own with a real runtime, bundles, FIFOs, and a look at what is left
//! behind.
//!
//! Each [`Host`] has its own state directory, socket, runtime root and cgroup, so that tests run side by side, and
//! checks when it is finished that no process, mount, cgroup or directory is left. Nothing here sleeps: whoever
//! waits, waits for the event, or asks again until a deadline that only a failure reaches.

mod bundle;
pub mod cgroup;
mod fifo;
mod host;
mod leaks;
mod ledger;
mod process;
mod random;

pub use bundle::{Bundle, rootfs};
pub use fifo::{Fifo, Pipe};
pub use host::{Client, Host, Options, bin, client_at, has_criu, obey_hangups, path_with_criu, runtime, write_program};
pub use ledger::{Expected, Ledger};
pub use process::{Usage, children_of, eventually, usage};
pub use random::Random;

/// A runtime, for [`Options::fake_runtime`], whose failures are chosen by annotations: see [`Bundle::fault`].
pub const FAULTS: &str = include_str!("fake-runtime.sh");

/// What [`ends_with`] says.
pub const READY: &str = "ready";

/// A shell script that says [`READY`] once SIGUSR1 makes it end with `status`.
pub fn ends_with(status: u32) -> String {
    format!("trap 'exit {status}' USR1; echo {READY}; while :; do sleep 1000 >/dev/null 2>&1 & wait; done")
}

/// Far longer than anything takes, so that only a failure gets there.
pub const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
