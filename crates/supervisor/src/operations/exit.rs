//! What follows the end of a process: its shim's `exit` closes, the daemon finds its status, removes what is left, and records and
//! publishes the exit.

use failpoint::{Point, reach};
use oci::INIT;
pub(crate) use oci::status::{KILLED, UNKNOWN};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::SetOnce;

use crate::container::killing::DEATH_LIMIT;
use crate::container::lifecycle::{Recorded, Silent};
use crate::container::transition::{Change, Recording};
use crate::container::{Container, ExitFifo, Process};
use crate::events::{Journal, JournalError};
use crate::host::RETRY_DELAY;
use crate::host::metrics::Metrics;
use crate::host::tasks::Tasks;
use crate::operations::delete::Deleter;
use crate::operations::remove::Remover;

/// How long the exits of added processes may take after init's end: the time that a shim waits for a reader, and some more.
const ADDED_LIMIT: Duration = Duration::from_secs(20);

/// Waits for the ends of processes and deals with them.
#[derive(Debug)]
pub(crate) struct Exits {
    pub(crate) journal: Arc<Journal>,
    pub(crate) deleter: Arc<Deleter>,
    pub(crate) remover: Arc<Remover>,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Arc<Metrics>,
    /// Set when the daemon serves calls.
    pub(crate) recovered: Arc<SetOnce<()>>,
}

impl Exits {
    /// Waits for the end of a container's init, and deals with everything that follows.
    /// `orphan`: the shim was an earlier daemon's, is gone and has left no status.
    // Not an `async fn`, which would keep its arguments twice: each container that runs has one of these.
    #[allow(clippy::manual_async_fn)]
    pub(crate) fn watch_init(
        self: Arc<Self>,
        container: Arc<Container>,
        init: Arc<Process>,
        exit: ExitFifo,
        orphan: bool,
    ) -> impl Future<Output = ()> + Send {
        async move {
            // To set up the watch takes longer than what calls wait for when a new daemon finds many containers.
            self.recovered.wait().await;
            let status = tokio::select! {
                status = self.ended(&container, &init, &exit, orphan) => status,
                never = container.watch_oom(&self.journal) => match never {},
            };
            // What follows takes kilobytes, which a container that still runs does not pay for.
            Box::pin(self.init_ended(container, init, status)).await;
        }
    }

    async fn init_ended(self: Arc<Self>, container: Arc<Container>, init: Arc<Process>, status: u32) {
        let begun = Instant::now();
        let _ = container.init_ended.set(());
        // An operation that is under way on this container ends first, a start in any case.
        let order = container.order.write().await;
        match container.change(Silent::Ended) {
            Change::Done => {}
            Change::MustDiscard => {
                tracing::info!(container = %container.id, status, "ended before it was started");
                self.remover.discard(&container).await;
                return;
            }
            Change::Unfitting => return,
        }
        // The state is `Stopped`: release the lock so that queued operations can fail.
        drop(order);
        let _task = self.tasks.begin("exit of init", &container.id, INIT);
        self.end_added(&container).await;
        reach(Point::AddedEnded);
        reap_shim(&container, &init).await;
        // The runtime's `delete` removes the group.
        container.report_last_oom(&self.journal).await;
        container.log_shim_warnings(&init);
        let deleting = Instant::now();
        // A checkpoint that stopped it has had the runtime delete it: `delete --force` does not take that for an error.
        let by_force = container.condition(|condition| condition.is_stopped_by_checkpoint());
        self.deleter.delete_container(&container, by_force).await;
        let held = record_exit(&container.id, || container.record(&self.journal, Recorded::Cleared { status })).await;
        self.remover.remove(&container).await;
        self.metrics.delete.record(deleting.elapsed());
        self.metrics.exit.record(begun.elapsed());
        let _ = init.over.set(());
        drop(held);
        tracing::info!(container = %container.id, status, "exited");
    }

    /// Waits for the end of an added process, and deals with what follows.
    pub(crate) async fn watch_process(
        self: Arc<Self>,
        container: Arc<Container>,
        process: Arc<Process>,
        exit: ExitFifo,
        orphan: bool,
    ) {
        let status = self.ended(&container, &process, &exit, orphan).await;
        Box::pin(self.process_ended(container, process, status)).await;
    }

