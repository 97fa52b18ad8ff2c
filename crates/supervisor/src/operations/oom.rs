//! Reporting processes that the kernel killed for memory.
//!
//! The count of kills decides, not the wake-up. The daemon reads it when the kernel wakes it, when a process of the container
//! has ended (before it waits for anything else: the program that made the group may remove it as soon as it is empty, as
//! systemd does), when a container is known to run, and when a new daemon finds it. Each rise is one event. The event's line
//! in the journal has the count, and so has a file in the container's directory, so that a restart reports nothing twice.
//!
//! The daemon reads the group's file by a descriptor that it holds while the container runs. Once the group is removed the file
//! reads as `ENODEV`, which says nothing of kills: the last count that was read stays. A shim counts as well, and writes its count
//! down when its process has ended; so kills are counted also while no daemon runs.

use cgroup::{OomDescriptors, OomSource};
use failpoint::{Point, reach};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::container::Container;
use crate::container::lifecycle::Recorded;
use crate::container::oom_count::OomCount;
use crate::events::{Journal, JournalError};
use crate::host::RETRY_DELAY;

/// v1's eventfd fires before the kernel has chosen and killed a process (mm/memcontrol-v1.c, `memcg1_oom_prepare`), and nothing
/// tells when it has. So the daemon reads the count again this long after a wake-up, each time after the one before.
const LOOK_AGAIN: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(15),
    Duration::from_millis(80),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];

/// How long after a wake-up the next one may wait. Kills in the meantime are one event more, or part of the same one.
const QUIET: Duration = Duration::from_millis(100);

/// When kills are reported of a container that cannot be watched.
const AT_EXIT: &str = "they will be reported when the container exits";

/// Waits until the kernel reports a kill. Each running container has a task that waits here, so the future is kept small where
/// tokio can do so.
async fn woken(watched: &AsyncFd<Arc<OwnedFd>>, kind: OomSource) -> io::Result<()> {
    match kind {
        OomSource::EventFd => poll_fn(|context| watched.poll_read_ready(context).map_ok(drop)).await,
        OomSource::Events => Box::pin(watched.ready(Interest::PRIORITY)).await.map(drop),
    }
}

/// The start of an added process that is under way: no OOM event is recorded before it has ended. When this is dropped, the
/// event that has become due meanwhile is recorded.
#[must_use]
pub(crate) struct StartUnderWay<'a> {
    container: &'a Container,
    journal: &'a Arc<Journal>,
}

impl StartUnderWay<'_> {
    pub(crate) fn begin<'a>(container: &'a Container, journal: &'a Arc<Journal>) -> StartUnderWay<'a> {
        container.oom_count().start_begins();
        StartUnderWay { container, journal }
    }
}

impl Drop for StartUnderWay<'_> {
    fn drop(&mut self) {
        self.container.oom_count().start_ends();
        self.container.report_due_oom(self.journal);
    }
}

impl Container {
    fn oom_count(&self) -> MutexGuard<'_, OomCount> {
        // Held for reading one file, and for writing one line.
        self.oom.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the present count as the beginning: what the group has counted so far was before this container.
    pub(crate) fn begin_oom_count(&self) {
        self.open_oom_count();
        let mut count = self.oom_count();
        if let Some(Ok(Some(kills))) = self.cgroup().map(|cgroup| count.read(cgroup)) {
            count.begin_with(kills);
            if kills > 0 {
                self.keep_oom_kills(kills);
            }
        }
    }

    /// Begins with the count of the last recorded event: the journal's, or else the one in the container's directory, which is
    /// written after the journal.
    pub(crate) fn recall_oom_kills(&self, recorded: Option<u64>) {
        self.oom_count().begin_with(recorded.or_else(|| self.dir.oom_kills()).unwrap_or_default());
    }

    /// Opens the descriptors by which the kernel reports kills, and keeps the one that counts them. `None` if the container has
    /// no such file.
    fn open_oom_count(&self) -> Option<OomDescriptors> {
        match self.cgroup()?.watch_oom() {
            Ok(descriptors) => {
                let descriptors = descriptors?;
                self.oom_count().hold(descriptors.counts.clone());
                Some(descriptors)
            }
            Err(e) => {
                tracing::warn!(container = %self.id, "cannot watch for OOM kills: {e}; {AT_EXIT}");
                None
            }
        }
    }

