//! Pausing and resuming containers, and following what other programs do to their freezers.

use cgroup::Cgroup;
use failpoint::{Point, reach};
use oci::{INIT, Operation};
use std::sync::Arc;
use std::time::Duration;

use crate::container::Container;
use crate::container::condition::Thaw;
use crate::container::lifecycle::{Recorded, Request, State};
use crate::error::Error;
use crate::events::Journal;
use crate::host::tasks::Tasks;

/// Pauses and resumes.
#[derive(Debug)]
pub(crate) struct Freezer {
    pub(crate) journal: Arc<Journal>,
    pub(crate) tasks: Tasks,
    pub(crate) call_timeout: Duration,
}

impl Freezer {
    /// Freezes a running container.
    pub(crate) async fn pause(&self, container: &Container) -> Result<(), Error> {
        let _order = container.turn(Operation::Pause.name(), self.call_timeout).await?;
        self.follow(container);
        container.check(Request::Pause)?;
        self.change(container, Operation::Pause).await
    }

    /// Thaws a paused container.
    pub(crate) async fn resume(&self, container: &Container) -> Result<(), Error> {
        let _order = container.turn(Operation::Resume.name(), self.call_timeout).await?;
        self.follow(container);
        check_frozen_above(container)?;
        container.check(Request::Resume)?;
        self.change(container, Operation::Resume).await
    }

    /// Runs `pause` or `resume` of the runtime, and records what the kernel then shows.
    async fn change(&self, container: &Container, operation: Operation<'_>) -> Result<(), Error> {
        let pauses = operation == Operation::Pause;
        let what = if pauses { "runtime pause" } else { "runtime resume" };
        let task = self.tasks.begin_runtime(what, &container.id, "");
        let log = container.dir.process(INIT).runtime_log();
        let result = container.oci().run(operation, &container.id, &log, self.call_timeout).await;
        drop(task);
        reach(Point::FreezerChanged);
        if container.condition(|condition| condition.freezer_was_changed()) == Thaw::Now {
            container.thaw_for_kill();
        }
        // The kernel decides: a runtime that failed may have done it all the same, and a runtime that resumes a container does
        // not notice that a group above it is frozen.
        let is_done = match container.cgroup().map(Cgroup::is_frozen) {
            Some(Ok(frozen)) => frozen == pauses,
            _ => result.is_ok(),
        };
        if is_done {
            let happened = if pauses { Recorded::Paused } else { Recorded::Resumed };
            let recorded = container.record(&self.journal, happened)?.is_done();
            reach(Point::FreezerJournaled);
            if recorded {
                tracing::info!(container = %container.id, state = container.state().name(), "changed");
            }
        } else if !pauses {
            check_frozen_above(container)?;
        }
        result?;
        if is_done {
            return Ok(());
        }
        let state = if pauses { "not frozen" } else { "still frozen" };
        Err(Error::Runtime(format!("{} succeeded, but the container is {state}", operation.name())))
    }

    /// Takes the state that the kernel shows: a runtime that outlived its daemon, or another program, may have frozen or thawed
    /// the container. To be called only while no other operation changes the container.
    pub(crate) fn follow(&self, container: &Container) {
        let Some(Ok(frozen)) = container.cgroup().map(Cgroup::is_frozen) else { return };
        let happened = match (container.state(), frozen) {
            (State::Running, true) => Recorded::Paused,
            (State::Paused, false) if !container.condition(|condition| condition.init_is_killed()) => Recorded::Resumed,
            _ => return,
        };
        // When the container ends, its shim's runtime may freeze what is left in it.
        if !container.init().is_some_and(|init| init.is_alive()) {
            return;
        }
        match container.record(&self.journal, happened) {
            Ok(recording) if recording.is_done() => {
                let state = container.state().name();
                tracing::info!(container = %container.id, state, "another program changed the container");
            }
            Ok(_) => {}
            Err(e) => tracing::error!(container = %container.id, "{e}; the change is recorded later"),
        }
    }
}

/// Refuses to resume a container that stays frozen because a group above it is frozen.
fn check_frozen_above(container: &Container) -> Result<(), Error> {
    let Some(cgroup) = container.cgroup() else { return Ok(()) };
    match cgroup.frozen_above().map_err(Error::system("look at the freezer"))? {
        Some(group) => Err(Error::FrozenAbove { id: container.id.clone(), group }),
        None => Ok(()),
    }
}
