//! The connection to the daemon.

use anyhow::{Context, anyhow};
use api::api_client::ApiClient;
use hyper_util::rt::TokioIo;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};

use crate::failure::Failure;
use crate::tls;

/// A client of the API.
pub(crate) type Client = ApiClient<Channel>;

/// Where the daemon is.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) timeout: Duration,
    pub(crate) tls: tls::Files,
}

/// A socket, with TLS or without.
trait Io: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

impl Target {
    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let refused = || format!("cannot connect to the daemon at {}; is containerd running there?", self.address);
        let connecting = tokio::time::timeout(self.timeout, self.open());
        let stream = connecting.await.map_err(anyhow::Error::from).and_then(|r| r).with_context(refused)?;
        // The one connection that there is; a second one is not asked for while it lasts.
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the connection was lost")) }
        });
        // The name is never looked up.
        // A thousand containers' state comes at once, without asking for more again and again.
        let endpoint = Endpoint::from_static("http://localhost")
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.with_context(refused)?;
        Ok(ApiClient::new(channel).max_decoding_message_size(usize::MAX))
    }

    /// The connection itself.
    async fn open(&self) -> anyhow::Result<Pin<Box<dyn Io>>> {
        match self.address.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => Ok(Box::pin(UnixStream::connect(path).await?)),
            Some(("tcp", address)) if !address.is_empty() => {
                let tls = self.tls.connector()?;
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let Some(tls) = tls else { return Ok(Box::pin(stream)) };
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
                let name = ServerName::try_from(host).context("the daemon's name")?;
                Ok(Box::pin(tls.connect(name, stream).await.context("TLS")?))
            }
            _ => Err(anyhow!(
                "{:?} is no address: one is written as unix:///path/of/the/socket or tcp://host:port",
                self.address
            )),
        }
    }
}
