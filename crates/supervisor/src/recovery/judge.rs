//! What becomes of a container that an earlier daemon has left: the judgement, as a pure function of what was found.
//!
//! Evidence decides, never the absence of a record. A container with a marker that it is being made, and without a start in the
//! journal, is half made: no client was told of it, and it is removed. A container whose exit is in the journal is only cleaned up.
//! Everything else is adopted; if its start is not in the journal, which may be damaged or shortened, the start is recorded again.
//! Directories that no daemon of this API has made are left alone.
//!
//! The tests of this file are the recovery tables of `docs/dev/recovery.md`: one test case for each row that depends on the judgement.

/// What was found of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The marker `.creating` is there.
    pub(crate) being_made: bool,
    pub(crate) record: Record,
    /// Its start is in the journal.
    pub(crate) start_is_recorded: bool,
    /// Its exit is in the journal.
    pub(crate) exit_is_recorded: bool,
    pub(crate) init: Init,
}

/// What there is of `state.json`, the first file of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// There is none.
    Missing {
        /// There is a directory in the container's directory, as processes have.
        has_processes: bool,
        /// One of these has the FIFO `exit`, which only a daemon of this API makes.
        has_exit: bool,
        /// The directory is empty.
        is_empty: bool,
    },
    /// It cannot be read.
    Unreadable,
    /// It has been read.
    Read {
        /// It has an instance key. Older daemons wrote none.
        has_key: bool,
        /// Its daemon marked containers that were being made. Older daemons did not.
        has_markers: bool,
        /// It was made since this machine was booted.
        is_of_this_boot: bool,
    },
}

/// What there is of a container's init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Init {
    /// It has no directory, or the directory lacks a file.
    Missing,
    /// Its directory cannot be read.
    Unreadable,
    /// A shim lives that looks after it.
    HasShim,
    /// Its shim is gone, or was never started.
    NoShim {
        /// A shim has left its exit status.
        has_status: bool,
        /// It is alive.
        is_alive: bool,
    },
}

/// What is to be done with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing of it has run: remove its directory.
    RemoveUnstarted,
    /// Remove its directory, which is empty.
    RemoveEmpty,
    /// Leave it alone: no daemon of this API has made it.
    LeaveAlone,
    /// Its exit is recorded: remove its directory.
    CleanUp,
    /// It is half made: kill and remove everything of it.
    Discard,
    /// It is of an earlier boot: signal nothing, record its exit if that is due, and remove its directory.
    Bury {
        /// Its start was recorded, or may have been.
        exit_is_due: bool,
    },
    /// Go on supervising it.
    Adopt {
        /// Otherwise its start is recorded again.
        start_is_recorded: bool,
    },
    /// Leave it as it is until a client asks for its removal.
    SetAside(Reason),
}

/// Why a container is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// What it was made from, or its init, cannot be read.
    Unreadable,
    /// Nothing of it runs, and nothing says whether it was ever started.
    Unproven,
}

/// Judges a container.
pub(crate) fn judge(facts: &Facts) -> Verdict {
    let (has_key, has_markers, is_of_this_boot) = match facts.record {
        Record::Read { has_key, has_markers, is_of_this_boot } => (has_key, has_markers, is_of_this_boot),
        Record::Unreadable => return Verdict::SetAside(Reason::Unreadable),
        Record::Missing { has_processes: false, .. } if facts.being_made => return Verdict::RemoveUnstarted,
        // A container whose file was removed.
        Record::Missing { has_exit: true, .. } => return Verdict::SetAside(Reason::Unreadable),
        Record::Missing { is_empty: true, .. } => return Verdict::RemoveEmpty,
        Record::Missing { .. } => return Verdict::LeaveAlone,
    };
    // Without keys the journal's lines may be about an earlier container of the same id, and the shim knows better.
    if facts.exit_is_recorded && (has_key || facts.init != Init::HasShim) {
        return Verdict::CleanUp;
    }
    // A daemon that wrote no keys made no markers, and what it left had been started.
    let is_started = !facts.being_made || !has_key || facts.start_is_recorded;
    let has_run = match facts.init {
        Init::Missing if !is_started => return Verdict::RemoveUnstarted,
        Init::Missing | Init::Unreadable => return Verdict::SetAside(Reason::Unreadable),
        Init::HasShim => true,
        Init::NoShim { has_status, is_alive } => has_status || is_alive,
    };
    if has_key && !has_markers && !facts.being_made && !facts.start_is_recorded && !has_run {
        // An older daemon, which made no markers, may have been making it; or the journal has lost its start.
        return Verdict::SetAside(Reason::Unproven);
    }
    match (is_of_this_boot, is_started) {
        (false, exit_is_due) => Verdict::Bury { exit_is_due },
        (true, false) => Verdict::Discard,
        (true, true) => Verdict::Adopt { start_is_recorded: facts.start_is_recorded },
    }
}

/// What was found of an added process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessFacts {
    /// The marker `.creating` is there.
    pub(crate) being_made: bool,
    /// Its directory can be read.
    pub(crate) is_readable: bool,
    /// It has an instance key. Older daemons wrote none.
    pub(crate) has_key: bool,
    /// A shim lives that looks after it.
    pub(crate) has_shim: bool,
    /// Its start is in the journal.
    pub(crate) start_is_recorded: bool,
    /// Its exit is in the journal.
    pub(crate) exit_is_recorded: bool,
}

/// What is to be done with an added process of a container that is adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its exit is recorded: remove its directory.
    CleanUp,
    /// It is half made: kill it and remove its directory.
    Discard,
    /// Go on supervising it.
    Adopt {
        /// Otherwise its start is recorded again.
        start_is_recorded: bool,
    },
    /// Leave it alone until its container ends.
    Leave {
        /// Its start is recorded, so its exit must be.
        exit_is_due: bool,
    },
}

/// Judges an added process.
pub(crate) fn judge_process(facts: &ProcessFacts) -> Fate {
    if !facts.is_readable {
        return match (facts.start_is_recorded, facts.being_made) {
            (false, true) => Fate::Discard,
            (exit_is_due, _) => Fate::Leave { exit_is_due },
        };
    }
    if facts.exit_is_recorded && (facts.has_key || !facts.has_shim) {
        return Fate::CleanUp;
    }
    if facts.start_is_recorded || !facts.has_key || !facts.being_made {
        return Fate::Adopt { start_is_recorded: facts.start_is_recorded };
    }
    Fate::Discard
}

#[cfg(test)]
mod tests;
