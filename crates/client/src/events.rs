//! Streams of events.
//!
//! The daemon gives events strictly increasing timestamps in the order of its journal, over restarts too. The timestamp of the
//! last event received is therefore the place to go on from: a subscription from there begins with the first event that was not
//! received, and repeats none.

use api::{Event, EventsRequest, Timestamp};
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::client::Client;
use crate::connection::{Api, ask_version};
use crate::error::{Error, Operation};

/// How long to wait before the next attempt to subscribe again. Each attempt looks for the daemon until its own time limit.
const RESUBSCRIBE_DELAY: Duration = Duration::from_millis(200);

/// Which events to receive, and what to do when the connection breaks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subscribe {
    /// Receive the events of this container only.
    pub container: Option<String>,
    /// Begin with the recorded events that are newer than this. `None` begins with the events that come from now on.
    pub since: Option<Timestamp>,
    /// End after the recorded events. The daemon refuses this without `since`.
    pub stored_only: bool,
    /// What to do when the connection breaks.
    pub resume: Resume,
}

/// What an event stream does when its connection breaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Resume {
    /// Look for the daemon until it answers, and go on after the last event received.
    #[default]
    Always,
    /// As [`Resume::Always`], but give up with an error when no daemon has answered for this long.
    Within(Duration),
    /// End the stream with an error.
    Never,
}

/// A stream of events, from [`Client::events`].
///
/// It subscribes again by itself when the connection breaks or the daemon stops, and goes on after the last event received.
/// No event is lost or repeated, with these two limits:
///
/// - The daemon's journal keeps a limited number of events (`--retain-count`). The daemon ends a stream that is read too slowly
///   for that, which [`Events::next`] reports as [`Error::EventsLost`]. The daemon does not tell a new subscription what the
///   journal dropped while the client was not connected.
/// - A stream without [`Subscribe::since`] that breaks before its first event goes on from the moment at which it was
///   opened, by the clock of this machine.
pub struct Events {
    client: Client,
    operation: Operation,
    request: EventsRequest,
    resume: Resume,
    /// The timestamp of the last event received, or where the stream began.
    place: Timestamp,
    /// `None` while there is no connection.
    subscription: Option<Subscription>,
    has_ended: bool,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("request", &self.request).field("place", &self.place).finish_non_exhaustive()
    }
}

/// What a stream does next.
pub(crate) enum Step {
    Event(Event),
    /// The connection broke, and a new subscription is open. It goes on after the last event received.
    Resubscribed,
    End,
}

impl Events {
    pub(crate) async fn new(client: Client, subscribe: Subscribe) -> Result<Events, Error> {
        let Subscribe { container, since, stored_only, resume } = subscribe;
        let place = since.unwrap_or_else(now);
        let id = container.unwrap_or_default();
        let operation =
            Operation::read("subscribe to events", if id.is_empty() { "" } else { "of " }.to_string() + &id);
        let request = EventsRequest { timestamp: since, stored_only, id };
        let subscription = Subscription::open(&client, &operation, &request).await?;
        let subscription = Some(subscription);
        Ok(Events { client, operation, request, resume, place, subscription, has_ended: false })
    }

