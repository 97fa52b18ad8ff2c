//! Creating and starting: a container, and what both containers and added processes need of a shim.

use cgroup::{Requested, Survey};
use failpoint::{Point, reach};
use oci::{
    Ability, Bundle, ContainerDir, INIT, NameError, Oci, OciError, Operation, ProcessDir, ProcessRecord, Shim,
    TerminalSize,
};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::OwnedRwLockWriteGuard;
use tokio::time::Instant;
use tracing::Instrument;

use crate::checkpoint::{Found, time_for, why_restore_failed};
use crate::container::{Container, CreateContainer, OnExit, Origin};
use crate::disk::on_clients_disk;
use crate::error::Error;
use crate::event::EventKind;
use crate::lifecycle::{Happened, Request, State};
use crate::process::{DEATH_LIMIT, ExitFifo, PAUSE, Process, kill_all};
use crate::snapshot::ContainerInfo;
use crate::supervisor::{Shared, Slot, Supervisor, check_name, new_key};
use crate::tasks::passed_on;

/// How long the answer to a call that ran into its time limit may wait for the clean-up, which otherwise goes on behind it.
pub(crate) const CLEANUP_LIMIT: Duration = Duration::from_secs(1);

/// How long a runtime that has failed without a word may take to say what is wrong with it.
const COMPLAINT_LIMIT: Duration = Duration::from_secs(1);

/// How long a start goes on after the container's init has ended: the runtime finds out by itself, normally.
const AFTER_INIT: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Creates a container: afterwards it is there, with its init waiting to be started. On failure, and if it is
    /// not done by `deadline`, nothing is left of it.
    pub async fn create(&self, request: CreateContainer, deadline: Instant) -> Result<(), Error> {
        let shared = self.0.clone();
        carried_through(async move { shared.create(request, false, deadline).await.map(drop) }).await
    }

    /// Starts a created container's init. A container that fails to start stays as it is: [`Supervisor::discard`] it.
    pub async fn start(&self, id: &str, deadline: Instant) -> Result<ContainerInfo, Error> {
        let (shared, container) = (self.0.clone(), self.0.container(id)?);
        carried_through(async move {
            let _order = container.order.write().await;
            shared.start(&container, deadline).await
        })
        .await
    }

    /// Both in one, which costs one call of the runtime less where that is possible. What cannot be started is removed.
    pub async fn run(&self, request: CreateContainer, deadline: Instant) -> Result<ContainerInfo, Error> {
        let shared = self.0.clone();
        carried_through(async move { shared.run(request, deadline).await }).await
    }

    /// Removes a container that was never started, with all that belongs to it. Nobody is told.
    pub async fn discard(&self, id: &str) -> Result<(), Error> {
        let (shared, container) = (self.0.clone(), self.0.container(id)?);
        carried_through(async move {
            let _order = container.order.write().await;
            if container.happened(Happened::Failed).is_some() {
                shared.discard(&container).await;
            }
            Ok(())
        })
        .await
    }
}

/// Runs an operation to its end even if whoever asked for it goes away.
pub async fn carried_through<T: Send + 'static>(
    operation: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(passed_on(operation.in_current_span())).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(e) => Err(Error::System { operation: "carry out an operation", source: io::Error::other(e) }),
    }
}

