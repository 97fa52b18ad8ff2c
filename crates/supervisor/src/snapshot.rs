//! The state of all containers at one moment, without starting a process.

use cgroup::Cgroup;
use oci::{ProcessSpec, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::container::{Container, Origin};
use crate::disk::{self, on_disk};
use crate::error::Error;
use crate::lifecycle::State;
use crate::process::Process;
use crate::supervisor::{Shared, Slot, Supervisor};

/// So many are looked at without another thread: it would take longer to wake one.
const FEW: usize = 8;

/// The state of so many takes megabytes, which are given back soon after.
const MANY: usize = 100;

/// How soon.
const TRIM_DELAY: Duration = Duration::from_secs(1);

/// A container as it is told of.
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
    /// Not copied: of a thousand it would be most of what it takes to tell of them.
    pub(crate) origin: Arc<Origin>,
}

impl ContainerInfo {
    /// The bundle, absolute.
    pub fn bundle(&self) -> &str {
        &self.origin.bundle
    }

    /// As they were given.
    pub fn labels(&self) -> &[String] {
        &self.origin.labels
    }

    /// The OCI runtime, as it was named.
    pub fn runtime(&self) -> &str {
        self.origin.oci.name()
    }
}

/// A process as it is told of.
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

    /// As it was asked for.
    pub fn spec(&self) -> &ProcessSpec {
        &self.process.spec
    }

    /// Where its stdio goes.
    pub fn stdio(&self) -> &Stdio {
        &self.process.stdio
    }
}

impl Supervisor {
    /// All containers that have been started, ordered by id, or the one that is asked for.
    pub async fn state(&self, id: Option<&str>) -> Result<Vec<ContainerInfo>, Error> {
        let parts = self.state_as(id, |all: &mut Vec<ContainerInfo>, info| all.push(info)).await?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// The same, given to `add` where they are looked at: side by side, if there are many. A few are added to one result
    /// each, and the results are in order.
    pub async fn state_as<T: Default + Send + 'static>(
        &self,
        id: Option<&str>,
        add: impl Fn(&mut T, ContainerInfo) + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        let Some(id) = id else {
            let mut slots: Vec<(String, Slot)> =
                self.0.map().iter().map(|(id, slot)| (id.clone(), slot.clone())).collect();
            slots.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            return self.0.look_at_all(slots, add).await;
        };
        let slot = match self.0.aside(id) {
            Some(aside) => Slot::Aside(aside),
            None => Slot::Here(self.0.container(id)?),
        };
        let Some(info) = self.0.look_at_slot(id, &slot) else {
            return Err(Error::ContainerNotFound { id: id.to_string() });
        };
        let mut told = T::default();
        add(&mut told, info);
        Ok(vec![told])
    }
}

