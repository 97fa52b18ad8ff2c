//! The recovery tables, executable: for each step at which a daemon or a shim may die, what the next daemon finds and how it judges.

use super::*;
use proptest::prelude::*;

/// A container that this version made, and that runs with its shim.
const RUNNING: Facts = Facts {
    being_made: false,
    record: THIS_BOOT,
    start_is_recorded: true,
    exit_is_recorded: false,
    init: Init::HasShim,
};

const THIS_BOOT: Record = Record::Read { has_key: true, has_markers: true, is_of_this_boot: true };
const EARLIER_BOOT: Record = Record::Read { has_key: true, has_markers: true, is_of_this_boot: false };
/// An older daemon, with keys and without markers.
const WITHOUT_MARKERS: Record = Record::Read { has_key: true, has_markers: false, is_of_this_boot: true };
/// A still older daemon.
const WITHOUT_KEYS: Record = Record::Read { has_key: false, has_markers: false, is_of_this_boot: true };

/// A container that is being made, without a start in the journal.
const BEING_MADE: Facts = Facts { being_made: true, start_is_recorded: false, ..RUNNING };

/// Its shim is gone and has left nothing, and it does not run.
const DEAD: Init = Init::NoShim { has_status: false, is_alive: false };
/// Its shim is gone and has left its status.
const ENDED: Init = Init::NoShim { has_status: true, is_alive: false };
/// Its shim died, and it runs on.
const ORPHAN: Init = Init::NoShim { has_status: false, is_alive: true };

const ADOPT: Verdict = Verdict::Adopt { start_is_recorded: true };
const ADOPT_AGAIN: Verdict = Verdict::Adopt { start_is_recorded: false };

fn missing(has_processes: bool, has_exit: bool, is_empty: bool) -> Facts {
    let record = Record::Missing { has_processes, has_exit, is_empty };
    Facts { being_made: false, record, start_is_recorded: false, exit_is_recorded: false, init: Init::Missing }
}

fn check(rows: &[(&str, Facts, Verdict)]) {
    for (row, facts, verdict) in rows {
        assert_eq!(judge(facts), *verdict, "{row}: {facts:?}");
    }
}

/// The table "A container is being made".
fn rows_of_creation() -> Vec<(&'static str, Facts, Verdict)> {
    vec![
        ("state-written", Facts { init: Init::Missing, ..BEING_MADE }, Verdict::RemoveUnstarted),
        ("process-directory-made", Facts { init: Init::Missing, ..BEING_MADE }, Verdict::RemoveUnstarted),
        ("temporary-written", Facts { init: Init::Missing, ..BEING_MADE }, Verdict::RemoveUnstarted),
        ("process-written", Facts { init: Init::Missing, ..BEING_MADE }, Verdict::RemoveUnstarted),
        ("fifos-made", Facts { init: DEAD, ..BEING_MADE }, Verdict::Discard),
        ("exit-opened", Facts { init: DEAD, ..BEING_MADE }, Verdict::Discard),
        ("shim-started", BEING_MADE, Verdict::Discard),
        ("shim-started, and the shim gave up", Facts { init: DEAD, ..BEING_MADE }, Verdict::Discard),
        ("pid-seen", BEING_MADE, Verdict::Discard),
        ("cgroup-kept", BEING_MADE, Verdict::Discard),
        ("started", BEING_MADE, Verdict::Discard),
        ("started, and it ended", Facts { init: ENDED, ..BEING_MADE }, Verdict::Discard),
        ("start-journaled", Facts { being_made: true, ..RUNNING }, ADOPT),
        ("marker-removed", RUNNING, ADOPT),
    ]
}

/// The tables "A container lives" and "A process ends", as far as they concern a container and its init.
fn rows_of_life() -> Vec<(&'static str, Facts, Verdict)> {
    vec![
        ("freezer-changed", RUNNING, ADOPT),
        ("freezer-journaled", RUNNING, ADOPT),
        ("before exit-closed", RUNNING, ADOPT),
        ("exit-closed", Facts { init: ENDED, ..RUNNING }, ADOPT),
        ("status-known", Facts { init: ENDED, ..RUNNING }, ADOPT),
        ("added-ended", Facts { init: ENDED, ..RUNNING }, ADOPT),
        ("deleted", Facts { init: ENDED, ..RUNNING }, ADOPT),
        ("exit-journaled", Facts { init: ENDED, exit_is_recorded: true, ..RUNNING }, Verdict::CleanUp),
        (
            "process-directory-removed",
            Facts { init: Init::Missing, exit_is_recorded: true, ..RUNNING },
            Verdict::CleanUp,
        ),
    ]
}

