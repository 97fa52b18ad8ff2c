//! What is known of a container beside its lifecycle state: whether its init is being killed, whether CRIU works on it, and
//! whether a runtime may have left something in it.
//!
//! These facts depend on each other. A frozen process does not die on cgroup v1, so the daemon must thaw the container when it kills init;
//! but while CRIU dumps the container, CRIU freezes and thaws it, and a process that ran meanwhile could be left with CRIU's
//! code in it. [`Condition`] decides who thaws, in one place and without I/O.

/// See the module's head.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    init_is_killed: bool,
    checkpoint: Checkpointing,
    /// A `runtime exec` was killed half-way. Deleting must first unmount what it may have left.
    exec_was_aborted: bool,
}

/// What checkpoints have done to a container.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Checkpointing {
    /// Nothing that lasts.
    #[default]
    None,
    /// CRIU works on it now.
    Dumping,
    /// A checkpoint has stopped it, and the runtime has deleted it.
    Stopped,
}

/// Whether the caller must thaw the container now, so that killed processes die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Thaw {
    Now,
    /// Nothing needs it, or another one does it later.
    No,
}

impl Thaw {
    fn if_so(now: bool) -> Thaw {
        if now { Thaw::Now } else { Thaw::No }
    }
}

impl Condition {
    /// SIGKILL has been sent to a process of the container.
    pub(crate) fn process_was_killed(&mut self, is_init: bool) -> Thaw {
        self.init_is_killed |= is_init;
        self.may_thaw()
    }

    /// Whether a killed process may be helped to die by thawing the container.
    pub(crate) fn may_thaw(&self) -> Thaw {
        Thaw::if_so(self.checkpoint != Checkpointing::Dumping)
    }

    /// A runtime has frozen the container, or thawed it.
    pub(crate) fn freezer_was_changed(&self) -> Thaw {
        Thaw::if_so(self.init_is_killed)
    }

    /// CRIU begins to work on it.
    pub(crate) fn dump_begins(&mut self) {
        self.checkpoint = Checkpointing::Dumping;
    }

    /// CRIU has ended. If init was killed meanwhile, the daemon has not thawed the container yet.
    pub(crate) fn dump_has_ended(&mut self) -> Thaw {
        self.checkpoint = Checkpointing::None;
        Thaw::if_so(self.init_is_killed)
    }

    /// Its checkpoint has stopped it, and the runtime has deleted it.
    pub(crate) fn checkpoint_stopped_it(&mut self) {
        self.checkpoint = Checkpointing::Stopped;
    }

    /// A `runtime exec` was killed, or may have been, half-way.
    pub(crate) fn exec_was_aborted(&mut self) {
        self.exec_was_aborted = true;
    }

    /// Whether its init has been sent SIGKILL, so that the container must not stay frozen.
    pub(crate) fn init_is_killed(&self) -> bool {
        self.init_is_killed
    }

    /// Whether a checkpoint has stopped it, so that it is no error if the runtime does not know it any more.
    pub(crate) fn is_stopped_by_checkpoint(&self) -> bool {
        self.checkpoint == Checkpointing::Stopped
    }

    /// Whether an aborted `runtime exec` may have left mounts.
    pub(crate) fn may_have_leftovers(&self) -> bool {
        self.exec_was_aborted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_thaws_the_container_unless_criu_works_on_it() {
        let mut condition = Condition::default();
        assert_eq!(condition.process_was_killed(true), Thaw::Now);
        let mut condition = Condition::default();
        condition.dump_begins();
        assert_eq!(condition.process_was_killed(true), Thaw::No);
        assert_eq!(condition.dump_has_ended(), Thaw::Now, "the kill waited for CRIU");
    }

    #[test]
    fn added_process_that_is_killed_leaves_later_pauses_alone() {
        let mut condition = Condition::default();
        assert_eq!(condition.process_was_killed(false), Thaw::Now);
        assert_eq!(condition.freezer_was_changed(), Thaw::No);
        condition.dump_begins();
        assert_eq!(condition.dump_has_ended(), Thaw::No);
    }

    #[test]
    fn pause_that_ends_after_the_kill_is_undone() {
        let mut condition = Condition::default();
        assert_eq!(condition.process_was_killed(true), Thaw::Now);
        assert_eq!(condition.freezer_was_changed(), Thaw::Now);
    }

    #[test]
    fn checkpoint_that_stopped_the_container_is_remembered() {
        let mut condition = Condition::default();
        condition.dump_begins();
        assert_eq!(condition.dump_has_ended(), Thaw::No);
        assert!(!condition.is_stopped_by_checkpoint());
        condition.checkpoint_stopped_it();
        assert!(condition.is_stopped_by_checkpoint());
    }
}
