//! Going on with the supervision of a container that an earlier daemon has left.

use failpoint::{Point, reach};
use std::sync::Arc;

use crate::container::lifecycle::{Recorded, Silent};
use crate::container::{Container, Process};
use crate::host::registry::Slot;
use crate::operations::exit::{KILLED, UNKNOWN, record_exit};
use crate::recovery::gather::{Adopted, Left, Others};
use crate::recovery::judge::Fate;
use crate::recovery::{Looking, Recovery};

impl Recovery {
    pub(super) fn adopt(self: &Arc<Self>, adopted: Adopted, looking: Looking) {
        let Adopted { container, init, others, dump, start_is_recorded } = adopted;
        self.protect(&container, &others);
        self.confirm_start(&container, start_is_recorded);
        // While CRIU works on it, a frozen container is not paused.
        if dump.is_none() {
            self.freezer.follow(&container);
        }
        // All of them are added before init's end can be dealt with, which waits for their ends.
        let Others { mut read, mut unreadable } = others;
        read.retain(|(left, _)| container.add(&left.process).is_ok());
        unreadable.retain(|(process, _)| container.add(process).is_ok());
        // No other operation has it yet.
        if let (Some(dump), Ok(order)) = (dump, container.order.clone().try_write_owned()) {
            let (recovery, container) = (self.clone(), container.clone());
            // Before any other operation, and before its end is dealt with.
            tokio::spawn(async move {
                recovery.checkpointer.settle_left(&container, dump).await;
                recovery.freezer.follow(&container);
                drop(order);
            });
        }
        self.registry.set(&container.id, Slot::Here(container.clone()));
        // Kills for memory while no daemon ran.
        container.report_oom(&self.journal);
        for (left, fate) in read {
            if let Fate::Adopt { start_is_recorded } = fate {
                self.confirm_process_start(&container, &left.process, start_is_recorded);
            }
            tokio::spawn(self.clone().adopt_process(container.clone(), left, fate));
        }
        for (process, fate) in unreadable {
            tokio::spawn(self.clone().end_unreadable(container.clone(), process, fate));
        }
        reach(Point::RecoveryAdopted);
        tokio::spawn(self.exits.clone().watch_init(container, init.process, init.exit, init.is_orphan));
        drop(looking);
    }

    /// Keeps the journal's lines about a container and its processes.
    fn protect(&self, container: &Container, others: &Others) {
        self.journal.protect(&container.origin.instance);
        let read = others.read.iter().map(|(left, _)| &left.process);
        for process in read.chain(others.unreadable.iter().map(|(process, _)| process)) {
            self.journal.protect(&process.key);
        }
    }

    /// Takes the state that the journal has. If the journal has lost the start, the start is recorded again. Removes the marker of a
    /// daemon that ended before it could.
    fn confirm_start(&self, container: &Container, is_recorded: bool) {
        if is_recorded {
            let is_paused = self.journal.is_paused(&container.origin.instance);
            let _ = container.change(if is_paused { Silent::AdoptedPaused } else { Silent::Adopted });
        } else {
            tracing::warn!(container = %container.id, "its start is not in the journal; it is recorded again");
            let _ = container.change(Silent::Created);
            if let Err(e) = container.record(&self.journal, Recorded::Started) {
                tracing::error!(container = %container.id, "{e}; its start is not recorded");
                // It runs all the same. The marker stays for the next daemon.
                let _ = container.change(Silent::Adopted);
                return;
            }
        }
        if let Err(e) = container.dir.set_started() {
            tracing::warn!(container = %container.id, "{e}");
        }
    }

    /// Does for an added process what [`Recovery::confirm_start`] does for a container.
    fn confirm_process_start(&self, container: &Container, process: &Process, is_recorded: bool) {
        if is_recorded {
            let _ = process.change(Silent::Adopted);
        } else {
            tracing::warn!(
                container = %container.id, process = %process.name,
                "its start is not in the journal; it is recorded again"
            );
            let _ = process.change(Silent::Created);
            if let Err(e) = process.record(container, &self.journal, Recorded::Started) {
                tracing::error!(container = %container.id, process = %process.name, "{e}; its start is not recorded");
                let _ = process.change(Silent::Adopted);
                return;
            }
        }
        if let Err(e) = process.dir.set_started() {
            tracing::warn!(container = %container.id, process = %process.name, "{e}");
        }
    }

    async fn adopt_process(self: Arc<Self>, container: Arc<Container>, left: Left, fate: Fate) {
        let process = &left.process;
        match fate {
            Fate::Adopt { .. } => {
                let exits = self.exits.clone();
                return exits.watch_process(container, left.process, left.exit, left.is_orphan).await;
            }
            Fate::CleanUp | Fate::Leave { .. } => {}
            Fate::Discard => {
                tracing::info!(container = %container.id, process = %process.name, "was being made; removing it");
                kill_half_made(&container, process).await;
            }
        }
        let _ = process.change(Silent::Failed);
        self.remover.remove_process(&container, process);
        drop(left.held);
        let _ = process.over.set(());
    }

    /// Deals with an added process whose directory cannot be read: one that was being made is removed at once, another one when its
    /// container has ended.
    async fn end_unreadable(self: Arc<Self>, container: Arc<Container>, process: Arc<Process>, fate: Fate) {
        if matches!(fate, Fate::Leave { .. }) {
            container.init_ended.wait().await;
        }
        let _ = process.change(Silent::FoundDead);
        kill_half_made(&container, &process).await;
        let known = process.dir.exit_status().ok().flatten();
        let status = known.unwrap_or(if process.pid().is_some() { KILLED } else { UNKNOWN });
        let record = || process.record(&container, &self.journal, Recorded::Cleared { status });
        let is_due = fate == Fate::Leave { exit_is_due: true };
        let held = if is_due { Some(record_exit(&container.id, record).await) } else { None };
        self.remover.remove_process(&container, &process);
        drop(held);
        let _ = process.over.set(());
    }
}

async fn kill_half_made(container: &Container, process: &Process) {
    if let Err(e) = process.kill_half_made(container.cgroup()).await {
        tracing::warn!(container = %container.id, process = %process.name, "cannot kill it: {e}");
    }
}
