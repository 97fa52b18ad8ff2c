//! Creating and starting a container.
//!
//! The runtime does both in one call (`run`) where it can. It takes two calls where a control group of the container exists before,
//! because what the group has counted so far must be read before anything runs in it, and where the terminal needs another size
//! than the bundle says.

use cgroup::{Hierarchies, Survey};
use failpoint::{Point, reach};
use oci::{Ability, Bundle, INIT, NameError, Oci, OciError, Operation, ProcessRecord, Stdio, TerminalSize};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::OwnedRwLockWriteGuard;
use tokio::time::Instant;

use crate::container::info::ContainerInfo;
use crate::container::lifecycle::{Recorded, Request, Silent};
use crate::container::transition::Change;
use crate::container::{Begin, Container, Origin, Process, requested_groups};
use crate::error::Error;
use crate::events::{Journal, Timestamp};
use crate::host::disk::on_clients_disk;
use crate::host::metrics::Metrics;
use crate::host::registry::{Registry, Slot};
use crate::host::runtimes::Runtimes;
use crate::host::tasks::Tasks;
use crate::operations::delete::Deleter;
use crate::operations::exit::Exits;
use crate::operations::launch::Launcher;
use crate::operations::remove::Remover;
use crate::operations::restore::{self, Restorable};

/// What a client asks for when it creates a container.
#[derive(Debug, Clone, Default)]
pub struct CreateContainer {
    /// Its name.
    pub id: String,
    /// The OCI bundle; may be relative.
    pub bundle: String,
    /// Init's stdio.
    pub stdio: Stdio,
    /// Kept for the client and given back.
    pub labels: Vec<String>,
    /// An OCI runtime in place of the supervisor's and its arguments.
    pub runtime: Option<String>,
    /// These follow the supervisor's own arguments, or are the only ones if `runtime` is given.
    pub runtime_args: Vec<String>,
    /// Ask the runtime not to use pivot_root.
    pub no_pivot_root: bool,
    /// The checkpoint that it is restored from, in place of being started.
    pub checkpoint: Option<String>,
    /// The directory of that checkpoint; the default is the bundle's own directory of checkpoints.
    pub checkpoint_dir: Option<std::path::PathBuf>,
    /// The size of its terminal, if it has one; the default is the bundle's.
    pub terminal_size: Option<TerminalSize>,
}

/// Creates and starts containers.
#[derive(Debug)]
pub(crate) struct Creator {
    pub(crate) registry: Arc<Registry>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) runtimes: Arc<Runtimes>,
    pub(crate) launcher: Arc<Launcher>,
    pub(crate) hierarchies: Arc<Hierarchies>,
    pub(crate) deleter: Arc<Deleter>,
    pub(crate) remover: Arc<Remover>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) boot_id: String,
}

impl Creator {
    /// Creates a container and starts it. If that fails, or is not done by `deadline`, nothing is left of it.
    pub(crate) async fn run(
        self: Arc<Self>,
        request: CreateContainer,
        deadline: Instant,
    ) -> Result<ContainerInfo, Error> {
        let (container, _order) = self.create(request, deadline).await?;
        let started = self.start(&container, deadline).await;
        if let Err(e) = &started {
            if container.change(Silent::Failed) == Change::MustDiscard {
                self.remover.discard_after(&container, e).await;
            }
        }
        started
    }

    /// Makes a container. Nothing else happens to it, its end included, as long as the caller holds the guard.
    async fn create(
        self: &Arc<Self>,
        request: CreateContainer,
        mut deadline: Instant,
    ) -> Result<(Arc<Container>, OwnedRwLockWriteGuard<()>), Error> {
        let begun = Instant::now();
        let _permit = self.launcher.permit()?;
        self.reserve_once_free(&request.id, deadline).await?;
        let (container, restored) = self.clone().prepare_in_time(request, deadline).await?;
        let Some(init) = container.init() else { unreachable!("a prepared container has an init") };
        self.journal.protect_new(&container.origin.instance);
        if let Err(e) = self.check_runtime(&container, restored.as_ref()).await {
            self.remover.discard(&container).await;
            return Err(e);
        }
        deadline += restore::time_for(restored.map_or(0, |restored| restored.bytes));
        let exit = match self.launcher.launch(&container, &init, deadline).await {
            Ok(exit) => exit,
            Err(e) => {
                let restores = container.is_restored();
                let e = if restores { restore::why_it_failed(&container, &init, e).await } else { e };
                self.remover.discard_after(&container, &e).await;
                return Err(e);
            }
        };
        self.find_cgroup(&container, &init);
        let order = container.order.clone().write_owned().await;
        let _ = container.change(Silent::Created);
        self.metrics.create.record(begun.elapsed());
        self.registry.set(&container.id, Slot::Here(container.clone()));
        tracing::debug!(container = %container.id, pid = init.pid(), "created");
        tokio::spawn(self.exits.clone().watch_init(container.clone(), init, exit, false));
        Ok((container, order))
    }