    /// Waits for the next event. Returns `None` at the end of a stream of recorded events only, and at the end of a stream with
    /// [`Resume::Never`].
    ///
    /// An error does not invalidate the stream: call this again to go on after the last event received. In particular, the
    /// stream goes on with the oldest event that the journal keeps after [`Error::EventsLost`]. With [`Resume::Never`], the
    /// stream ends with the first error.
    ///
    /// The future may be dropped and this method called again: no event is lost.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match self.step().await? {
                Step::Event(event) => return Ok(Some(event)),
                Step::Resubscribed => {}
                Step::End => return Ok(None),
            }
        }
    }

    /// The timestamp of the last event received, or where the stream began: the place from which another stream would go on.
    pub fn place(&self) -> Timestamp {
        self.place
    }

    /// As [`Events::next`], and reports that the stream has subscribed again.
    pub(crate) async fn step(&mut self) -> Result<Step, Error> {
        if self.has_ended {
            return Ok(Step::End);
        }
        let Some(subscription) = &mut self.subscription else {
            self.resubscribe().await?;
            return Ok(Step::Resubscribed);
        };
        let failed = match subscription.next().await {
            Ok(Some(event)) => {
                self.place = event.timestamp.unwrap_or(self.place);
                return Ok(Step::Event(event));
            }
            Ok(None) => None,
            Err(status) => Some(status),
        };
        self.subscription = None;
        self.has_ended = self.resume == Resume::Never || (failed.is_none() && self.request.stored_only);
        let Some(status) = failed else {
            // A daemon that stops may end the stream without an error.
            if self.has_ended {
                return Ok(Step::End);
            }
            self.resubscribe().await?;
            return Ok(Step::Resubscribed);
        };
        if status.code() == Code::DataLoss {
            return Err(Error::EventsLost { operation: self.operation.clone(), since: self.place, status });
        }
        let error = self.client.connector.explain(self.operation.clone(), status);
        if self.has_ended || !error.is_passing() {
            return Err(error);
        }
        self.resubscribe().await?;
        Ok(Step::Resubscribed)
    }

    /// Drops the subscription: the next step subscribes again, after the last event received.
    pub(crate) fn restart(&mut self) {
        self.subscription = None;
    }

    /// Whether the daemon has confirmed that the subscription is open.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.subscription, Some(Subscription::Open(_)))
    }

    /// Looks for the daemon until it answers, and subscribes after the last event received.
    async fn resubscribe(&mut self) -> Result<(), Error> {
        self.request.timestamp = Some(self.place);
        let begun = Instant::now();
        let mut last = None;
        loop {
            let attempt = Subscription::open(&self.client, &self.operation, &self.request);
            let result = match self.resume {
                Resume::Within(limit) => match tokio::time::timeout_at(begun + limit, attempt).await {
                    Ok(result) => result,
                    // The reason of an earlier attempt says more than that time is up.
                    Err(_) => return Err(last.unwrap_or_else(|| self.client.connector.later_than(limit))),
                },
                _ => attempt.await,
            };
            match result {
                Ok(subscription) => {
                    self.subscription = Some(subscription);
                    return Ok(());
                }
                Err(error) if error.is_passing() => last = Some(error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(RESUBSCRIBE_DELAY).await;
        }
    }
}

/// This machine's time.
fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or_default(),
        // Less than a thousand million.
        nanos: now.subsec_nanos() as i32,
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Streaming<Event>, Status>> + Send>>;

/// One subscription, on one connection. It does not wait for the headers of the daemon's answer.
///
/// Servers of grpc-go send the headers of a stream together with its first message. A client that waited for the headers
/// before it started a container would wait for the event that only the start brings.
enum Subscription {
    Asked(Answer),
    Open(Box<Streaming<Event>>),
}

impl Subscription {
    /// Asks for events. When this returns, the daemon has sent headers, or has answered calls that were sent after the
    /// subscription.
    async fn open(client: &Client, operation: &Operation, request: &EventsRequest) -> Result<Subscription, Error> {
        let connector = &client.connector;
        let call = |api: Api| {
            let mut events = Subscription::new(&api, request.clone());
            async move {
                // Two calls: a server that sends headers at once may still begin with the second of two requests that
                // arrive together.
                for _ in 0..2 {
                    let answer = connector.within(connector.deadline(), ask_version(api.clone()));
                    tokio::select! {
                        // In this order: the future that is polled first sends its request first.
                        biased;
                        opened = events.opened() => {
                            opened?;
                            break;
                        }
                        answer = answer => match answer {
                            Some(answer) => drop(answer?),
                            None => return Ok(None),
                        },
                    }
                }
                Ok(Some(events))
            }
        };
        match connector.read(operation.clone(), call).await? {
            Some(subscription) => Ok(subscription),
            None => Err(connector.silent().await),
        }
    }

    /// The request is sent when the subscription is first polled.
    fn new(api: &Api, request: EventsRequest) -> Subscription {
        let mut api = api.clone();
        Subscription::Asked(Box::pin(async move { Ok(api.events(request).await?.into_inner()) }))
    }

    /// Waits for the daemon's headers. The future may be dropped and this method called again.
    async fn opened(&mut self) -> Result<&mut Streaming<Event>, Status> {
        if let Subscription::Asked(answer) = self {
            *self = Subscription::Open(Box::new(answer.await?));
        }
        match self {
            Subscription::Open(events) => Ok(events),
            Subscription::Asked(_) => Err(Status::internal("the subscription is not open")),
        }
    }

    /// Waits for the next event. Returns `None` at the end. The future may be dropped and this method called again.
    async fn next(&mut self) -> Result<Option<Event>, Status> {
        self.opened().await?.message().await
    }
}
