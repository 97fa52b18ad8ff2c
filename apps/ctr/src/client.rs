//! The connection to the daemon.
//!
//! A socket can take connections while no daemon serves it: systemd holds it, or the daemon hangs. A connection counts only
//! once the daemon has answered a first call, and that has a limit. Within it a daemon that is being restarted is looked for
//! again, and calls that change nothing are made again.

use anyhow::{Context, anyhow};
use api::api_client::ApiClient;
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::io::ErrorKind;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;
use sys::socket_path::SocketPath;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::failure::{Failure, is_cut_off};
use crate::signals::Signals;
use crate::tls;

/// A client of the API.
pub(crate) type Client = ApiClient<Channel>;

/// How long to wait before the daemon is looked for again.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Where the daemon is.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: String,
    /// How long the first answer may take; zero for no limit.
    pub(crate) timeout: Duration,
    pub(crate) tls: tls::Files,
}

/// A socket, with TLS or without.
trait Io: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// Why there is no connection.
enum Refusal {
    /// A daemon that is being restarted may be there in a moment.
    Passing(anyhow::Error),
    /// Trying again is of no use.
    Final(anyhow::Error),
}

impl Target {
    /// Connects, and waits for the daemon's first answer.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let deadline = self.deadline();
        let mut reason = None;
        loop {
            match self.within(deadline, self.attempt()).await {
                Some(Ok(client)) => return Ok(client),
                Some(Err(Refusal::Final(e))) => return Err(self.unreachable(&e)),
                Some(Err(Refusal::Passing(e))) => reason = Some(e),
                None => {
                    // The daemon was there a moment ago, or connections have been taken and nothing more.
                    let silent = || anyhow!("it has not answered within {}", humantime::format_duration(self.timeout));
                    return Err(self.unreachable(&reason.unwrap_or_else(silent)));
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() + RETRY_DELAY >= deadline) {
                return Err(self.unreachable(&reason.unwrap_or_else(|| anyhow!("it does not answer"))));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Makes a call that changes nothing. It is made again if the connection breaks, as it does when the daemon is restarted.
    pub(crate) async fn ask<T>(&self, call: impl AsyncFn(Client) -> Result<T, Status>) -> Result<T, Failure> {
        let mut until = None;
        loop {
            let status = match call(self.connect().await?).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let until = *until.get_or_insert_with(|| self.deadline());
            if !is_cut_off(&status) || until.is_some_and(|until| Instant::now() >= until) {
                return Err(self.explain(status));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Makes a call that changes something, which is made only once. A signal ends this program while it waits; `goes_on`
    /// says what the daemon then does without it.
    pub(crate) async fn change<T>(
        &self,
        goes_on: &str,
        call: impl AsyncFnOnce(Client) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.change_with(&Signals::take()?, goes_on, call).await
    }

    /// Does as [`Target::change`] with signals that have been taken already.
    pub(crate) async fn change_with<T>(
        &self,
        signals: &Signals,
        goes_on: &str,
        call: impl AsyncFnOnce(Client) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let asked = Cell::new(false);
        let work = async {
            let client = self.connect().await?;
            asked.set(true);
            call(client).await.map_err(|failure| match failure {
                Failure::Call(status) => self.explain(status),
                local => local,
            })
        };
        let said = || if asked.get() { goes_on.to_string() } else { "nothing was asked of the daemon yet".into() };
        signals.end(said, work).await
    }

    /// Whether the daemon is on this machine, so that its paths and process numbers mean the same here.
    pub(crate) fn is_here(&self) -> bool {
        self.address.starts_with("unix://")
    }

    /// Why a call failed: the daemon's answer, or that there was none.
    pub(crate) fn explain(&self, status: Status) -> Failure {
        if !is_cut_off(&status) || std::error::Error::source(&status).is_none() {
            return status.into();
        }
        let address = &self.address;
        Failure::Local(anyhow!(
            "the daemon at {address} went away before it answered ({}): whether it did what was asked, `ctr state` tells",
            cause(&status)
        ))
    }

    /// When the first answer must have come.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!self.timeout.is_zero()).then(|| Instant::now() + self.timeout)
    }

    /// What `future` gives, if it does so before the deadline.
    pub(crate) async fn within<T>(&self, deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok(),
            None => Some(future.await),
        }
    }

    /// There is no daemon that answers.
    pub(crate) fn unreachable(&self, reason: &anyhow::Error) -> Failure {
        Failure::Local(anyhow!(
            "cannot reach the daemon at {}: {reason:#}; is containerd running there? `systemctl status containerd` tells",
            self.address
        ))
    }

    /// One connection, on which the daemon has answered.
    async fn attempt(&self) -> Result<Client, Refusal> {
        let stream =
            self.open().await.map_err(|e| if is_passing(&e) { Refusal::Passing(e) } else { Refusal::Final(e) })?;
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
        let channel = endpoint.connect_with_connector(connector).await.map_err(|e| Refusal::Passing(e.into()))?;
        let client = ApiClient::new(channel).max_decoding_message_size(usize::MAX);
        // The daemon answers this one at once, also while it recovers.
        match client.clone().get_server_version(api::GetServerVersionRequest {}).await {
            Err(status) if is_cut_off(&status) => Err(Refusal::Passing(anyhow!("{}", cause(&status)))),
            _ => Ok(client),
        }
    }

    /// The connection itself.
    async fn open(&self) -> anyhow::Result<Pin<Box<dyn Io>>> {
        match self.address.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => {
                let path = SocketPath::to_connect(Path::new(path))?;
                Ok(Box::pin(UnixStream::connect(&path).await?))
            }
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

/// What broke a call, without what the layers above say of it.
fn cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if cause.is::<Status>() { status.message().to_string() } else { cause.to_string() }
}

/// Whether a daemon that is being restarted can be the reason.
fn is_passing(error: &anyhow::Error) -> bool {
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionAborted,
        ErrorKind::BrokenPipe,
        ErrorKind::UnexpectedEof,
        // A unix socket whose queue is full.
        ErrorKind::WouldBlock,
    ];
    error.downcast_ref::<std::io::Error>().is_some_and(|e| kinds.contains(&e.kind()))
}
