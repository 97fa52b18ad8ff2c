//! What a runtime can do, as it says itself, found out once for each runtime and only when it matters.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;

use crate::oci::{Oci, ask};
use crate::sealed::Identity;

/// Something that not every runtime can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ability {
    /// Starting without pivot_root.
    NoPivot,
    /// Changing limits from a file.
    Update,
    /// Freezing to disk.
    Checkpoint,
    /// Starting from a checkpoint.
    Restore,
    /// A flag of both.
    CheckpointFlag(&'static str),
    /// A flag of the latter, for a checkpoint that was made with it.
    RestoreFlag(&'static str),
}

impl Ability {
    /// The subcommand, and what its help must mention.
    fn told_by(self) -> (&'static str, &'static str) {
        match self {
            Ability::NoPivot => ("create", "--no-pivot"),
            Ability::Update => ("update", "--resources"),
            Ability::Checkpoint => ("checkpoint", "--image-path"),
            Ability::Restore => ("restore", "--image-path"),
            Ability::CheckpointFlag(flag) => ("checkpoint", flag),
            Ability::RestoreFlag(flag) => ("restore", flag),
        }
    }

    /// What a runtime without it cannot do.
    pub fn name(self) -> String {
        match self {
            Ability::NoPivot => "start a container without pivot_root".into(),
            Ability::Update => "change the limits of a container".into(),
            Ability::Checkpoint => "checkpoint a container".into(),
            Ability::Restore => "restore a container from a checkpoint".into(),
            Ability::CheckpointFlag(flag) => format!("checkpoint a container with {flag}"),
            Ability::RestoreFlag(flag) => format!("restore a container with {flag}"),
        }
    }
}

/// A program as it is now; it is asked again when it has been replaced.
type Program = (PathBuf, Identity);

/// What is known of runtimes.
#[derive(Debug, Default)]
pub struct Abilities {
    known: Mutex<HashMap<Question, Arc<OnceCell<String>>>>,
}

/// Who was asked, with which arguments in front, about which subcommand.
type Question = (Program, Vec<String>, &'static str);

/// Far more than any host has runtimes; forgotten ones are asked again.
const MOST: usize = 256;

impl Abilities {
    /// Whether the runtime has the ability. It is asked at most once, even by many at the same time, and may take
    /// `limit` for its answer. An error says that it could not be asked.
    pub async fn has(&self, oci: &Oci, ability: Ability, limit: Duration) -> io::Result<bool> {
        let (subcommand, word) = ability.told_by();
        let metadata = std::fs::metadata(oci.binary())?;
        let program = (oci.binary().to_path_buf(), Identity::of(&metadata));
        let cell = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            // One that has been replaced is of no interest any more.
            known.retain(|(other, ..), _| other.0 != program.0 || *other == program);
            if known.len() >= MOST {
                known.clear();
            }
            known.entry((program, oci.arguments().to_vec(), subcommand)).or_default().clone()
        };
        let help = cell.get_or_try_init(|| help(oci, subcommand, limit)).await?;
        Ok(help.contains(word))
    }
}

/// The help for a subcommand; nothing if there is no such subcommand.
async fn help(oci: &Oci, subcommand: &str, limit: Duration) -> io::Result<String> {
    let mut command = Command::new(oci.binary());
    command.args(oci.arguments()).args([subcommand, "--help"]);
    match ask(command, limit).await? {
        (0, words) => Ok(words),
        // It could not be run, or was killed: that says nothing.
        (status @ 126.., _) => Err(io::Error::other(format!("asked for help it ended with status {status}"))),
        _ => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::tests::write_program;
    use std::path::Path;

    const LIMIT: Duration = Duration::from_secs(20);

    fn fake(path: &Path, script: &str) -> Oci {
        write_program(path, &format!("#!/bin/sh\necho asked >> {0}.asked\n{script}\n", path.display()));
        Oci::find(path.to_str().expect("utf-8"), Vec::new()).expect("found")
    }

    fn asked(path: &Path) -> usize {
        std::fs::read_to_string(path.with_extension("asked")).unwrap_or_default().lines().count()
    }

    #[tokio::test]
    async fn a_runtime_is_asked_once_and_again_when_it_is_replaced() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("fake");
        let oci = fake(&path, "[ $1 = update ] && echo '  --resources FILE' || exit 1");
        let abilities = Abilities::default();
        for _ in 0..3 {
            assert!(abilities.has(&oci, Ability::Update, LIMIT).await.expect("answers"));
            assert!(!abilities.has(&oci, Ability::Checkpoint, LIMIT).await.expect("answers"));
        }
        assert_eq!(asked(&path), 2, "once for each subcommand");
        std::fs::remove_file(&path).expect("removes");
        fake(&directory.path().join("other"), "echo --image-path >&2");
        std::fs::rename(directory.path().join("other"), &path).expect("renames");
        let oci = Oci::find(path.to_str().expect("utf-8"), Vec::new()).expect("found");
        assert!(abilities.has(&oci, Ability::Checkpoint, LIMIT).await.expect("answers"));
    }

    #[tokio::test]
    async fn many_ask_at_the_same_time_and_it_answers_once() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("fake");
        let oci = fake(&path, "echo --no-pivot");
        let abilities = Arc::new(Abilities::default());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (abilities, oci) = (abilities.clone(), oci.clone());
            tasks.spawn(async move { abilities.has(&oci, Ability::NoPivot, LIMIT).await });
        }
        for answer in tasks.join_all().await {
            assert!(answer.expect("answers"));
        }
        assert_eq!(asked(&path), 1);
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_given_up_and_asked_again() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("fake");
        let oci = fake(&path, "exec sleep 1000");
        let abilities = Abilities::default();
        for _ in 0..2 {
            let answer = abilities.has(&oci, Ability::NoPivot, Duration::from_millis(100)).await;
            assert_eq!(answer.expect_err("no answer").kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!(asked(&path), 2);
    }
}