impl Shared {
    /// Makes a container whose init waits to be started, or runs at once with `runs`. Nothing else happens to it, its
    /// end included, as long as the result is held.
    async fn create(
        self: &Arc<Self>,
        request: CreateContainer,
        runs: bool,
        mut deadline: Instant,
    ) -> Result<(Arc<Container>, OwnedRwLockWriteGuard<()>), Error> {
        let begun = Instant::now();
        let _place = self.place_for_start()?;
        self.reserve_once_free(&request.id, deadline).await?;
        let (container, found) = self.clone().prepare_in_time(request, runs, deadline).await?;
        let Some(init) = container.init() else { unreachable!("a prepared container has an init") };
        self.journal.protect_new(&container.origin.instance);
        if let Err(e) = self.check_runtime(&container, found.as_ref()).await {
            self.discard(&container).await;
            return Err(e);
        }
        deadline += time_for(found.map_or(0, |found| found.bytes));
        let exit = match self.run_shim(&container, &init, deadline).await {
            Ok(exit) => exit,
            Err(e) => {
                let e = if container.is_restored() { why_restore_failed(&container, &init, e).await } else { e };
                self.discard_after(&container, &e).await;
                return Err(e);
            }
        };
        self.find_cgroup(&container, &init);
        let order = container.order.clone().write_owned().await;
        container.happened(Happened::Created);
        self.metrics.create.record(begun.elapsed());
        self.map().insert(container.id.clone(), Slot::Here(container.clone()));
        tracing::debug!(container = %container.id, pid = init.pid(), "created");
        tokio::spawn(self.clone().watch_init(container.clone(), init, exit, false));
        Ok((container, order))
    }

    /// Makes a container and starts it; what cannot be started is removed again.
    async fn run(self: Arc<Self>, request: CreateContainer, deadline: Instant) -> Result<ContainerInfo, Error> {
        let (container, _order) = self.create(request, true, deadline).await?;
        let started = self.start(&container, deadline).await;
        if let Err(e) = &started {
            if container.happened(Happened::Failed).is_some() {
                self.discard_after(&container, e).await;
            }
        }
        started
    }

    /// Whether the runtime can do what is asked for.
    async fn check_runtime(&self, container: &Container, restored: Option<&Found>) -> Result<(), Error> {
        if container.origin.no_pivot_root {
            self.check_ability(container.oci(), Ability::NoPivot).await?;
        }
        match restored {
            Some(found) => self.check_restore(container.oci(), &found.checkpoint).await,
            None => Ok(()),
        }
    }

