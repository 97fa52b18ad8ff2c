//! The connection to the daemon.
//!
//! A socket can take connections while no daemon serves it: the service manager holds it, or the daemon hangs. A connection
//! counts only once the daemon has answered a first call, and that has a time limit. Within the limit, a daemon that is being
//! restarted is looked for again.
//!
//! All clones of a client share one connection. It is replaced once a call has found it broken.

use api::api_client::ApiClient;
use hyper_util::rt::TokioIo;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use sys::socket_path::SocketPath;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::address::Address;
use crate::error::{Error, Operation, cause, chain, is_cut_off, is_of_transport};
use crate::tls::Tls;

/// The generated client of the API.
pub(crate) type Api = ApiClient<Channel>;

/// How long to wait before the daemon is looked for again. Nothing announces that a daemon listens at last: the directory of
/// a unix socket could be watched, but neither an unanswered connection nor TCP.
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(50);

/// How to reach a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the daemon listens.
    pub address: Address,
    /// How long the daemon's first answer on a connection may take, with all attempts to connect. `None` for no limit.
    pub timeout: Option<Duration>,
    /// TLS for a TCP address. Without it, the connection is not encrypted; a unix socket never is.
    pub tls: Option<Tls>,
}

impl Default for Config {
    /// The daemon's default address, a timeout of one second, no TLS.
    fn default() -> Config {
        Config { address: Address::default(), timeout: Some(Duration::from_secs(1)), tls: None }
    }
}

/// What all clones of a client share.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) config: Config,
    current: tokio::sync::Mutex<Option<Connection>>,
}

/// A connection on which the daemon has answered.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) api: Api,
    /// Set until the first call: the daemon has answered just now.
    is_fresh: Arc<AtomicBool>,
}

/// Why an attempt to connect failed.
enum Refusal {
    /// A daemon that is being restarted may answer in a moment.
    Passing(String),
    /// Another attempt would fail in the same way.
    Final(Error),
}

/// A socket, with TLS or without.
trait Io: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

impl Connector {
    pub(crate) fn new(config: Config) -> Connector {
        Connector { config, current: tokio::sync::Mutex::new(None) }
    }

    /// Returns a connection on which the daemon has answered just now.
    pub(crate) async fn checked(&self) -> Result<Connection, Error> {
        let deadline = self.deadline();
        loop {
            let connection = self.connection(deadline).await?;
            if connection.is_fresh.swap(false, Ordering::Relaxed) {
                return Ok(connection);
            }
            match self.within(deadline, ask_version(connection.api.clone())).await {
                Some(Err(status)) if is_cut_off(&status) => self.forget(&connection).await,
                Some(_) => return Ok(connection),
                None => return Err(self.silent().await),
            }
        }
    }

