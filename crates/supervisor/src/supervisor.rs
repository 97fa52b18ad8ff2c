//! The supervisor: the services of one state directory, made once and put together here, and the operations that they offer.

use cgroup::{Changes, Hierarchies};
use oci::{Checkpoint, INIT, Shim};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};
use tokio::sync::SetOnce;
use tokio::time::Instant;

use crate::config::Config;
use crate::container::info::ContainerInfo;
use crate::container::{Container, Process};
use crate::error::{Error, check_process_name};
use crate::events::{Journal, Subscription, Timestamp};
use crate::host::disk;
use crate::host::metrics::Metrics;
use crate::host::registry::Registry;
use crate::host::runtimes::Runtimes;
use crate::host::tasks::{Tasks, carried_through};
use crate::observe::snapshot::Observer;
use crate::observe::stats::{self, ContainerStats};
use crate::operations::checkpoint::Checkpointer;
use crate::operations::create::{CreateContainer, Creator};
use crate::operations::delete::Deleter;
use crate::operations::exec::{CreateProcess, Created, Execs};
use crate::operations::exit::Exits;
use crate::operations::freezer::Freezer;
use crate::operations::launch::Launcher;
use crate::operations::remove::Remover;
use crate::operations::signal::{self, SIGKILL};
use crate::operations::update::{self, Updater};
use crate::recovery::Recovery;
use crate::recovery::aside::Asides;

/// Supervises the containers of one state directory. Clones share everything, and are cheap.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Services>);

/// The services of a supervisor. Each of them has been given the others that it needs.
#[derive(Debug)]
struct Services {
    registry: Arc<Registry>,
    journal: Arc<Journal>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    deleter: Arc<Deleter>,
    freezer: Arc<Freezer>,
    creator: Arc<Creator>,
    execs: Arc<Execs>,
    updater: Updater,
    checkpointer: Arc<Checkpointer>,
    asides: Arc<Asides>,
    observer: Arc<Observer>,
    recovery: Arc<Recovery>,
    recovered: Arc<SetOnce<()>>,
    call_timeout: Duration,
}

/// The services that others are made of.
struct Base {
    registry: Arc<Registry>,
    journal: Arc<Journal>,
    runtimes: Arc<Runtimes>,
    hierarchies: Arc<Hierarchies>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    deleter: Arc<Deleter>,
    remover: Arc<Remover>,
    exits: Arc<Exits>,
    boot_id: String,
    call_timeout: Duration,
}

impl Base {
    fn new(
        config: &Config,
        journal: Arc<Journal>,
        boot_id: String,
        recovered: &Arc<SetOnce<()>>,
    ) -> Result<Base, Error> {
        let call_timeout = config.call_timeout;
        let (tasks, metrics) = (Tasks::default(), Arc::new(Metrics::default()));
        let registry = Arc::new(Registry::new(&config.state_dir));
        let runtimes = Arc::new(Runtimes::new(config));
        let hierarchies = Arc::new(Hierarchies::read().map_err(Error::system("read the cgroup mounts"))?);
        let deleter =
            Deleter::new(registry.clone(), runtimes.clone(), hierarchies.clone(), tasks.clone(), call_timeout);
        let deleter = Arc::new(deleter);
        let remover = Arc::new(Remover {
            registry: registry.clone(),
            journal: journal.clone(),
            deleter: deleter.clone(),
            hierarchies: hierarchies.clone(),
            call_timeout,
        });
        let exits = Arc::new(Exits {
            journal: journal.clone(),
            deleter: deleter.clone(),
            remover: remover.clone(),
            tasks: tasks.clone(),
            metrics: metrics.clone(),
            recovered: recovered.clone(),
        });
        Ok(Base {
            registry,
            journal,
            runtimes,
            hierarchies,
            tasks,
            metrics,
            deleter,
            remover,
            exits,
            boot_id,
            call_timeout,
        })
    }

