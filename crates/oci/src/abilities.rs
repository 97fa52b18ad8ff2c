//! What a runtime can do, according to its own help. Each runtime is asked once, when the answer is first needed.

use contract::runtime;
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
    /// Create a container without pivot_root.
    NoPivot,
    /// Read changed limits from a file.
    Update,
    /// Make a checkpoint.
    Checkpoint,
    /// Restore a container from a checkpoint.
    Restore,
    /// A flag of `checkpoint`.
    CheckpointFlag(&'static str),
    /// A flag of `restore`, for a checkpoint that was made with it.
    RestoreFlag(&'static str),
}

impl Ability {
    /// Returns the subcommand and the word that its help contains if the runtime has the ability.
    fn shown_by(self) -> (&'static str, &'static str) {
        match self {
            Ability::NoPivot => ("create", runtime::NO_PIVOT),
            Ability::Update => ("update", runtime::RESOURCES),
            Ability::Checkpoint => ("checkpoint", runtime::IMAGE_PATH),
            Ability::Restore => ("restore", runtime::IMAGE_PATH),
            Ability::CheckpointFlag(flag) => ("checkpoint", flag),
            Ability::RestoreFlag(flag) => ("restore", flag),
        }
    }

    /// Says what a runtime without the ability cannot do.
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

/// A certain version of a program. A program that has been replaced is asked again.
type Program = (PathBuf, Identity);

/// The answers of the runtimes that have been asked.
#[derive(Debug, Default)]
pub struct Abilities {
    known: Mutex<HashMap<Question, Arc<OnceCell<String>>>>,
}

/// The program, the arguments before the subcommand, and the subcommand whose help is asked for.
type Question = (Program, Vec<String>, &'static str);

/// How many answers are kept at most: far more than any host needs. If there are more, all are dropped and asked for
/// again.
const MOST: usize = 256;

impl Abilities {
    /// Returns whether the runtime has an ability. Runs the runtime at most once for a subcommand, even for concurrent
    /// callers, and gives it `limit` for its answer. An error means that the runtime gave no answer.
    pub async fn has(&self, oci: &Oci, ability: Ability, limit: Duration) -> io::Result<bool> {
        let (subcommand, word) = ability.shown_by();
        let metadata = std::fs::metadata(oci.binary())?;
        let program = (oci.binary().to_path_buf(), Identity::of(&metadata));
        let cell = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            // Forget the answers of a program that has been replaced.
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

/// Returns the runtime's help for a subcommand. Returns an empty text if there is no such subcommand.
async fn help(oci: &Oci, subcommand: &str, limit: Duration) -> io::Result<String> {
    let mut command = Command::new(oci.binary());
    command.args(runtime::help(oci.arguments(), Some(subcommand)));
    match ask(command, limit).await? {
        (0, words) => Ok(words),
        // The runtime could not be run or was killed, so that there is no answer.
        (status @ 126.., _) => Err(io::Error::other(format!("its help for {subcommand} ended with status {status}"))),
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
    async fn runtime_is_asked_once_and_again_after_it_is_replaced() {
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
    async fn concurrent_questions_run_the_runtime_once() {
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
    async fn runtime_without_an_answer_is_given_up_and_asked_again() {
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
