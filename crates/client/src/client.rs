//! The calls of the API.

use api::{
    AddProcessRequest, Checkpoint, Container, CreateCheckpointRequest, CreateContainerRequest, DeleteCheckpointRequest,
    GetServerVersionResponse, ListCheckpointRequest, SignalRequest, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateContainerRequest, UpdateProcessRequest, UpdateResource,
};
use std::sync::Arc;

use crate::address::Address;
use crate::connection::{Config, Connector, ask_version};
use crate::error::{Error, Operation};
use crate::events::{Events, Subscribe};

/// The name of a container's first process.
pub const INIT: &str = "init";

/// A client of one daemon.
///
/// It connects when it is first used, and again whenever a call has found the connection broken. Clones are cheap and share
/// the connection. The daemon serves 512 requests at a time on one connection, and each event stream and each session is a
/// request for as long as it lasts: use several clients for more.
///
/// A call that changes nothing is made again when the connection breaks before its answer, until the time limit of
/// [`Config::timeout`] has passed since then. A call that changes something is sent at most once, after the daemon has answered
/// on the connection. Once sent, a call has no time limit of the client's: the daemon has its own, and carries a call through
/// when its client gives up.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) connector: Arc<Connector>,
}

impl Client {
    /// Returns a client that has not connected yet.
    pub fn new(config: Config) -> Client {
        Client { connector: Arc::new(Connector::new(config)) }
    }

    /// The daemon's address.
    pub fn address(&self) -> &Address {
        &self.connector.config.address
    }

    /// Waits until a daemon answers. Calls do this by themselves; use it to tell a missing daemon from a failed call.
    pub async fn connect(&self) -> Result<(), Error> {
        self.connector.connect().await
    }

    /// Returns the daemon's version.
    pub async fn version(&self) -> Result<GetServerVersionResponse, Error> {
        self.connector.read(Operation::read("read the version", ""), ask_version).await
    }

    /// Returns all containers, their processes, and the machine.
    pub async fn state(&self) -> Result<StateResponse, Error> {
        self.read_state(Operation::read("read the state", ""), StateRequest::default()).await
    }

    /// Returns the state of one container, and the machine.
    pub async fn state_of(&self, id: &str) -> Result<StateResponse, Error> {
        self.read_state(Operation::read("read the state of", id), StateRequest { id: id.into() }).await
    }

    async fn read_state(&self, operation: Operation, request: StateRequest) -> Result<StateResponse, Error> {
        let call = |mut api: crate::connection::Api| {
            let request = request.clone();
            async move { Ok(api.state(request).await?.into_inner()) }
        };
        self.connector.read(operation, call).await
    }

    /// Creates a container from a bundle or from a checkpoint, and starts it. Returns when the user's process runs.
    ///
    /// [`Session`](crate::Session) does the same with stdio attached.
    pub async fn create_container(&self, request: CreateContainerRequest) -> Result<Container, Error> {
        let operation = Operation::change("create container", &request.id);
        let call = |mut api: crate::connection::Api| async move { api.create_container(request).await };
        Ok(self.connector.change(operation, call).await?.container.unwrap_or_default())
    }

    /// Starts a further process in a container. Returns the process's id on the daemon's machine.
    pub async fn add_process(&self, request: AddProcessRequest) -> Result<u32, Error> {
        let operation = Operation::change("add process", of(&request.id, &request.pid));
        let call = |mut api: crate::connection::Api| async move { api.add_process(request).await };
        Ok(self.connector.change(operation, call).await?.system_pid)
    }

    /// Sends a signal to a process of a container: [`INIT`] or the name of an added one.
    pub async fn signal(&self, id: &str, process: &str, signal: u32) -> Result<(), Error> {
        let operation = Operation::change("send a signal to", of(id, process));
        let request = SignalRequest { id: id.into(), pid: process.into(), signal };
        self.connector.change(operation, |mut api| async move { api.signal(request).await }).await.map(drop)
    }

    /// Freezes all processes of a container.
    pub async fn pause(&self, id: &str) -> Result<(), Error> {
        self.set_status(Operation::change("pause", id), id, "paused").await
    }

    /// Lets a paused container go on.
    pub async fn resume(&self, id: &str) -> Result<(), Error> {
        self.set_status(Operation::change("resume", id), id, "running").await
    }

    async fn set_status(&self, operation: Operation, id: &str, status: &str) -> Result<(), Error> {
        let request = UpdateContainerRequest { id: id.into(), status: status.into(), ..Default::default() };
        self.connector.change(operation, |mut api| async move { api.update_container(request).await }).await.map(drop)
    }

    /// Changes the resource limits of a container. Zero and an empty string leave a limit as it is.
    pub async fn update(&self, id: &str, resources: UpdateResource) -> Result<(), Error> {
        let operation = Operation::change("update", id);
        let request = UpdateContainerRequest { id: id.into(), resources: Some(resources), ..Default::default() };
        self.connector.change(operation, |mut api| async move { api.update_container(request).await }).await.map(drop)
    }

