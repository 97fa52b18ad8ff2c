//! The state of all containers at one moment, read from the kernel without starting a process.

use cgroup::Cgroup;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::container::info::ContainerInfo;
use crate::container::lifecycle::State;
use crate::container::{Container, Process};
use crate::error::Error;
use crate::host::disk::{bulk_threads, on_disk};
use crate::host::registry::{Registry, Slot};
use crate::operations::freezer::Freezer;

/// Up to so many containers are looked at in the calling thread: it would take longer to wake another one.
const FEW: usize = 8;

/// The state of so many containers takes megabytes, which the daemon gives back to the kernel soon after.
const MANY: usize = 100;

/// How soon.
const TRIM_DELAY: Duration = Duration::from_secs(1);

/// Looks at containers.
#[derive(Debug)]
pub(crate) struct Observer {
    registry: Arc<Registry>,
    freezer: Arc<Freezer>,
    /// Memory will be given back soon.
    trim_is_planned: AtomicBool,
}

impl Observer {
    pub(crate) fn new(registry: Arc<Registry>, freezer: Arc<Freezer>) -> Observer {
        Observer { registry, freezer, trim_is_planned: AtomicBool::new(false) }
    }

    /// Looks at all containers that have been started, ordered by id, or at the one that is asked for, and gives each to `add` in the
    /// thread that has looked at it. If there are many, several threads look at them; each result has a few of them, and the
    /// results are in order.
    pub(crate) async fn state_as<T: Default + Send + 'static>(
        self: &Arc<Self>,
        id: Option<&str>,
        add: impl Fn(&mut T, ContainerInfo) + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        let Some(id) = id else {
            let mut slots = self.registry.all();
            slots.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            return self.look_at_all(slots, add).await;
        };
        let slot = match self.registry.aside(id) {
            Some(aside) => Slot::Aside(aside),
            None => Slot::Here(self.registry.container(id)?),
        };
        let Some(info) = self.look_at_slot(id, &slot) else {
            return Err(Error::ContainerNotFound { id: id.to_string() });
        };
        let mut result = T::default();
        add(&mut result, info);
        Ok(vec![result])
    }

    async fn look_at_all<T: Default + Send + 'static>(
        self: &Arc<Self>,
        slots: Vec<(String, Slot)>,
        add: impl Fn(&mut T, ContainerInfo) + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        if slots.len() <= FEW {
            let mut result = T::default();
            slots.iter().filter_map(|(id, slot)| self.look_at_slot(id, slot)).for_each(|info| add(&mut result, info));
            return Ok(vec![result]);
        }
        let many = slots.len() >= MANY;
        let (threads, next) = (bulk_threads().min(slots.len().div_ceil(FEW)), AtomicUsize::new(0));
        let work = Arc::new((slots, next, add));
        let look = |_| {
            let (observer, work) = (self.clone(), work.clone());
            // Each thread takes a few at a time, so that none waits long for one that the kernel delays.
            let look = move || {
                let (slots, next, add) = &*work;
                let mut parts = Vec::new();
                loop {
                    let first = next.fetch_add(FEW, Ordering::Relaxed);
                    let Some(few) = slots.get(first..(first + FEW).min(slots.len())).filter(|few| !few.is_empty())
                    else {
                        return parts;
                    };
                    let mut result = T::default();
                    for (id, slot) in few {
                        if let Slot::Here(container) = slot {
                            container.cgroup().into_iter().for_each(Cgroup::hold);
                        }
                        observer.look_at_slot(id, slot).into_iter().for_each(|info| add(&mut result, info));
                    }
                    parts.push((first, result));
                }
            };
            tokio::spawn(on_disk(look))
        };
        let threads: Vec<_> = (0..threads).map(look).collect();
        let mut parts = Vec::new();
        for thread in threads {
            parts.extend(thread.await.map_err(|e| Error::system("look at containers")(std::io::Error::other(e)))??);
        }
        parts.sort_unstable_by_key(|(first, _)| *first);
        if many {
            self.plan_trim();
        }
        Ok(parts.into_iter().map(|(_, result)| result).collect())
    }

    /// Gives memory back to the kernel when the answer has been taken, and others that are asked for at the same time.
    fn plan_trim(self: &Arc<Self>) {
        if self.trim_is_planned.swap(true, Ordering::Relaxed) {
            return;
        }
        let observer = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(TRIM_DELAY).await;
            observer.trim_is_planned.store(false, Ordering::Relaxed);
            let _ = on_disk(sys::allocator::give_back).await;
        });
    }

    fn look_at_slot(&self, id: &str, slot: &Slot) -> Option<ContainerInfo> {
        match slot {
            Slot::Here(container) => self.look(container),
            Slot::Aside(aside) => Some(ContainerInfo::broken(id, aside.origin.clone())),
            Slot::Taken | Slot::Left(_) => None,
        }
    }

    /// `None` for a container of which no client knows yet.
    fn look(&self, container: &Container) -> Option<ContainerInfo> {
        if !container.state().is_known() {
            return None;
        }
        // Unless an operation is changing the container at this moment, the kernel's state counts.
        if let Ok(_order) = container.order.try_write() {
            self.freezer.follow(container);
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
    // Only the process itself tells whether it lives: another program may have moved it out of the group that was read, or may have
    // removed the group.
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
    // If init is not among them it has ended, and its shim still has output to deliver.
    let stopped = init.pid().is_none_or(|pid| !pids.contains(&pid)).then_some(State::Stopped);
    Some(ContainerInfo::of(container, pids, stopped))
}
