//! Adding processes to running containers. The OCI runtime creates and starts an added process in one call: [`Execs::prepare`] makes
//! everything ready for that call, and [`Created::start`] makes it.

use failpoint::{Point, reach};
use oci::{INIT, ProcessRecord, ProcessSpec, Stdio, TerminalSize};
use std::io;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::Instrument;

use crate::container::lifecycle::{Recorded, Request, Silent};
use crate::container::{Container, Process};
use crate::error::{Error, check_process_name};
use crate::events::Journal;
use crate::host::disk::on_clients_disk;
use crate::host::metrics::Metrics;
use crate::operations::create::new_key;
use crate::operations::exit::Exits;
use crate::operations::launch::{Launcher, StartPermit};
use crate::operations::oom::StartUnderWay;
use crate::operations::remove::{CLEANUP_LIMIT, Remover};

/// What a client asks for when it adds a process to a container.
#[derive(Debug, Clone, Default)]
pub struct CreateProcess {
    /// The container.
    pub id: String,
    /// The process's name in it.
    pub name: String,
    /// The process; empty members are taken from the container's first process.
    pub spec: ProcessSpec,
    /// Its stdio.
    pub stdio: Stdio,
    /// The size of its terminal, if it has one; the default is that of the container's first process.
    pub terminal_size: Option<TerminalSize>,
}

/// Adds processes.
#[derive(Debug)]
pub(crate) struct Execs {
    pub(crate) journal: Arc<Journal>,
    pub(crate) launcher: Arc<Launcher>,
    pub(crate) remover: Arc<Remover>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) metrics: Arc<Metrics>,
}

/// A process that is ready to be started. Dropping it removes it again.
#[derive(Debug)]
pub struct Created {
    execs: Arc<Execs>,
    container: Arc<Container>,
    process: Arc<Process>,
    is_started: bool,
    _permit: StartPermit,
}

impl Execs {
    /// Makes a process ready to run in a running container.
    pub(crate) async fn create(
        self: &Arc<Self>,
        container: Arc<Container>,
        request: CreateProcess,
        deadline: Instant,
    ) -> Result<Created, Error> {
        let permit = self.launcher.permit()?;
        check_process_name(&request.name)?;
        if request.spec.args.is_empty() {
            let (field, value) = ("args", String::new());
            return Err(Error::Argument { field, value, reason: "must name a program" });
        }
        container.check(Request::Exec)?;
        let (execs, id) = (self.clone(), request.id.clone());
        // Handing this to a thread would take longer than the work itself.
        if let Some(stdio) = request.stdio.resolve_at_once(request.spec.terminal) {
            return execs.prepare(container, CreateProcess { stdio, ..request }, permit);
        }
        let created = on_clients_disk(move || {
            let stdio = request.stdio.resolve(request.spec.terminal)?;
            execs.prepare(container, CreateProcess { stdio, ..request }, permit)
        });
        // If it comes too late it is dropped, and removed.
        tokio::time::timeout_at(deadline, created).await.map_err(|_| Error::StartTimeout { id })??
    }

    /// Makes the directory of a process whose stdio has been looked at.
    fn prepare(
        self: Arc<Self>,
        container: Arc<Container>,
        request: CreateProcess,
        permit: StartPermit,
    ) -> Result<Created, Error> {
        container.check(Request::Exec)?;
        let stdio = request.stdio;
        // Read here and not kept, because the daemon has no other use for most of it.
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
        // The name is taken first, so that no other process has the directory.
        container.add(&process)?;
        self.journal.protect_new(&process.key);
        let created = Created { execs: self, container, process, is_started: false, _permit: permit };
        created.process.dir.create(object, &record)?;
        Ok(created)
    }
}

impl Created {
    /// Starts the process; its host pid.
    pub(crate) async fn start(self, deadline: Instant) -> Result<u32, Error> {
        let (execs, container) = (self.execs.clone(), self.container.clone());
        let under_way = StartUnderWay::begin(&container, &execs.journal);
        let started = self.start_now(deadline).await;
        drop(under_way);
        started
    }

    async fn start_now(mut self, deadline: Instant) -> Result<u32, Error> {
        let begun = Instant::now();
        let (container, process) = (self.container.clone(), self.process.clone());
        // A checkpoint may hold it for long.
        let order = tokio::time::timeout_at(deadline, container.order.read()).await;
        let _order = order.map_err(|_| Error::StartTimeout { id: container.id.clone() })?;
        container.check(Request::Exec)?;
        let exit = match self.execs.launcher.launch(&container, &process, deadline).await {
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
        let _ = process.change(Silent::Created);
        if let Err(e) = process.record(&container, &self.execs.journal, Recorded::Started) {
            self.give_up().await;
            return Err(e.into());
        }
        reach(Point::StartJournaled);
        self.is_started = true;
        if let Err(e) = process.dir.set_started() {
            tracing::warn!(
                container = %container.id, process = %process.name,
                "{e}; the journal says that it has been started"
            );
        }
        self.execs.metrics.exec.record(begun.elapsed());
        let pid = process.pid().unwrap_or_default();
        tracing::debug!(container = %container.id, process = %process.name, pid, "process started");
        let exits = self.execs.exits.clone();
        tokio::spawn(exits.watch_process(container.clone(), process.clone(), exit, false));
        Ok(pid)
    }

    /// Kills what there may be of it.
    async fn give_up(&self) {
        self.container.condition(|condition| condition.exec_was_aborted());
        if let Err(e) = self.process.kill_half_made(self.container.cgroup()).await {
            tracing::warn!(container = %self.container.id, process = %self.process.name, "cannot kill it: {e}");
        }
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if !self.is_started {
            let _ = self.process.change(Silent::Failed);
            self.execs.remover.remove_process(&self.container, &self.process);
            let _ = self.process.over.set(());
        }
    }
}
