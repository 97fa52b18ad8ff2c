//! How many processes of a container the kernel has killed for memory, as far as the daemon knows.
//!
//! The count is read from the container's group. An event is due when it has risen. Starts of added processes are recorded
//! before a kill that may have hit one of them, so an event waits while such a start is under way.

use cgroup::Cgroup;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct OomCount {
    /// The count that was read last.
    seen: u64,
    /// It has risen since the last event was recorded.
    due: bool,
    /// How many starts of added processes are under way.
    starting: usize,
    /// The file that counts the kills.
    held: Option<Arc<OwnedFd>>,
}

impl OomCount {
    /// Keeps the descriptor of the file that counts the kills.
    pub(crate) fn hold(&mut self, counts: Arc<OwnedFd>) {
        self.held = Some(counts);
    }

    /// Begins with this count: no event is due for what it counts.
    pub(crate) fn begin_with(&mut self, kills: u64) {
        self.seen = kills;
    }

    /// The count that was read last.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// The count now; `None` if the group is gone.
    pub(crate) fn read(&self, cgroup: &Cgroup) -> io::Result<Option<u64>> {
        match &self.held {
            Some(held) => cgroup.oom_kills_by(held),
            None => cgroup.oom_kills(),
        }
    }

    /// The count has been read.
    pub(crate) fn rises_to(&mut self, kills: u64) {
        self.due |= kills > self.seen;
        // It can also fall: on v1 the count of a group below the container's goes with that group.
        self.seen = kills;
    }

    /// The count that an event must report now. With `starts_first` no event is due while a process is being started.
    pub(crate) fn due(&self, starts_first: bool) -> Option<u64> {
        (self.due && !(starts_first && self.starting > 0)).then_some(self.seen)
    }

    /// An event has been recorded.
    pub(crate) fn was_recorded(&mut self) {
        self.due = false;
    }

    /// An added process is being started.
    pub(crate) fn start_begins(&mut self) {
        self.starting += 1;
    }

    /// Its start has been recorded, or has failed.
    pub(crate) fn start_ends(&mut self) {
        self.starting = self.starting.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_due_when_the_count_rises_and_no_start_is_under_way() {
        let mut count = OomCount::default();
        assert_eq!(count.due(true), None);
        count.rises_to(2);
        count.start_begins();
        assert_eq!((count.due(true), count.due(false)), (None, Some(2)));
        count.start_ends();
        assert_eq!(count.due(true), Some(2));
        count.was_recorded();
        assert_eq!(count.due(true), None);
        count.rises_to(1);
        assert_eq!(count.due(true), None, "the count of a group below has gone with it");
        count.rises_to(2);
        assert_eq!(count.due(true), Some(2));
    }
}
