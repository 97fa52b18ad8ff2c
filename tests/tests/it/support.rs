//! Calls as tests make them.

use api::{AddProcessRequest, Container, CreateContainerRequest, Event, EventsRequest};
use std::time::Duration;
use tests::{Client, Host, LIMIT};
use tonic::{Code, Status};

/// A subscription to events.
pub(crate) struct Watch(tonic::Streaming<Event>);

impl Watch {
    /// To all that come.
    pub(crate) async fn new(client: &mut Client) -> Watch {
        Watch::with(client, EventsRequest::default()).await
    }

    pub(crate) async fn with(client: &mut Client, request: EventsRequest) -> Watch {
        Watch(client.events(request).await.unwrap().into_inner())
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Event {
        self.try_next().await.unwrap().expect("the stream goes on")
    }

    /// The next event, the end, or the error.
    pub(crate) async fn try_next(&mut self) -> Result<Option<Event>, Status> {
        tokio::time::timeout(LIMIT, self.0.message()).await.expect("an event comes")
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.0.message()).await.is_err()
    }

    /// The status with which a process exits; all else is passed over.
    pub(crate) async fn exit(&mut self, id: &str, pid: &str) -> u32 {
        loop {
            let event = self.next().await;
            if event.r#type == "exit" && event.id == id && event.pid == pid {
                return event.status;
            }
        }
    }

    /// All until the end.
    pub(crate) async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.try_next().await.unwrap() {
            events.push(event);
        }
        events
    }
}

/// All stored events.
pub(crate) async fn stored(client: &mut Client) -> Vec<Event> {
    let timestamp = Some(api::Timestamp { seconds: 1, nanos: 0 });
    Watch::with(client, EventsRequest { timestamp, stored_only: true, id: String::new() }).await.rest().await
}

/// An event in short.
pub(crate) fn short(event: &Event) -> String {
    match event.r#type.as_str() {
        "exit" => format!("{} exit {} {}", event.id, event.pid, event.status),
        "start-process" => format!("{} start-process {}", event.id, event.pid),
        other => format!("{} {other}", event.id),
    }
}

pub(crate) fn container(id: &str, bundle: &str) -> CreateContainerRequest {
    CreateContainerRequest { id: id.into(), bundle_path: bundle.into(), ..Default::default() }
}

pub(crate) fn process(id: &str, pid: &str, args: &[&str]) -> AddProcessRequest {
    let args = args.iter().map(|arg| (*arg).to_string()).collect();
    AddProcessRequest { id: id.into(), pid: pid.into(), args, ..Default::default() }
}

/// Starts a container that does nothing until it is killed.
pub(crate) async fn sleeper(host: &Host, client: &mut Client, id: &str) -> Container {
    start(client, id, &host.bundle(&["sleep", "100000"]).write()).await
}

pub(crate) async fn start(client: &mut Client, id: &str, bundle: &str) -> Container {
    client.create_container(container(id, bundle)).await.unwrap().into_inner().container.unwrap()
}

pub(crate) async fn signal(client: &mut Client, id: &str, pid: &str, signal: u32) -> Result<(), Status> {
    client.signal(api::SignalRequest { id: id.into(), pid: pid.into(), signal }).await.map(|_| ())
}

/// Kills a container and waits for its exit.
pub(crate) async fn kill(client: &mut Client, id: &str) {
    let mut watch = Watch::new(client).await;
    signal(client, id, "init", 9).await.unwrap();
    assert_eq!(watch.exit(id, "init").await, 137);
}

pub(crate) async fn close_stdin(client: &mut Client, id: &str, pid: &str) {
    let request = api::UpdateProcessRequest { id: id.into(), pid: pid.into(), close_stdin: true, ..Default::default() };
    client.update_process(request).await.unwrap();
}

pub(crate) async fn state(client: &mut Client) -> Vec<Container> {
    client.state(api::StateRequest::default()).await.unwrap().into_inner().containers
}

pub(crate) async fn set_status(client: &mut Client, id: &str, status: &str) -> Result<(), Status> {
    let request = api::UpdateContainerRequest { id: id.into(), status: status.into(), ..Default::default() };
    client.update_container(request).await.map(|_| ())
}

/// Checks an error's code and that its message contains each text.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, texts: &[&str]) {
    let status = result.expect_err("must be refused");
    assert_eq!(status.code(), code, "{status:?}");
    for text in texts {
        assert!(status.message().contains(text), "{:?} lacks {text:?}", status.message());
    }
}

/// Whether a call failed because its daemon went away, as this client library tells that.
pub(crate) fn is_cut_off(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Cancelled => true,
        Code::Unknown | Code::Internal => {
            ["transport error", "h2 protocol error"].iter().any(|text| status.message().contains(text))
        }
        _ => false,
    }
}

/// The processes of a PID namespace that have ended and that nobody has reaped.
pub(crate) fn zombies_in_namespace_of(pid: u32) -> Vec<u32> {
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_there = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == namespace);
    pids.filter(is_there).filter(|pid| sys::procfs::stat(*pid).unwrap().is_some_and(|stat| stat.is_dead())).collect()
}
