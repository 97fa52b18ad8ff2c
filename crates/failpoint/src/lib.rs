//! Named steps in the life of containers, at which tests kill the program that gets there.
//!
//! Without the feature `armed` a step is nothing at all. With it, the file that `CONTAINERD_FAILPOINT` names is read at
//! each step; if it holds the step's name, the file is removed and the program kills itself with SIGKILL, as somebody
//! else might have done just then. A number behind the name lets the step pass that many times first.
//!
//! The list is complete by construction: only what is in it can be named in the code, and the tests insist that each
//! step is reached. `docs/dev/recovery.md` says for each step what the next daemon finds and does; a unit test checks that
//! no step is missing there.

#![cfg_attr(not(test), no_std)]

macro_rules! points {
    ($($program:ident { $($(#[$doc:meta])* $point:ident = $name:literal,)* })*) => {
        /// A step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($($(#[$doc])* $point,)*)*
        }

        impl Point {
            /// All of them, in the order in which a container gets to them.
            pub const ALL: &[Point] = &[$($(Point::$point,)*)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Point::$point => $name,)*)*
                }
            }

            /// Whose it is.
            pub fn program(self) -> Program {
                match self {
                    $($(Point::$point => Program::$program,)*)*
                }
            }
        }
    };
}

/// A program that has steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `containerd`.
    Daemon,
    /// `containerd-shim`.
    Shim,
}

points! {
    Daemon {
        /// The id is taken, in memory.
        IdTaken = "id-taken",
        /// A container's directory is there under its unfinished name, with nothing in it.
        DirectoryMade = "directory-made",
        /// A JSON file is there under its temporary name.
        TemporaryWritten = "temporary-written",
        /// `state.json` is there.
        StateWritten = "state-written",
        /// A process's directory is there, with nothing in it.
        ProcessDirectoryMade = "process-directory-made",
        /// `process.json` is there.
        ProcessWritten = "process-written",
        /// `exit` and `control` are there.
        FifosMade = "fifos-made",
        /// `exit` is open for reading.
        ExitOpened = "exit-opened",
        /// The shim has been started.
        ShimStarted = "shim-started",
        /// The shim has written `pid`.
        PidSeen = "pid-seen",
        /// `.cgroup` is there.
        CgroupKept = "cgroup-kept",
        /// The runtime's `start` has succeeded.
        Started = "started",
        /// `start-container` or `start-process` is in the journal.
        StartJournaled = "start-journaled",
        /// The marker that says that a container or an added process is being made is gone.
        MarkerRemoved = "marker-removed",
        /// The runtime's `pause` or `resume` has succeeded.
        FreezerChanged = "freezer-changed",
        /// `pause` or `resume` is in the journal.
        FreezerJournaled = "freezer-journaled",
        /// The runtime's `update` has succeeded.
        Updated = "updated",
        /// A checkpoint is being made: its directory is there, and is noted.
        CheckpointBegun = "checkpoint-begun",
        /// The runtime's `checkpoint` has ended.
        CheckpointDumped = "checkpoint-dumped",
        /// The checkpoint has its name.
        CheckpointNamed = "checkpoint-named",
        /// Limits are as they were asked for, and nobody has been told.
        LimitsSettled = "limits-settled",
        /// `oom` is in the journal.
        OomJournaled = "oom-journaled",
        /// `.oom` has the new count.
        OomKept = "oom-kept",
        /// `exit` has closed.
        ExitClosed = "exit-closed",
        /// The status of a process that has ended is known.
        StatusKnown = "status-known",
        /// The exits of a container's added processes have been told.
        AddedEnded = "added-ended",
        /// The runtime's `delete` has succeeded.
        Deleted = "deleted",
        /// `exit` is in the journal.
        ExitJournaled = "exit-journaled",
        /// A process's directory is gone.
        ProcessDirectoryRemoved = "process-directory-removed",
        /// A container's directory is gone.
        DirectoryRemoved = "directory-removed",
        /// The shorter journal is there under its temporary name.
        JournalShortened = "journal-shortened",
        /// The shorter journal has taken the journal's place.
        JournalReplaced = "journal-replaced",
        /// A later daemon knows what the journal says, and has looked at nothing else.
        RecoveryBegun = "recovery-begun",
        /// It has looked at a container.
        RecoveryLooked = "recovery-looked",
        /// It has killed the process of one that was half made.
        RecoveryKilledProcess = "recovery-killed-process",
        /// It has killed the shim too.
        RecoveryKilledShim = "recovery-killed-shim",
        /// It has deleted what the runtime kept of it.
        RecoveryDeleted = "recovery-deleted",
        /// It supervises a container again.
        RecoveryAdopted = "recovery-adopted",
        /// It answers calls.
        RecoveryServes = "recovery-serves",
    }
    Shim {
        /// It runs.
        ShimBegun = "shim-begun",
        /// `exit` is open for writing.
        ShimExitOpened = "shim-exit-opened",
        /// The client's stdio is open.
        ShimStdioOpened = "shim-stdio-opened",
        /// The runtime has been started.
        ShimRuntimeStarted = "shim-runtime-started",
        /// The runtime has succeeded.
        ShimRuntimeEnded = "shim-runtime-ended",
        /// `starttime` is there.
        ShimStarttimeWritten = "shim-starttime-written",
        /// `pid` is there.
        ShimPidWritten = "shim-pid-written",
        /// It waits for what happens to the process.
        ShimWatches = "shim-watches",
        /// The process has ended and has been reaped.
        ShimReaped = "shim-reaped",
        /// All that the process wrote has been delivered.
        ShimDelivered = "shim-delivered",
        /// `exitStatus` is there under its temporary name.
        ShimStatusPrepared = "shim-status-prepared",
        /// `exitStatus` is there.
        ShimStatusWritten = "shim-status-written",
    }
}

/// The environment variable that names the file with the step to be killed at.
pub const VARIABLE: &str = "CONTAINERD_FAILPOINT";

/// Says that the program is at `point`.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn reach(_point: Point) {}

/// Says that the program is at `point`, and ends it there if it is to be.
#[cfg(feature = "armed")]
pub fn reach(point: Point) {
    use core::sync::atomic::{AtomicUsize, Ordering};
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let variables = sys::environment::variables();
    let value = |variable: &'_ [u8]| variable.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
    let Some(file) = variables.iter().find_map(|variable| value(variable.as_bytes())) else { return };
    let Ok(text) = sys::small_file::read_text(rustix::fs::CWD, &file[..]) else { return };
    let mut words = text.split_ascii_whitespace();
    if words.next() != Some(point.name()) {
        return;
    }
    let pass = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    // Whoever removes the file is the one.
    if PASSED.fetch_add(1, Ordering::SeqCst) < pass || rustix::fs::unlink(&file[..]).is_err() {
        return;
    }
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn recovery_tables_name_every_point() {
        let tables = include_str!("../../../docs/dev/recovery.md");
        let rows: Vec<&str> = tables.lines().filter(|line| line.starts_with('|')).collect();
        for point in Point::ALL {
            let name = format!("`{}`", point.name());
            assert!(rows.iter().any(|row| row.contains(&name)), "docs/dev/recovery.md has no row for {name}");
        }
    }
}
