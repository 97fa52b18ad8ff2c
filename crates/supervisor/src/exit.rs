//! What follows when a process has ended: its shim's `exit` closes, its status is found, it is told.

use failpoint::{Point, reach};
use oci::INIT;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::container::Container;
use crate::error::Error;
use crate::event::{Event, EventKind};
use crate::journal::Held;
use crate::lifecycle::{Action, Happened, Request};
use crate::process::{DEATH_LIMIT, ExitFifo, PAUSE, Process};
use crate::start::carried_through;
use crate::supervisor::{Shared, Supervisor};

/// The status of a process that was killed because its shim died.
pub(crate) const KILLED: u32 = 137;
/// The status of a process of which nothing is known.
pub(crate) const UNKNOWN: u32 = 255;

/// How long the exits of added processes may take after init's end: the time that a shim waits for a reader, and some.
const ADDED_LIMIT: Duration = Duration::from_secs(20);

impl Supervisor {
    /// Deletes a container that has stopped, or was never started.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        if let Some(aside) = self.0.aside(id) {
            let cleared = tokio::spawn(self.0.clone().clear(id.to_string(), aside));
            return cleared.await.map_err(|e| Error::system("remove a container")(std::io::Error::other(e)));
        }
        let (shared, container) = (self.0.clone(), self.0.container(id)?);
        carried_through(async move {
            let _order = container.order.write().await;
            container.check(Request::Delete)?;
            if container.happened(Happened::Failed).is_some() {
                shared.discard(&container).await;
            } else {
                if let Some(init) = container.init() {
                    // Its exit is told first.
                    init.over.wait().await;
                }
                shared.delete_by_runtime(&container, false).await;
                shared.remove(&container).await;
            }
            Ok(())
        })
        .await
    }
}

