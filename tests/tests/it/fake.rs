//! A daemon that only plays one, for what no real one can be made to do at will. It has the API and nothing behind it.

use api::api_server::{Api, ApiServer};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use sys::socket_path::SocketPath;
use tests::LIMIT;
use tokio::sync::watch;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// How a fake daemon behaves.
#[derive(Default)]
pub(crate) struct Behaviour {
    pub(crate) containers: Vec<api::Container>,
    /// The number of calls for the version that are answered; none of them by `Some(0)`.
    pub(crate) versions: Option<usize>,
    /// Calls that are never answered.
    pub(crate) silent: Vec<&'static str>,
    /// The words with which a start is refused.
    pub(crate) refusal: Option<&'static str>,
    /// What an earlier daemon has stored.
    pub(crate) stored: Vec<api::Event>,
    /// Subscriptions never get live events. Those that name a timestamp get the stored ones.
    pub(crate) forgets_subscribers: bool,
    /// The first subscription with a timestamp ends after so many stored events, since others are lost.
    pub(crate) loses_after: Option<usize>,
}

/// A daemon in a thread of its own. Its connections break when it is dropped.
pub(crate) struct Fake {
    pub(crate) state: Arc<State>,
    /// The names of calls as they come.
    pub(crate) calls: mpsc::Receiver<&'static str>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub(crate) struct State {
    behaviour: Behaviour,
    versions: AtomicUsize,
    has_lost: AtomicBool,
    calls: mpsc::Sender<&'static str>,
    pub(crate) events: watch::Sender<Vec<api::Event>>,
    pub(crate) created: Mutex<Option<api::CreateContainerRequest>>,
    pub(crate) added: Mutex<Option<api::AddProcessRequest>>,
}

impl Fake {
    pub(crate) fn serve(socket: &Path, behaviour: Behaviour) -> Fake {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(SocketPath::to_bind(socket).unwrap()).unwrap();
        let (sender, calls) = mpsc::channel();
        let state = Arc::new(State {
            versions: AtomicUsize::new(0),
            has_lost: AtomicBool::new(false),
            calls: sender,
            events: watch::Sender::new(behaviour.stored.clone()),
            behaviour,
            created: Mutex::default(),
            added: Mutex::default(),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let service = ApiServer::new(Daemon(state.clone()));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let (incoming, accepted) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        let _ = incoming.send(Ok::<_, std::io::Error>(stream)).await;
                    }
                });
                let server = tonic::transport::Server::builder().add_service(service);
                tokio::select! {
                    served = server.serve_with_incoming(ReceiverStream::new(accepted)) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Fake { state, calls, stop: Some(stop), thread: Some(thread) }
    }