#[test]
fn daemon_dies_while_a_container_is_made() {
    check(&rows_of_creation());
}

#[test]
fn daemon_dies_while_a_container_lives_or_ends() {
    check(&rows_of_life());
}

#[test]
fn documented_tables_and_tests_have_the_same_rows() {
    let text = include_str!("../../../../../docs/dev/recovery.md");
    // At these steps nothing of the container is left, or its directory has no name yet; or they are about limits, checkpoints and
    // counts, for which it is adopted as at any other moment.
    let others = [
        "id-taken",
        "directory-made",
        "directory-removed",
        "journal-",
        "recovery-",
        "updated",
        "limits-settled",
        "checkpoint-",
        "oom-",
    ];
    let rows: Vec<&str> = rows_of_creation().iter().chain(&rows_of_life()).map(|(row, ..)| *row).collect();
    let mut checked = 0;
    for section in ["A container is being made", "A container lives", "A process ends"] {
        let table = text.split("\n## ").find(|part| part.starts_with(section)).expect("the section is there");
        for row in table.lines().filter(|line| line.starts_with("| ")) {
            let first = row.split('|').nth(1).expect("a first column");
            for name in first.split('`').skip(1).step_by(2) {
                let is_other = others.iter().any(|other| name.starts_with(other));
                assert!(is_other || rows.iter().any(|row| row.contains(name)), "no test has the row {name}");
                checked += 1;
            }
        }
    }
    assert!(checked > 25, "{checked}");
}

#[test]
fn shim_and_daemon_die() {
    check(&[
        ("the process runs on", Facts { init: ORPHAN, ..RUNNING }, ADOPT),
        ("the process is dead", Facts { init: DEAD, ..RUNNING }, ADOPT),
        ("the container was being made", Facts { init: ORPHAN, ..BEING_MADE }, Verdict::Discard),
    ]);
}

#[test]
fn machine_is_booted_again() {
    let buried = |exit_is_due| Verdict::Bury { exit_is_due };
    let earlier = Facts { record: EARLIER_BOOT, init: DEAD, ..RUNNING };
    check(&[
        ("it ran", earlier, buried(true)),
        ("its pid is another process's now", Facts { init: ORPHAN, ..earlier }, buried(true)),
        ("it was being made", Facts { record: EARLIER_BOOT, init: DEAD, ..BEING_MADE }, buried(false)),
        ("its exit was recorded", Facts { exit_is_recorded: true, ..earlier }, Verdict::CleanUp),
    ]);
}

#[test]
fn journal_is_damaged_shortened_or_gone() {
    let forgotten = Facts { start_is_recorded: false, ..RUNNING };
    check(&[
        ("it runs", forgotten, ADOPT_AGAIN),
        ("its shim has left a status", Facts { init: ENDED, ..forgotten }, ADOPT_AGAIN),
        ("its shim died with it", Facts { init: DEAD, ..forgotten }, ADOPT_AGAIN),
        ("an older daemon made it, and it runs", Facts { record: WITHOUT_MARKERS, ..forgotten }, ADOPT_AGAIN),
        ("the same, ended", Facts { record: WITHOUT_MARKERS, init: ENDED, ..forgotten }, ADOPT_AGAIN),
        (
            "an older daemon made it or was making it",
            Facts { record: WITHOUT_MARKERS, init: DEAD, ..forgotten },
            Verdict::SetAside(Reason::Unproven),
        ),
    ]);
}

#[test]
fn files_of_the_container_are_damaged_or_gone() {
    let aside = Verdict::SetAside(Reason::Unreadable);
    check(&[
        ("state.json cannot be read", Facts { record: Record::Unreadable, ..RUNNING }, aside),
        ("the same while it is made", Facts { record: Record::Unreadable, ..BEING_MADE }, aside),
        ("init's directory cannot be read", Facts { init: Init::Unreadable, ..RUNNING }, aside),
        ("init's directory is gone", Facts { init: Init::Missing, ..RUNNING }, aside),
        ("state.json is gone, init has its FIFOs", missing(true, true, false), aside),
        ("the same, and the marker is there", Facts { being_made: true, ..missing(true, true, false) }, aside),
        (
            "a marker and nothing else",
            Facts { being_made: true, ..missing(false, false, false) },
            Verdict::RemoveUnstarted,
        ),
        ("an empty directory", missing(false, false, true), Verdict::RemoveEmpty),
        ("a directory that no daemon has made", missing(true, false, false), Verdict::LeaveAlone),
        ("a file that no daemon has made", missing(false, false, false), Verdict::LeaveAlone),
    ]);
}