impl Shared {
    /// Waits for init's end, and sees to all that follows.
    /// `orphan`: an earlier supervisor's shim is gone and has left no status.
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
            // Watching takes longer than all that calls wait for when many are found again.
            self.recovered.wait().await;
            let status = tokio::select! {
                status = self.ended(&container, &init, &exit, orphan) => status,
                never = self.watch_oom(&container) => match never {},
            };
            // What follows takes kilobytes, which those that still run are not to have each.
            Box::pin(self.init_ended(container, init, status)).await;
        }
    }

    async fn init_ended(self: Arc<Self>, container: Arc<Container>, init: Arc<Process>, status: u32) {
        let begun = Instant::now();
        container.init_ended.set();
        // Whatever is under way on this container comes to its end first, a start in any case.
        let order = container.order.write().await;
        let Some(action) = container.happened(Happened::Ended) else { return };
        if action == Some(Action::Discard) && !container.keeps() {
            tracing::info!(container = %container.id, status, "ended before it was started");
            self.discard(&container).await;
            return;
        }
        // From here on the state refuses what waits, so that it must be let go on.
        drop(order);
        let _task = self.tasks.begin("exit of init", &container.id, INIT);
        self.end_added(&container).await;
        reach(Point::AddedEnded);
        self.reap_shim(&container, &init).await;
        // The group goes with the runtime's `delete`.
        self.report_last_oom(&container).await;
        Shared::log_shim_warnings(&container.id, INIT, &init.dir);
        let announced = action == Some(Action::AnnounceExit);
        if container.keeps() {
            if announced {
                drop(self.record_exit(Shared::event(EventKind::Exit, &container, Some(&init), status)).await);
            }
            init.over.set();
            return;
        }
        let deleting = Instant::now();
        // If it is not there any more, that is no error.
        let is_gone = container.dumped.load(Ordering::SeqCst);
        self.delete_by_runtime(&container, is_gone).await;
        let held = self.record_exit(Shared::event(EventKind::Exit, &container, Some(&init), status)).await;
        self.remove(&container).await;
        self.metrics.delete.record(deleting.elapsed());
        self.metrics.exit.record(begun.elapsed());
        init.over.set();
        drop(held);
        tracing::info!(container = %container.id, status, "exited");
    }

    /// Waits for an added process's end, and tells it.
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
        self.report_last_oom(&container).await;
        Shared::log_shim_warnings(&container.id, &process.name, &process.dir);
        let held = self.record_exit(Shared::event(EventKind::Exit, &container, Some(&process), status)).await;
        self.reap_shim(&container, &process).await;
        self.remove_process(&container, &process);
        drop(held);
        self.metrics.exit.record(begun.elapsed());
        process.over.set();
        tracing::debug!(container = %container.id, process = %process.name, status, "process exited");
    }

    /// Waits until the process is over, and finds its status.
    async fn ended(&self, container: &Container, process: &Process, exit: &ExitFifo, orphan: bool) -> u32 {
        if let Err(e) = exit.closed().await {
            tracing::error!(container = %container.id, process = %process.name, "cannot wait for its exit: {e}");
        }
        // Before anything waits: the group may be removed at any moment, now that it may be empty.
        container.count_oom_kills();
        process.ended.store(true, Ordering::SeqCst);
        reach(Point::ExitClosed);
        let status = Box::pin(self.status(container, process, orphan)).await;
        reach(Point::StatusKnown);
        status
    }

    /// Reaps the shim of a process that is over. It ends by itself, mostly before the rest has been done.
    async fn reap_shim(&self, container: &Container, process: &Process) {
        let Some(mut shim) = process.take_shim() else { return };
        if tokio::time::timeout(DEATH_LIMIT, shim.wait()).await.is_err() {
            tracing::warn!(container = %container.id, process = %process.name, "its shim is done and does not end");
            shim.kill();
        }
    }

    /// The status of a process that has no shim any more.
    async fn status(&self, container: &Container, process: &Process, orphan: bool) -> u32 {
        loop {
            match process.dir.exit_status() {
                Ok(Some(status)) => return status,
                Ok(None) => break,
                Err(e) if sys::exhausted::is_exhausted(&e.source) => {
                    tracing::warn!(container = %container.id, process = %process.name, "{e}; it is tried again");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(e) => {
                    tracing::error!(container = %container.id, process = %process.name, "{e}; how it ended is unknown");
                    return UNKNOWN;
                }
            }
        }
        // Of one that was dead already when it was found nobody knows how it ended.
        if orphan && matches!(process.open(), Ok(None)) {
            return UNKNOWN;
        }
        tracing::warn!(container = %container.id, process = %process.name, "its shim died; it is killed");
        self.kill_orphan(container, process).await;
        KILLED
    }

    /// Kills a process that has no shim, and with an init all that is in the container.
    pub(crate) async fn kill_orphan(&self, container: &Container, process: &Process) {
        let init = process.name == INIT;
        if let Some(Err(e)) = container.cgroup().filter(|_| init).map(cgroup::Cgroup::thaw_for_kill) {
            tracing::warn!(container = %container.id, "cannot thaw it: {e}");
        }
        if let Err(e) = process.kill().await {
            tracing::error!(container = %container.id, process = %process.name, "cannot kill it: {e}");
        }
        if init {
            self.kill_all(container);
        }
    }

    /// Sees to it that the exits of added processes are told before init's.
    async fn end_added(&self, container: &Arc<Container>) {
        let deadline = tokio::time::Instant::now() + ADDED_LIMIT;
        for process in container.added() {
            if tokio::time::timeout_at(deadline, process.over.wait()).await.is_err() {
                // Its end is then seen as the shim's.
                if !process.ended.load(Ordering::SeqCst) {
                    tracing::warn!(container = %container.id, process = %process.name, "does not end with its container");
                    process.kill_shim().await;
                    let _ = tokio::time::timeout(DEATH_LIMIT, process.over.wait()).await;
                }
                // However long it takes until that can be told: with init's, the proof of it goes.
                if process.ended.load(Ordering::SeqCst) {
                    process.over.wait().await;
                }
            }
        }
    }

    /// Writes an exit to the journal, however long that takes: nothing that proves it is removed before.
    pub(crate) async fn record_exit(self: &Arc<Self>, event: Event) -> Held {
        loop {
            match self.journal.append_held(event.clone()) {
                Ok(held) => {
                    reach(Point::ExitJournaled);
                    return held;
                }
                Err(e) => tracing::error!(container = %event.id, "{e}; the exit is told once it can be written"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