    /// Waits until a call comes.
    pub(crate) fn wait_for(&self, call: &str) {
        while self.calls.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{call} is called")) != call {}
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

struct Daemon(Arc<State>);

impl Daemon {
    async fn begin(&self, call: &'static str) {
        let _ = self.0.calls.send(call);
        if self.0.behaviour.silent.contains(&call) {
            std::future::pending::<()>().await;
        }
    }

    /// Plays a process that writes a line and ends at once, before its client can know that it was started.
    fn run(&self, id: &str, pid: &str, start: &str, stdout: &str) {
        // Fails where nothing has the FIFO open for reading.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut fifo = std::fs::File::options().write(true).custom_flags(nonblock).open(stdout).unwrap();
        fifo.write_all(b"said at once\n").unwrap();
        drop(fifo);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let event = |kind: &str, pid: &str, status: u32, nanos: i32| api::Event {
            r#type: kind.into(),
            id: id.into(),
            pid: pid.into(),
            status,
            timestamp: Some(api::Timestamp { seconds: now.as_secs() as i64 + 1, nanos }),
        };
        let named = if start == "start-container" { "" } else { pid };
        self.0.events.send_modify(|events| events.extend([event(start, named, 0, 1), event("exit", pid, 7, 2)]));
    }
}

#[tonic::async_trait]
impl Api for Daemon {
    type EventsStream = ReceiverStream<Result<api::Event, Status>>;

    async fn get_server_version(
        &self,
        _: Request<api::GetServerVersionRequest>,
    ) -> Answer<api::GetServerVersionResponse> {
        self.begin("GetServerVersion").await;
        let before = self.0.versions.fetch_add(1, Ordering::Relaxed);
        if self.0.behaviour.versions.is_some_and(|most| before >= most) {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(api::GetServerVersionResponse { minor: 2, ..Default::default() }))
    }

    async fn create_container(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Answer<api::CreateContainerResponse> {
        let request = request.into_inner();
        *self.0.created.lock().unwrap() = Some(request.clone());
        self.begin("CreateContainer").await;
        if let Some(words) = self.0.behaviour.refusal {
            return Err(Status::unknown(words));
        }
        if !request.stdout.is_empty() {
            self.run(&request.id, "init", "start-container", &request.stdout);
        }
        Ok(Response::new(api::CreateContainerResponse::default()))
    }

    async fn add_process(&self, request: Request<api::AddProcessRequest>) -> Answer<api::AddProcessResponse> {
        let request = request.into_inner();
        *self.0.added.lock().unwrap() = Some(request.clone());
        self.begin("AddProcess").await;
        if !request.stdout.is_empty() {
            self.run(&request.id, &request.pid, "start-process", &request.stdout);
        }
        Ok(Response::new(api::AddProcessResponse::default()))
    }

    async fn events(&self, request: Request<api::EventsRequest>) -> Answer<Self::EventsStream> {
        self.begin("Events").await;
        let (sender, stream) = tokio::sync::mpsc::channel(16);
        let request = request.into_inner();
        let mut given = 0;
        if let Some(timestamp) = request.timestamp {
            let key = |at: api::Timestamp| (at.seconds, at.nanos);
            for event in self.0.events.borrow().iter().filter(|event| event.timestamp.map(key) > Some(key(timestamp))) {
                if self.0.behaviour.loses_after == Some(given) && !self.0.has_lost.swap(true, Ordering::Relaxed) {
                    sender.try_send(Err(Status::data_loss("containerd: this subscriber is too slow"))).unwrap();
                    return Ok(Response::new(ReceiverStream::new(stream)));
                }
                sender.try_send(Ok(event.clone())).unwrap();
                given += 1;
            }
        }
        if request.stored_only || given > 0 {
            if !request.stored_only {
                // The stream stays open.
                tokio::spawn(async move { sender.closed().await });
            }
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        if self.0.behaviour.forgets_subscribers {
            std::future::pending::<()>().await;
        }
        // As grpc-go does it: the headers come with the first message.
        let mut events = self.0.events.subscribe();
        let mut seen = events.borrow().len();
        let _ = events.wait_for(|events| events.len() > seen).await;
        tokio::spawn(async move {
            loop {
                let new = match events.wait_for(|events| events.len() > seen).await {
                    Ok(events) => events[seen..].to_vec(),
                    Err(_) => return,
                };
                seen += new.len();
                for event in new {
                    let _ = sender.send(Ok(event)).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn state(&self, request: Request<api::StateRequest>) -> Answer<api::StateResponse> {
        self.begin("State").await;
        let id = request.into_inner().id;
        let mut containers = self.0.behaviour.containers.clone();
        containers.retain(|container| id.is_empty() || container.id == id);
        if containers.is_empty() && !id.is_empty() {
            return Err(Status::not_found("containerd: container not found"));
        }
        Ok(Response::new(api::StateResponse { containers, machine: None }))
    }

    async fn update_process(&self, _: Request<api::UpdateProcessRequest>) -> Answer<api::UpdateProcessResponse> {
        Ok(Response::new(api::UpdateProcessResponse::default()))
    }

    async fn update_container(&self, _: Request<api::UpdateContainerRequest>) -> Answer<api::UpdateContainerResponse> {
        self.begin("UpdateContainer").await;
        Ok(Response::new(api::UpdateContainerResponse::default()))
    }

    async fn signal(&self, _: Request<api::SignalRequest>) -> Answer<api::SignalResponse> {
        self.begin("Signal").await;
        Ok(Response::new(api::SignalResponse::default()))
    }

    async fn create_checkpoint(
        &self,
        _: Request<api::CreateCheckpointRequest>,
    ) -> Answer<api::CreateCheckpointResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn delete_checkpoint(
        &self,
        _: Request<api::DeleteCheckpointRequest>,
    ) -> Answer<api::DeleteCheckpointResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_checkpoint(&self, _: Request<api::ListCheckpointRequest>) -> Answer<api::ListCheckpointResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn stats(&self, _: Request<api::StatsRequest>) -> Answer<api::StatsResponse> {
        self.begin("Stats").await;
        Ok(Response::new(api::StatsResponse::default()))
    }
}
