//! Limits on open requests and connections, and returning memory to the kernel after a burst of them.
//!
//! A request takes some 9 kB of memory until its message has arrived. The number of requests and connections is therefore
//! limited, and a message has a deadline. At the limit, a new request drives out the oldest one that still waits for its
//! message, so that clients which never send a message lock out no others. After a burst, the allocator returns the memory.

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::{Request, Response};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tonic::Status;
use tower::Service;

/// The most requests at a time. A subscription to events is one request for as long as it lasts.
const REQUESTS: usize = 8192;

/// The most connections at a time.
const CONNECTIONS: usize = 1024;

/// How long a request's message may take to arrive.
const MESSAGE_LIMIT: Duration = Duration::from_secs(20);

/// More requests or connections than this are a burst. The burst is over when a quarter of them is left.
const BURST: usize = 256;

/// How long after a burst the allocator returns memory. Connections that have ended have freed their memory by then.
const TRIM_DELAY: Duration = Duration::from_millis(500);

/// Counts open requests and connections. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    /// There has been a burst, after which no memory has been returned yet.
    has_burst: AtomicBool,
    /// Requests that wait for their message, by number, the oldest first. Dropping a sender makes its request give up.
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<()>>>,
    next_number: AtomicU64,
}

/// An open request or connection. Dropping it takes it off the count.
#[derive(Debug)]
pub(crate) struct Open {
    load: Load,
    kind: fn(&Counts) -> &AtomicUsize,
}

impl Load {
    /// Counts a new connection. Returns `None` at the limit.
    pub(crate) fn connection(&self) -> Option<Open> {
        self.open(|counts| &counts.connections, CONNECTIONS)
    }

    /// Counts a new request. At the limit it drives out the oldest request that waits for its message; `None` if none does.
    fn request(&self) -> Option<Open> {
        let requests: fn(&Counts) -> &AtomicUsize = |counts| &counts.requests;
        self.open(requests, REQUESTS).or_else(|| {
            self.waiting().pop_first()?;
            // The request that is driven out still counts until its task has run: for a moment the limit is exceeded by one.
            self.open(requests, usize::MAX)
        })
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<()>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, kind: fn(&Counts) -> &AtomicUsize, most: usize) -> Option<Open> {
        let open = Open { load: self.clone(), kind };
        let now = kind(&self.0).fetch_add(1, Ordering::Relaxed) + 1;
        if now > BURST {
            self.0.has_burst.store(true, Ordering::Relaxed);
        }
        // At the limit, `open` is dropped here, which takes it off the count.
        (now <= most).then_some(open)
    }
}

/// A service that counts its requests, and refuses new ones at the limit.
#[derive(Debug, Clone)]
pub(crate) struct Gate<S> {
    pub(crate) inner: S,
    pub(crate) load: Load,
}

impl<S> Service<Request<tonic::body::Body>> for Gate<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Counted>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let Some(open) = self.load.request() else {
            let text = format!("containerd: {REQUESTS} requests are under way; try again later");
            let refused = Status::resource_exhausted(text).into_http();
            return Box::pin(async move { Ok(refused.map(|body| Counted { body, _open: None })) });
        };
        let load = self.load.clone();
        let message = |body| tonic::body::Body::new(Message { body, load, waiting: None });
        let answer = self.inner.call(request.map(message));
        Box::pin(async move { Ok(answer.await?.map(|body| Counted { body, _open: Some(open) })) })
    }
}

/// The body of an answer. The request counts until the body has been sent or the client has gone.
#[derive(Debug)]
pub(crate) struct Counted {
    body: tonic::body::Body,
    _open: Option<Open>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let counts = &self.load.0;
        let left = (self.kind)(counts).fetch_sub(1, Ordering::Relaxed) - 1;
        let is_over = || {
            let few = |count: &AtomicUsize| count.load(Ordering::Relaxed) <= BURST / 4;
            few(&counts.requests) && few(&counts.connections)
        };
        if left <= BURST / 4 && is_over() && counts.has_burst.swap(false, Ordering::Relaxed) {
            // There is no runtime when the daemon is ending.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async {
                    tokio::time::sleep(TRIM_DELAY).await;
                    // In a thread of its own, as it may take a while. An error means that the daemon is ending.
                    let _ = tokio::task::spawn_blocking(sys::allocator::give_back).await;
                });
            }
        }
    }
}

/// A request's body, which must arrive within [`MESSAGE_LIMIT`]. Each request of this API has one message.
struct Message {
    body: tonic::body::Body,
    load: Load,
    waiting: Option<Waiting>,
}

/// A request's wait for its message. Most requests have none: their message arrives together with their head.
struct Waiting {
    load: Load,
    number: u64,
    /// Ready when a newer request drives this one out.
    driven_out: oneshot::Receiver<()>,
    deadline: Pin<Box<Sleep>>,
}

impl Waiting {
    fn new(load: Load) -> Waiting {
        let (sender, driven_out) = oneshot::channel();
        let number = load.0.next_number.fetch_add(1, Ordering::Relaxed);
        load.waiting().insert(number, sender);
        Waiting { load, number, driven_out, deadline: Box::pin(tokio::time::sleep(MESSAGE_LIMIT)) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.load.waiting().remove(&self.number);
    }
}

impl Body for Message {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.waiting = None;
            return Poll::Ready(frame);
        }
        let waiting = this.waiting.get_or_insert_with(|| Waiting::new(this.load.clone()));
        if Pin::new(&mut waiting.driven_out).poll(cx).is_ready() {
            let text = "containerd: too many requests are under way, and this request's message has not arrived";
            return Poll::Ready(Some(Err(Status::resource_exhausted(text))));
        }
        let late = || {
            Status::deadline_exceeded(format!(
                "containerd: the request's message did not arrive within {MESSAGE_LIMIT:?}"
            ))
        };
        waiting.deadline.as_mut().poll(cx).map(|()| Some(Err(late())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_beyond_the_limit_are_refused_until_others_close() {
        let load = Load::default();
        let mut open: Vec<_> = (0..CONNECTIONS).map(|_| load.connection().expect("there is room")).collect();
        assert!(load.connection().is_none());
        open.pop();
        assert!(load.connection().is_some());
        assert_eq!(load.0.connections.load(Ordering::Relaxed), CONNECTIONS - 1);
        assert!(load.0.has_burst.load(Ordering::Relaxed));
        drop(open);
        assert_eq!(load.0.connections.load(Ordering::Relaxed), 0);
        assert!(!load.0.has_burst.load(Ordering::Relaxed), "the burst is over");
    }
}