    fn creator(&self, launcher: Arc<Launcher>) -> Creator {
        Creator {
            registry: self.registry.clone(),
            journal: self.journal.clone(),
            runtimes: self.runtimes.clone(),
            launcher,
            hierarchies: self.hierarchies.clone(),
            deleter: self.deleter.clone(),
            remover: self.remover.clone(),
            exits: self.exits.clone(),
            tasks: self.tasks.clone(),
            metrics: self.metrics.clone(),
            boot_id: self.boot_id.clone(),
        }
    }

    fn execs(&self, launcher: Arc<Launcher>) -> Execs {
        Execs {
            journal: self.journal.clone(),
            launcher,
            remover: self.remover.clone(),
            exits: self.exits.clone(),
            metrics: self.metrics.clone(),
        }
    }

    fn checkpointer(&self, freezer: Arc<Freezer>) -> Checkpointer {
        Checkpointer {
            registry: self.registry.clone(),
            runtimes: self.runtimes.clone(),
            freezer,
            tasks: self.tasks.clone(),
            call_timeout: self.call_timeout,
        }
    }

    fn asides(&self, checkpointer: Arc<Checkpointer>) -> Asides {
        Asides {
            registry: self.registry.clone(),
            journal: self.journal.clone(),
            runtimes: self.runtimes.clone(),
            hierarchies: self.hierarchies.clone(),
            deleter: self.deleter.clone(),
            remover: self.remover.clone(),
            checkpointer,
            boot_id: self.boot_id.clone(),
        }
    }

    fn recovery(
        &self,
        (freezer, checkpointer): (Arc<Freezer>, Arc<Checkpointer>),
        asides: Arc<Asides>,
        replaces: bool,
    ) -> Recovery {
        Recovery {
            registry: self.registry.clone(),
            journal: self.journal.clone(),
            runtimes: self.runtimes.clone(),
            hierarchies: self.hierarchies.clone(),
            deleter: self.deleter.clone(),
            remover: self.remover.clone(),
            exits: self.exits.clone(),
            freezer,
            checkpointer,
            asides,
            tasks: self.tasks.clone(),
            boot_id: self.boot_id.clone(),
            replaces,
        }
    }
}

impl Services {
    fn new(config: &Config, shim: Shim, journal: Arc<Journal>, boot_id: String) -> Result<Services, Error> {
        let recovered = Arc::new(SetOnce::new());
        let base = Base::new(config, journal, boot_id, &recovered)?;
        let (tasks, call_timeout) = (base.tasks.clone(), base.call_timeout);
        let launcher = Arc::new(Launcher::new(shim, tasks.clone()));
        let freezer = Arc::new(Freezer { journal: base.journal.clone(), tasks: tasks.clone(), call_timeout });
        let checkpointer = Arc::new(base.checkpointer(freezer.clone()));
        let asides = Arc::new(base.asides(checkpointer.clone()));
        let recovery = base.recovery((freezer.clone(), checkpointer.clone()), asides.clone(), config.replaces);
        Ok(Services {
            creator: Arc::new(base.creator(launcher.clone())),
            execs: Arc::new(base.execs(launcher)),
            updater: Updater { runtimes: base.runtimes.clone(), tasks: tasks.clone(), call_timeout },
            observer: Arc::new(Observer::new(base.registry.clone(), freezer.clone())),
            recovery: Arc::new(recovery),
            registry: base.registry,
            journal: base.journal,
            metrics: base.metrics,
            deleter: base.deleter,
            tasks,
            freezer,
            checkpointer,
            asides,
            recovered,
            call_timeout,
        })
    }
}

