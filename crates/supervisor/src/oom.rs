//! Processes that the kernel killed for memory.
//!
//! The count of kills decides, not the wake-up. It is read when the kernel wakes, when a process of the container has ended
//! (before anything else waits: whoever made the group may remove it as soon as it is empty, as systemd does), and when a
//! container is known to run or is found again. Each rise is one event. The event's line in the journal has the count, and so
//! has a file of the container, so that a restart reports nothing twice.
//!
//! The group's file is read by a descriptor that is held while the container runs. Once the group is removed it reads as
//! `ENODEV`, which says nothing of kills: the last count that was read stays. A shim counts as well, and writes its count down
//! when its process has ended: it is there when no daemon is.

use cgroup::{Cgroup, OomDescriptors, OomSource};
use failpoint::{Point, reach};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::container::Container;
use crate::event::EventKind;
use crate::journal::JournalError;
use crate::lifecycle::State;
use crate::process::PAUSE;
use crate::supervisor::Shared;

/// v1's eventfd fires before the kernel has chosen and killed a process (mm/memcontrol-v1.c, `memcg1_oom_prepare`), and
/// nothing tells when it has. So the count is looked at again this long after a wake-up, each after the one before.
const LOOK_AGAIN: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(15),
    Duration::from_millis(80),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];

/// How long after a wake-up the next one may wait: what is killed meanwhile is one event more, or the same one.
const QUIET: Duration = Duration::from_millis(100);

/// Waits until there is something to acknowledge. Each container has one that waits, so that it is kept small where tokio
/// can do so.
async fn woken(watched: &AsyncFd<Arc<OwnedFd>>, kind: OomSource) -> io::Result<()> {
    match kind {
        OomSource::EventFd => poll_fn(|context| watched.poll_read_ready(context).map_ok(drop)).await,
        OomSource::Events => Box::pin(watched.ready(Interest::PRIORITY)).await.map(drop),
    }
}

/// The kills of one container, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct OomCount {
    /// The count that was read last.
    seen: u64,
    /// It has risen since the last event was recorded.
    due: bool,
    /// The file that is read.
    held: Option<Arc<OwnedFd>>,
}

impl OomCount {
    /// The count now; `None` if the group is gone.
    fn read(&self, cgroup: &Cgroup) -> io::Result<Option<u64>> {
        match &self.held {
            Some(held) => cgroup.oom_kills_by(held),
            None => cgroup.oom_kills(),
        }
    }

    fn rises_to(&mut self, kills: u64) {
        self.due |= kills > self.seen;
        // On v1 the count of a group below the container's goes with that group.
        self.seen = kills;
    }
}

impl Container {
    fn oom_count(&self) -> MutexGuard<'_, OomCount> {
        // Held for reading one file, and for writing one line.
        self.oom.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the count as it is: what it counts was before the container. Holds the file open from now on.
    pub(crate) fn begin_oom_count(&self) {
        self.open_oom_count();
        let mut count = self.oom_count();
        if let Some(Ok(Some(kills))) = self.cgroup().map(|cgroup| count.read(cgroup)) {
            count.seen = kills;
            if kills > 0 {
                self.keep_oom_kills(kills);
            }
        }
    }

    /// Takes the last count of which an event was recorded, from the journal if it is there: it is written before the file.
    pub(crate) fn recall_oom_kills(&self, recorded: Option<u64>) {
        self.oom_count().seen = recorded.or_else(|| self.dir.oom_kills()).unwrap_or_default();
    }

    /// Opens what tells of kills, and holds the file that counts them. `None` if the container has no such file.
    fn open_oom_count(&self) -> Option<OomDescriptors> {
        match self.cgroup()?.watch_oom() {
            Ok(descriptors) => {
                let descriptors = descriptors?;
                self.oom_count().held = Some(descriptors.counts.clone());
                Some(descriptors)
            }
            Err(e) => {
                let why = "OOM kills are reported when the container exits";
                tracing::warn!(container = %self.id, "cannot watch for OOM kills: {e}; {why}");
                None
            }
        }
    }

