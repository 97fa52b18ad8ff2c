//! The methods of the API. Its policy on the supervisor's steps: `CreateContainer` is create and start, and a
//! container is deleted when its init exits.

use api::api_server::Api;
use futures_util::Stream;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;
use supervisor::{Checkpoint, CreateContainer, CreateProcess, Stdio, Supervisor, carried_through, with_runtime_time};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use crate::convert;
use crate::errors::{invalid, status};
use crate::events;
use crate::flags::REVISION;

/// The API over one supervisor.
#[derive(Debug)]
pub(crate) struct Service {
    supervisor: Supervisor,
    start_timeout: Duration,
    stopping: watch::Receiver<bool>,
    calls: watch::Sender<usize>,
}

/// A call that is under way.
struct Busy(watch::Sender<usize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// `calls` tells how many are under way, streams not counted.
    pub(crate) fn new(
        supervisor: Supervisor,
        start_timeout: Duration,
        stopping: watch::Receiver<bool>,
        calls: watch::Sender<usize>,
    ) -> Service {
        Service { supervisor, start_timeout, stopping, calls }
    }

    /// Carries out a call once the supervisor knows what there is: within a span that names it, and logged with the
    /// time that it took and how much of that was a runtime's.
    async fn call<T>(
        &self,
        method: &'static str,
        id: &str,
        process: &str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Answer<T> {
        let begun = Instant::now();
        let _busy = self.busy();
        let (id, process) = (shortened(id), shortened(process));
        let span =
            tracing::info_span!("call", method, container = id, process = (!process.is_empty()).then_some(process));
        let carry_out = async {
            let _task = self.supervisor.tasks().begin_call(method, id, process);
            self.supervisor.recovered().await;
            let (result, in_runtime) = with_runtime_time(work).await;
            let code = result.as_ref().err().map_or(Code::Ok, Status::code);
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            tracing::debug!(?code, ms = ms(begun.elapsed()), runtime_ms = ms(in_runtime), "answered");
            result.map(Response::new)
        };
        carry_out.instrument(span).await
    }

    /// Says that a call is under way, until the result is dropped.
    fn busy(&self) -> Busy {
        self.calls.send_modify(|calls| *calls += 1);
        Busy(self.calls.clone())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.start_timeout
    }
}

/// What a client sent, as far as it is worth repeating.
fn shortened(text: &str) -> &str {
    // Longer than any id that is accepted.
    text.char_indices().nth(128).map_or(text, |(end, _)| &text[..end])
}

/// A path, if there is one.
fn given(path: String) -> Option<PathBuf> {
    Some(path).filter(|path| !path.is_empty()).map(PathBuf::from)
}

#[tonic::async_trait]
impl Api for Service {
    async fn get_server_version(
        &self,
        _: Request<api::GetServerVersionRequest>,
    ) -> Answer<api::GetServerVersionResponse> {
        let number = |text: &str| text.parse().unwrap_or_default();
        Ok(Response::new(api::GetServerVersionResponse {
            major: number(env!("CARGO_PKG_VERSION_MAJOR")),
            minor: number(env!("CARGO_PKG_VERSION_MINOR")),
            patch: number(env!("CARGO_PKG_VERSION_PATCH")),
            revision: REVISION.into(),
        }))
    }

    async fn create_container(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Answer<api::CreateContainerResponse> {
        let request = request.into_inner();
        let id = request.id.clone();
        self.call("CreateContainer", &id, "", async move {
            convert::check_container(&request)?;
            let runtime = Some(request.runtime).filter(|runtime| !runtime.is_empty());
            let request = CreateContainer {
                id: request.id,
                bundle: request.bundle_path,
                stdio: Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr },
                labels: request.labels,
                runtime,
                runtime_args: request.runtime_args,
                no_pivot_root: request.no_pivot_root,
                checkpoint: Some(request.checkpoint).filter(|name| !name.is_empty()),
                checkpoint_dir: given(request.checkpoint_dir),
                terminal_size: convert::terminal_size(request.width, request.height)?,
            };
            let (supervisor, busy, deadline) = (self.supervisor.clone(), self.busy(), self.deadline());
            // A client that goes away does not leave a container half-made.
            let run = async move {
                let _busy = busy;
                supervisor.run(request, deadline).await
            };
            let info = carried_through(run).await.map_err(status)?;
            Ok(api::CreateContainerResponse { container: Some(convert::container(&info)) })
        })
        .await
    }

    async fn update_container(
        &self,
        request: Request<api::UpdateContainerRequest>,
    ) -> Answer<api::UpdateContainerResponse> {
        let api::UpdateContainerRequest { id, status: state, resources, .. } = request.into_inner();
        self.call("UpdateContainer", &id, "", async {
            let changes = resources.map(convert::changes).transpose()?.unwrap_or_default();
            if !changes.is_empty() {
                self.supervisor.check_limits(&id, &changes).map_err(status)?;
            }
            // The state first: if it does not fit, nothing has been changed.
            match state.as_str() {
                "" if changes.is_empty() => drop(self.supervisor.state(Some(&id)).await.map_err(status)?),
                "" => {}
                "paused" => self.supervisor.pause(&id).await.map_err(status)?,
                "running" => self.supervisor.resume(&id).await.map_err(status)?,
                other => return Err(invalid("status", other, "must be \"paused\" or \"running\"")),
            }
            if !changes.is_empty() {
                let (supervisor, busy, id) = (self.supervisor.clone(), self.busy(), id.clone());
                let update = async move {
                    let _busy = busy;
                    supervisor.update(&id, changes).await
                };
                carried_through(update).await.map_err(status)?;
            }
            Ok(api::UpdateContainerResponse {})
        })
        .await
    }

    async fn signal(&self, request: Request<api::SignalRequest>) -> Answer<api::SignalResponse> {
        let api::SignalRequest { id, pid, signal } = request.into_inner();
        self.call("Signal", &id, &pid, async {
            self.supervisor.kill(&id, &pid, signal).map_err(status)?;
            Ok(api::SignalResponse {})
        })
        .await
    }

    async fn update_process(&self, request: Request<api::UpdateProcessRequest>) -> Answer<api::UpdateProcessResponse> {
        let api::UpdateProcessRequest { id, pid, close_stdin, width, height } = request.into_inner();
        self.call("UpdateProcess", &id, &pid, async {
            if width != 0 || height != 0 {
                self.supervisor.resize(&id, &pid, width, height).map_err(status)?;
            }
            if close_stdin {
                self.supervisor.close_stdin(&id, &pid).map_err(status)?;
            }
            Ok(api::UpdateProcessResponse {})
        })
        .await
    }

    async fn add_process(&self, request: Request<api::AddProcessRequest>) -> Answer<api::AddProcessResponse> {
        let mut request = request.into_inner();
        let (id, pid) = (request.id.clone(), request.pid.clone());
        self.call("AddProcess", &id, &pid, async {
            convert::check_process(&request)?;
            let spec = convert::process_spec(&mut request);
            let stdio = Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
            let terminal_size = convert::terminal_size(request.width, request.height)?;
            let request = CreateProcess { id: request.id, name: request.pid, spec, stdio, terminal_size };
            let deadline = self.deadline();
            let created = self.supervisor.create_process(request, deadline).await.map_err(status)?;
            let system_pid = self.supervisor.start_process(created, deadline).await.map_err(status)?;
            Ok(api::AddProcessResponse { system_pid })
        })
        .await
    }

    async fn create_checkpoint(
        &self,
        request: Request<api::CreateCheckpointRequest>,
    ) -> Answer<api::CreateCheckpointResponse> {
        let api::CreateCheckpointRequest { id, checkpoint, checkpoint_dir } = request.into_inner();
        self.call("CreateCheckpoint", &id, "", async {
            let none = || invalid("checkpoint", "", "must be given");
            let api::Checkpoint { name, exit, tcp, unix_sockets, shell, empty_ns } = checkpoint.ok_or_else(none)?;
            let wanted = Checkpoint { name, tcp, unix_sockets, shell, exit, empty_ns, ..Checkpoint::default() };
            let (supervisor, busy, id) = (self.supervisor.clone(), self.busy(), id.clone());
            let make = async move {
                let _busy = busy;
                supervisor.checkpoint(&id, wanted, given(checkpoint_dir)).await
            };
            carried_through(make).await.map_err(status)?;
            Ok(api::CreateCheckpointResponse {})
        })
        .await
    }

    async fn delete_checkpoint(
        &self,
        request: Request<api::DeleteCheckpointRequest>,
    ) -> Answer<api::DeleteCheckpointResponse> {
        let api::DeleteCheckpointRequest { id, name, checkpoint_dir } = request.into_inner();
        self.call("DeleteCheckpoint", &id, "", async {
            self.supervisor.delete_checkpoint(&id, &name, given(checkpoint_dir)).await.map_err(status)?;
            Ok(api::DeleteCheckpointResponse {})
        })
        .await
    }

    async fn list_checkpoint(
        &self,
        request: Request<api::ListCheckpointRequest>,
    ) -> Answer<api::ListCheckpointResponse> {
        let api::ListCheckpointRequest { id, checkpoint_dir } = request.into_inner();
        self.call("ListCheckpoint", &id, "", async {
            let found = self.supervisor.checkpoints(&id, given(checkpoint_dir)).await.map_err(status)?;
            Ok(api::ListCheckpointResponse { checkpoints: found.into_iter().map(convert::checkpoint).collect() })
        })
        .await
    }

    async fn state(&self, request: Request<api::StateRequest>) -> Answer<api::StateResponse> {
        let id = request.into_inner().id;
        self.call("State", &id, "", async {
            let id = Some(id.as_str()).filter(|id| !id.is_empty());
            // Converted by the threads that read the containers, not by the one that serves all calls.
            let convert = |all: &mut Vec<api::Container>, info| all.push(convert::container(&info));
            let parts = self.supervisor.state_as(id, convert).await.map_err(status)?;
            let containers = parts.into_iter().flatten().collect();
            Ok(api::StateResponse { containers, machine: Some(convert::machine()) })
        })
        .await
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<api::Event, Status>> + Send>>;

    async fn events(&self, request: Request<api::EventsRequest>) -> Answer<Self::EventsStream> {
        self.supervisor.recovered().await;
        let request = request.into_inner();
        let from = convert::moment(request.timestamp)?;
        if request.stored_only && from.is_none() {
            let text = "invalid parameter: StoredOnly cannot be specified without setting a valid Timestamp";
            return Err(Status::invalid_argument(format!("containerd: {text}")));
        }
        let id = Some(request.id).filter(|id| !id.is_empty());
        let subscription = self.supervisor.subscribe(from, id, request.stored_only);
        Ok(Response::new(Box::pin(events::stream(subscription, self.stopping.clone()))))
    }

    async fn stats(&self, request: Request<api::StatsRequest>) -> Answer<api::StatsResponse> {
        let id = request.into_inner().id;
        self.call("Stats", &id, "", async {
            let stats = self.supervisor.stats(&id).await.map_err(status)?;
            Ok(convert::stats(stats))
        })
        .await
    }
}
