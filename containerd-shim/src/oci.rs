//! The OCI runtime's command lines, as the shim uses them.

use rustix::process::Pid;
use rustix::stdio::{stderr, stdin, stdout};
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::spawn::{Spawn, environment_without};

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

/// The descriptors that the process gets; `/dev/null`, which this program has, where there is none.
#[derive(Debug, Default)]
pub(crate) struct ProcessStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Starts the runtime so that it makes the process; it dies with this shim.
pub(crate) fn start(
    target: &Target,
    request: &Request,
    console_socket: Option<&Path>,
    stdio: &ProcessStdio,
) -> Result<Pid, Failure> {
    let failed = || starting(target);
    let directory = std::env::current_dir().context(|| "find the working directory".into())?;
    let mut environment = environment_without(&[PROCESS_DIRECTORY]);
    let restores = !request.exec && !request.checkpoint.is_empty();
    if restores {
        // By which whoever ends this knows what it started: CRIU's children have no session or name of ours.
        let variable = [PROCESS_DIRECTORY.as_bytes(), b"=", directory.as_os_str().as_bytes()].concat();
        environment.extend(CString::new(variable));
    }
    let stdio = [
        stdio.stdin.as_ref().map_or(stdin(), AsFd::as_fd),
        stdio.stdout.as_ref().map_or(stdout(), AsFd::as_fd),
        stdio.stderr.as_ref().map_or(stderr(), AsFd::as_fd),
    ];
    let mut runtime = Spawn::new(&target.runtime, &environment, stdio).context(failed)?;
    add_common(&mut runtime, request, &directory).context(failed)?;
    let mut add = |argument: &OsStr| runtime.argument(argument).context(failed);
    if request.exec {
        ["exec", "--detach", "--process", "process.json"].into_iter().try_for_each(|word| add(word.as_ref()))?;
    } else {
        if request.run {
            add("run".as_ref())?;
            add("--detach".as_ref())?;
        } else if restores {
            let work = directory.join(RESTORE_WORK);
            std::fs::create_dir(&work).context(|| format!("create {}", work.display()))?;
            for word in ["restore", "--detach", "--image-path", &request.checkpoint, "--work-path"] {
                add(word.as_ref())?;
            }
            add(work.as_os_str())?;
            Checkpoint::read(&request.checkpoint)?.flags().into_iter().try_for_each(|flag| add(flag.as_ref()))?;
        } else {
            add("create".as_ref())?;
        }
        add("--bundle".as_ref())?;
        add(&target.bundle)?;
        if request.no_pivot_root {
            add("--no-pivot".as_ref())?;
        }
    }
    if let Some(socket) = console_socket {
        add("--console-socket".as_ref())?;
        add(socket.as_os_str())?;
    }
    // Absolute: runtimes change into the bundle before they write the file.
    add("--pid-file".as_ref())?;
    add(directory.join(RUNTIME_PID).as_os_str())?;
    add(&target.id)?;
    runtime.dies_with_parent = true;
    runtime.start().context(failed)
}

/// Starts the killing of everything in the container, for one whose init's end does not do it.
pub(crate) fn start_kill_all(target: &Target, request: &Request) -> Result<Pid, Failure> {
    let failed = || starting(target);
    let directory = std::env::current_dir().context(|| "find the working directory".into())?;
    let environment = environment_without(&[]);
    let stdio = [stdin(), stdout(), stderr()];
    let mut runtime = Spawn::new(&target.runtime, &environment, stdio).context(failed)?;
    add_common(&mut runtime, request, &directory).context(failed)?;
    let all: [&OsStr; 4] = ["kill".as_ref(), "--all".as_ref(), &target.id, "KILL".as_ref()];
    runtime.arguments(all).context(failed)?;
    runtime.start().context(failed)
}

/// What is in front of every subcommand.
fn add_common(runtime: &mut Spawn<'_>, request: &Request, directory: &Path) -> io::Result<()> {
    runtime.arguments(&request.runtime_args)?;
    runtime.argument("--log")?;
    runtime.argument(directory.join("log.json"))?;
    runtime.arguments(["--log-format", "json"])
}

fn starting(target: &Target) -> String {
    format!("start the runtime {}", target.runtime.display())
}
