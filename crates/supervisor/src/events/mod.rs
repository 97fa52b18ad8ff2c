//! Events: what they are, the journal that records them, and the subscribers that it publishes them to.

pub(crate) mod event;
pub(crate) mod journal;
mod subscription;

pub use event::{Event, EventKind, Timestamp};
pub use journal::JournalError;
pub(crate) use journal::{Held, History, Journal, key_or_name};
pub use subscription::{Lost, Subscription};
