//! The lifecycle of a container and of each process that is added to it, as one table.
//!
//! ```text
//!             Created          Started            Paused
//!  Creating ───────────▶ Created ───────▶ Running ───────▶ Paused
//!     │                     │                │ ▲  Resumed    │
//!     │ Failed              │ Failed, Ended  │ └─────────────┤
//!     ▼                     ▼                ▼ Ended         ▼ Ended
//!  ──────── Discarded ────────          ───────── Stopped ─────────
//!                                                 │ Cleared
//!                                                 ▼
//!                                              Removed
//! ```
//!
//! A new daemon finds containers of an earlier one: they go from `Creating` to `Running` (`Adopted`), to `Paused`
//! (`AdoptedPaused`) or to `Stopped` (`FoundDead`).
//!
//! The table is pure: it does no I/O and reads no clock. [`transition`](super::transition) is the only code that applies it.
//! The states are those of the OCI runtime specification ("State"), and the `paused` that runtimes add to them.

/// The state of a container or of an added process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The shim and the runtime are making it.
    Creating,
    /// It exists, and the user's program has not been run.
    Created,
    /// The user's program runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended, and its `exit` event has not been recorded.
    Stopped,
    /// Its `exit` event has been recorded. Its directory has been removed, or is about to be.
    Removed,
    /// It was never started, and no client has been told of it. What there is of it is being removed.
    Discarded,
    /// The daemon cannot read its directory. It is left as it is until a client asks for its removal.
    Broken,
}

impl State {
    /// The OCI name.
    pub fn name(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped | State::Removed | State::Discarded => "stopped",
            State::Broken => "broken",
        }
    }

    /// Whether its program has ended or will never run.
    pub(crate) fn is_over(self) -> bool {
        matches!(self, State::Stopped | State::Removed | State::Discarded)
    }

    /// Whether its directory has been removed, or is being removed, so that another container may have its path.
    pub(crate) fn is_gone(self) -> bool {
        matches!(self, State::Removed | State::Discarded)
    }

    /// Whether a client may know of it.
    pub(crate) fn is_known(self) -> bool {
        !matches!(self, State::Creating | State::Created | State::Discarded)
    }
}

/// What has happened, where no event follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Silent {
    /// The runtime has made it.
    Created,
    /// Creating or starting it failed.
    Failed,
    /// A new daemon has found it alive, and its start is in the journal.
    Adopted,
    /// As [`Silent::Adopted`], and the last freezer event in the journal is `pause`.
    AdoptedPaused,
    /// A new daemon has found it, and it is of an earlier boot.
    FoundDead,
    /// Its process has ended.
    Ended,
}

/// What has happened, where each time is one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Recorded {
    /// The user's program runs.
    Started,
    /// It has been frozen.
    Paused,
    /// It has been thawed.
    Resumed,
    /// The kernel has killed processes of it for memory.
    OomKilled {
        /// How many it has killed so far.
        kills: u64,
    },
    /// It has ended, and what must be gone before clients see its exit is gone.
    Cleared {
        /// The exit status that the event reports.
        status: u32,
    },
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Happened {
    /// Without an event.
    Silent(Silent),
    /// With an event.
    Recorded(Recorded),
}

/// What must be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    /// Nothing more.
    None,
    /// Record the event before the state changes.
    Record,
    /// Remove every trace: no client has been told that it exists.
    Discard,
}

/// What a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Start,
    Pause,
    Resume,
    Exec,
    Update,
    Checkpoint,
}

impl Request {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Request::Start => "start",
            Request::Pause => "pause",
            Request::Resume => "resume",
            Request::Exec => "exec",
            Request::Update => "update",
            Request::Checkpoint => "checkpoint",
        }
    }
}

/// The table: the next state and what must be done, or `None` where it cannot happen.
pub(crate) fn step(state: State, happened: Happened) -> Option<(State, Effect)> {
    use Happened::{Recorded as R, Silent as S};
    use {Recorded::*, Silent::*, State as Is};
    Some(match (state, happened) {
        (Is::Creating, S(Created)) => (Is::Created, Effect::None),
        (Is::Creating | Is::Created, S(Adopted)) => (Is::Running, Effect::None),
        (Is::Creating, S(AdoptedPaused)) => (Is::Paused, Effect::None),
        (Is::Creating, S(FoundDead)) => (Is::Stopped, Effect::None),
        (Is::Created, R(Started)) => (Is::Running, Effect::Record),
        (Is::Creating | Is::Created, S(Failed)) | (Is::Created, S(Ended)) => (Is::Discarded, Effect::Discard),
        (Is::Running, R(Paused)) => (Is::Paused, Effect::Record),
        (Is::Paused, R(Resumed)) => (Is::Running, Effect::Record),
        (Is::Running | Is::Paused | Is::Stopped, R(OomKilled { .. })) => (state, Effect::Record),
        (Is::Running | Is::Paused, S(Ended)) => (Is::Stopped, Effect::None),
        (Is::Stopped | Is::Broken, R(Cleared { .. })) => (Is::Removed, Effect::Record),
        _ => return None,
    })
}

/// Whether a request fits a state.
pub(crate) fn permits(state: State, request: Request) -> bool {
    use State::*;
    match request {
        Request::Start => state == Created,
        Request::Pause | Request::Exec | Request::Checkpoint => state == Running,
        Request::Resume => state == Paused,
        Request::Update => matches!(state, Created | Running | Paused),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any thing that can happen, possible in a state or not.
    pub(in crate::container) fn any_happening() -> impl Strategy<Value = Happened> {
        use {Recorded::*, Silent::*};
        let silent = [Created, Failed, Adopted, AdoptedPaused, FoundDead, Ended].map(Happened::Silent);
        let recorded =
            [Started, Paused, Resumed, OomKilled { kills: 1 }, Cleared { status: 0 }].map(Happened::Recorded);
        prop::sample::select(silent.into_iter().chain(recorded).collect::<Vec<_>>())
    }

    #[test]
    fn every_state_but_the_last_ones_can_end() {
        let ended = |state| step(state, Happened::Silent(Silent::Ended)).map(|(next, _)| next);
        assert_eq!(ended(State::Created), Some(State::Discarded));
        assert_eq!(ended(State::Running), Some(State::Stopped));
        assert_eq!(ended(State::Paused), Some(State::Stopped));
        for state in [State::Stopped, State::Removed, State::Discarded, State::Broken] {
            assert_eq!(ended(state), None, "{state:?}");
        }
    }

    proptest! {
        #[test]
        fn recorded_happenings_have_an_event_and_others_have_none(happened in any_happening()) {
            for state in [State::Creating, State::Created, State::Running, State::Paused, State::Stopped, State::Broken] {
                if let Some((_, effect)) = step(state, happened) {
                    prop_assert_eq!(effect == Effect::Record, matches!(happened, Happened::Recorded(_)));
                }
            }
        }

        #[test]
        fn permitted_requests_can_be_carried_out(happenings in prop::collection::vec(any_happening(), 0..20)) {
            let mut state = State::Creating;
            for happened in happenings {
                state = step(state, happened).map_or(state, |(next, _)| next);
                for (request, leads_to) in [
                    (Request::Start, Recorded::Started),
                    (Request::Pause, Recorded::Paused),
                    (Request::Resume, Recorded::Resumed),
                ] {
                    prop_assert_eq!(permits(state, request), step(state, Happened::Recorded(leads_to)).is_some());
                }
            }
        }
    }
}
