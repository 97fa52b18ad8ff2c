//! The connection to the daemon.

use anyhow::{Context, anyhow};
use api::api_client::ApiClient;
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::failure::Failure;

/// A client of the API.
pub(crate) type Client = ApiClient<Channel>;

/// Where the daemon is.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) timeout: Duration,
}

impl Target {
    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let path = self.path()?;
        let refused = || format!("cannot connect to the daemon at {}; is containerd running there?", self.address);
        let connecting = tokio::time::timeout(self.timeout, UnixStream::connect(&path));
        let stream = connecting.await.map_err(anyhow::Error::from).and_then(|r| Ok(r?)).with_context(refused)?;
        // The one connection that there is; a second one is not asked for while it lasts.
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the connection was lost")) }
        });
        // The name is never looked up.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        let channel = channel.with_context(refused)?;
        Ok(ApiClient::new(channel).max_decoding_message_size(usize::MAX))
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        let path = self.address.strip_prefix("unix://").filter(|path| !path.is_empty());
        path.map(PathBuf::from).ok_or_else(|| {
            anyhow!("cannot connect to {:?}: an address is written as unix:///path/of/the/socket", self.address)
        })
    }
}
