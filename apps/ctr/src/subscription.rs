//! A subscription to events that does not wait for its answer.
//!
//! Servers of grpc-go send the headers of a stream together with its first message. A client that waits for the headers
//! before it starts a container would wait for the event that only the start brings.

use std::pin::Pin;
use tonic::{Status, Streaming};

use crate::client::{Client, Target};
use crate::failure::Failure;

/// Connects and asks for events. When this returns, the daemon has opened the subscription, or it has answered a call that
/// came after it.
pub(crate) async fn subscribe(target: &Target, request: api::EventsRequest) -> Result<(Client, Subscription), Failure> {
    let ask = async |client: Client| {
        let mut events = Subscription::new(&client, request.clone());
        // Twice: a server that sends headers at once may still begin with the second of two calls that come together.
        for _ in 0..2 {
            let mut after = client.clone();
            let answer = target.within(target.deadline(), after.get_server_version(api::GetServerVersionRequest {}));
            tokio::select! {
                // In this order: the first to be polled is the first to be sent.
                biased;
                opened = events.open() => {
                    opened?;
                    break;
                }
                answer = answer => drop(answer.ok_or_else(|| Status::deadline_exceeded("it does not answer"))??),
            }
        }
        Ok((client, events))
    };
    target.ask(ask).await.map_err(|failure| match failure {
        Failure::Call(status) if status.code() == tonic::Code::DeadlineExceeded => {
            target.unreachable(&anyhow::anyhow!("{}", status.message()))
        }
        failure => failure,
    })
}

type Answer = Pin<Box<dyn Future<Output = Result<Streaming<api::Event>, Status>>>>;

/// A stream of events that has been asked for.
pub(crate) enum Subscription {
    Asked(Answer),
    Open(Box<Streaming<api::Event>>),
}

impl Subscription {
    /// Asks for events. The request is sent when the subscription is polled first.
    pub(crate) fn new(client: &Client, request: api::EventsRequest) -> Subscription {
        let mut client = client.clone();
        Subscription::Asked(Box::pin(async move { Ok(client.events(request).await?.into_inner()) }))
    }

    /// Waits for the daemon's headers. May be dropped and called again.
    pub(crate) async fn open(&mut self) -> Result<&mut Streaming<api::Event>, Status> {
        if let Subscription::Asked(answer) = self {
            *self = Subscription::Open(Box::new(answer.await?));
        }
        match self {
            Subscription::Open(events) => Ok(events),
            Subscription::Asked(_) => Err(Status::internal("the subscription is not open")),
        }
    }

    /// The next event; `None` at the end. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Result<Option<api::Event>, Status> {
        self.open().await?.message().await
    }

    /// Whether the daemon has said that it sends events from now on.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Subscription::Open(_))
    }
}