    async fn process_ended(self: Arc<Self>, container: Arc<Container>, process: Arc<Process>, status: u32) {
        let begun = Instant::now();
        container.report_last_oom(&self.journal).await;
        container.log_shim_warnings(&process);
        let happened = Recorded::Cleared { status };
        let held = record_exit(&container.id, || process.record(&container, &self.journal, happened)).await;
        reap_shim(&container, &process).await;
        self.remover.remove_process(&container, &process);
        drop(held);
        self.metrics.exit.record(begun.elapsed());
        let _ = process.over.set(());
        tracing::debug!(container = %container.id, process = %process.name, status, "process exited");
    }

    /// Waits until a process has ended and its output is delivered, and finds its status.
    async fn ended(&self, container: &Container, process: &Process, exit: &ExitFifo, orphan: bool) -> u32 {
        if let Err(e) = exit.closed().await {
            tracing::error!(container = %container.id, process = %process.name, "cannot wait for its exit: {e}");
        }
        // Before anything waits: the group may be empty now, and may be removed at any moment.
        container.count_oom_kills();
        if process.name != INIT {
            let change = process.change(Silent::Ended);
            debug_assert_eq!(change, Change::Done, "a watched process runs");
        }
        reach(Point::ExitClosed);
        let status = Box::pin(self.status(container, process, orphan)).await;
        reach(Point::StatusKnown);
        status
    }

    /// The status of a process whose shim is gone.
    async fn status(&self, container: &Container, process: &Process, orphan: bool) -> u32 {
        loop {
            match process.dir.exit_status() {
                Ok(Some(status)) => return status,
                Ok(None) => break,
                Err(e) if sys::exhausted::is_exhausted(&e.source) => {
                    tracing::warn!(container = %container.id, process = %process.name, "{e}; it is tried again");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Err(e) => {
                    tracing::error!(container = %container.id, process = %process.name, "{e}; how it ended is unknown");
                    return UNKNOWN;
                }
            }
        }
        // It was dead already when this daemon found it.
        if orphan && matches!(process.open(), Ok(None)) {
            return UNKNOWN;
        }
        tracing::warn!(container = %container.id, process = %process.name, "its shim died; it is killed");
        self.kill_orphan(container, process).await;
        KILLED
    }

    /// Kills a process that has no shim. If it is an init, everything in the container dies.
    async fn kill_orphan(&self, container: &Container, process: &Process) {
        let is_init = process.name == INIT;
        if is_init {
            container.thaw_for_kill();
        }
        if let Err(e) = process.kill().await {
            tracing::error!(container = %container.id, process = %process.name, "cannot kill it: {e}");
        }
        if is_init {
            self.deleter.kill_all(container);
        }
    }

    /// Waits until the exits of added processes are recorded, which come before init's.
    async fn end_added(&self, container: &Container) {
        let deadline = tokio::time::Instant::now() + ADDED_LIMIT;
        for process in container.added() {
            if tokio::time::timeout_at(deadline, process.over.wait()).await.is_ok() {
                continue;
            }
            // The daemon takes the shim's end for the process's.
            if !process.has_ended() {
                tracing::warn!(container = %container.id, process = %process.name, "does not end with its container");
                process.kill_shim().await;
                let _ = tokio::time::timeout(DEATH_LIMIT, process.over.wait()).await;
            }
            // However long it takes until the exit can be recorded: what proves it goes with init's.
            if process.has_ended() {
                process.over.wait().await;
            }
        }
    }
}

/// Reaps the shim of a process that is over. It ends by itself, usually before the daemon gets here.
async fn reap_shim(container: &Container, process: &Process) {
    let Some(mut shim) = process.take_shim() else { return };
    if tokio::time::timeout(DEATH_LIMIT, shim.wait()).await.is_err() {
        tracing::warn!(container = %container.id, process = %process.name, "its shim is done and does not end");
        shim.kill();
    }
}

/// Records an exit, however long it takes until the journal can be written: what proves the exit is removed only after that.
pub(crate) async fn record_exit(id: &str, mut record: impl FnMut() -> Result<Recording, JournalError>) -> Recording {
    loop {
        match record() {
            Ok(recording) => {
                reach(Point::ExitJournaled);
                return recording;
            }
            Err(e) => tracing::error!(container = %id, "{e}; the exit is recorded once the journal can be written"),
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}
