//! The OCI runtime's command lines, as the shim uses them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::{Context, Failure};
use crate::files::RUNTIME_PID;
use crate::request::{Checkpoint, Request};

/// Where CRIU works when it restores, in the process directory.
const RESTORE_WORK: &str = "criu.work";

/// The environment variable that names the process directory to the runtime and its CRIU.
const PROCESS_DIRECTORY: &str = "CONTAINERD_PROCESS_DIR";

/// Removes what CRIU leaves of a restore that went well, which takes memory where the state directory is a tmpfs. File by
/// file: what else there may be is not to be gone into, as it may be a mount.
pub(crate) fn forget_restore() {
    for entry in std::fs::read_dir(RESTORE_WORK).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
    let _ = std::fs::remove_dir(RESTORE_WORK);
}

/// Whom to run, and with what.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) id: OsString,
    pub(crate) bundle: OsString,
    pub(crate) runtime: PathBuf,
}

/// The descriptors that the process gets.
#[derive(Debug)]
pub(crate) struct ProcessStdio {
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
}

impl ProcessStdio {
    /// `/dev/null` thrice.
    pub(crate) fn null() -> ProcessStdio {
        ProcessStdio { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() }
    }
}

/// Starts the runtime so that it makes the process; it dies with this shim.
pub(crate) fn start(
    target: &Target,
    request: &Request,
    console_socket: Option<&Path>,
    stdio: ProcessStdio,
) -> Result<Child, Failure> {
    let mut command = base(target, request)?;
    if request.exec {
        command.args(["exec", "--detach", "--process", "process.json"]);
    } else {
        if request.run {
            command.args(["run", "--detach"]);
        } else if request.checkpoint.is_empty() {
            command.arg("create");
        } else {
            let work = working_directory()?.join(RESTORE_WORK);
            std::fs::create_dir(&work).context(|| format!("create {}", work.display()))?;
            // By which whoever ends this knows what it started: CRIU's children have no session or name of ours.
            command.env(PROCESS_DIRECTORY, working_directory()?);
            command.args(["restore", "--detach", "--image-path", &request.checkpoint, "--work-path"]).arg(&work);
            command.args(Checkpoint::read(&request.checkpoint)?.flags());
        }
        command.arg("--bundle").arg(&target.bundle);
        if request.no_pivot_root {
            command.arg("--no-pivot");
        }
    }
    if let Some(socket) = console_socket {
        command.arg("--console-socket").arg(socket);
    }
    // Absolute: runtimes change into the bundle before it writes the file.
    command.arg("--pid-file").arg(working_directory()?.join(RUNTIME_PID)).arg(&target.id);
    command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr);
    sys::child::die_with_parent(&mut command);
    command.spawn().context(|| format!("start the runtime {}", target.runtime.display()))
}

/// Starts the killing of everything in the container, for one whose init's end does not do it.
pub(crate) fn start_kill_all(target: &Target, request: &Request) -> Result<Child, Failure> {
    let mut command = base(target, request)?;
    command.args(["kill", "--all"]).arg(&target.id).arg("KILL");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context(|| format!("start the runtime {}", target.runtime.display()))
}

fn base(target: &Target, request: &Request) -> Result<Command, Failure> {
    let mut command = Command::new(&target.runtime);
    sys::child::with_all_signals(&mut command);
    command.args(&request.runtime_args);
    command.arg("--log").arg(working_directory()?.join("log.json")).args(["--log-format", "json"]);
    Ok(command)
}

fn working_directory() -> Result<PathBuf, Failure> {
    std::env::current_dir().context(|| "find the working directory".into())
}
