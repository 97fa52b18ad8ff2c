//! A container that is set aside because the daemon cannot read its directory.

use std::sync::Arc;
use tokio::sync::OnceCell;

use crate::container::Origin;
use crate::error::Error;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Aside {
    /// Why it cannot be read.
    pub(crate) reason: String,
    /// What it was made from, as far as that can be read.
    pub(crate) origin: Arc<Origin>,
    /// The boot that it is of, if `state.json` can be read.
    pub(crate) boot_id: Option<String>,
    /// It is removed once, however many clients ask for that; all of them wait for it.
    pub(crate) removal: OnceCell<()>,
}

impl Aside {
    /// The error for a client that asks for anything but its removal.
    pub(crate) fn error(&self, id: &str) -> Error {
        Error::Aside { id: id.to_string(), reason: self.reason.clone() }
    }
}
