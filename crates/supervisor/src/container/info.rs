//! What the daemon tells a client about a container.

use oci::{ProcessSpec, Stdio};
use std::sync::Arc;

use crate::container::lifecycle::State;
use crate::container::{Container, Origin, Process};

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// Its name.
    pub id: String,
    /// Running, paused, stopped or broken.
    pub state: State,
    /// Every host pid in it.
    pub pids: Vec<u32>,
    /// Init, and then the others in the order of their starts.
    pub processes: Vec<ProcessInfo>,
    /// Shared, because a copy would be most of what an answer about a thousand containers takes.
    pub(crate) origin: Arc<Origin>,
}

impl ContainerInfo {
    /// `state`: the state that is reported in place of the container's own.
    pub(crate) fn of(container: &Container, pids: Vec<u32>, state: Option<State>) -> ContainerInfo {
        // Only processes that run have a pid.
        let info = |process: Arc<Process>| Some(ProcessInfo { pid: process.pid()?, process });
        ContainerInfo {
            id: container.id.clone(),
            state: state.unwrap_or_else(|| container.state()),
            pids,
            processes: container.init().into_iter().chain(container.added()).filter_map(info).collect(),
            origin: container.origin.clone(),
        }
    }

    /// A container of which the daemon knows no more than what it was made from.
    pub(crate) fn broken(id: &str, origin: Arc<Origin>) -> ContainerInfo {
        ContainerInfo { id: id.to_string(), state: State::Broken, pids: Vec::new(), processes: Vec::new(), origin }
    }

    /// The bundle, absolute.
    pub fn bundle(&self) -> &str {
        &self.origin.bundle
    }

    /// The labels that the client gave.
    pub fn labels(&self) -> &[String] {
        &self.origin.labels
    }

    /// The OCI runtime, as the client named it.
    pub fn runtime(&self) -> &str {
        self.origin.oci.name()
    }
}

/// A process at one moment.
#[derive(Debug, Clone)]
pub struct ProcessInfo {
    /// The host's pid.
    pub pid: u32,
    process: Arc<Process>,
}

impl ProcessInfo {
    /// Its name in the container.
    pub fn name(&self) -> &str {
        &self.process.name
    }

    /// As the client asked for it.
    pub fn spec(&self) -> &ProcessSpec {
        &self.process.spec
    }

    /// Where its stdio goes.
    pub fn stdio(&self) -> &Stdio {
        &self.process.stdio
    }
}
