//! One reading of what a container uses, by file reads alone.

use cgroup::Stats;
use std::sync::Arc;
use std::time::Instant;

use crate::container::Container;
use crate::error::Error;
use crate::event::Timestamp;
use crate::lifecycle::State;
use crate::network::{Interface, interfaces};
use crate::supervisor::Supervisor;

/// What a container uses.
#[derive(Debug, Clone)]
pub struct ContainerStats {
    /// When it was read.
    pub timestamp: Timestamp,
    /// Its control groups.
    pub cgroup: Stats,
    /// CPU time of the whole host, in nanoseconds.
    pub system_cpu: u64,
    /// All interfaces of its network namespace; none once its init has ended.
    pub network: Vec<Interface>,
}

impl Supervisor {
    /// Reads what a container uses. No process is started for it.
    pub async fn stats(&self, id: &str) -> Result<ContainerStats, Error> {
        let begun = Instant::now();
        let container = self.0.container(id)?;
        if matches!(container.state(), State::Creating | State::Created) && !container.keeps() {
            return Err(Error::ContainerNotFound { id: id.to_string() });
        }
        // Files of the kernel's own, in a fraction of a millisecond: a thread to wait in would cost as much again.
        let stats = read(&container)?;
        self.0.metrics.stats.record(begun.elapsed());
        Ok(stats)
    }
}

fn read(container: &Arc<Container>) -> Result<ContainerStats, Error> {
    let cgroup = container.cgroup().ok_or_else(|| Error::NoCgroup { id: container.id.clone() })?;
    let cgroup = cgroup.stats().map_err(Error::system("read the container's cgroup"))?;
    let system_cpu = cgroup::system_cpu_time().map_err(Error::system("read the host's CPU time"))?;
    let network = match container.init().and_then(|init| init.identity()) {
        Some((pid, starttime)) => {
            interfaces(pid, starttime).map_err(Error::system("read the container's network interfaces"))?
        }
        None => Vec::new(),
    };
    Ok(ContainerStats { timestamp: Timestamp::now(), cgroup, system_cpu, network })
}