    /// Reads the count of kills. If it has risen, an event is due, also if the group is gone by the time it is recorded.
    pub(crate) fn count_oom_kills(&self) {
        let Some(cgroup) = self.cgroup() else { return };
        // Once its directory is removed, another container may have a group of the same path.
        if self.state().is_gone() {
            return;
        }
        let mut count = self.oom_count();
        match count.read(cgroup) {
            Ok(Some(kills)) => count.rises_to(kills),
            // The shim counts its own group alone, which on v1 is a part of the sum.
            Ok(None) if cgroup.counts_oom_kills() => {
                let by_shim = self.init().and_then(|init| init.dir.oom_kills());
                if let Some(kills) = by_shim.filter(|kills| *kills > count.seen()) {
                    count.rises_to(kills);
                }
            }
            Ok(None) => {}
            Err(e) => tracing::warn!(container = %self.id, "cannot read the count of OOM kills: {e}"),
        }
    }

    /// Writes the count of the last recorded event into the container's directory.
    fn keep_oom_kills(&self, kills: u64) {
        if let Err(e) = self.dir.write_oom_kills(kills) {
            tracing::warn!(container = %self.id, "{e}; the journal has the count");
        }
    }

    /// Records kills as they happen, until the future is dropped.
    pub(crate) async fn watch_oom(&self, journal: &Arc<Journal>) -> Infallible {
        let failed = |e| tracing::warn!(container = %self.id, "cannot wait for OOM kills: {e}; {AT_EXIT}");
        let descriptors = self.open_oom_count();
        // Kills from before the kernel was asked to wake are reported now, or by the start: whichever is later.
        self.report_oom(journal);
        let Some(descriptors) = descriptors else { return std::future::pending().await };
        let kind = descriptors.kind;
        let watched = match kind {
            OomSource::EventFd => sys::watched::readable_shared(descriptors.wakes),
            OomSource::Events => sys::watched::priority_shared(descriptors.wakes),
        };
        let watched = match watched {
            Ok(watched) => watched,
            Err(e) => {
                failed(e);
                return std::future::pending().await;
            }
        };
        loop {
            let looked = match woken(&watched, kind).await {
                // Allocated when a kill comes: a container that never runs out of memory does not pay for it.
                Ok(()) => Box::pin(self.look_closely(journal, &watched, kind)).await,
                Err(e) => Err(e),
            };
            if let Err(e) = looked {
                failed(e);
                return std::future::pending().await;
            }
        }
    }

    /// Reads the count, and again as long as it may still rise because of what the kernel has woken for.
    async fn look_closely(
        &self,
        journal: &Arc<Journal>,
        watched: &AsyncFd<Arc<OwnedFd>>,
        kind: OomSource,
    ) -> io::Result<()> {
        let again = if kind == OomSource::EventFd { &LOOK_AGAIN[..] } else { &[] };
        'woken: loop {
            // A container with kill after kill must not take all of the daemon's time.
            let quiet_until = Instant::now() + QUIET;
            // It is ready already.
            match kind {
                OomSource::EventFd => watched.readable().await?.clear_ready(),
                OomSource::Events => watched.ready(Interest::PRIORITY).await?.clear_ready(),
            }
            OomDescriptors::acknowledge(kind, watched.get_ref())?;
            self.report_oom(journal);
            for wait in again {
                if Instant::now() < quiet_until {
                    tokio::time::sleep(*wait).await;
                } else if tokio::time::timeout(*wait, woken(watched, kind)).await.is_ok() {
                    continue 'woken;
                }
                self.report_oom(journal);
            }
            tokio::time::sleep_until(quiet_until).await;
            return Ok(());
        }
    }

    /// Reads the count and records an event if it has risen.
    pub(crate) fn report_oom(&self, journal: &Arc<Journal>) {
        self.count_oom_kills();
        self.report_due_oom(journal);
    }

    /// Records an event if one is due and no start of an added process is under way. What cannot be written now is recorded
    /// the next time.
    pub(crate) fn report_due_oom(&self, journal: &Arc<Journal>) {
        if let Err(e) = self.record_oom(journal, true) {
            tracing::error!(container = %self.id, "{e}; the OOM kill is reported later");
        }
    }

    /// Reads the count a last time and records an event if one is due, however long it takes until that can be written.
    pub(crate) async fn report_last_oom(&self, journal: &Arc<Journal>) {
        self.count_oom_kills();
        while let Err(e) = self.record_oom(journal, false) {
            tracing::error!(container = %self.id, "{e}; the OOM kill is reported once it can be written");
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    fn record_oom(&self, journal: &Arc<Journal>, starts_first: bool) -> Result<(), JournalError> {
        // Held, so that two tasks that look at the same time do not record the same kill.
        let mut count = self.oom_count();
        let Some(kills) = count.due(starts_first) else { return Ok(()) };
        // A container that is not known to run yet stays as it is; its start records the event.
        if self.record(journal, Recorded::OomKilled { kills })?.is_done() {
            count.was_recorded();
            reach(Point::OomJournaled);
            tracing::warn!(container = %self.id, kills, "the kernel has killed for memory");
            self.keep_oom_kills(kills);
            reach(Point::OomKept);
        }
        Ok(())
    }
}
