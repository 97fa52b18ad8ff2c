//! Added processes. The OCI runtime has one call for creating and starting them; creating one here makes
//! everything ready for it, starting it makes that call.

use failpoint::{Point, reach};
use oci::{INIT, ProcessRecord, ProcessSpec, Stdio, TerminalSize};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;
use tracing::Instrument;

use crate::container::Container;
use crate::disk::on_clients_disk;
use crate::error::Error;
use crate::event::EventKind;
use crate::lifecycle::Request;
use crate::process::{PAUSE, Process};
use crate::start::{CLEANUP_LIMIT, carried_through};
use crate::supervisor::{Shared, StartPlace, Supervisor, new_key};

/// What is asked for when a process is added to a container.
#[derive(Debug, Clone, Default)]
pub struct CreateProcess {
    /// The container.
    pub id: String,
    /// The process's name in it.
    pub name: String,
    /// The process; what is left empty is taken from the container's first one.
    pub spec: ProcessSpec,
    /// Its stdio.
    pub stdio: Stdio,
    /// The size of its terminal, if it has one; if not given, that of the container's first process.
    pub terminal_size: Option<TerminalSize>,
}

/// A process that is ready to be started.
#[derive(Debug)]
pub struct Created {
    shared: Arc<Shared>,
    container: Arc<Container>,
    process: Arc<Process>,
    started: bool,
    _place: StartPlace,
}

impl Supervisor {
    /// Makes a process ready to run in a running container. Dropping the result removes it again.
    pub async fn create_process(&self, request: CreateProcess, deadline: Instant) -> Result<Created, Error> {
        let container = self.0.container(&request.id)?;
        let place = self.0.place_for_start()?;
        Shared::check_process_name(&request.name)?;
        if request.spec.args.is_empty() {
            let (field, value) = ("args", String::new());
            return Err(Error::Argument { field, value, reason: "must name a program" });
        }
        container.check(Request::Exec)?;
        let (shared, id) = (self.0.clone(), request.id.clone());
        // To wake a thread and be woken by it takes longer than all that it would do.
        if let Some(stdio) = request.stdio.resolve_at_once(request.spec.terminal) {
            return shared.prepare_process(container, CreateProcess { stdio, ..request }, place);
        }
        let created = on_clients_disk(move || {
            let stdio = request.stdio.resolve(request.spec.terminal)?;
            shared.prepare_process(container, CreateProcess { stdio, ..request }, place)
        });
        // What comes too late is dropped.
        tokio::time::timeout_at(deadline, created).await.map_err(|_| Error::StartTimeout { id })??
    }

    /// Starts it; its host pid.
    pub async fn start_process(&self, process: Created, deadline: Instant) -> Result<u32, Error> {
        carried_through(async move { process.start(deadline).await }).await
    }
}

impl Shared {
    /// The paths of its stdio have been looked at.
    fn prepare_process(
        self: Arc<Self>,
        container: Arc<Container>,
        request: CreateProcess,
        place: StartPlace,
    ) -> Result<Created, Error> {
        container.check(Request::Exec)?;
        let stdio = request.stdio;
        // Read when it is asked for, as most of it is of no use otherwise.
        let init = container.dir.process(INIT).read_object()?;
        let object = request.spec.to_exec(init, request.terminal_size);
        let spec = ProcessSpec::of(&object).map_err(|e| Error::system("understand a process")(io::Error::from(e)))?;
        let dir = container.dir.process(&request.name);
        let process = Arc::new(Process::new(&request.name, new_key(), spec, stdio.clone(), dir));
        let record = ProcessRecord {
            exec: true,
            containerd_stdin: stdio.stdin,
            containerd_stdout: stdio.stdout,
            containerd_stderr: stdio.stderr,
            runtime_args: container.oci().arguments().to_vec(),
            no_pivot_root: container.origin.no_pivot_root,
            run: false,
            checkpoint: String::new(),
            root_uid: container.root.0,
            root_gid: container.root.1,
            instance: process.key.clone(),
            runtime_copy: container.oci().copy(),
            memory_mount: String::new(),
        };
        // First of all the name, so that the directory is nobody else's.
        container.add(&process)?;
        self.journal.protect_new(&process.key);
        let created = Created { shared: self, container, process, started: false, _place: place };
        created.process.dir.create(object, &record)?;
        Ok(created)
    }

