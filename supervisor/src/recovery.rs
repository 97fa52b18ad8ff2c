//! Finding again what an earlier supervisor left: each directory is looked at by itself, all side by side.
//!
//! The journal decides. A process whose start is not in it was never told of and is removed; one whose exit is in
//! it is only cleaned up; each other is taken up where it is, and its end told when it comes or if it has come.

use runtime::{ContainerDir, INIT, Oci, Operation, ProcessDir, ProcessRecord, ProcessSpec};
use std::sync::Arc;

use crate::container::Container;
use crate::error::Error;
use crate::event::EventKind;
use crate::exit::UNKNOWN;
use crate::journal::{Told, key_or_name};
use crate::lifecycle::State;
use crate::process::{ExitFifo, Process};
use crate::supervisor::{Shared, Supervisor};

impl Supervisor {
    /// Takes up all that is in the state directory, and then lets those go on that wait for
    /// [`Supervisor::recovered`].
    pub async fn recover(&self) -> Result<(), Error> {
        let shared = &self.0;
        let told = Arc::new(shared.journal.told());
        let mut tasks = tokio::task::JoinSet::new();
        let entries = std::fs::read_dir(&shared.config.state_dir).map_err(Error::system("list the state directory"))?;
        for entry in entries {
            let entry = entry.map_err(Error::system("list the state directory"))?;
            let Ok(id) = entry.file_name().into_string() else { continue };
            // What has another kind of name is not ours.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && shared.reserve(&id).is_ok() {
                tasks.spawn(shared.clone().recover_container(id, told.clone()));
            }
        }
        let mut found = 0;
        while let Some(result) = tasks.join_next().await {
            match result {
                Ok(Ok(())) => found += 1,
                Ok(Err((id, e))) => tracing::error!(container = %id, "set aside, its id stays in use: {e}"),
                Err(e) => tracing::error!("recovery of a container failed: {e}"),
            }
        }
        shared.journal.recovered();
        tracing::info!(containers = found, "recovered");
        shared.recovered.send_replace(true);
        Ok(())
    }
}

/// A process's directory, read.
struct Left {
    name: String,
    dir: ProcessDir,
    spec: ProcessSpec,
    record: ProcessRecord,
    exit: ExitFifo,
}

impl Left {
    fn read(container: &ContainerDir, id: &str, name: String) -> Result<Left, Error> {
        let dir = container.process(&name);
        let (spec, mut record) = dir.read()?;
        record.instance = key_or_name(&record.instance, id, &name);
        let exit = ExitFifo::new(dir.open_exit()?).map_err(Error::system("watch the exit fifo"))?;
        Ok(Left { name, dir, spec, record, exit })
    }

    fn into_process(self) -> (Arc<Process>, ExitFifo) {
        let stdio = self.record.stdio();
        let process = Process::new(&self.name, self.record.instance, self.spec, stdio, self.dir).adopted();
        (Arc::new(process), self.exit)
    }
}

impl Shared {
    async fn recover_container(self: Arc<Self>, id: String, told: Arc<Told>) -> Result<(), (String, Error)> {
        let _task = self.tasks.begin("recovery", &id, "");
        self.take_up(&id, &told).await.map_err(|e| (id, e))
    }

