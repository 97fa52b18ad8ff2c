//! `ctr checkpoints`: list, make and remove checkpoints, and check what this host can do.

use anyhow::Context;
use containerd_client::{Client, INIT, api};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::archive;
use crate::args::{CheckpointCommand, Checkpoints, CreateCheckpoint, DeleteCheckpoint, ListCheckpoints};
use crate::containers;
use crate::daemon::change;
use crate::failure::Failure;
use crate::out;
use crate::table;

/// How often a checkpoint's progress is shown.
const TICK: Duration = Duration::from_millis(500);

pub(crate) async fn execute(client: &Client, checkpoints: Checkpoints) -> Result<ExitCode, Failure> {
    match checkpoints.command {
        None => list(client, checkpoints.list).await,
        Some(CheckpointCommand::List(list)) => self::list(client, list).await,
        Some(CheckpointCommand::Create(create)) => self::create(client, create).await,
        Some(CheckpointCommand::Delete(delete)) => self::delete(client, delete).await,
        Some(CheckpointCommand::Check { runtime }) => check(&runtime),
        Some(CheckpointCommand::Export(export)) => archive::export(client, export).await,
        Some(CheckpointCommand::Import(import)) => archive::import(&import),
    }
}

/// Makes a directory's path absolute, from this program's working directory: the daemon has another one.
pub(crate) fn absolute(directory: Option<&Path>) -> Result<Option<String>, Failure> {
    let Some(directory) = directory else { return Ok(None) };
    let path = std::path::absolute(directory).with_context(|| format!("directory {:?}", directory.display()))?;
    Ok(Some(path.to_str().context("the directory's path is not UTF-8")?.to_string()))
}