    /// Checks what was asked for, and makes the directories. If it fails the id is free again; if that takes too long,
    /// it is once what hangs has come back.
    async fn prepare_in_time(
        self: Arc<Self>,
        request: CreateContainer,
        runs: bool,
        deadline: Instant,
    ) -> Result<(Arc<Container>, Option<Found>), Error> {
        let id = request.id.clone();
        let shared = self.clone();
        let mut prepared = tokio::spawn(async move {
            let for_thread = shared.clone();
            let id = request.id.clone();
            let prepared =
                on_clients_disk(move || for_thread.prepare(request, runs)).await.and_then(|prepared| prepared);
            if prepared.is_err() {
                // From here on the id goes with the container's directory.
                shared.map().remove(&id);
            }
            prepared.map(|(container, found)| (Arc::new(container), found))
        });
        match tokio::time::timeout_at(deadline, &mut prepared).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(e)) => Err(Error::system("make a container")(io::Error::other(e))),
            Err(_) => {
                tracing::warn!(container = %id, "its bundle or its stdio cannot be looked at: their file system hangs");
                tokio::spawn(async move {
                    if let Ok(Ok((container, _))) = prepared.await {
                        self.discard(&container).await;
                    }
                });
                Err(Error::StartTimeout { id })
            }
        }
    }

    /// Checks what was asked for, and makes the directories.
    fn prepare(&self, request: CreateContainer, runs: bool) -> Result<(Container, Option<Found>), Error> {
        if request.bundle.is_empty() {
            let (field, value) = ("bundlePath", String::new());
            return Err(Error::Argument { field, value, reason: "must not be empty" });
        }
        let oci = self.runtime_for(request.runtime.as_deref(), &request.runtime_args)?;
        let bundle = Bundle::load(std::path::Path::new(&request.bundle))?;
        let stdio = request.stdio.resolve(bundle.spec.terminal)?;
        let bundle_path = bundle.path.to_string_lossy().into_owned();
        let group = (bundle.root_gid != 0).then_some(bundle.root_gid);
        let find =
            |name: &String| Shared::find_checkpoint(name, request.checkpoint_dir.as_deref(), &bundle.path, group);
        let restored = request.checkpoint.as_ref().map(find).transpose()?;
        let checkpoint = restored.as_ref().map(|found| found.path.to_string_lossy().into_owned()).unwrap_or_default();
        let mut process_object = bundle.process;
        let is_sized = if bundle.spec.terminal {
            size_terminal(&mut process_object, request.terminal_size)
        } else {
            process_object.remove("consoleSize");
            true
        };
        let groups = self.hierarchies.survey(requested(&bundle.cgroups_path, &request.id, &oci));
        // A group that was there may have killed for memory before: what it has counted is looked at before anything runs.
        let runs = runs && restored.is_none() && is_sized && groups.is_new();
        let record = oci::ContainerRecord {
            version: oci::FORMAT,
            cgroups_path: bundle.cgroups_path,
            groups: Some(groups.to_text()),
            bundle: bundle_path,
            labels: request.labels,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            runtime: oci.name().to_string(),
            runtime_args: oci.arguments().to_vec(),
            shim: self.shim.path().to_string_lossy().into_owned(),
            no_pivot_root: request.no_pivot_root,
            boot_id: self.boot_id.clone(),
            instance: new_key(),
            keep: request.on_exit == OnExit::Keep,
            marked: true,
            checkpoint,
            theirs: oci.root().is_some_and(|root| root.join(&request.id).symlink_metadata().is_ok()),
            has_poststop: bundle.has_poststop,
        };
        if record.theirs && !record.checkpoint.is_empty() {
            // What has this id with the runtime stays when this fails.
            let name = oci.name();
            return Err(Error::Runtime(format!("container with id {} exists already: {name} has it", request.id)));
        }
        let dir = self.container_dir(&request.id);
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
            run: runs,
            checkpoint: record.checkpoint.clone(),
            root_uid: bundle.root_uid,
            root_gid: bundle.root_gid,
            instance: record.instance.clone(),
            runtime_copy: oci.copy(),
            memory_mount: self.hierarchies.memory_mount().unwrap_or_default(),
        };
        let made = dir.create(&record).and_then(|()| dir.process(INIT).create(process_object, &process));
        if let Err(e) = made {
            let _ = dir.remove();
            return Err(e.into());
        }
        let init = Process::new(INIT, record.instance.clone(), bundle.spec, stdio, dir.process(INIT));
        let root = (bundle.root_uid, bundle.root_gid);
        let mut container = Container::new(&request.id, Origin::new(record, oci), dir, root, State::Creating);
        container.runs = runs;
        container.set_init(Arc::new(init));
        Ok((container, restored))
    }

    /// Starts the shim of a process whose directory is ready, and waits until it has written the pid.
    pub(crate) async fn run_shim(
        &self,
        container: &Container,
        process: &Process,
        deadline: Instant,
    ) -> Result<ExitFifo, Error> {
        let what = match process.name.as_str() {
            INIT if container.runs => "shim and runtime run",
            INIT if container.is_restored() => "shim and runtime restore",
            INIT => "shim and runtime create",
            _ => "shim and runtime exec",
        };
        let _task = self.tasks.begin_runtime(what, &container.id, &process.name);
        let exit = process.dir.open_exit()?;
        let mut watch = self.pids.watch(process.dir.path()).map_err(Error::system("watch a process directory"))?;
        let started = self.shim.start(&container.id, &container.origin.bundle, container.oci(), &process.dir);
        let program = || self.shim.path().display().to_string();
        let mut shim = started.map_err(|source| Error::Spawn { program: program(), source })?;
        process.begun.store(true, Ordering::Release);
        reach(Point::ShimStarted);
        let gone_with_init = async {
            container.init_ended.wait().await;
            tokio::time::sleep(AFTER_INIT).await;
        };
        let ended = tokio::select! {
            biased;
            () = watch.written() => None,
            // Not reaped yet: its group tells what it has started.
            ended = shim.ended() => Some(ended),
            () = tokio::time::sleep_until(deadline) => {
                // The caller ends it, for as long as that takes.
                process.keep_shim(shim);
                return Err(Error::StartTimeout { id: container.id.clone() });
            }
            () = gone_with_init => {
                process.keep_shim(shim);
                let (operation, state) = (Request::Exec.name(), State::Stopped.name());
                return Err(Error::State { id: container.id.clone(), operation, state });
            }
        };
        drop(watch);
        match process.dir.process()? {
            // Also if the process and its shim are over by now.
            Some(identity) => {
                reach(Point::PidSeen);
                process.set_identity(identity);
                shim.set_free();
                process.keep_shim(shim);
                ExitFifo::new(exit).map_err(Error::system("watch the exit fifo"))
            }
            None => {
                let ended = match ended {
                    Some(Ok(())) => {
                        // A shim that was killed takes the runtime along, which may not have gone yet.
                        kill_all(Shim::others_in_group(shim.pid())).await;
                        Some(shim.wait().await)
                    }
                    Some(Err(e)) => Some(Err(e)),
                    None => None,
                };
                let failed = why_it_failed(&process.dir, container.oci(), ended);
                let is_unexplained = matches!(failed, Error::Shim(_))
                    && process.dir.shim_error().is_some_and(|line| line.kind == "runtime");
                let complaint = match is_unexplained {
                    true => container.oci().complaint(COMPLAINT_LIMIT).await,
                    false => None,
                };
                Err(complaint.map_or(failed, Error::Runtime))
            }
        }
    }

    /// Finds the groups of a new container from its init, and keeps what was found.
    fn find_cgroup(&self, container: &Container, init: &Process) {
        let Some(pid) = init.pid() else { return };
        let places = cgroup::Hierarchies::places(pid).unwrap_or_else(|e| {
            tracing::warn!(container = %container.id, "cannot find its cgroup: {e}");
            None
        });
        let hierarchies = self.hierarchies.here();
        // What runs already may be about to end, or have ended.
        let places = if container.runs || container.is_restored() {
            Some(hierarchies.complete(&places.unwrap_or_default(), container.requested()))
        } else {
            places.map(|places| hierarchies.of_use(&places))
        };
        let Some(places) = places else { return };
        if let Err(e) = container.dir.write_cgroup(&places) {
            tracing::warn!(container = %container.id, "{e}; the next daemon looks for its cgroup again");
        }
        container.set_cgroup(hierarchies.cgroup(&places));
        if !container.runs {
            // The group may have counted before.
            container.begin_oom_count();
        }
    }

    /// Whether the container's runtime can do something, which it is asked once.
    pub(crate) async fn check_ability(&self, oci: &Oci, ability: Ability) -> Result<(), Error> {
        match self.abilities.has(oci, ability, self.config.call_timeout).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Inability { runtime: oci.name().to_string(), ability }),
            Err(e) if OciError::means_missing(&e) => Err(Error::RuntimeMissing(oci.name().to_string())),
            Err(e) => Err(Error::Runtime(format!("{} cannot be asked what it can do: {e}", oci.name()))),
        }
    }

    /// Starts what does not run yet. Whoever calls this holds `order`.
    async fn start(self: &Arc<Self>, container: &Arc<Container>, deadline: Instant) -> Result<ContainerInfo, Error> {
        container.check(Request::Start)?;
        let begun = Instant::now();
        let init = container.process(INIT)?;
        let limit = deadline.saturating_duration_since(Instant::now());
        if !container.runs && !container.is_restored() {
            let _task = self.tasks.begin_runtime("runtime start", &container.id, INIT);
            let started = container.oci().run(Operation::Start, &container.id, &init.dir.runtime_log(), limit).await;
            started.map_err(|e| match e {
                oci::OciError::Timeout { .. } => Error::StartTimeout { id: container.id.clone() },
                e => e.into(),
            })?;
        }
        reach(Point::Started);
        // In the journal before anybody is told, and before the exit, which waits for `order`.
        self.journal.append(Shared::event(EventKind::StartContainer, container, None, 0))?;
        reach(Point::StartJournaled);
        container.happened(Happened::Started);
        if let Err(e) = container.dir.set_started() {
            tracing::warn!(container = %container.id, "{e}; the journal says that it has been started");
        }
        self.metrics.start.record(begun.elapsed());
        // What was killed before it was known to run is told now, unless that is still to be watched for.
        if container.oom_watched.load(Ordering::SeqCst) {
            self.report_oom(container);
        }
        tracing::info!(container = %container.id, pid = init.pid(), "started");
        Ok(ContainerInfo::of(container, init.pid().into_iter().collect(), None))
    }

    /// Removes all that there is of a container that nobody has been told of: shim, processes, what the runtime
    /// keeps, and the directory, which frees the id. Goes on in the background if that takes very long.
    pub(crate) async fn discard(self: &Arc<Self>, container: &Arc<Container>) {
        self.discard_within(container, self.config.call_timeout.saturating_add(DEATH_LIMIT)).await;
    }

    /// [`Shared::discard`] after a start that failed: a caller that has waited for as long as it wanted waits no longer.
    async fn discard_after(self: &Arc<Self>, container: &Arc<Container>, error: &Error) {
        match error {
            Error::StartTimeout { .. } => self.discard_within(container, CLEANUP_LIMIT).await,
            _ => self.discard(container).await,
        }
    }

    async fn discard_within(self: &Arc<Self>, container: &Arc<Container>, limit: Duration) {
        let (shared, container) = (self.clone(), container.clone());
        let discarded = tokio::spawn(async move { shared.discard_now(&container).await }.in_current_span());
        let _ = tokio::time::timeout(limit, discarded).await;
    }

    async fn discard_now(self: &Arc<Self>, container: &Arc<Container>) {
        if let Some(init) = container.init() {
            let mut identity = init.find_identity().await;
            if identity.is_none() {
                // It ran into its time limit. It may have written the pid meanwhile.
                init.kill_shim().await;
                identity = init.find_identity().await;
            }
            // The process first: its shim then ends by itself, having reaped it.
            if let Err(e) = init.kill().await {
                tracing::warn!(container = %container.id, "cannot kill init: {e}");
            }
            let interrupted = init.begun.load(Ordering::Acquire) && may_be_left(container, &init.dir);
            if interrupted {
                init.kill_runtimes().await;
            }
            if identity.is_some() || interrupted {
                self.delete_by_runtime(container, true).await;
            }
            self.kill_all(container);
            init.kill_shim().await;
            if init.begun.load(Ordering::Acquire) {
                self.remove_left_groups(container).await;
            }
            Shared::log_shim_warnings(&container.id, INIT, &init.dir);
        }
        self.remove(container).await;
    }

    /// Removes the groups that a runtime has left of a container that was not started. What is in them still ends by itself,
    /// and nothing tells when.
    pub(crate) async fn remove_left_groups(&self, container: &Container) {
        if container.origin.theirs {
            return;
        }
        // An older daemon has noted nothing; then only the path that the bundle names is known to be the container's.
        let noted = container.dir.read().ok().and_then(|record| record.groups);
        let before = noted.map(|text| Survey::from_text(&text)).unwrap_or_default();
        let requested = container.requested();
        let mut pause = Duration::from_millis(1);
        while pause < DEATH_LIMIT {
            // A group above may be where another container is being made just now.
            let is_unsettled =
                |(id, slot): (&String, &Slot)| *id != container.id && matches!(slot, Slot::Taken | Slot::Left(_));
            let is_alone = !self.map().iter().any(is_unsettled);
            if self.hierarchies.remove_left(requested, &before, is_alone) {
                return;
            }
            for pid in self.hierarchies.members_of(requested, &before) {
                // A daemon that died while it killed a runtime has left it stopped.
                if let Some(process) = oci::Shim::stopped_half_made(pid) {
                    kill_all([process]).await;
                }
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        tracing::warn!(container = %container.id, "there are processes in the cgroup that it was to have; it is left");
    }

    /// Removes the directory and frees the id.
    pub(crate) async fn remove(self: &Arc<Self>, container: &Container) {
        container.removed.store(true, Ordering::Release);
        self.remove_directory(&container.id, &container.dir).await;
        self.map().remove(&container.id);
        self.deletions.forget(&container.id);
        self.journal.release_key(&container.origin.instance);
    }

    /// Removes a container's directory, however long that takes if it cannot be done at the moment.
    pub(crate) async fn remove_directory(&self, id: &str, dir: &ContainerDir) {
        while let Err(e) = dir.remove() {
            if !sys::exhausted::may_pass(&e.source) {
                tracing::error!(container = %id, "{e}; remove it by hand");
                return;
            }
            tracing::warn!(container = %id, "{e}; it is tried again");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Notes for the shim which size a container's terminal is to have. False if the runtime, which knows the bundle alone, does
/// not give it that size: the shim then has to, after the runtime's `create` and before its `start`.
fn size_terminal(process: &mut serde_json::Map<String, serde_json::Value>, asked: Option<TerminalSize>) -> bool {
    let own = TerminalSize::of(process);
    let size = asked.or(own).unwrap_or_default();
    size.put_into(process);
    own == Some(size)
}

/// What a bundle asks for its groups, of this runtime.
pub(crate) fn requested<'a>(path: &'a str, id: &'a str, oci: &Oci) -> Requested<'a> {
    // crun has the one, runc and newer crun the other.
    let systemd = |argument: &String| {
        matches!(argument.as_str(), "--systemd-cgroup" | "--systemd-cgroup=true" | "--cgroup-manager=systemd")
    };
    let manager = |pair: &[String]| pair[0] == "--cgroup-manager" && pair[1] == "systemd";
    let arguments = oci.arguments();
    Requested { path, id, systemd: arguments.iter().any(systemd) || arguments.windows(2).any(manager) }
}

/// Whether the runtime may have left something of a container that it was making: it was killed half-way, or while it
/// cleaned up, or it was restoring, where it cleans up less.
pub(crate) fn may_be_left(container: &Container, init: &ProcessDir) -> bool {
    let keeps = || container.oci().root().is_some_and(|root| root.join(&container.id).symlink_metadata().is_ok());
    // Somebody may have made one of that id just before.
    let refused = || init.runtime_error().is_some_and(|words| words.contains("exist"));
    !container.origin.theirs && (interrupted(init) || container.is_restored() || (keeps() && !refused()))
}

/// Whether the runtime may have been killed half-way. One that failed by itself has said why; what has the id then may not
/// be ours.
fn interrupted(dir: &ProcessDir) -> bool {
    dir.runtime_error().is_none() && dir.shim_error().is_none_or(|line| line.kind == "runtime" || line.kind == "system")
}

/// Why a shim ended without having written a pid: in the runtime's words, or else in its own.
fn why_it_failed(dir: &ProcessDir, oci: &Oci, ended: Option<io::Result<u32>>) -> Error {
    let shim = dir.shim_error();
    match &shim {
        Some(line) if line.kind == "stdio" => return Error::StdioOpen(line.msg.clone()),
        // The client named it otherwise than the path that the shim was given.
        Some(line) if line.kind == "no-runtime" => return Error::RuntimeMissing(oci.name().to_string()),
        _ => {}
    }
    if let Some(words) = dir.runtime_error() {
        return Error::Runtime(words);
    }
    match (shim, ended) {
        (Some(line), _) => Error::Shim(line.msg),
        // It could not even say so.
        (None, Some(Ok(_))) if is_full(dir) => Error::System {
            operation: "start a process",
            source: io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
        },
        (None, Some(Ok(status))) => Error::Shim(format!("it ended with status {status} and said nothing")),
        (None, Some(Err(e))) => Error::Shim(format!("it cannot be waited for: {e}")),
        (None, None) => Error::Shim("it wrote no pid".into()),
    }
}

/// Whether the file system of a directory has no room for another file.
fn is_full(dir: &ProcessDir) -> bool {
    rustix::fs::statvfs(dir.path()).is_ok_and(|fs| fs.f_bavail == 0 || (fs.f_files > 0 && fs.f_favail == 0))
}

impl Shared {
    /// Checks the name of a process that is to be added.
    pub(crate) fn check_process_name(name: &str) -> Result<(), Error> {
        check_name("pid", name, oci::ContainerDir::RESERVED)
    }
}
