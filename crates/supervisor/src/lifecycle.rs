//! The lifecycle of a container (with its init) and of each added process, as one table.
//!
//! ```text
//!             Created          Started            Paused
//!  Creating ───────────▶ Created ───────▶ Running ───────▶ Paused
//!     │                     │                │ ▲  Resumed    │
//!     │ Failed              │ Failed, Ended  │ └─────────────┤
//!     ▼                     ▼                ▼ Ended         ▼ Ended
//!  ─────────────────────────── Stopped ─────────────────────────
//! ```
//!
//! Pure: no I/O, no clock. Who carries out the actions is in the modules beside this one. The states are those of
//! the OCI runtime specification ("State") and the `paused` that runtimes add to them.

/// Where a container or an added process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its shim and the runtime are at work.
    Creating,
    /// It is there, the user's program has not been run.
    Created,
    /// The user's program runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended.
    Stopped,
    /// What its directory holds cannot be read; nothing happens to it any more.
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
            State::Stopped => "stopped",
            State::Broken => "broken",
        }
    }
}

/// What has happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Happened {
    Created,
    Started,
    /// Creating or starting it failed.
    Failed,
    Paused,
    Resumed,
    Ended,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    AnnounceStart,
    AnnouncePause,
    AnnounceResume,
    AnnounceExit,
    /// Remove every trace of it; nobody has been told that it exists.
    Discard,
}

/// What somebody may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Start,
    Pause,
    Resume,
    Exec,
    Update,
    Checkpoint,
    Delete,
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
            Request::Delete => "delete",
        }
    }
}

/// The table: the next state and what is to be done, or `None` where it cannot happen.
pub(crate) fn step(state: State, happened: Happened) -> Option<(State, Option<Action>)> {
    use {Action::*, Happened as H, State::*};
    Some(match (state, happened) {
        (Creating, H::Created) => (Created, None),
        (Created, H::Started) => (Running, Some(AnnounceStart)),
        (Creating | Created, H::Failed) | (Created, H::Ended) => (Stopped, Some(Discard)),
        (Running, H::Paused) => (Paused, Some(AnnouncePause)),
        (Paused, H::Resumed) => (Running, Some(AnnounceResume)),
        (Running | Paused, H::Ended) => (Stopped, Some(AnnounceExit)),
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
        Request::Delete => matches!(state, Created | Stopped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_happening() -> impl Strategy<Value = Happened> {
        use Happened::*;
        prop::sample::select(vec![Created, Started, Failed, Paused, Resumed, Ended])
    }

    proptest! {
        #[test]
        fn start_is_announced_before_anything_else_and_exit_last_and_once(
            happenings in prop::collection::vec(any_happening(), 0..60)
        ) {
            let mut state = State::Creating;
            let mut told = Vec::new();
            for happened in happenings {
                if let Some((next, action)) = step(state, happened) {
                    prop_assert_ne!(state, State::Stopped, "nothing happens after the end");
                    state = next;
                    told.extend(action);
                }
            }
            let discarded = told.contains(&Action::Discard);
            prop_assert!(!discarded || told.len() == 1, "what is discarded was never told of: {:?}", told);
            if let Some(first) = told.first() {
                prop_assert!(discarded || *first == Action::AnnounceStart);
            }
            let exits = told.iter().filter(|a| **a == Action::AnnounceExit).count();
            prop_assert!(exits <= 1 && (exits == 0 || told.last() == Some(&Action::AnnounceExit)));
            let pauses = told.iter().filter(|a| **a == Action::AnnouncePause).count();
            let resumes = told.iter().filter(|a| **a == Action::AnnounceResume).count();
            prop_assert!(pauses == resumes || pauses == resumes + 1);
        }

        #[test]
        fn what_is_permitted_can_happen(happenings in prop::collection::vec(any_happening(), 0..20)) {
            let mut state = State::Creating;
            for happened in happenings {
                state = step(state, happened).map_or(state, |(next, _)| next);
                for (request, leads_to) in [
                    (Request::Start, Happened::Started),
                    (Request::Pause, Happened::Paused),
                    (Request::Resume, Happened::Resumed),
                ] {
                    prop_assert_eq!(permits(state, request), step(state, leads_to).is_some());
                }
            }
        }
    }

    #[test]
    fn every_state_but_stopped_can_end() {
        for state in [State::Created, State::Running, State::Paused] {
            assert_eq!(step(state, Happened::Ended).map(|(next, _)| next), Some(State::Stopped));
        }
        assert_eq!(step(State::Creating, Happened::Failed), Some((State::Stopped, Some(Action::Discard))));
    }
}