#[test]
fn older_daemons_wrote_no_keys() {
    let unkeyed = Facts { record: WITHOUT_KEYS, start_is_recorded: false, ..RUNNING };
    check(&[
        ("it runs", unkeyed, ADOPT_AGAIN),
        ("it has ended", Facts { init: DEAD, ..unkeyed }, ADOPT_AGAIN),
        ("an earlier container of the id has exited", Facts { exit_is_recorded: true, ..unkeyed }, ADOPT_AGAIN),
        ("its exit is recorded", Facts { exit_is_recorded: true, init: ENDED, ..unkeyed }, Verdict::CleanUp),
    ]);
}

#[test]
fn daemon_dies_while_a_process_is_added_or_ends() {
    let running = ProcessFacts {
        being_made: false,
        is_readable: true,
        has_key: true,
        has_shim: true,
        start_is_recorded: true,
        exit_is_recorded: false,
    };
    let being_made = ProcessFacts { being_made: true, start_is_recorded: false, ..running };
    let unreadable = ProcessFacts { is_readable: false, has_key: false, ..running };
    let adopt = |start_is_recorded| Fate::Adopt { start_is_recorded };
    for (row, facts, fate) in [
        ("process-written … started", being_made, Fate::Discard),
        ("the same without a shim", ProcessFacts { has_shim: false, ..being_made }, Fate::Discard),
        ("start-journaled", ProcessFacts { being_made: true, ..running }, adopt(true)),
        ("marker-removed", running, adopt(true)),
        ("the journal has lost its start", ProcessFacts { start_is_recorded: false, ..running }, adopt(false)),
        ("exit-closed", ProcessFacts { has_shim: false, ..running }, adopt(true)),
        ("exit-journaled", ProcessFacts { exit_is_recorded: true, has_shim: false, ..running }, Fate::CleanUp),
        ("an older daemon's", ProcessFacts { has_key: false, start_is_recorded: false, ..running }, adopt(false)),
        (
            "an older daemon's, after another one of its name",
            ProcessFacts { has_key: false, exit_is_recorded: true, ..running },
            adopt(true),
        ),
        ("its files are damaged", unreadable, Fate::Leave { exit_is_due: true }),
        (
            "its files are damaged, and so is the journal",
            ProcessFacts { start_is_recorded: false, ..unreadable },
            Fate::Leave { exit_is_due: false },
        ),
        (
            "its files are damaged, and it was being made",
            ProcessFacts { start_is_recorded: false, being_made: true, ..unreadable },
            Fate::Discard,
        ),
    ] {
        assert_eq!(judge_process(&facts), fate, "{row}: {facts:?}");
    }
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let flags = || any::<bool>();
    let record = prop_oneof![
        (flags(), flags(), flags()).prop_map(|(has_processes, has_exit, is_empty)| Record::Missing {
            has_processes,
            has_exit,
            is_empty
        }),
        Just(Record::Unreadable),
        (flags(), flags(), flags()).prop_map(|(has_key, has_markers, is_of_this_boot)| Record::Read {
            has_key,
            has_markers,
            is_of_this_boot
        }),
    ];
    let init = prop_oneof![
        Just(Init::Missing),
        Just(Init::Unreadable),
        Just(Init::HasShim),
        (flags(), flags()).prop_map(|(has_status, is_alive)| Init::NoShim { has_status, is_alive }),
    ];
    (flags(), record, flags(), flags(), init).prop_map(
        |(being_made, record, start_is_recorded, exit_is_recorded, init)| Facts {
            being_made,
            record,
            start_is_recorded,
            exit_is_recorded,
            init,
        },
    )
}

proptest! {
    #[test]
    fn nothing_is_killed_or_removed_without_evidence(facts in any_facts()) {
        match judge(&facts) {
            // What kills or removes processes needs a marker that says that the container was being made.
            Verdict::Discard | Verdict::RemoveUnstarted => {
                let nothing_ran = matches!(facts.record, Record::Missing { has_processes: false, .. });
                prop_assert!(facts.being_made && (nothing_ran || !facts.start_is_recorded));
            }
            Verdict::CleanUp => prop_assert!(facts.exit_is_recorded),
            Verdict::RemoveEmpty => {
                let is_empty = matches!(facts.record, Record::Missing { is_empty: true, .. });
                prop_assert!(is_empty, "it has something in it");
            }
            Verdict::Bury { .. } => {
                let is_earlier = matches!(facts.record, Record::Read { is_of_this_boot: false, .. });
                prop_assert!(is_earlier, "it may be alive");
            }
            Verdict::Adopt { .. } | Verdict::LeaveAlone | Verdict::SetAside(_) => {}
        }
    }
}
