//! Processes that the kernel killed for memory.
//!
//! The count of kills decides, not the wake-up. It is looked at when the kernel wakes, once more before each exit of
//! the container is journaled, and when a container is known to run or is found again; each rise is one event. The
//! event's line in the journal has the count, and so has a file of the container: a restart tells nothing twice.

use cgroup::OomSource;
use failpoint::{Point, reach};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
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
async fn woken(watched: &AsyncFd<OwnedFd>, kind: OomSource) -> io::Result<()> {
    match kind {
        OomSource::EventFd => poll_fn(|context| watched.poll_read_ready(context).map_ok(drop)).await,
        OomSource::Events => Box::pin(watched.ready(Interest::PRIORITY)).await.map(drop),
    }
}

impl Container {
    /// Takes the count as it is: what it counts was before.
    pub(crate) fn count_oom_kills(&self) {
        if let Some(Ok(Some(kills))) = self.cgroup().map(cgroup::Cgroup::oom_kills) {
            *self.oom_kills.lock().unwrap_or_else(PoisonError::into_inner) = kills;
            if kills > 0 {
                self.keep_oom_kills(kills);
            }
        }
    }

    /// Takes the last count that was told of, from the journal if it is there: it is written before the file.
    pub(crate) fn recall_oom_kills(&self, told: Option<u64>) {
        let kills = told.or_else(|| self.dir.oom_kills()).unwrap_or_default();
        *self.oom_kills.lock().unwrap_or_else(PoisonError::into_inner) = kills;
    }

    fn keep_oom_kills(&self, kills: u64) {
        if let Err(e) = self.dir.write_oom_kills(kills) {
            tracing::warn!(container = %self.id, "{e}; the journal has it");
        }
    }
}

impl Shared {
    /// Tells of kills as they happen. Ends when it is dropped.
    pub(crate) async fn watch_oom(self: &Arc<Self>, container: &Arc<Container>) -> Infallible {
        let failed = |e| {
            tracing::warn!(container = %container.id, "cannot wait for its being out of memory: {e}; its exit will tell");
            None
        };
        let descriptor = container.cgroup().and_then(|cgroup| cgroup.watch_oom().unwrap_or_else(failed));
        // What was killed before the kernel was asked to wake is told now, or by the start: whichever is later.
        container.oom_watched.store(true, Ordering::SeqCst);
        self.tell_oom(container);
        let Some(descriptor) = descriptor else { return std::future::pending().await };
        let kind = descriptor.kind;
        let watched = match kind {
            OomSource::EventFd => sys::watched::readable(descriptor.fd),
            OomSource::Events => sys::watched::priority(descriptor.fd),
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
        watched: &AsyncFd<OwnedFd>,
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
            kind.acknowledge(watched)?;
            self.tell_oom(container);
            for wait in again {
                if Instant::now() < quiet_until {
                    tokio::time::sleep(*wait).await;
                } else if tokio::time::timeout(*wait, woken(watched, kind)).await.is_ok() {
                    continue 'woken;
                }
                self.tell_oom(container);
            }
            tokio::time::sleep_until(quiet_until).await;
            return Ok(());
        }
    }

    /// Tells of kills since the last look. What cannot be written now is told at the next look.
    pub(crate) fn tell_oom(self: &Arc<Self>, container: &Container) {
        // Their starts come first. It is looked again when they have been told; noted first, as that may be just now.
        container.oom_waits.store(true, Ordering::SeqCst);
        if container.starting.load(Ordering::SeqCst) > 0 {
            return;
        }
        container.oom_waits.store(false, Ordering::SeqCst);
        if let Err(e) = self.look_for_oom(container) {
            tracing::error!(container = %container.id, "{e}; that it was out of memory is told later");
        }
    }

    /// The same, before an exit is told: however long it takes until it can be written.
    pub(crate) async fn tell_last_oom(self: &Arc<Self>, container: &Container) {
        while let Err(e) = self.look_for_oom(container) {
            tracing::error!(container = %container.id, "{e}; that it was out of memory is told once it can be written");
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn look_for_oom(self: &Arc<Self>, container: &Container) -> Result<(), JournalError> {
        // Its start comes first.
        if matches!(container.state(), State::Creating | State::Created) {
            return Ok(());
        }
        // What has its path now may be another one's.
        if container.removed.load(Ordering::Acquire) {
            return Ok(());
        }
        let Some(cgroup) = container.cgroup() else { return Ok(()) };
        // Held, so that whoever looks at the same time does not tell the same.
        let mut last = container.oom_kills.lock().unwrap_or_else(PoisonError::into_inner);
        let kills = match cgroup.oom_kills() {
            Ok(Some(kills)) => kills,
            Ok(None) => return Ok(()),
            Err(e) => {
                tracing::warn!(container = %container.id, "cannot read how often it was out of memory: {e}");
                return Ok(());
            }
        };
        if kills > *last {
            let mut event = Shared::event(EventKind::Oom, container, None, 0);
            event.oom_kills = kills;
            self.journal.append(event)?;
            reach(Point::OomJournaled);
            tracing::warn!(container = %container.id, kills = kills - *last, "the kernel has killed for memory");
            container.keep_oom_kills(kills);
            reach(Point::OomKept);
        }
        // On v1 the count of a group goes with the group.
        *last = kills;
        Ok(())
    }
}
