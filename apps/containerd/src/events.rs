//! Event streams. The transport asks for the next event once the client has taken the last one. A client that does not read
//! costs no memory except for its position in the journal.

use futures_util::{Stream, stream};
use supervisor::Subscription;
use tokio::sync::watch;
use tonic::Status;

use crate::convert;

/// The error that ends a stream when the daemon stops. Clients look for the first three words, which Go's gRPC library uses.
const STOPPING: &str = "transport is closing: containerd is stopping; subscribe again to the next daemon";

/// Streams the events of a subscription until the daemon stops.
pub(crate) fn stream(
    subscription: Subscription,
    stopping: watch::Receiver<bool>,
) -> impl Stream<Item = Result<api::Event, Status>> + Send {
    stream::unfold(Some((subscription, stopping)), |state| async {
        let (mut subscription, mut stopping) = state?;
        let next = tokio::select! {
            biased;
            next = subscription.next() => next,
            _ = stopping.wait_for(|stop| *stop) => {
                return Some((Err(Status::unavailable(STOPPING)), None));
            }
        };
        match next {
            Ok(Some(event)) => Some((Ok(convert::event(&event)), Some((subscription, stopping)))),
            Ok(None) => None,
            Err(lost) => {
                let message = format!("containerd: this subscriber is too slow: {lost}");
                Some((Err(Status::data_loss(message)), None))
            }
        }
    })
}
