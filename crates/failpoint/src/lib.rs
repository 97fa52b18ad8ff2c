//! Failpoints: named steps in the life of a container at which tests kill the daemon or the shim.
//!
//! Without the feature `armed`, reaching a step does nothing and costs nothing. With it, the program reads at each step
//! the file that the environment variable `CONTAINERD_FAILPOINT` names. If the file holds the step's name, the program
//! removes the file and kills itself with SIGKILL, as another program might at that moment. A number after the name
//! lets the program pass the step that many times first.
//!
//! The list is complete by construction: the code can name only steps in the list, and the tests check that each step
//! is reached. `docs/dev/recovery.md` says for each step what the next daemon finds and does; a unit test checks that no
//! step is missing there.

#![cfg_attr(not(test), no_std)]

macro_rules! points {
    ($($program:ident { $($(#[$doc:meta])* $point:ident = $name:literal,)* })*) => {
        /// A step at which the program can be killed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($($(#[$doc])* $point,)*)*
        }

        impl Point {
            /// All steps, in the order in which a container reaches them.
            pub const ALL: &[Point] = &[$($(Point::$point,)*)*];

            /// Returns the step's name.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Point::$point => $name,)*)*
                }
            }

            /// Returns the program that reaches the step.
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
        /// The daemon has reserved the container's id, in memory.
        IdTaken = "id-taken",
        /// The container's directory exists under its unfinished name and is empty.
        DirectoryMade = "directory-made",
        /// A JSON file exists under its temporary name.
        TemporaryWritten = "temporary-written",
        /// `state.json` exists.
        StateWritten = "state-written",
        /// A process's directory exists and is empty.
        ProcessDirectoryMade = "process-directory-made",
        /// `process.json` exists.
        ProcessWritten = "process-written",
        /// The FIFOs `exit` and `control` exist.
        FifosMade = "fifos-made",
        /// The daemon has opened `exit` for reading.
        ExitOpened = "exit-opened",
        /// The daemon has started the shim.
        ShimStarted = "shim-started",
        /// The daemon has seen that the shim wrote `pid`.
        PidSeen = "pid-seen",
        /// `.cgroup` exists.
        CgroupKept = "cgroup-kept",
        /// The runtime's `start` has succeeded.
        Started = "started",
        /// `start-container` or `start-process` is recorded in the journal.
        StartJournaled = "start-journaled",
        /// The marker of a container or an added process that is being created is removed.
        MarkerRemoved = "marker-removed",
        /// The runtime's `pause` or `resume` has succeeded.
        FreezerChanged = "freezer-changed",
        /// `pause` or `resume` is recorded in the journal.
        FreezerJournaled = "freezer-journaled",
        /// The runtime's `update` has succeeded.
        Updated = "updated",
        /// The checkpoint's directory exists, and the daemon has noted it.
        CheckpointBegun = "checkpoint-begun",
        /// The runtime's `checkpoint` has ended.
        CheckpointDumped = "checkpoint-dumped",
        /// The checkpoint has its final name.
        CheckpointNamed = "checkpoint-named",
        /// The kernel has the requested limits, and the client has no answer yet.
        LimitsSettled = "limits-settled",
        /// `oom` is recorded in the journal.
        OomJournaled = "oom-journaled",
        /// `.oom` has the new count of kills.
        OomKept = "oom-kept",
        /// The shim has closed `exit`.
        ExitClosed = "exit-closed",
        /// The daemon knows the exit status of a process that has ended.
        StatusKnown = "status-known",
        /// The exits of a container's added processes are recorded in the journal.
        AddedEnded = "added-ended",
        /// The runtime's `delete` has succeeded.
        Deleted = "deleted",
        /// `exit` is recorded in the journal.
        ExitJournaled = "exit-journaled",
        /// A process's directory is removed.
        ProcessDirectoryRemoved = "process-directory-removed",
        /// The container's directory is removed.
        DirectoryRemoved = "directory-removed",
        /// A shorter journal exists under its temporary name.
        JournalShortened = "journal-shortened",
        /// The shorter journal has replaced the journal.
        JournalReplaced = "journal-replaced",
        /// The next daemon has read the journal, and nothing else yet.
        RecoveryBegun = "recovery-begun",
        /// The next daemon has examined a container.
        RecoveryLooked = "recovery-looked",
        /// The next daemon has killed the process of a half-created container.
        RecoveryKilledProcess = "recovery-killed-process",
        /// The next daemon has killed the shim of a half-created container.
        RecoveryKilledShim = "recovery-killed-shim",
        /// The next daemon has deleted the runtime's state of a half-created container.
        RecoveryDeleted = "recovery-deleted",
        /// The next daemon supervises a container again.
        RecoveryAdopted = "recovery-adopted",
        /// The next daemon answers calls.
        RecoveryServes = "recovery-serves",
    }
    Shim {
        /// The shim runs.
        ShimBegun = "shim-begun",
        /// The shim has opened `exit` for writing.
        ShimExitOpened = "shim-exit-opened",
        /// The shim has opened the client's stdio.
        ShimStdioOpened = "shim-stdio-opened",
        /// The shim has started the runtime.
        ShimRuntimeStarted = "shim-runtime-started",
        /// The runtime has ended with success.
        ShimRuntimeEnded = "shim-runtime-ended",
        /// `starttime` exists.
        ShimStarttimeWritten = "shim-starttime-written",
        /// `pid` exists.
        ShimPidWritten = "shim-pid-written",
        /// The shim is about to wait for events.
        ShimWatches = "shim-watches",
        /// The process has ended, and the shim has reaped it.
        ShimReaped = "shim-reaped",
        /// The shim has delivered everything that the process wrote.
        ShimDelivered = "shim-delivered",
        /// `exitStatus` exists under its temporary name.
        ShimStatusPrepared = "shim-status-prepared",
        /// `exitStatus` exists.
        ShimStatusWritten = "shim-status-written",
    }
}

/// The environment variable that names the file with the step at which the program is killed.
pub const VARIABLE: &str = "CONTAINERD_FAILPOINT";

/// Marks that the program has reached `point`.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn reach(_point: Point) {}

/// Marks that the program has reached `point`, and kills it if the test has named that point.
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
    // Several programs may reach the step. The one that removes the file is killed.
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
    fn names_of_points_are_unique() {
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