    /// Reserves an id. If an earlier daemon has left a container of that id, this waits until the container has been judged.
    async fn reserve_once_free(&self, id: &str, deadline: Instant) -> Result<(), Error> {
        loop {
            let taken = match self.registry.reserve(id) {
                Err(e @ Error::ContainerExists { .. }) => e,
                result => return result,
            };
            let Some(Slot::Left(mut judged)) = self.registry.get(id) else {
                let why = tokio::time::timeout_at(deadline, self.deleter.why_taken(id));
                match why.await {
                    Ok(Some(why)) => return Err(why),
                    // It was being deleted, and is gone.
                    Ok(None) if self.registry.get(id).is_none() => continue,
                    _ => return Err(taken),
                }
            };
            tokio::select! {
                // Nothing is ever sent: the sender has been dropped.
                _ = judged.changed() => {}
                () = tokio::time::sleep_until(deadline) => return Err(taken),
            }
        }
    }

    /// Refuses what the runtime cannot do.
    async fn check_runtime(&self, container: &Container, restored: Option<&Restorable>) -> Result<(), Error> {
        if container.origin.no_pivot_root {
            self.runtimes.check_ability(container.oci(), Ability::NoPivot).await?;
        }
        match restored {
            Some(restored) => restore::check(&self.runtimes, container.oci(), &restored.checkpoint).await,
            None => Ok(()),
        }
    }