impl Shared {
    /// What there is to tell of these. Many are looked at by several threads, as the kernel takes its time for each.
    async fn look_at_all<T: Default + Send + 'static>(
        self: &Arc<Self>,
        slots: Vec<(String, Slot)>,
        add: impl Fn(&mut T, ContainerInfo) + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        if slots.len() <= FEW {
            let mut told = T::default();
            slots.iter().filter_map(|(id, slot)| self.look_at_slot(id, slot)).for_each(|info| add(&mut told, info));
            return Ok(vec![told]);
        }
        let many = slots.len() >= MANY;
        let (hands, next) = (disk::hands().min(slots.len().div_ceil(FEW)), AtomicUsize::new(0));
        let work = Arc::new((slots, next, add));
        let look = |_| {
            let (shared, work) = (self.clone(), work.clone());
            // Each takes a few at a time, so that none waits long for another that the kernel has kept.
            let look = move || {
                let (slots, next, add) = &*work;
                let mut parts = Vec::new();
                loop {
                    let first = next.fetch_add(FEW, Ordering::Relaxed);
                    let Some(few) = slots.get(first..(first + FEW).min(slots.len())).filter(|few| !few.is_empty())
                    else {
                        return parts;
                    };
                    let mut told = T::default();
                    for (id, slot) in few {
                        if let Slot::Here(container) = slot {
                            container.cgroup().into_iter().for_each(Cgroup::hold);
                        }
                        shared.look_at_slot(id, slot).into_iter().for_each(|info| add(&mut told, info));
                    }
                    parts.push((first, told));
                }
            };
            tokio::spawn(on_disk(look))
        };
        let threads: Vec<_> = (0..hands).map(look).collect();
        let mut parts = Vec::new();
        for thread in threads {
            parts.extend(thread.await.map_err(|e| Error::system("look at containers")(std::io::Error::other(e)))??);
        }
        parts.sort_unstable_by_key(|(first, _)| *first);
        if many && !self.trimming.swap(true, Ordering::Relaxed) {
            let shared = self.clone();
            tokio::spawn(async move {
                // When the answer has been taken, and others that are asked for at the same time.
                tokio::time::sleep(TRIM_DELAY).await;
                shared.trimming.store(false, Ordering::Relaxed);
                let _ = on_disk(sys::allocator::give_back).await;
            });
        }
        Ok(parts.into_iter().map(|(_, told)| told).collect())
    }

    fn look_at_slot(self: &Arc<Self>, id: &str, slot: &Slot) -> Option<ContainerInfo> {
        match slot {
            Slot::Here(container) => self.look(container),
            Slot::Aside(aside) => Some(aside.info(id)),
            Slot::Taken | Slot::Left(_) => None,
        }
    }

    /// `None` for one that has not been started, of which nobody knows yet.
    fn look(self: &Arc<Self>, container: &Container) -> Option<ContainerInfo> {
        if matches!(container.state(), State::Creating | State::Created) && !container.keeps() {
            return None;
        }
        // Unless something is being done about it just now, it is as the kernel says.
        if let Ok(_order) = container.order.try_write() {
            self.follow_freezer(container);
        }
        look(container)
    }
}

fn look(container: &Container) -> Option<ContainerInfo> {
    let init = container.init()?;
    init.pid()?;
    let added = container.added();
    let all = || std::iter::once(&init).chain(&added);
    let known: Vec<u32> = all().filter_map(|process| process.pid()).collect();
    let mut pids = container.cgroup().and_then(|cgroup| cgroup.pids_with(&known).ok()).unwrap_or_default();
    // Whether a process lives only the process tells: another program may have moved it out of the group that was read, or
    // have removed the group.
    let lives = |process: &&Arc<Process>| {
        let Some((pid, starttime)) = process.identity() else { return false };
        let stat = sys::procfs::stat(pid).ok().flatten();
        stat.is_some_and(|stat| stat.starttime == starttime && !stat.is_dead() && !stat.is_ending())
    };
    let is_missing = |process: &&Arc<Process>| process.pid().is_some_and(|pid| !pids.contains(&pid));
    let missed: Vec<u32> = all().filter(is_missing).filter(lives).filter_map(|process| process.pid()).collect();
    if !missed.is_empty() {
        pids.extend(missed);
        pids.extend(container.cgroup().and_then(|cgroup| cgroup.pids_anywhere().ok()).into_iter().flatten());
        pids.sort_unstable();
        pids.dedup();
    }
    // It has ended, but its shim has still output to deliver.
    let stopped = init.pid().is_none_or(|pid| !pids.contains(&pid)).then_some(State::Stopped);
    Some(ContainerInfo::of(container, pids, stopped))
}

impl ContainerInfo {
    pub(crate) fn of(container: &Container, pids: Vec<u32>, state: Option<State>) -> ContainerInfo {
        // Those that run.
        let told = |process: Arc<Process>| Some(ProcessInfo { pid: process.pid()?, process });
        ContainerInfo {
            id: container.id.clone(),
            state: state.unwrap_or_else(|| container.state()),
            pids,
            processes: container.init().into_iter().chain(container.added()).filter_map(told).collect(),
            origin: container.origin.clone(),
        }
    }
}
