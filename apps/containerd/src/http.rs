//! A small HTTP server for operators and monitoring: metrics, profiles, tasks. It is separate from the API, and its clients
//! cannot start anything.
//!
//! The server drops a client that stalls after [`STALL_LIMIT`], and earlier if there are too many clients ([`Places`]). It
//! refuses changes from web pages of other origins, which reach it through the browser of a user who can
//! ([`is_of_another_origin`]).

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

/// How long a client may take to send a request's head, and then its body.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait after accept(2) has failed before it is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long a client may receive nothing while a part of the answer waits to be sent.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// The most connections at a time. Containers need the descriptors more.
const CONNECTIONS: usize = 32;

/// The longest body that the server accepts.
const BODY_LIMIT: usize = 1024;

/// A request, once its body has arrived.
#[derive(Debug)]
pub(crate) struct Asked {
    /// GET, HEAD, PUT or POST. The server refuses other methods itself.
    pub(crate) method: Method,
    /// A browser sent the request on behalf of a page that this server did not serve.
    pub(crate) is_of_another_origin: bool,
    pub(crate) path: String,
    /// The part of the URL after the question mark.
    pub(crate) query: String,
    pub(crate) body: String,
}

impl Asked {
    /// The value of a parameter in the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

/// An answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// An answer in plain text.
    pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", body: text.into().into_bytes() }
    }
}

/// Listens at the address that a flag gives: `host:port`, or `:port` for all interfaces.
pub(crate) async fn listen(flag: &'static str, address: &str) -> Result<TcpListener> {
    let host = address.strip_prefix("tcp://").unwrap_or(address);
    let host = if host.starts_with(':') { format!("[::]{host}") } else { host.to_string() };
    let listener = TcpListener::bind(&host).await.with_context(|| format!("{flag}: cannot listen at {address}"))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving for {flag}");
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(%address, "{flag} is not on loopback: there is no password, and other machines can connect");
    }
    Ok(listener)
}

/// Answers requests. Never returns.
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
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(RETRY_DELAY).await;
                continue;
            }
        };
        if !crate::listen::has_descriptors() {
            continue;
        }
        let (answer, mut place) = (answer.clone(), places.take(peer));
        tokio::spawn(async move {
            let service = service_fn(|request| respond(request, answer.as_ref()));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(REQUEST_LIMIT);
            let stream = TokioIo::new(Impatient { stream, deadline: None });
            tokio::select! {
                result = server.serve_connection(stream, service) => {
                    if let Err(e) = result {
                        tracing::debug!("an HTTP connection broke: {e}");
                    }
                }
                () = place.lost() => tracing::debug!(%peer, "closed an HTTP connection in favour of a new one"),
            }
        });
    }
}

/// A stream whose writes fail once the client has received nothing for [`STALL_LIMIT`].
struct Impatient {
    stream: TcpStream,
    /// Set while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    /// Turns a write that still waits at its deadline into an error.
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

/// Whether a browser sent these headers on behalf of a page of another origin. Other clients send neither `Origin` (RFC 6454)
/// nor `Sec-Fetch-Site` (Fetch Metadata Request Headers). A `Host` that is a name counts as another origin, except
/// `localhost`: a page can make its own name resolve to this server's address (DNS rebinding).
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
    let Answer { status, kind, body } = match (&head.method, tokio::time::timeout(REQUEST_LIMIT, body).await) {
        (&Method::GET | &Method::HEAD | &Method::PUT | &Method::POST, Ok(Ok(body))) => {
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            let (path, query) = (head.uri.path().to_string(), head.uri.query().unwrap_or_default().to_string());
            let is_of_another_origin = is_of_another_origin(&head.headers);
            answer(Asked { method: head.method, is_of_another_origin, path, query, body }).await
        }
        (_, Ok(Ok(_))) => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD, PUT and POST are allowed\n"),
        _ => Answer::text(StatusCode::BAD_REQUEST, "the body is too long or did not arrive in time\n"),
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
    fn requests_of_other_pages_are_told_from_those_of_this_server_and_of_no_browser() {
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
        // The page's own name, which resolves to this server's address.
        assert!(other(&[("host", "evil.example:6060"), ("origin", "http://evil.example:6060")]));
        assert!(other(&[("origin", "http://127.0.0.1:6060")]));
    }
}