    async fn take_up(self: &Arc<Self>, id: &str, told: &Told) -> Result<(), Error> {
        let dir = self.container_dir(id);
        let Ok(mut record) = dir.read() else {
            // Written first of all, and whole: without it nothing else has been begun.
            if dir.processes()?.is_empty() {
                tracing::info!(container = %id, "removing what was hardly begun");
                dir.remove()?;
                self.map().remove(id);
                return Ok(());
            }
            return dir.read().map(|_| ()).map_err(Error::from);
        };
        // An older daemon wrote no keys; what it left had been started.
        let keyed = !record.instance.is_empty();
        record.instance = key_or_name(&record.instance, id, INIT);
        let key = record.instance.clone();
        let started = !keyed || record.keep || told.started.contains(&key);
        if told.exited.contains(&key) && !record.keep {
            tracing::info!(container = %id, "its exit has been told; cleaning up");
            self.journal.protect(&key);
            dir.remove()?;
            self.map().remove(id);
            self.journal.release_key(&key);
            return Ok(());
        }
        let oci = Oci::at(record.runtime.clone(), record.runtime_args.clone());
        let same_boot = record.boot_id.is_empty() || record.boot_id == self.boot_id;
        let init = match Left::read(&dir, id, INIT.to_string()) {
            Ok(init) => init,
            Err(_) if !started => {
                dir.remove()?;
                self.map().remove(id);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let root = (init.record.root_uid, init.record.root_gid);
        let container = Arc::new(Container::new(id, record, dir.clone(), oci, root, State::Running));
        let (init, exit) = init.into_process();
        container.set_init(init.clone());
        self.journal.protect(&key);
        if same_boot {
            self.find_cgroup_again(&container, &init);
            container.recall_oom_kills(told.oom_kills.get(&key).copied());
        }
        if !same_boot {
            return self.bury(&container, &init, told).await;
        }
        if !started {
            tracing::info!(container = %id, "was being made when its daemon ended; removing it");
            self.remove_half_made(&container, &init).await;
            return Ok(());
        }
        self.adopt(container, init, exit, told).await
    }

    /// Goes on supervising a container.
    async fn adopt(
        self: &Arc<Self>,
        container: Arc<Container>,
        init: Arc<Process>,
        exit: ExitFifo,
        told: &Told,
    ) -> Result<(), Error> {
        let mut added = Vec::new();
        for name in container.dir.processes()?.into_iter().filter(|name| name != INIT) {
            match Left::read(&container.dir, &container.id, name.clone()) {
                Ok(left) => added.push(left.into_process()),
                Err(e) => {
                    tracing::warn!(container = %container.id, process = %name, "removing what was hardly begun: {e}");
                    container.dir.process(&name).remove()?;
                }
            }
        }
        added.sort_by_key(|(process, _)| process.identity().map(|(pid, starttime)| (starttime, pid)));
        let state = container.cgroup().map(cgroup::Cgroup::is_frozen);
        if let Some(Ok(true)) = state {
            container.happened(crate::lifecycle::Happened::Paused);
        }
        self.map().insert(container.id.clone(), Some(container.clone()));
        // Of what happened while no supervisor was there.
        self.tell_oom(&container);
        for (process, exit) in added {
            self.adopt_process(&container, process, exit, told).await?;
        }
        let lost = exit.is_closed().map_err(Error::system("read the exit fifo"))? && init.dir.exit_status().is_none();
        if lost {
            self.settle(&container, &init).await;
        }
        tokio::spawn(self.clone().watch_init(container, init, exit));
        Ok(())
    }

    async fn adopt_process(
        self: &Arc<Self>,
        container: &Arc<Container>,
        process: Arc<Process>,
        exit: ExitFifo,
        told: &Told,
    ) -> Result<(), Error> {
        self.journal.protect(&process.key);
        container.add(&process)?;
        if told.exited.contains(&process.key) {
            self.remove_process(container, &process);
            return Ok(());
        }
        if !process.key.contains('/') && !told.started.contains(&process.key) {
            tracing::info!(container = %container.id, process = %process.name, "was being made; removing it");
            if let Err(e) = process.kill_half_made(container.cgroup()).await {
                tracing::warn!(container = %container.id, process = %process.name, "cannot kill it: {e}");
            }
            self.remove_process(container, &process);
            return Ok(());
        }
        let lost = exit.is_closed().map_err(Error::system("read the exit fifo"))?;
        if lost && process.dir.exit_status().is_none() {
            self.settle(container, &process).await;
        }
        tokio::spawn(self.clone().watch_process(container.clone(), process, exit));
        Ok(())
    }

    /// The groups that were found when the container was made; an older daemon did not keep them.
    fn find_cgroup_again(&self, container: &Container, init: &Process) {
        let of_process = || match (init.identity(), init.open()) {
            (Some((pid, _)), Ok(Some(_))) => cgroup::Hierarchies::places(pid).unwrap_or_default(),
            _ => None,
        };
        let places = container.dir.cgroup().or_else(of_process);
        container.set_cgroup(places.and_then(|places| self.hierarchies.cgroup(&places)));
    }

    /// For a process whose shim died while no supervisor was there: killed if it is there, otherwise nobody knows how
    /// it ended.
    async fn settle(&self, container: &Container, process: &Process) {
        let alive = process.open().is_ok_and(|process| process.is_some());
        if alive {
            self.kill_orphan(container, process).await;
        } else if let Err(e) = std::fs::write(process.dir.path().join("exitStatus"), UNKNOWN.to_string()) {
            tracing::warn!(container = %container.id, process = %process.name, "cannot write down its status: {e}");
        }
    }

    /// Removes a container that was never told of.
    async fn remove_half_made(self: &Arc<Self>, container: &Arc<Container>, init: &Arc<Process>) {
        if let Err(e) = init.kill().await {
            tracing::warn!(container = %container.id, "cannot kill init: {e}");
        }
        init.kill_shim().await;
        self.delete_by_runtime(container, Operation::ForceDelete).await;
        container.kill_all();
        self.remove(container);
    }

    /// For what an earlier boot left: nothing is signalled, since no number means what it meant.
    async fn bury(self: &Arc<Self>, container: &Arc<Container>, init: &Process, told: &Told) -> Result<(), Error> {
        tracing::info!(container = %container.id, "is of an earlier boot; its exit is told as unknown");
        let mut held = Vec::new();
        let key = &container.record.instance;
        if (key.contains('/') || told.started.contains(key)) && !told.exited.contains(key) {
            for name in container.dir.processes()?.into_iter().filter(|name| name != INIT) {
                let Ok(left) = Left::read(&container.dir, &container.id, name) else { continue };
                let (process, _) = left.into_process();
                if told.started.contains(&process.key) && !told.exited.contains(&process.key) {
                    let event = Shared::event(EventKind::Exit, container, Some(&process), UNKNOWN);
                    held.push(self.record_exit(event).await);
                }
            }
            let event = Shared::event(EventKind::Exit, container, Some(init), UNKNOWN);
            held.push(self.record_exit(event).await);
        }
        self.remove(container);
        drop(held);
        Ok(())
    }
}