    /// Connects if there is no connection, and checks one that has been used. The next call need not check it again.
    pub(crate) async fn connect(&self) -> Result<(), Error> {
        self.checked().await?.is_fresh.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a call that changes nothing. It is made again if the connection breaks, as when the daemon is restarted.
    pub(crate) async fn read<T, F>(&self, operation: Operation, call: impl Fn(Api) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut until = None;
        loop {
            let connection = self.connection(self.deadline()).await?;
            connection.is_fresh.store(false, Ordering::Relaxed);
            let status = match call(connection.api.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if !is_cut_off(&status) {
                return Err(self.explain(operation, status));
            }
            self.forget(&connection).await;
            if until.get_or_insert_with(|| self.deadline()).is_some_and(|until| Instant::now() >= until) {
                return Err(self.explain(operation, status));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Makes a call that changes something. It is sent at most once, on a connection on which the daemon has just answered.
    pub(crate) async fn change<T, F>(&self, operation: Operation, call: impl FnOnce(Api) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let connection = self.checked().await?;
        match call(connection.api.clone()).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => {
                if is_cut_off(&status) {
                    self.forget(&connection).await;
                }
                Err(self.explain(operation, status))
            }
        }
    }

    /// The error for a failed call: the daemon's answer, or that there was none.
    pub(crate) fn explain(&self, operation: Operation, status: Status) -> Error {
        if is_of_transport(&status) {
            let address = self.config.address.clone();
            return Error::CutOff { operation, address, reason: cause(&status) };
        }
        Error::Refused { operation, status }
    }

    /// When a first answer that is awaited from now on must have come.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.config.timeout.map(|timeout| Instant::now() + timeout)
    }

    /// Waits for `future` until the deadline.
    pub(crate) async fn within<T>(&self, deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok(),
            None => Some(future.await),
        }
    }

    /// The error for a connection on which the daemon did not answer in time. The connection is not used again.
    pub(crate) async fn silent(&self) -> Error {
        *self.current.lock().await = None;
        self.late()
    }

    /// The error for a daemon that takes connections and does not answer in time.
    fn late(&self) -> Error {
        self.later_than(self.config.timeout.unwrap_or_default())
    }

    /// The error for a daemon that does not answer within a limit.
    pub(crate) fn later_than(&self, limit: Duration) -> Error {
        self.unreachable(format!("it has not answered within {limit:?}"))
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { address: self.config.address.clone(), reason }
    }

    /// Returns the connection, or makes one if there is none.
    async fn connection(&self, deadline: Option<Instant>) -> Result<Connection, Error> {
        // Another task may be connecting.
        let current = self.within(deadline, self.current.lock()).await;
        let mut current = current.ok_or_else(|| self.late())?;
        if let Some(connection) = &*current {
            return Ok(connection.clone());
        }
        let mut reason = None;
        loop {
            match self.within(deadline, self.attempt()).await {
                Some(Ok(api)) => {
                    let connection = Connection { api, is_fresh: Arc::new(AtomicBool::new(true)) };
                    *current = Some(connection.clone());
                    return Ok(connection);
                }
                Some(Err(Refusal::Final(e))) => return Err(e),
                Some(Err(Refusal::Passing(why))) => reason = Some(why),
                // The reason of an earlier attempt says more than that time is up.
                None => return Err(reason.map_or_else(|| self.late(), |reason| self.unreachable(reason))),
            }
            if deadline.is_some_and(|deadline| Instant::now() + RETRY_DELAY >= deadline) {
                return Err(self.unreachable(reason.unwrap_or_default()));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Forgets a broken connection, unless another call has replaced it already.
    async fn forget(&self, broken: &Connection) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|connection| Arc::ptr_eq(&connection.is_fresh, &broken.is_fresh)) {
            *current = None;
        }
    }

    /// Makes one connection, and waits for the daemon's answer on it.
    async fn attempt(&self) -> Result<Api, Refusal> {
        let stream = self.open().await?;
        // tonic asks for another stream when this one breaks. It gets none: a new connection must be checked first.
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection was lost")) }
        });
        // The name is never looked up. A stream's window lets the state of a thousand containers come without a round trip
        // for each 64 kB of it. The connection's window is that of 256 streams, so that event streams that are not read
        // hold up no other call.
        let endpoint = Endpoint::from_static("http://localhost")
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(1 << 30);
        let channel = endpoint.connect_with_connector(connector).await.map_err(|e| Refusal::Passing(chain(&e)))?;
        let api = ApiClient::new(channel).max_decoding_message_size(usize::MAX);
        match ask_version(api.clone()).await {
            Err(status) if is_cut_off(&status) => Err(Refusal::Passing(cause(&status))),
            _ => Ok(api),
        }
    }

    /// Opens the socket.
    async fn open(&self) -> Result<Pin<Box<dyn Io>>, Refusal> {
        let refused = |what: &str, e: &io::Error| {
            let reason = format!("{what}{}", chain(e));
            if is_passing(e) { Refusal::Passing(reason) } else { Refusal::Final(self.unreachable(reason)) }
        };
        match &self.config.address {
            Address::Unix(path) => {
                let path = SocketPath::to_connect(path).map_err(|e| refused("", &e))?;
                Ok(Box::pin(UnixStream::connect(&path).await.map_err(|e| refused("", &e))?))
            }
            Address::Tcp(address) => {
                let tls = self.config.tls.as_ref().map(Tls::connector).transpose().map_err(Refusal::Final)?;
                let stream = TcpStream::connect(address).await.map_err(|e| refused("", &e))?;
                stream.set_nodelay(true).map_err(|e| refused("", &e))?;
                let Some(tls) = tls else { return Ok(Box::pin(stream)) };
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
                let name = ServerName::try_from(host)
                    .map_err(|e| Refusal::Final(self.unreachable(format!("the daemon's name: {e}"))))?;
                Ok(Box::pin(tls.connect(name, stream).await.map_err(|e| refused("TLS: ", &e))?))
            }
        }
    }
}

/// Asks for the daemon's version. The daemon answers this call at once, also while it recovers.
pub(crate) async fn ask_version(mut api: Api) -> Result<api::GetServerVersionResponse, Status> {
    Ok(api.get_server_version(api::GetServerVersionRequest {}).await?.into_inner())
}

/// Whether a daemon that is being restarted can be the reason.
fn is_passing(e: &io::Error) -> bool {
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionAborted,
        ErrorKind::BrokenPipe,
        ErrorKind::UnexpectedEof,
        // A unix socket whose queue of connections is full (connect(2), EAGAIN).
        ErrorKind::WouldBlock,
    ];
    kinds.contains(&e.kind())
}