    /// Checks the request and makes the directories. If that fails the id is free again. If it exceeds the deadline, because a file
    /// system hangs, the id is free when the file system has answered.
    async fn prepare_in_time(
        self: Arc<Self>,
        request: CreateContainer,
        deadline: Instant,
    ) -> Result<(Arc<Container>, Option<Restorable>), Error> {
        let id = request.id.clone();
        let creator = self.clone();
        let mut prepared = tokio::spawn(async move {
            let for_thread = creator.clone();
            let id = request.id.clone();
            let prepared = on_clients_disk(move || for_thread.prepare(request)).await.and_then(|prepared| prepared);
            if prepared.is_err() {
                // Otherwise the id is freed with the container's directory.
                creator.registry.free(&id);
            }
            prepared.map(|(container, restored)| (Arc::new(container), restored))
        });
        match tokio::time::timeout_at(deadline, &mut prepared).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(e)) => Err(Error::system("make a container")(io::Error::other(e))),
            Err(_) => {
                tracing::warn!(container = %id, "its bundle or its stdio cannot be looked at: their file system hangs");
                tokio::spawn(async move {
                    if let Ok(Ok((container, _))) = prepared.await {
                        self.remover.discard(&container).await;
                    }
                });
                Err(Error::StartTimeout { id })
            }
        }
    }

    /// Checks the request and makes the directories.
    fn prepare(&self, request: CreateContainer) -> Result<(Container, Option<Restorable>), Error> {
        if request.bundle.is_empty() {
            let (field, value) = ("bundlePath", String::new());
            return Err(Error::Argument { field, value, reason: "must not be empty" });
        }
        let oci = self.runtimes.find(request.runtime.as_deref(), &request.runtime_args)?;
        let mut bundle = Bundle::load(Path::new(&request.bundle))?;
        let stdio = request.stdio.resolve(bundle.spec.terminal)?;
        let directory = request.checkpoint_dir.as_deref();
        let find = |name: &String| restore::find(name, directory, &bundle);
        let restored = request.checkpoint.as_ref().map(find).transpose()?;
        let has_size = set_terminal_size(&mut bundle, request.terminal_size);
        let groups = self.hierarchies.survey(requested_groups(&bundle.cgroups_path, &request.id, &oci));
        let begin = if restored.is_some() {
            Begin::Restore
        } else if has_size && groups.is_new() {
            Begin::Run
        } else {
            Begin::CreateThenStart
        };
        let record = self.record(&request, &bundle, &stdio, &oci, (restored.as_ref(), &groups));
        if record.theirs && begin == Begin::Restore {
            // If the restore failed, what the runtime has of this id could not be told from its leftovers.
            let name = oci.name();
            return Err(Error::Runtime(format!("container with id {} exists already: {name} has it", request.id)));
        }
        let dir = self.registry.dir(&request.id);
        match dir.path().symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(Error::ContainerExists { id: request.id }),
            // The socket, for example.
            Ok(_) => return Err(Error::Name { field: "id", value: request.id, reason: NameError::Reserved }),
            Err(_) => {}
        }
        let process = ProcessRecord {
            exec: false,
            containerd_stdin: stdio.stdin.clone(),
            containerd_stdout: stdio.stdout.clone(),
            containerd_stderr: stdio.stderr.clone(),
            runtime_args: record.runtime_args.clone(),
            no_pivot_root: record.no_pivot_root,
            run: begin == Begin::Run,
            checkpoint: record.checkpoint.clone(),
            root_uid: bundle.root_uid,
            root_gid: bundle.root_gid,
            instance: record.instance.clone(),
            runtime_copy: oci.copy(),
            memory_mount: self.hierarchies.memory_mount().unwrap_or_default(),
        };
        let made = dir.create(&record).and_then(|()| dir.process(INIT).create(bundle.process, &process));
        if let Err(e) = made {
            let _ = dir.remove();
            return Err(e.into());
        }
        let init = Process::new(INIT, record.instance.clone(), bundle.spec, stdio, dir.process(INIT));
        let root = (bundle.root_uid, bundle.root_gid);
        let container = Container::new(&request.id, Origin::new(record, oci), dir, root, begin);
        container.set_init(Arc::new(init));
        Ok((container, restored))
    }

    /// The content of a new container's `state.json`.
    fn record(
        &self,
        request: &CreateContainer,
        bundle: &Bundle,
        stdio: &Stdio,
        oci: &Oci,
        (restored, groups): (Option<&Restorable>, &Survey),
    ) -> oci::ContainerRecord {
        oci::ContainerRecord {
            version: oci::FORMAT,
            cgroups_path: bundle.cgroups_path.clone(),
            groups: Some(groups.to_text()),
            bundle: bundle.path.to_string_lossy().into_owned(),
            labels: request.labels.clone(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            runtime: oci.name().to_string(),
            runtime_args: oci.arguments().to_vec(),
            shim: self.launcher.program().to_string_lossy().into_owned(),
            no_pivot_root: request.no_pivot_root,
            boot_id: self.boot_id.clone(),
            instance: new_key(),
            marked: true,
            checkpoint: restored.map(|found| found.path.to_string_lossy().into_owned()).unwrap_or_default(),
            theirs: oci.root().is_some_and(|root| root.join(&request.id).symlink_metadata().is_ok()),
            has_poststop: bundle.has_poststop,
        }
    }

    /// Finds the control groups of a new container from its init, and writes them down.
    fn find_cgroup(&self, container: &Container, init: &Process) {
        let Some(pid) = init.pid() else { return };
        let places = Hierarchies::places(pid).unwrap_or_else(|e| {
            tracing::warn!(container = %container.id, "cannot find its cgroup: {e}");
            None
        });
        let hierarchies = self.hierarchies.here();
        // A process that runs already may be about to end, or may have ended.
        let places = if container.begin == Begin::CreateThenStart {
            places.map(|places| hierarchies.of_use(&places))
        } else {
            Some(hierarchies.complete(&places.unwrap_or_default(), container.requested()))
        };
        let Some(places) = places else { return };
        if let Err(e) = container.dir.write_cgroup(&places) {
            tracing::warn!(container = %container.id, "{e}; the next daemon looks for its cgroup again");
        }
        container.set_cgroup(hierarchies.cgroup(&places));
        if container.begin != Begin::Run {
            // The group may have counted before.
            container.begin_oom_count();
        }
    }

    /// Starts what does not run yet, and records the start. The caller holds `order`.
    async fn start(&self, container: &Arc<Container>, deadline: Instant) -> Result<ContainerInfo, Error> {
        container.check(Request::Start)?;
        let begun = Instant::now();
        let init = container.process(INIT)?;
        let limit = deadline.saturating_duration_since(Instant::now());
        if container.begin == Begin::CreateThenStart {
            let _task = self.tasks.begin_runtime("runtime start", &container.id, INIT);
            let started = container.oci().run(Operation::Start, &container.id, &init.dir.runtime_log(), limit).await;
            started.map_err(|e| match e {
                OciError::Timeout { .. } => Error::StartTimeout { id: container.id.clone() },
                e => e.into(),
            })?;
        }
        reach(Point::Started);
        // Recorded before the client has its answer, and before the exit, which waits for `order`.
        let _ = container.record(&self.journal, Recorded::Started)?;
        reach(Point::StartJournaled);
        if let Err(e) = container.dir.set_started() {
            tracing::warn!(container = %container.id, "{e}; the journal says that it has been started");
        }
        self.metrics.start.record(begun.elapsed());
        // Kills that were counted before the container was known to run.
        container.report_due_oom(&self.journal);
        tracing::info!(container = %container.id, pid = init.pid(), "started");
        Ok(ContainerInfo::of(container, init.pid().into_iter().collect(), None))
    }
}

/// Notes in the process object which size a container's terminal is to have. False if the runtime, which reads the bundle alone,
/// does not give it that size: then the shim has to, after the runtime's `create` and before its `start`.
fn set_terminal_size(bundle: &mut Bundle, asked: Option<TerminalSize>) -> bool {
    if !bundle.spec.terminal {
        bundle.process.remove("consoleSize");
        return true;
    }
    let own = TerminalSize::of(&bundle.process);
    let size = asked.or(own).unwrap_or_default();
    size.put_into(&mut bundle.process);
    own == Some(size)
}

/// A key that no other process instance has, on this machine or another.
pub(crate) fn new_key() -> String {
    let mut bytes = [0; 12];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            // Some kernels lack the call; the clock tells instances apart as well.
            Err(_) => return format!("{:x}", Timestamp::now().0),
        }
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
