//! Reading what a container uses, from files alone.

use cgroup::Stats;

use crate::container::Container;
use crate::error::Error;
use crate::events::Timestamp;
use crate::observe::network::{Interface, interfaces};

/// What a container uses.
#[derive(Debug, Clone)]
pub struct ContainerStats {
    /// When it was read.
    pub timestamp: Timestamp,
    /// The figures of its control groups.
    pub cgroup: Stats,
    /// CPU time of the whole host, in nanoseconds.
    pub system_cpu: u64,
    /// All interfaces of its network namespace; none once its init has ended.
    pub network: Vec<Interface>,
}

/// Reads what a container uses. The kernel answers in a fraction of a millisecond: handing this to a thread would double that.
pub(crate) fn read(container: &Container) -> Result<ContainerStats, Error> {
    if !container.state().is_known() {
        return Err(Error::ContainerNotFound { id: container.id.clone() });
    }
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
