//! The methods of the API. Its policy on the supervisor's steps: `CreateContainer` is create and start, and a
//! container is deleted when its init exits.

use api::api_server::Api;
use futures_util::Stream;
use std::pin::Pin;
use std::time::Duration;
use supervisor::{Ability, ContainerInfo, CreateContainer, CreateProcess, Error, OnExit, Stdio, Supervisor};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

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
struct Busy {
    supervisor: Supervisor,
    calls: watch::Sender<usize>,
}

impl std::ops::Deref for Busy {
    type Target = Supervisor;

    fn deref(&self) -> &Supervisor {
        &self.supervisor
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.calls.send_modify(|calls| *calls -= 1);
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

    /// The supervisor, once it knows what there is.
    async fn supervisor(&self) -> Busy {
        let busy = Busy { supervisor: self.supervisor.clone(), calls: self.calls.clone() };
        busy.calls.send_modify(|calls| *calls += 1);
        busy.supervisor.recovered().await;
        busy
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.start_timeout
    }
}

/// Creates and starts; what cannot be started is removed again.
async fn run(supervisor: Busy, request: CreateContainer, deadline: Instant) -> Result<ContainerInfo, Error> {
    let id = request.id.clone();
    supervisor.create(request, deadline).await?;
    let started = supervisor.start(&id, deadline).await;
    if started.is_err() {
        // It may have ended by itself meanwhile, and be gone.
        let _ = supervisor.discard(&id).await;
    }
    started
}

fn unsupported<T>(what: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("containerd: {what} is not supported by this version")))
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
        let busy = self.supervisor().await;
        let request = request.into_inner();
        if !request.checkpoint.is_empty() {
            return unsupported("restoring a checkpoint");
        }
        let request = CreateContainer {
            id: request.id,
            bundle: request.bundle_path,
            stdio: Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr },
            labels: request.labels,
            runtime: Some(request.runtime).filter(|runtime| !runtime.is_empty()),
            runtime_args: request.runtime_args,
            no_pivot_root: request.no_pivot_root,
            on_exit: OnExit::Delete,
        };
        // In a task of its own: a client that goes away does not leave a container half-made.
        let task = tokio::spawn(run(busy, request, self.deadline()));
        let info = task.await.map_err(|e| Status::internal(format!("containerd: {e}")))?.map_err(status)?;
        Ok(Response::new(api::CreateContainerResponse { container: Some(convert::container(info)) }))
    }

    async fn update_container(
        &self,
        request: Request<api::UpdateContainerRequest>,
    ) -> Answer<api::UpdateContainerResponse> {
        let supervisor = self.supervisor().await;
        let request = request.into_inner();
        let changes = request.resources.map(convert::changes).transpose()?.unwrap_or_default();
        // The state first: if it does not fit, nothing has been changed.
        match request.status.as_str() {
            "" if changes.is_empty() => drop(supervisor.state(Some(&request.id)).await.map_err(status)?),
            "" => {}
            "paused" => supervisor.pause(&request.id).await.map_err(status)?,
            "running" => supervisor.resume(&request.id).await.map_err(status)?,
            other => return Err(invalid("status", other, "must be \"paused\" or \"running\"")),
        }
        if !changes.is_empty() {
            supervisor.update(&request.id, changes).await.map_err(status)?;
        }
        Ok(Response::new(api::UpdateContainerResponse {}))
    }

    async fn signal(&self, request: Request<api::SignalRequest>) -> Answer<api::SignalResponse> {
        let supervisor = self.supervisor().await;
        let request = request.into_inner();
        supervisor.kill(&request.id, &request.pid, request.signal).map_err(status)?;
        Ok(Response::new(api::SignalResponse {}))
    }

    async fn update_process(&self, request: Request<api::UpdateProcessRequest>) -> Answer<api::UpdateProcessResponse> {
        let supervisor = self.supervisor().await;
        let request = request.into_inner();
        if request.width != 0 || request.height != 0 {
            supervisor.resize(&request.id, &request.pid, request.width, request.height).map_err(status)?;
        }
        if request.close_stdin {
            supervisor.close_stdin(&request.id, &request.pid).map_err(status)?;
        }
        Ok(Response::new(api::UpdateProcessResponse {}))
    }

    async fn add_process(&self, request: Request<api::AddProcessRequest>) -> Answer<api::AddProcessResponse> {
        let supervisor = self.supervisor().await;
        let mut request = request.into_inner();
        let spec = convert::process_spec(&mut request);
        let stdio = Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
        let request = CreateProcess { id: request.id, name: request.pid, spec, stdio };
        let created = supervisor.create_process(request).await.map_err(status)?;
        let system_pid = supervisor.start_process(created, self.deadline()).await.map_err(status)?;
        Ok(Response::new(api::AddProcessResponse { system_pid }))
    }

    async fn create_checkpoint(
        &self,
        request: Request<api::CreateCheckpointRequest>,
    ) -> Answer<api::CreateCheckpointResponse> {
        let supervisor = self.supervisor().await;
        supervisor.require(&request.into_inner().id, Ability::Checkpoint).await.map_err(status)?;
        unsupported("CreateCheckpoint")
    }

    async fn delete_checkpoint(
        &self,
        _: Request<api::DeleteCheckpointRequest>,
    ) -> Answer<api::DeleteCheckpointResponse> {
        unsupported("DeleteCheckpoint")
    }

    async fn list_checkpoint(&self, _: Request<api::ListCheckpointRequest>) -> Answer<api::ListCheckpointResponse> {
        unsupported("ListCheckpoint")
    }

    async fn state(&self, request: Request<api::StateRequest>) -> Answer<api::StateResponse> {
        let supervisor = self.supervisor().await;
        let id = request.into_inner().id;
        let id = Some(id.as_str()).filter(|id| !id.is_empty());
        let containers = supervisor.state(id).await.map_err(status)?;
        Ok(Response::new(api::StateResponse {
            containers: containers.into_iter().map(convert::container).collect(),
            machine: Some(convert::machine()),
        }))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<api::Event, Status>> + Send>>;

    async fn events(&self, request: Request<api::EventsRequest>) -> Answer<Self::EventsStream> {
        let supervisor = self.supervisor().await;
        let request = request.into_inner();
        let from = convert::moment(request.timestamp)?;
        if request.stored_only && from.is_none() {
            let text = "invalid parameter: StoredOnly cannot be specified without setting a valid Timestamp";
            return Err(Status::invalid_argument(format!("containerd: {text}")));
        }
        let id = Some(request.id).filter(|id| !id.is_empty());
        let subscription = supervisor.subscribe(from, id, request.stored_only);
        Ok(Response::new(Box::pin(events::stream(subscription, self.stopping.clone()))))
    }

    async fn stats(&self, request: Request<api::StatsRequest>) -> Answer<api::StatsResponse> {
        let supervisor = self.supervisor().await;
        let stats = supervisor.stats(&request.into_inner().id).await.map_err(status)?;
        Ok(Response::new(convert::stats(stats)))
    }
}