    /// Makes a process read end-of-file from its stdin, after every byte that was written to its FIFO before this call.
    pub async fn close_stdin(&self, id: &str, process: &str) -> Result<(), Error> {
        let request = UpdateProcessRequest { close_stdin: true, ..update_process(id, process) };
        self.update_process(Operation::change("close stdin of", of(id, process)), request).await
    }

    /// Sets the size of a process's terminal, in characters. The process gets SIGWINCH.
    pub async fn resize(&self, id: &str, process: &str, width: u32, height: u32) -> Result<(), Error> {
        let request = UpdateProcessRequest { width, height, ..update_process(id, process) };
        self.update_process(Operation::change("resize the terminal of", of(id, process)), request).await
    }

    async fn update_process(&self, operation: Operation, request: UpdateProcessRequest) -> Result<(), Error> {
        self.connector.change(operation, |mut api| async move { api.update_process(request).await }).await.map(drop)
    }

    /// Writes a checkpoint of a container to disk. `directory` is on the daemon's machine, and is the `checkpoints` directory of
    /// the container's bundle if it is `None`.
    pub async fn create_checkpoint(
        &self,
        id: &str,
        checkpoint: Checkpoint,
        directory: Option<&str>,
    ) -> Result<(), Error> {
        let operation = Operation::change("create checkpoint", of(id, &checkpoint.name));
        let checkpoint_dir = directory.unwrap_or_default().into();
        let request = CreateCheckpointRequest { id: id.into(), checkpoint: Some(checkpoint), checkpoint_dir };
        self.connector.change(operation, |mut api| async move { api.create_checkpoint(request).await }).await.map(drop)
    }

    /// Removes a checkpoint. `directory` is as for [`Client::create_checkpoint`].
    pub async fn delete_checkpoint(&self, id: &str, name: &str, directory: Option<&str>) -> Result<(), Error> {
        let operation = Operation::change("delete checkpoint", of(id, name));
        let checkpoint_dir = directory.unwrap_or_default().into();
        let request = DeleteCheckpointRequest { id: id.into(), name: name.into(), checkpoint_dir };
        self.connector.change(operation, |mut api| async move { api.delete_checkpoint(request).await }).await.map(drop)
    }

    /// Lists the checkpoints of a container. `directory` is as for [`Client::create_checkpoint`].
    pub async fn list_checkpoints(&self, id: &str, directory: Option<&str>) -> Result<Vec<Checkpoint>, Error> {
        let request = ListCheckpointRequest { id: id.into(), checkpoint_dir: directory.unwrap_or_default().into() };
        let call = |mut api: crate::connection::Api| {
            let request = request.clone();
            async move { Ok(api.list_checkpoint(request).await?.into_inner().checkpoints) }
        };
        self.connector.read(Operation::read("list the checkpoints of", id), call).await
    }

    /// Reads the statistics of a container once.
    pub async fn stats(&self, id: &str) -> Result<StatsResponse, Error> {
        let request = StatsRequest { id: id.into() };
        let call = |mut api: crate::connection::Api| {
            let request = request.clone();
            async move { Ok(api.stats(request).await?.into_inner()) }
        };
        self.connector.read(Operation::read("read the statistics of", id), call).await
    }

    /// Subscribes to events. When this returns, the daemon has opened the subscription: an event that is recorded from now on
    /// is received.
    pub async fn events(&self, subscribe: Subscribe) -> Result<Events, Error> {
        Events::new(self.clone(), subscribe).await
    }
}

fn update_process(id: &str, process: &str) -> UpdateProcessRequest {
    UpdateProcessRequest { id: id.into(), pid: process.into(), ..Default::default() }
}

/// Names a process or a checkpoint of a container in messages.
fn of(id: &str, name: &str) -> String {
    format!("{name} of container {id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn is_send<T: Send>(_: T) {}

    #[test]
    fn calls_can_be_made_in_spawned_tasks() {
        let client = Client::new(Config::default());
        is_send(client.state());
        is_send(client.version());
        is_send(client.create_container(CreateContainerRequest::default()));
        is_send(client.list_checkpoints("c", None));
        is_send(client.events(Subscribe::default()));
    }

    #[tokio::test]
    async fn missing_socket_is_looked_for_until_the_timeout() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let address = Address::Unix(directory.path().join("socket"));
        let timeout = Some(Duration::from_millis(120));
        let client = Client::new(Config { address, timeout, tls: None });
        let begun = Instant::now();
        let error = client.version().await.expect_err("there is no daemon");
        assert!(begun.elapsed() > Duration::from_millis(50), "looked for it more than once");
        assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error:?}");
        assert!(error.to_string().contains("No such file or directory"), "{error}");
    }

    #[tokio::test]
    async fn socket_that_never_answers_is_given_up_at_the_timeout() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let path = directory.path().join("socket");
        let _listener = tokio::net::UnixListener::bind(&path).expect("binds");
        let timeout = Some(Duration::from_millis(120));
        let client = Client::new(Config { address: Address::Unix(path), timeout, tls: None });
        let error = client.pause("c").await.expect_err("nothing answers");
        assert!(error.to_string().contains("it has not answered within 120ms"), "{error}");
    }
}
