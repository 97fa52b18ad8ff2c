//! Where a daemon listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a daemon, written as `unix:///path/of/the/socket` or `tcp://host:port`.
///
/// ```
/// use containerd_client::Address;
///
/// let address: Address = "unix:///run/containerd/containerd.sock".parse()?;
/// assert_eq!(address, Address::default());
/// assert!("localhost:2379".parse::<Address>().is_err());
/// # Ok::<(), containerd_client::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// The path of a unix socket. It may be longer than a socket address has room for.
    Unix(PathBuf),
    /// The host and port of a TCP socket, as `host:port`.
    Tcp(String),
}

/// A text is not an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address: write unix:///path/of/the/socket or tcp://host:port")]
pub struct AddressError(String);

impl Address {
    /// Whether the daemon runs on this machine, so that its paths and process ids mean the same here.
    pub fn is_local(&self) -> bool {
        matches!(self, Address::Unix(_))
    }
}

impl Default for Address {
    /// The daemon's default address, `unix:///run/containerd/containerd.sock`.
    fn default() -> Address {
        Address::Unix("/run/containerd/containerd.sock".into())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        match text.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
            Some(("tcp", address)) if !address.is_empty() => Ok(Address::Tcp(address.into())),
            _ => Err(AddressError(text.into())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_displayed_alike() {
        for text in ["unix:///run/containerd/containerd.sock", "unix://relative", "tcp://host:1", "tcp://[::1]:2"] {
            assert_eq!(text.parse::<Address>().expect("parses").to_string(), text);
        }
    }

    #[test]
    fn text_without_a_known_scheme_or_a_place_is_refused() {
        for text in ["", "nonsense", "/run/socket", "unix://", "tcp://", "http://host:1", "fd://"] {
            let said = text.parse::<Address>().expect_err("is refused").to_string();
            assert!(said.contains("unix:///path") && said.contains("tcp://host:port"), "{said}");
        }
    }
}