    /// Reads the count of kills now. If it has risen, the next [`Shared::report_oom`] records it, even if the group is gone by
    /// then.
    pub(crate) fn count_oom_kills(&self) {
        let Some(cgroup) = self.cgroup() else { return };
        // The path may belong to another container by now.
        if self.removed.load(Ordering::Acquire) {
            return;
        }
        let mut count = self.oom_count();
        match count.read(cgroup) {
            Ok(Some(kills)) => count.rises_to(kills),
            // Its own count comes from its group alone, which on v1 is a part of the sum.
            Ok(None) if cgroup.counts_oom_kills() => {
                if let Some(kills) =
                    self.init().and_then(|init| init.dir.oom_kills()).filter(|kills| *kills > count.seen)
                {
                    count.rises_to(kills);
                }
            }
            Ok(None) => {}
            Err(e) => tracing::warn!(container = %self.id, "cannot read the count of OOM kills: {e}"),
        }
    }

    fn keep_oom_kills(&self, kills: u64) {
        if let Err(e) = self.dir.write_oom_kills(kills) {
            tracing::warn!(container = %self.id, "{e}; the journal has it");
        }
    }
}

impl Shared {
    /// Records kills as they happen. Ends when it is dropped.
    pub(crate) async fn watch_oom(self: &Arc<Self>, container: &Arc<Container>) -> Infallible {
        let failed = |e| {
            let why = "OOM kills are reported when the container exits";
            tracing::warn!(container = %container.id, "cannot wait for OOM kills: {e}; {why}");
        };
        let descriptors = container.open_oom_count();
        // Kills before the kernel was asked to wake are reported now, or by the start: whichever is later.
        container.oom_watched.store(true, Ordering::SeqCst);
        self.report_oom(container);
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
                // Allocated when it comes: those that never run out of memory are not to have it each.
                Ok(()) => Box::pin(self.look_closely(container, &watched, kind)).await,
                Err(e) => Err(e),
            };
            if let Err(e) = looked {
                failed(e);
                return std::future::pending().await;
            }
        }
    }

    /// Looks at the count, and again for as long as it may still rise of what the kernel has woken for.
    async fn look_closely(
        self: &Arc<Self>,
        container: &Container,
        watched: &AsyncFd<Arc<OwnedFd>>,
        kind: OomSource,
    ) -> io::Result<()> {
        let again = if kind == OomSource::EventFd { &LOOK_AGAIN[..] } else { &[] };
        'woken: loop {
            // A container that is killed in again and again keeps nobody from other work.
            let quiet_until = Instant::now() + QUIET;
            // Ready as it is by now.
            match kind {
                OomSource::EventFd => watched.readable().await?.clear_ready(),
                OomSource::Events => watched.ready(Interest::PRIORITY).await?.clear_ready(),
            }
            OomDescriptors::acknowledge(kind, watched.get_ref())?;
            self.report_oom(container);
            for wait in again {
                if Instant::now() < quiet_until {
                    tokio::time::sleep(*wait).await;
                } else if tokio::time::timeout(*wait, woken(watched, kind)).await.is_ok() {
                    continue 'woken;
                }
                self.report_oom(container);
            }
            tokio::time::sleep_until(quiet_until).await;
            return Ok(());
        }
    }

    /// Records kills since the last look. What cannot be written now is recorded at the next look.
    pub(crate) fn report_oom(self: &Arc<Self>, container: &Container) {
        container.count_oom_kills();
        // The starts of added processes come first. It is looked again when they are recorded; noted before that is looked
        // at, as they may be recorded just now.
        container.oom_waits.store(true, Ordering::SeqCst);
        if container.starting.load(Ordering::SeqCst) > 0 {
            return;
        }
        container.oom_waits.store(false, Ordering::SeqCst);
        if let Err(e) = self.record_oom(container) {
            tracing::error!(container = %container.id, "{e}; the OOM kill is reported later");
        }
    }

    /// [`Shared::report_oom`] before an exit is recorded: however long it takes until it can be written.
    pub(crate) async fn report_last_oom(self: &Arc<Self>, container: &Container) {
        container.count_oom_kills();
        while let Err(e) = self.record_oom(container) {
            tracing::error!(container = %container.id, "{e}; the OOM kill is reported once it can be written");
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn record_oom(self: &Arc<Self>, container: &Container) -> Result<(), JournalError> {
        // Its start comes first.
        if matches!(container.state(), State::Creating | State::Created) {
            return Ok(());
        }
        // Held, so that two that look at the same time do not record the same.
        let mut count = container.oom_count();
        if count.due {
            let mut event = Shared::event(EventKind::Oom, container, None, 0);
            event.oom_kills = count.seen;
            self.journal.append(event)?;
            count.due = false;
            reach(Point::OomJournaled);
            tracing::warn!(container = %container.id, kills = count.seen, "the kernel has killed for memory");
            container.keep_oom_kills(count.seen);
            reach(Point::OomKept);
        }
        Ok(())
    }
}