async fn list(client: &Client, list: ListCheckpoints) -> Result<ExitCode, Failure> {
    let Some(id) = list.id else {
        return Err(anyhow::anyhow!("name the container whose checkpoints are to be listed").into());
    };
    let directory = absolute(list.checkpoint_dir.as_deref())?;
    let checkpoints = client.list_checkpoints(&id, directory.as_deref()).await?;
    if list.options.json {
        return out::write_json(&checkpoints);
    }
    let row = |checkpoint: &api::Checkpoint| {
        let api::Checkpoint { name, tcp, unix_sockets, shell, .. } = checkpoint;
        vec![name.clone(), tcp.to_string(), unix_sockets.to_string(), shell.to_string()]
    };
    let rows: Vec<Vec<String>> = checkpoints.iter().map(row).collect();
    out::write(table::text(&["NAME", "TCP", "UNIX SOCKETS", "SHELL"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

async fn delete(client: &Client, delete: DeleteCheckpoint) -> Result<ExitCode, Failure> {
    let directory = absolute(delete.checkpoint_dir.as_deref())?;
    let goes_on = "the daemon goes on, and may still remove the checkpoint";
    change(client, goes_on, client.delete_checkpoint(&delete.id, &delete.name, directory.as_deref())).await?;
    Ok(ExitCode::SUCCESS)
}

async fn create(client: &Client, create: CreateCheckpoint) -> Result<ExitCode, Failure> {
    let container = containers::container_of(client, &create.id).await?;
    let others: Vec<&str> = container.processes.iter().map(|p| p.pid.as_str()).filter(|pid| *pid != INIT).collect();
    if !others.is_empty() {
        let what = if create.exit { "and end with the container" } else { "and go on beside it" };
        let others = others.join(", ");
        out::say(format_args!("added processes are not part of the checkpoint, {what}: {others}"));
    }
    let checkpoint_dir = absolute(create.checkpoint_dir.as_deref())?;
    let directory = match &checkpoint_dir {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(&container.bundle_path).join("checkpoints"),
    };
    let checkpoint = api::Checkpoint {
        name: create.name.clone(),
        exit: create.exit,
        tcp: create.tcp,
        unix_sockets: create.unix_sockets,
        shell: create.shell,
        empty_ns: create.empty_ns,
    };
    let begun = Instant::now();
    let mut progress = Progress::new(&directory, &create.name);
    let goes_on = "the daemon goes on with the checkpoint: `ctr checkpoints` lists it when it is made";
    let call = client.create_checkpoint(&create.id, checkpoint, checkpoint_dir.as_deref());
    let made = change(client, goes_on, progress.show_during(begun, call)).await;
    progress.clear();
    made?;
    let result = Made::look(&directory.join(&create.name), begun.elapsed());
    if create.json {
        return out::write_json(&result);
    }
    out::write(result.sentence(&create.name) + "\n")?;
    Ok(ExitCode::SUCCESS)
}

/// The progress of a checkpoint, shown on stderr if that is a terminal.
struct Progress {
    partial: PathBuf,
    is_visible: bool,
    is_shown: bool,
}

impl Progress {
    fn new(directory: &Path, name: &str) -> Progress {
        // The daemon's name for a checkpoint that is not complete.
        let partial = directory.join(format!(".{name}.partial"));
        Progress { partial, is_visible: std::io::stderr().is_terminal(), is_shown: false }
    }

    /// Waits for `call`, and shows its progress meanwhile.
    async fn show_during<T>(&mut self, begun: Instant, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        loop {
            tokio::select! {
                answer = &mut call => return answer,
                () = tokio::time::sleep(TICK) => self.show(begun.elapsed()),
            }
        }
    }

    fn show(&mut self, elapsed: Duration) {
        if self.is_visible {
            let size = in_words(size_of(&self.partial));
            // Not being able to show progress is not a failure of the command.
            let _ = write!(std::io::stderr(), "\r\x1b[K{size} written, {:.1} s", elapsed.as_secs_f64());
            self.is_shown = true;
        }
    }

    fn clear(&self) {
        if self.is_shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// The figures of a finished checkpoint. Size and freeze time are known only if its files are on this machine.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// How long the container was frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    frozen_ms: Option<f64>,
    total_ms: f64,
}

impl Made {
    fn look(directory: &Path, total: Duration) -> Made {
        let bytes = directory.is_dir().then(|| size_of(directory));
        let frozen_ms = oci::time_frozen(directory).map(|time| time.as_secs_f64() * 1e3);
        Made { bytes, frozen_ms, total_ms: total.as_secs_f64() * 1e3 }
    }

    fn sentence(&self, name: &str) -> String {
        let mut parts = Vec::new();
        parts.extend(self.bytes.map(in_words));
        parts.extend(self.frozen_ms.map(|ms| format!("frozen for {ms:.0} ms")));
        parts.push(format!("{:.0} ms in all", self.total_ms));
        format!("{name}: {}", parts.join(", "))
    }
}

fn size_of(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file).map(|file| file.len()).sum()
}

pub(crate) fn in_words(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1.0 { format!("{} KiB", bytes.div_ceil(1024)) } else { format!("{mebibytes:.1} MiB") }
}

/// The features to check: a name, the arguments of `criu check`, and what needs the feature.
const FEATURES: [(&str, &[&str], &str); 5] = [
    ("dump", &[], "checkpoints create"),
    ("restore", &[], "containers start --checkpoint"),
    ("tcp", &["--feature", "tcp_half_closed"], "--tcp"),
    ("lazy pages", &["--feature", "uffd-noncoop"], "restoring memory when it is used"),
    ("pre-dump", &["--feature", "mem_dirty_track"], "dumping memory before the freeze"),
];

/// Prints what this host's CRIU, kernel and runtime can do.
fn check(runtime: &str) -> Result<ExitCode, Failure> {
    let version = Command::new("criu").arg("--version").output();
    let version = match version {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_string(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(anyhow::anyhow!("criu not installed on system: nothing can be checkpointed here").into());
        }
        Err(e) => return Err(anyhow::Error::new(e).context("run criu").into()),
    };
    let mut rows = vec![vec!["criu".into(), version.trim_start_matches("Version: ").to_string(), String::new()]];
    let mut works = true;
    for (name, arguments, purpose) in FEATURES {
        let output = Command::new("criu").arg("check").args(arguments).output().context("run criu check")?;
        let needed = arguments.is_empty();
        works &= output.status.success() || !needed;
        let what = if output.status.success() { "yes".to_string() } else { format!("no: {}", last_words(&output)) };
        rows.push(vec![name.into(), what, purpose.into()]);
    }
    for command in ["checkpoint", "restore"] {
        let output = Command::new(runtime).args([command, "--help"]).output();
        let knows = |output: &std::process::Output| {
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("--image-path")
        };
        let what = match &output {
            Ok(output) if knows(output) => "yes".to_string(),
            Ok(_) => "no: it was built without CRIU".into(),
            Err(e) => format!("no: {e}"),
        };
        works &= what == "yes";
        rows.push(vec![format!("{runtime} {command}"), what, String::new()]);
    }
    out::write(table::text(&["WHAT", "WORKS HERE", "FOR"], &rows))?;
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The last line of a program's output.
fn last_words(output: &std::process::Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it does not say why");
    // CRIU puts the place in its source in front.
    line.split_once("): ").map_or(line, |(_, words)| words).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_formatted_for_people() {
        assert_eq!(in_words(1), "1 KiB");
        assert_eq!(in_words(3 << 19), "1.5 MiB");
        let made = Made { bytes: Some(1 << 20), frozen_ms: Some(12.4), total_ms: 100.0 };
        assert_eq!(made.sentence("a"), "a: 1.0 MiB, frozen for 12 ms, 100 ms in all");
        let made = Made { bytes: None, frozen_ms: None, total_ms: 100.0 };
        assert_eq!(made.sentence("a"), "a: 100 ms in all");
    }
}
