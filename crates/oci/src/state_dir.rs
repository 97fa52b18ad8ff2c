//! The state directory as a whole: which program it belongs to, and in which format its files are.
//!
//! Two files say so: `.version`, which older daemons know, and `.directory`, which has a checksum. If one of them is
//! damaged, the other one counts. A directory with neither is claimed only if it is empty, or if everything in it can
//! only come from an older daemon of this API, so that another program's files are never mistaken for containers.

use contract::FORMAT;
use contract::container_files::{CREATING, STATE};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

use crate::PathError;
use crate::checksum::seal;
use crate::json::{check_format, read_object, write_whole};

/// The file with the format as a number.
const VERSION: &str = ".version";

/// The file that says what the directory is, and in which format.
const DIRECTORY: &str = ".directory";

/// The largest of these files that is read.
const LARGEST: u64 = 4096;

/// The largest `state.json` that is read to find out which program wrote it.
const LARGEST_STATE: u64 = 16 << 20;

/// The content of [`DIRECTORY`].
#[derive(Serialize, Deserialize)]
struct Declaration {
    what: String,
    format: u32,
}

const WHAT: &str = "state directory of containerd (types.API)";

/// What one of the two files says about the format.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The file does not exist.
    Nothing,
    Format(u32),
    /// The file exists and is unreadable.
    Damaged,
}

/// What the two files say about the state directory.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The directory belongs to this API's daemon, and both files say so.
    Known,
    /// The directory belongs to this API's daemon, and one of the files must be rewritten.
    Repair,
    /// A daemon with a later format has used the directory.
    Newer(u32),
    /// Neither file exists.
    Unclaimed,
}

/// Judges the directory by the two files. Daemons that write no [`DIRECTORY`] know no format later than 1.
fn judge(version: &Said, directory: &Said) -> Verdict {
    match (version, directory) {
        (_, Said::Format(format)) if *format > FORMAT => Verdict::Newer(*format),
        (Said::Format(version), Said::Format(format)) if version == format && *format == FORMAT => Verdict::Known,
        (Said::Format(version), Said::Damaged) if *version > FORMAT => Verdict::Newer(*version),
        (Said::Nothing, Said::Nothing) => Verdict::Unclaimed,
        _ => Verdict::Repair,
    }
}

fn version(state_dir: &Path) -> io::Result<Said> {
    said(sys::foreign_file::read(&state_dir.join(VERSION), LARGEST), |text| {
        std::str::from_utf8(text).ok()?.trim().parse().ok()
    })
}

fn declaration(state_dir: &Path) -> io::Result<Said> {
    said(sys::foreign_file::read(&state_dir.join(DIRECTORY), LARGEST), |text| {
        // `read_object` also checks a member `version`, which this file does not have.
        let declared: Declaration = read_object(text).ok()?;
        (declared.what == WHAT).then_some(declared.format)
    })
}

fn said(text: io::Result<Vec<u8>>, parse: impl FnOnce(&[u8]) -> Option<u32>) -> io::Result<Said> {
    match text {
        Ok(text) => Ok(parse(&text).map_or(Said::Damaged, Said::Format)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Said::Nothing),
        Err(e) if sys::exhausted::is_exhausted(&e) => Err(e),
        Err(_) => Ok(Said::Damaged),
    }
}

/// Checks, without changing anything, that a state directory can be used: it does not exist, it is empty, or it belongs
/// to a daemon of this API and has a format that this daemon knows.
pub fn check_state_dir(state_dir: &Path) -> Result<(), PathError> {
    look(state_dir).map(drop)
}

fn look(state_dir: &Path) -> Result<Verdict, PathError> {
    let failed = || PathError::new("look at the state directory", state_dir);
    let verdict = judge(&version(state_dir).map_err(failed())?, &declaration(state_dir).map_err(failed())?);
    match verdict {
        Verdict::Newer(format) => {
            check_format(format).map_err(PathError::new("use the state directory", state_dir))?;
        }
        Verdict::Unclaimed => {
            if let Some(foreign) = foreign_entry(state_dir).map_err(failed())? {
                let why = format!(
                    "another program uses it: it holds {foreign:?}, which no daemon of this API creates; \
                     choose another directory with --state-dir"
                );
                return Err(PathError::new("use the state directory", state_dir)(io::Error::other(why)));
            }
        }
        Verdict::Known | Verdict::Repair => {}
    }
    Ok(verdict)
}

/// Claims a state directory for daemons with this format. Fails if the directory belongs to another program, or a
/// daemon with a later format has used it.
pub fn claim_state_dir(state_dir: &Path) -> Result<(), PathError> {
    match look(state_dir)? {
        Verdict::Known => return Ok(()),
        Verdict::Repair => tracing::warn!(
            path = %state_dir.display(),
            "{VERSION} or {DIRECTORY} of the state directory is missing or damaged; rewriting both"
        ),
        Verdict::Newer(_) | Verdict::Unclaimed => {}
    }
    let declaration = Declaration { what: WHAT.into(), format: FORMAT };
    let write = |name: &str, text: &[u8]| {
        let path = state_dir.join(name);
        replace(&path, text).map_err(PathError::new("write", &path))
    };
    let text = serde_json::to_vec(&declaration).map_err(PathError::new("write", &state_dir.join(DIRECTORY)))?;
    write(DIRECTORY, &seal(text))?;
    write(VERSION, format!("{FORMAT}\n").as_bytes())
}

