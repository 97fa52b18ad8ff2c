//! The state of all containers at one moment, without starting a process.

use runtime::{ProcessSpec, Stdio};
use std::sync::Arc;

use crate::container::Container;
use crate::error::Error;
use crate::lifecycle::State;
use crate::process::Process;
use crate::start::on_disk;
use crate::supervisor::Supervisor;

/// A container as it is told of.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// Its name.
    pub id: String,
    /// The bundle, absolute.
    pub bundle: String,
    /// Running, paused or stopped.
    pub state: State,
    /// As they were given.
    pub labels: Vec<String>,
    /// The OCI runtime, as it was named.
    pub runtime: String,
    /// Every host pid in it.
    pub pids: Vec<u32>,
    /// Init, and then the others in the order of their starts.
    pub processes: Vec<ProcessInfo>,
}

/// A process as it is told of.
#[derive(Debug, Clone)]
pub struct ProcessInfo {
    /// Its name in the container.
    pub name: String,
    /// The host's pid.
    pub pid: u32,
    /// As it was asked for.
    pub spec: ProcessSpec,
    /// Where its stdio goes.
    pub stdio: Stdio,
}

impl Supervisor {
    /// All containers that have been started, ordered by id, or the one that is asked for.
    pub async fn state(&self, id: Option<&str>) -> Result<Vec<ContainerInfo>, Error> {
        let containers: Vec<Arc<Container>> = match id {
            Some(id) => vec![self.0.container(id)?],
            None => self.0.map().values().flatten().cloned().collect(),
        };
        let mut infos: Vec<ContainerInfo> =
            on_disk(move || containers.iter().filter_map(|container| look(container)).collect()).await?;
        infos.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        match id {
            Some(id) if infos.is_empty() => Err(Error::ContainerNotFound { id: id.to_string() }),
            _ => Ok(infos),
        }
    }
}

/// `None` for one that has not been started, of which nobody knows yet.
fn look(container: &Container) -> Option<ContainerInfo> {
    if matches!(container.state(), State::Creating | State::Created) && !container.keeps() {
        return None;
    }
    let init = container.init()?.pid()?;
    let pids = match container.cgroup().map(cgroup::Cgroup::pids) {
        Some(Ok(pids)) => pids,
        // Without a group of its own, those that we know of.
        _ => {
            let known = container.added().iter().filter_map(|process| process.pid()).collect::<Vec<_>>();
            let alive = |pid: &u32| sys::procfs::stat(*pid).is_ok_and(|s| s.is_some_and(|stat| !stat.is_dead()));
            std::iter::once(init).chain(known).filter(alive).collect()
        }
    };
    // Ended, but not everything that it wrote has been taken.
    let stopped = (!pids.contains(&init)).then_some(State::Stopped);
    Some(ContainerInfo::of(container, pids, stopped))
}

impl ContainerInfo {
    pub(crate) fn of(container: &Container, pids: Vec<u32>, state: Option<State>) -> ContainerInfo {
        let processes = container.init().into_iter().chain(container.added());
        ContainerInfo {
            id: container.id.clone(),
            bundle: container.record.bundle.clone(),
            state: state.unwrap_or_else(|| container.state()),
            labels: container.record.labels.clone(),
            runtime: container.record.runtime.clone(),
            pids,
            processes: processes.filter_map(|process| ProcessInfo::of(&process)).collect(),
        }
    }
}

impl ProcessInfo {
    /// `None` for one that does not run yet.
    fn of(process: &Process) -> Option<ProcessInfo> {
        let (name, pid) = (process.name.clone(), process.pid()?);
        Some(ProcessInfo { name, pid, spec: process.spec.clone(), stdio: process.stdio.clone() })
    }
}
