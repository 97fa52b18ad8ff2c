//! A client of the container daemon `containerd`: connections, typed calls, event streams that survive a restart of the
//! daemon, and processes with their stdio attached.
//!
//! # Example
//!
//! Run a container with this program's stdio, and read its exit status:
//!
//! ```no_run
//! use containerd_client::{Client, Config, INIT, Session, Stdio, api};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new(Config::default());
//! // The session subscribes to events and opens its FIFOs before the container exists: nothing is missed.
//! let prepared = Session::prepare(&client, "web", INIT, false, Stdio::inherit()?).await?;
//! let bundle_path = "/var/lib/bundles/web".to_string();
//! let request = api::CreateContainerRequest { bundle_path, ..Default::default() };
//! let mut session = prepared.start(request).await?;
//! let exit = session.wait().await?;
//! println!("the container ended with status {}", exit.code());
//! # Ok(())
//! # }
//! ```
//!
//! The directory `examples/` has complete programs: `run` (the above), `watch` (follow events) and `top` (statistics).
//!
//! # What it takes care of
//!
//! - **Connecting.** A connection counts once the daemon has answered on it, within [`Config::timeout`]. A daemon that is being
//!   restarted is looked for again within that time. TCP connections can use [`Tls`].
//! - **Calls.** [`Client`] has a method for each call. It repeats those that change nothing when the connection breaks, and
//!   sends the others at most once. [`Error`] says what failed, on what and why, and whether another attempt is worthwhile.
//! - **Events.** [`Events`] subscribes again when the connection breaks, and goes on after the last event received.
//! - **Attached processes.** [`Session`] makes the FIFOs, copies through them, passes on the end of stdin and the size of the
//!   terminal, and knows when the last byte of output has been copied. Raw mode and signals are left to the program.
//!
//! All futures need a tokio runtime with its I/O and time drivers. The messages of the API are in [`api`].

mod address;
mod client;
mod connection;
mod error;
mod events;
mod fifos;
mod session;
mod stdio;
mod tls;

pub use address::{Address, AddressError};
pub use client::{Client, INIT};
pub use connection::Config;
pub use error::{Error, Operation};
pub use events::{Events, Resume, Subscribe};
pub use fifos::Paths;
pub use session::{Exit, Prepared, Session};
pub use stdio::Stdio;
pub use tls::{Identity, Tls};
pub use tonic::{Code, Status};

/// The messages of the gRPC API.
pub use api;