/// Writes one of the two files, and replaces whatever is at its path.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        // A directory that is not empty is no accident, so that this fails then.
        std::fs::remove_dir(path)?;
    }
    write_whole(path, text)
}

/// Returns the name of an entry that no daemon of this API creates, if there is one.
fn foreign_entry(state_dir: &Path) -> io::Result<Option<String>> {
    let entries = match std::fs::read_dir(state_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // Plain files do no harm, and the daemon's socket is in the state directory by default.
        if entry.file_type()?.is_dir() && !is_container_of_older_daemon(&entry.path())? {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Returns whether a directory is a container's, in the form that every daemon of this API has written.
fn is_container_of_older_daemon(directory: &Path) -> io::Result<bool> {
    #[derive(Deserialize)]
    struct State {
        #[serde(rename = "bundle")]
        _bundle: String,
    }
    if std::fs::read_dir(directory)?.next().is_none() {
        return Ok(true);
    }
    match sys::foreign_file::read(&directory.join(STATE), LARGEST_STATE) {
        Ok(text) => Ok(serde_json::from_slice::<State>(&text).is_ok()),
        Err(e) if sys::exhausted::is_exhausted(&e) => Err(e),
        Err(_) => Ok(false),
    }
}

/// Removes a container's directory that does not have its final name yet. Such a directory holds at most two files. If
/// there is anything else in it, it stays.
pub fn remove_unfinished(directory: &Path) -> Result<(), PathError> {
    for name in [STATE, CREATING] {
        let path = directory.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(PathError::new("remove", &path)(e)),
            _ => {}
        }
    }
    match std::fs::remove_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PathError::new("remove", directory)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_with_one_damaged_file_is_repaired() {
        use Said::{Damaged, Format, Nothing};
        for (version, directory, verdict) in [
            (Nothing, Nothing, Verdict::Unclaimed),
            (Format(1), Format(1), Verdict::Known),
            (Format(1), Nothing, Verdict::Repair),
            (Format(0), Nothing, Verdict::Repair),
            (Format(9), Format(1), Verdict::Repair),
            (Damaged, Format(1), Verdict::Repair),
            (Damaged, Nothing, Verdict::Repair),
            (Format(9), Nothing, Verdict::Repair),
            (Format(1), Damaged, Verdict::Repair),
            (Nothing, Damaged, Verdict::Repair),
            (Format(2), Format(2), Verdict::Newer(2)),
            (Damaged, Format(2), Verdict::Newer(2)),
            (Format(1), Format(2), Verdict::Newer(2)),
            (Format(2), Damaged, Verdict::Newer(2)),
        ] {
            assert_eq!(judge(&version, &directory), verdict, "{version:?}, {directory:?}");
        }
    }

    #[test]
    fn damaged_version_file_is_rewritten() {
        let directory = tempfile::tempdir().expect("tempdir");
        claim_state_dir(directory.path()).expect("empty");
        for byte in 0..=255u8 {
            std::fs::write(directory.path().join(VERSION), [byte, b'\n']).expect("writes");
            claim_state_dir(directory.path()).expect("ours");
            assert_eq!(std::fs::read(directory.path().join(VERSION)).expect("reads"), b"1\n");
        }
        for name in [VERSION, DIRECTORY] {
            std::fs::remove_file(directory.path().join(name)).expect("removes");
            std::fs::create_dir(directory.path().join(name)).expect("makes a directory");
            claim_state_dir(directory.path()).expect("ours");
        }
    }

    #[test]
    fn directory_of_a_later_format_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let text = serde_json::to_vec(&Declaration { what: WHAT.into(), format: 2 }).expect("plain data");
        std::fs::write(directory.path().join(DIRECTORY), seal(text)).expect("writes");
        std::fs::write(directory.path().join(VERSION), "2\n").expect("writes");
        let refused = claim_state_dir(directory.path()).expect_err("newer").to_string();
        assert!(refused.contains("a newer containerd"), "{refused}");
    }

    #[test]
    fn directory_of_another_program_is_refused_and_unchanged() {
        for (name, file, text) in [
            ("io.containerd.runtime.v2.task", "default/x", ""),
            ("c1", "state.json", r#"{"id":"c1","init_process_pid":7}"#),
            ("c1", "status", r#"{"pid":7,"bundle":"/b"}"#),
            ("c1", "state.json", "garbage"),
        ] {
            let directory = tempfile::tempdir().expect("tempdir");
            let path = directory.path().join(name).join(file);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
            std::fs::write(&path, text).expect("writes");
            std::fs::write(directory.path().join("containerd.sock"), "").expect("writes");
            let refused = claim_state_dir(directory.path()).expect_err("another program's").to_string();
            assert!(refused.contains(name) && refused.contains("--state-dir"), "{refused}");
            assert!(path.exists() && !directory.path().join(VERSION).exists());
        }
    }

    #[test]
    fn directory_of_an_older_daemon_is_claimed() {
        let directory = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(directory.path().join("c1")).expect("creates");
        std::fs::write(directory.path().join("c1/state.json"), r#"{"bundle":"/b","labels":null}"#).expect("writes");
        std::fs::write(directory.path().join("events.log"), "").expect("writes");
        check_state_dir(directory.path()).expect("ours");
        claim_state_dir(directory.path()).expect("ours");
        check_state_dir(&directory.path().join("none")).expect("not there yet");
    }
}
