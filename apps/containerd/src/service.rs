//! The methods of the API, mapped onto the supervisor. `CreateContainer` creates and starts a container in one step, and asks
//! the supervisor to delete the container when its init exits.

use api::api_server::Api;
use futures_util::Stream;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;
use supervisor::{Checkpoint, CreateContainer, CreateProcess, Stdio, Supervisor, in_call};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use crate::convert;
use crate::errors::{invalid, status};
use crate::events;
use crate::flags::REVISION;

/// The API, served by one supervisor.
#[derive(Debug)]
pub(crate) struct Service {
    supervisor: Supervisor,
    start_timeout: Duration,
    stopping: watch::Receiver<bool>,
    calls: watch::Sender<usize>,
}

/// Counts a call as under way until this value is dropped.
struct UnderWay(watch::Sender<usize>);

impl UnderWay {
    fn new(calls: &watch::Sender<usize>) -> UnderWay {
        calls.send_modify(|calls| *calls += 1);
        UnderWay(calls.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

/// A call from its arrival to its answer.
struct Call<'a> {
    supervisor: &'a Supervisor,
    method: &'static str,
    container: &'a str,
    process: &'a str,
    begun: Instant,
    under_way: UnderWay,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Publishes in `calls` how many calls are under way. Event streams do not count.
    pub(crate) fn new(
        supervisor: Supervisor,
        start_timeout: Duration,
        stopping: watch::Receiver<bool>,
        calls: watch::Sender<usize>,
    ) -> Service {
        Service { supervisor, start_timeout, stopping, calls }
    }

    /// Begins a call. `process` is empty if the call does not concern one process.
    fn call<'a>(&'a self, method: &'static str, id: &'a str, process: &'a str) -> Call<'a> {
        Call {
            supervisor: &self.supervisor,
            method,
            container: shortened(id),
            process: shortened(process),
            begun: Instant::now(),
            under_way: UnderWay::new(&self.calls),
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.start_timeout
    }
}

impl Call<'_> {
    /// Waits for the recovery, does the call's work in a span that names the call, and logs how long the call took and how
    /// much of that time the runtime took. The call counts as under way until everything that it has begun has ended.
    async fn answer<T>(self, work: impl Future<Output = Result<T, Status>>) -> Answer<T> {
        let Call { supervisor, method, container, process, begun, under_way } = self;
        let span = tracing::info_span!("call", method, container, process = (!process.is_empty()).then_some(process));
        let observed = async {
            let _task = supervisor.tasks().begin_call(method, container, process);
            supervisor.recovered().await;
            let (result, in_runtime) = in_call(under_way, work).await;
            let code = result.as_ref().err().map_or(Code::Ok, Status::code);
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            tracing::debug!(?code, ms = ms(begun.elapsed()), runtime_ms = ms(in_runtime), "answered");
            result.map(Response::new)
        };
        observed.instrument(span).await
    }
}

/// The beginning of a client's text, for logs. It holds every id that the supervisor accepts (128 characters).
fn shortened(text: &str) -> &str {
    text.char_indices().nth(128).map_or(text, |(end, _)| &text[..end])
}

/// A path from a request, in which an empty one stands for none.
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
        let call = self.call("CreateContainer", &id, "");
        call.answer(async {
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
            let info = self.supervisor.run(request, self.deadline()).await.map_err(status)?;
            Ok(api::CreateContainerResponse { container: Some(convert::container(&info)) })
        })
        .await
    }

    async fn update_container(
        &self,
        request: Request<api::UpdateContainerRequest>,
    ) -> Answer<api::UpdateContainerResponse> {
        let api::UpdateContainerRequest { id, status: state, resources, .. } = request.into_inner();
        let call = self.call("UpdateContainer", &id, "");
        call.answer(async {
            let changes = resources.map(convert::changes).transpose()?.unwrap_or_default();
            if !changes.is_empty() {
                self.supervisor.check_limits(&id, &changes).map_err(status)?;
            }
            // The status first: if the container's state refuses it, no limit has been changed yet.
            match state.as_str() {
                "" if changes.is_empty() => drop(self.supervisor.state(Some(&id)).await.map_err(status)?),
                "" => {}
                "paused" => self.supervisor.pause(&id).await.map_err(status)?,
                "running" => self.supervisor.resume(&id).await.map_err(status)?,
                other => return Err(invalid("status", other, "must be \"paused\" or \"running\"")),
            }
            if !changes.is_empty() {
                self.supervisor.update(&id, changes).await.map_err(status)?;
            }
            Ok(api::UpdateContainerResponse {})
        })
        .await
    }

    async fn signal(&self, request: Request<api::SignalRequest>) -> Answer<api::SignalResponse> {
        let api::SignalRequest { id, pid, signal } = request.into_inner();
        let call = self.call("Signal", &id, &pid);
        call.answer(async {
            self.supervisor.kill(&id, &pid, signal).map_err(status)?;
            Ok(api::SignalResponse {})
        })
        .await
    }

    async fn update_process(&self, request: Request<api::UpdateProcessRequest>) -> Answer<api::UpdateProcessResponse> {
        let api::UpdateProcessRequest { id, pid, close_stdin, width, height } = request.into_inner();
        let call = self.call("UpdateProcess", &id, &pid);
        call.answer(async {
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
        let call = self.call("AddProcess", &id, &pid);
        call.answer(async {
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
        let call = self.call("CreateCheckpoint", &id, "");
        call.answer(async {
            let missing = || invalid("checkpoint", "", "must be given");
            let api::Checkpoint { name, exit, tcp, unix_sockets, shell, empty_ns } = checkpoint.ok_or_else(missing)?;
            let wanted = Checkpoint { name, tcp, unix_sockets, shell, exit, empty_ns, ..Checkpoint::default() };
            self.supervisor.checkpoint(&id, wanted, given(checkpoint_dir)).await.map_err(status)?;
            Ok(api::CreateCheckpointResponse {})
        })
        .await
    }

    async fn delete_checkpoint(
        &self,
        request: Request<api::DeleteCheckpointRequest>,
    ) -> Answer<api::DeleteCheckpointResponse> {
        let api::DeleteCheckpointRequest { id, name, checkpoint_dir } = request.into_inner();
        let call = self.call("DeleteCheckpoint", &id, "");
        call.answer(async {
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
        let call = self.call("ListCheckpoint", &id, "");
        call.answer(async {
            let found = self.supervisor.checkpoints(&id, given(checkpoint_dir)).await.map_err(status)?;
            Ok(api::ListCheckpointResponse { checkpoints: found.into_iter().map(convert::checkpoint).collect() })
        })
        .await
    }

    async fn state(&self, request: Request<api::StateRequest>) -> Answer<api::StateResponse> {
        let id = request.into_inner().id;
        let call = self.call("State", &id, "");
        call.answer(async {
            let id = Some(id.as_str()).filter(|id| !id.is_empty());
            // Converted by the threads that read the containers, not by the one that serves all calls.
            let add = |all: &mut Vec<api::Container>, info| all.push(convert::container(&info));
            let parts = self.supervisor.state_as(id, add).await.map_err(status)?;
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
        let call = self.call("Stats", &id, "");
        call.answer(async {
            let stats = self.supervisor.stats(&id).await.map_err(status)?;
            Ok(convert::stats(stats))
        })
        .await
    }
}