impl Supervisor {
    /// Takes over a state directory, which no other daemon may be using. [`Supervisor::recover`] must follow. Must be called within a
    /// tokio runtime.
    pub fn open(config: Config) -> Result<Supervisor, Error> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&config.state_dir);
        made.map_err(Error::system("create the state directory"))?;
        oci::claim_state_dir(&config.state_dir)?;
        disk::begin().map_err(Error::system("start a thread"))?;
        let shim = Shim::find(&config.shim).map_err(|e| Error::Shim(e.to_string()))?;
        let journal = Journal::open(&config.state_dir, config.retain)?;
        let boot_id =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(Error::system("read boot_id"))?;
        Ok(Supervisor(Arc::new(Services::new(&config, shim, journal, boot_id.trim().to_string())?)))
    }

    /// Checks, without changing anything, that a state directory may be used: that it is not another program's.
    pub fn check_state_dir(state_dir: &Path) -> Result<(), Error> {
        Ok(oci::check_state_dir(state_dir)?)
    }

    /// Recovers everything in the state directory. Returns as soon as it is known what there is; [`Supervisor::serve`] follows.
    pub async fn recover(&self) -> Result<(), Error> {
        self.0.recovery.run().await
    }

    /// Lets the callers go on that wait for [`Supervisor::recovered`].
    pub fn serve(&self) {
        let _ = self.0.recovered.set(());
    }

    /// Waits until [`Supervisor::serve`] has been called.
    pub async fn recovered(&self) {
        self.0.recovered.wait().await;
    }

    /// How long one call of the runtime may take.
    pub fn call_timeout(&self) -> Duration {
        self.0.call_timeout
    }

    /// Counts and durations of operations.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What the supervisor is doing at the moment.
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// The number of containers, those that are being created included.
    pub fn container_count(&self) -> usize {
        self.0.registry.count()
    }

    /// The number of events that have been recorded since this supervisor was opened.
    pub fn event_count(&self) -> u64 {
        self.0.journal.written()
    }

    /// The number of subscriptions to events.
    pub fn subscriber_count(&self) -> usize {
        self.0.journal.subscribers()
    }

    /// Subscribes to events: to stored events that are newer than `from`, if that is given, and, unless `stored_only`, to those that
    /// come. `id` limits them to one container.
    pub fn subscribe(&self, from: Option<Timestamp>, id: Option<String>, stored_only: bool) -> Subscription {
        Subscription::new(&self.0.journal, from, id, stored_only)
    }

    /// Creates a container and starts it. On failure, and if it is not done by `deadline`, nothing is left of it.
    pub async fn run(&self, request: CreateContainer, deadline: Instant) -> Result<ContainerInfo, Error> {
        let creator = self.0.creator.clone();
        carried_through(async move { creator.run(request, deadline).await }).await
    }

    /// Makes a process ready to run in a running container. Dropping the result removes it again.
    pub async fn create_process(&self, request: CreateProcess, deadline: Instant) -> Result<Created, Error> {
        let container = self.0.registry.container(&request.id)?;
        self.0.execs.create(container, request, deadline).await
    }

    /// Starts a process that is ready to run; its host pid.
    pub async fn start_process(&self, process: Created, deadline: Instant) -> Result<u32, Error> {
        carried_through(async move { process.start(deadline).await }).await
    }

    /// Sends a signal to one process, and never to another one that has its pid now. Waits for nothing.
    pub fn kill(&self, id: &str, name: &str, signal: u32) -> Result<(), Error> {
        let services = &self.0;
        if let Some(aside) = services.registry.aside(id) {
            if (name, signal) != (INIT, SIGKILL) {
                return Err(aside.error(id));
            }
            // If its removal is under way and the deletion has failed, the deletion is tried again now.
            services.deleter.hurry(id);
            tokio::spawn(services.asides.clone().remove(id.to_string(), aside));
            return Ok(());
        }
        let (container, process) = self.process(id, name)?;
        signal::check_signal(signal)?;
        if signal == SIGKILL {
            // A deletion that has failed is tried again now.
            services.deleter.hurry(id);
        }
        signal::send(&services.journal, &container, &process, signal)
    }

    /// Freezes a running container.
    pub async fn pause(&self, id: &str) -> Result<(), Error> {
        let (freezer, container) = (self.0.freezer.clone(), self.0.registry.container(id)?);
        carried_through(async move { freezer.pause(&container).await }).await
    }

    /// Thaws a paused container.
    pub async fn resume(&self, id: &str) -> Result<(), Error> {
        let (freezer, container) = (self.0.freezer.clone(), self.0.registry.container(id)?);
        carried_through(async move { freezer.resume(&container).await }).await
    }

    /// Makes a process read end-of-file after everything that has been written to its stdin.
    pub fn close_stdin(&self, id: &str, name: &str) -> Result<(), Error> {
        let (container, process) = self.process(id, name)?;
        signal::close_stdin(&container, &process)
    }

    /// Resizes a process's terminal, in characters.
    pub fn resize(&self, id: &str, name: &str, columns: u32, rows: u32) -> Result<(), Error> {
        signal::check_size(columns, rows)?;
        let (container, process) = self.process(id, name)?;
        signal::resize(&container, &process, columns, rows)
    }

    /// Refuses limits that cannot be set, as far as that is known before it is tried.
    pub fn check_limits(&self, id: &str, changes: &Changes) -> Result<(), Error> {
        update::check(&*self.0.registry.container(id)?, changes)
    }

    /// Changes limits; those that are not named stay as they are. Either all changes are made, or none.
    pub async fn update(&self, id: &str, changes: Changes) -> Result<(), Error> {
        let (services, container) = (self.0.clone(), self.0.registry.container(id)?);
        carried_through(async move { services.updater.update(&container, changes).await }).await
    }

    /// Freezes a running container to disk; with `exit` it is gone afterwards, otherwise it goes on. `directory` holds the
    /// checkpoints, in place of the one in the bundle.
    pub async fn checkpoint(&self, id: &str, wanted: Checkpoint, directory: Option<PathBuf>) -> Result<(), Error> {
        let (checkpointer, container) = (self.0.checkpointer.clone(), self.0.registry.container(id)?);
        checkpointer.check(&container, &wanted).await?;
        carried_through(async move { checkpointer.make(&container, wanted, directory).await }).await
    }

    /// The checkpoints of a container, or all those in `directory`, by their names.
    pub async fn checkpoints(&self, id: &str, directory: Option<PathBuf>) -> Result<Vec<Checkpoint>, Error> {
        self.0.checkpointer.list(id, directory).await
    }

    /// Removes a checkpoint.
    pub async fn delete_checkpoint(&self, id: &str, name: &str, directory: Option<PathBuf>) -> Result<(), Error> {
        self.0.checkpointer.delete(id, name, directory).await
    }

    /// All containers that have been started, ordered by id, or the one that is asked for.
    pub async fn state(&self, id: Option<&str>) -> Result<Vec<ContainerInfo>, Error> {
        let parts = self.state_as(id, |all: &mut Vec<ContainerInfo>, info| all.push(info)).await?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// The containers of [`Supervisor::state`], each given to `add` in the thread that has looked at it. If there are many, several
    /// threads look at them; each result has a few of them, and the results are in order.
    pub async fn state_as<T: Default + Send + 'static>(
        &self,
        id: Option<&str>,
        add: impl Fn(&mut T, ContainerInfo) + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        self.0.observer.state_as(id, add).await
    }

    /// Reads what a container uses. No process is started for it.
    pub async fn stats(&self, id: &str) -> Result<ContainerStats, Error> {
        let begun = StdInstant::now();
        let stats = stats::read(&*self.0.registry.container(id)?)?;
        self.0.metrics.stats.record(begun.elapsed());
        Ok(stats)
    }

    /// Looks up a process by the names that a client gave.
    fn process(&self, id: &str, name: &str) -> Result<(Arc<Container>, Arc<Process>), Error> {
        let container = self.0.registry.container(id)?;
        check_process_name(name)?;
        let process = container.process(name)?;
        Ok((container, process))
    }
}