    /// Removes the directory of an added process and frees its name.
    pub(crate) fn remove_process(self: &Arc<Self>, container: &Arc<Container>, process: &Arc<Process>) {
        let removed = container.removed.load(Ordering::Acquire);
        match if removed { Ok(()) } else { process.dir.remove() } {
            Err(e) if sys::exhausted::may_pass(&e.source) => {
                tracing::warn!(container = %container.id, process = %process.name, "{e}; it is tried again");
                let (shared, container, process) = (self.clone(), container.clone(), process.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(PAUSE).await;
                    shared.remove_process(&container, &process);
                });
                return;
            }
            Err(e) => {
                tracing::error!(container = %container.id, process = %process.name, "{e}; remove it by hand");
            }
            Ok(()) => reach(Point::ProcessDirectoryRemoved),
        }
        container.remove(process);
        self.journal.release_key(&process.key);
    }
}

/// Counts a process among those that are being started.
struct Starting<'a>(&'a Container);

impl Starting<'_> {
    fn new(container: &Container) -> Starting<'_> {
        container.starting.fetch_add(1, Ordering::SeqCst);
        Starting(container)
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Created {
    async fn start(self, deadline: Instant) -> Result<u32, Error> {
        let (shared, container) = (self.shared.clone(), self.container.clone());
        let starting = Starting::new(&container);
        let started = self.begin(deadline).await;
        drop(starting);
        if container.oom_waits.swap(false, Ordering::SeqCst) {
            shared.report_oom(&container);
        }
        started
    }

    async fn begin(mut self, deadline: Instant) -> Result<u32, Error> {
        let begun = Instant::now();
        let (container, process) = (self.container.clone(), self.process.clone());
        // A checkpoint may hold it for long.
        let order = tokio::time::timeout_at(deadline, container.order.read()).await;
        let _order = order.map_err(|_| Error::StartTimeout { id: container.id.clone() })?;
        container.check(Request::Exec)?;
        let exit = match self.shared.run_shim(&container, &process, deadline).await {
            Ok(exit) => exit,
            Err(e) => {
                let given_up = tokio::spawn(async move { self.give_up().await }.in_current_span());
                if matches!(e, Error::StartTimeout { .. }) {
                    let _ = tokio::time::timeout(CLEANUP_LIMIT, given_up).await;
                } else {
                    let _ = given_up.await;
                }
                return Err(e);
            }
        };
        let event = Shared::event(EventKind::StartProcess, &container, Some(&process), 0);
        if let Err(e) = self.shared.journal.append(event) {
            self.give_up().await;
            return Err(e.into());
        }
        reach(Point::StartJournaled);
        self.started = true;
        if let Err(e) = process.dir.set_started() {
            tracing::warn!(
                container = %container.id, process = %process.name,
                "{e}; the journal says that it has been started"
            );
        }
        self.shared.metrics.exec.record(begun.elapsed());
        let pid = process.pid().unwrap_or_default();
        tracing::debug!(container = %container.id, process = %process.name, pid, "process started");
        tokio::spawn(self.shared.clone().watch_process(container.clone(), process.clone(), exit, false));
        Ok(pid)
    }

    /// Kills what there may be of it.
    async fn give_up(&self) {
        self.container.cut_off.store(true, Ordering::SeqCst);
        if let Err(e) = self.process.kill_half_made(self.container.cgroup()).await {
            tracing::warn!(container = %self.container.id, process = %self.process.name, "cannot kill it: {e}");
        }
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if !self.started {
            self.shared.remove_process(&self.container, &self.process);
            self.process.over.set();
        }
    }
}
