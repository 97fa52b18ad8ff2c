//! A small HTTP server for people and for programs that look after this one: metrics, profiles, tasks. It is apart from
//! the API: whoever asks here can start nothing.

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// How long a client may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait when no connection can be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections at a time: descriptors are for containers.
const CONNECTIONS: usize = 32;

/// The longest body that is of interest.
const BODY_LIMIT: usize = 1024;

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Anything else than GET, HEAD, PUT and POST is refused before.
    pub(crate) method: Method,
    pub(crate) path: String,
    /// The value of a parameter.
    pub(crate) query: String,
    pub(crate) body: String,
}

impl Asked {
    /// A parameter of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

/// What is answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Plain text.
    pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", body: text.into().into_bytes() }
    }
}

/// Listens at an address as flags have it: `host:port`, or `:port` for all interfaces.
pub(crate) async fn listen(flag: &'static str, address: &str) -> Result<TcpListener> {
    let host = address.strip_prefix("tcp://").unwrap_or(address);
    let host = if host.starts_with(':') { format!("[::]{host}") } else { host.to_string() };
    let listener = TcpListener::bind(&host).await.with_context(|| format!("{flag}: cannot listen at {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "serving for {flag}");
    Ok(listener)
}

/// Answers requests, without end.
pub(crate) async fn serve<F: Future<Output = Answer> + Send>(
    listener: TcpListener,
    answer: impl Fn(Asked) -> F + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("cannot take a connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| respond(request, answer.as_ref()));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
            if let Err(e) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!("an HTTP connection broke: {e}");
            }
            drop(permit);
        });
    }
}

async fn respond<F: Future<Output = Answer> + Send>(
    request: Request<Incoming>,
    answer: &(impl Fn(Asked) -> F + Send + Sync),
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let is_head = head.method == Method::HEAD;
    let body = Limited::new(body, BODY_LIMIT).collect();
    let Answer { status, kind, body } = match (&head.method, tokio::time::timeout(HEAD_LIMIT, body).await) {
        (&Method::GET | &Method::HEAD | &Method::PUT | &Method::POST, Ok(Ok(body))) => {
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            let (path, query) = (head.uri.path().to_string(), head.uri.query().unwrap_or_default().to_string());
            answer(Asked { method: head.method, path, query, body }).await
        }
        (_, Ok(Ok(_))) => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET, PUT and POST\n"),
        _ => Answer::text(StatusCode::BAD_REQUEST, "the body is too long, or did not come\n"),
    };
    let length = body.len();
    let body = if is_head { Full::default() } else { Full::from(body) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}
