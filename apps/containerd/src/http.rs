//! A small HTTP server for people and for programs that look after this one: metrics, profiles, tasks. It is apart from
//! the API: whoever asks here can start nothing.
//!
//! A client that stalls is given up after [`STALL_LIMIT`], and gives way to a new one when there are too many ([`Places`]). A web page
//! of another origin, in the browser of somebody who can reach this server, can change nothing ([`is_of_another_origin`]).

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;

use crate::places::Places;

/// How long a client may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait when no connection can be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client may take to receive anything of an answer.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// Connections at a time: descriptors are for containers.
const CONNECTIONS: usize = 32;

/// The longest body that is of interest.
const BODY_LIMIT: usize = 1024;

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Anything else than GET, HEAD, PUT and POST is refused before.
    pub(crate) method: Method,
    /// A browser asks on behalf of a page that this server has not served.
    pub(crate) is_of_another_origin: bool,
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
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving for {flag}");
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(%address, "{flag} is not on loopback: there is no password, and others can read what it serves");
    }
    Ok(listener)
}

/// Answers requests, without end.
pub(crate) async fn serve<F: Future<Output = Answer> + Send>(
    listener: TcpListener,
    answer: impl Fn(Asked) -> F + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    let places = Places::new(CONNECTIONS);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("cannot take a connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !crate::listen::has_descriptors() {
            continue;
        }
        let (answer, mut place) = (answer.clone(), places.begin(peer));
        tokio::spawn(async move {
            let service = service_fn(|request| respond(request, answer.as_ref()));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
            let stream = TokioIo::new(Impatient { stream, deadline: None });
            tokio::select! {
                result = server.serve_connection(stream, service) => {
                    if let Err(e) = result {
                        tracing::debug!("an HTTP connection broke: {e}");
                    }
                }
                () = place.lost() => tracing::debug!(%peer, "an HTTP connection made way for a new one"),
            }
        });
    }
}

/// A stream whose writes fail when the other side has received nothing for [`STALL_LIMIT`].
struct Impatient {
    stream: TcpStream,
    /// While something waits to be written.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn or_late<T>(&mut self, result: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.deadline = None;
            return result;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_LIMIT)));
        deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.or_late(result, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Whether a browser sends this for a page of another origin. Only browsers send these headers (Fetch Metadata Request Headers;
/// RFC 6454). With a name as the host, a page may have had its own name resolved to this server's address (DNS rebinding).
fn is_of_another_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let (origin, site, host) = (text("origin"), text("sec-fetch-site"), text("host").unwrap_or_default());
    if origin.is_none() && site.is_none() {
        return false;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let is_address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let is_own = origin.is_none_or(|origin| origin.strip_prefix("http://") == Some(host))
        && site.is_none_or(|site| matches!(site, "same-origin" | "none"));
    !(is_own && (is_address || name == "localhost"))
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
            let is_of_another_origin = is_of_another_origin(&head.headers);
            answer(Asked { method: head.method, is_of_another_origin, path, query, body }).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_server_are_of_its_origin() {
        let other = |fields: &[(&'static str, &'static str)]| {
            let field = |(name, value): &(&'static str, &'static str)| {
                (header::HeaderName::from_static(name), header::HeaderValue::from_static(value))
            };
            is_of_another_origin(&fields.iter().map(field).collect())
        };
        // No browser.
        assert!(!other(&[("host", "name:6060")]) && !other(&[]));
        let own = [("host", "127.0.0.1:6060"), ("origin", "http://127.0.0.1:6060"), ("sec-fetch-site", "same-origin")];
        assert!(!other(&own) && !other(&own[..2]));
        assert!(!other(&[("host", "localhost:6060"), ("origin", "http://localhost:6060")]));
        assert!(!other(&[("host", "[::1]:6060"), ("origin", "http://[::1]:6060")]));
        assert!(other(&[("host", "127.0.0.1:6060"), ("origin", "http://evil.example")]));
        assert!(other(&[("host", "127.0.0.1:6060"), ("origin", "null")]));
        assert!(other(&[("host", "127.0.0.1:6060"), ("sec-fetch-site", "cross-site")]));
        assert!(other(&[("host", "127.0.0.1:6060"), ("sec-fetch-site", "same-site")]));
        // A name of the page's that leads here.
        assert!(other(&[("host", "evil.example:6060"), ("origin", "http://evil.example:6060")]));
        assert!(other(&[("origin", "http://127.0.0.1:6060")]));
    }
}
