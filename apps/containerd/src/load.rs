//! How much clients may ask of the daemon at a time, and giving memory back after a burst.
//!
//! A request takes some 9 kB until its message is there. So there is a limit of requests and of connections, and a deadline for
//! the message. Beyond the limit the oldest request gives way that still waits for its message, so that clients which never
//! send one lock out nobody. When a burst is over the allocator gives back what it took.

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

/// Requests that are under way at a time. A subscriber to events is one for as long as it is there.
const REQUESTS: usize = 8192;

/// Connections that are open at a time.
const CONNECTIONS: usize = 1024;

/// How long a request's message may take to come.
const MESSAGE_LIMIT: Duration = Duration::from_secs(20);

/// With so many requests or connections a burst begins, after whose end memory is given back.
const BURST: usize = 256;

/// How long after a burst memory is given back: what connections have been using is free by then.
const SETTLED: Duration = Duration::from_millis(500);

/// What is open at the moment. All clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    /// There were many since memory was given back.
    has_burst: AtomicBool,
    /// Requests that wait for their message, the oldest first. Each gives up when its sender goes.
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<()>>>,
    next: AtomicU64,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    load: Load,
    kind: fn(&Counts) -> &AtomicUsize,
}

impl Load {
    /// One more connection; `None` if there are too many.
    pub(crate) fn connection(&self) -> Option<Open> {
        self.open(|counts| &counts.connections, CONNECTIONS)
    }

    /// One more request; `None` if there are too many, and all have their messages.
    fn request(&self) -> Option<Open> {
        let requests: fn(&Counts) -> &AtomicUsize = |counts| &counts.requests;
        self.open(requests, REQUESTS).or_else(|| {
            self.waiting().pop_first()?;
            // It is over in a moment. Until then there is one more.
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
        // Dropping it takes it off the count.
        (now <= most).then_some(open)
    }
}

/// A service whose requests are counted and refused when there are too many.
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

/// The body of an answer, whose request counts until it has been sent or is given up.
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
            // Without a runtime this process is about to end.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async {
                    tokio::time::sleep(SETTLED).await;
                    // It may take a while, and fails only with this program.
                    let _ = tokio::task::spawn_blocking(sys::allocator::give_back).await;
                });
            }
        }
    }
}

/// A request's body, which must come within a time. Each request of this API has one message.
struct Message {
    body: tonic::body::Body,
    load: Load,
    waiting: Option<Waiting>,
}

/// What ends the waiting for a message. It is made when there is something to wait for.
struct Waiting {
    load: Load,
    number: u64,
    gives_way: oneshot::Receiver<()>,
    deadline: Pin<Box<Sleep>>,
}

impl Waiting {
    fn new(load: Load) -> Waiting {
        let (sender, gives_way) = oneshot::channel();
        let number = load.0.next.fetch_add(1, Ordering::Relaxed);
        load.waiting().insert(number, sender);
        Waiting { load, number, gives_way, deadline: Box::pin(tokio::time::sleep(MESSAGE_LIMIT)) }
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
        if Pin::new(&mut waiting.gives_way).poll(cx).is_ready() {
            let text = "containerd: too many requests are under way, and this one's message did not come";
            return Poll::Ready(Some(Err(Status::resource_exhausted(text))));
        }
        let late = || {
            Status::deadline_exceeded(format!(
                "containerd: the request's message did not come within {MESSAGE_LIMIT:?}"
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
    fn connections_beyond_the_limit_are_refused_until_others_go() {
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
