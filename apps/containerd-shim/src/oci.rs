//! The OCI runtime's command lines, as the shim uses them.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Dir, Mode, OFlags, open, readlink, unlinkat};
use rustix::io::{self, Errno};
use rustix::process::Pid;
use sys::environment::variables_without;
use sys::spawn::Spawn;
use sys::{stderr, stdin, stdout};

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
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(directory) = open(RESTORE_WORK, flags, Mode::empty()) {
        for entry in Dir::read_from(&directory).into_iter().flatten().flatten() {
            let _ = unlinkat(&directory, entry.file_name(), rustix::fs::AtFlags::empty());
        }
    }
    let _ = unlinkat(CWD, RESTORE_WORK, rustix::fs::AtFlags::REMOVEDIR);
}

/// Whom to run, and with what.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) id: CString,
    pub(crate) bundle: CString,
    pub(crate) runtime: CString,
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
    console_socket: Option<&str>,
    stdio: &ProcessStdio,
) -> Result<Pid, Failure> {
    let failed = || starting(target);
    let directory = working_directory()?;
    let mut environment = variables_without(&[PROCESS_DIRECTORY]);
    let restores = !request.exec && !request.checkpoint.is_empty();
    if restores {
        // By which whoever ends this knows what it started: CRIU's children have no session or name of ours.
        environment.extend(CString::new([PROCESS_DIRECTORY.as_bytes(), b"=", &directory].concat()));
    }
    let stdio = [
        stdio.stdin.as_ref().map_or(stdin(), AsFd::as_fd),
        stdio.stdout.as_ref().map_or(stdout(), AsFd::as_fd),
        stdio.stderr.as_ref().map_or(stderr(), AsFd::as_fd),
    ];
    let mut runtime = Spawn::new(&*target.runtime, &environment, stdio).context(failed)?;
    add_common(&mut runtime, request, &directory).context(failed)?;
    let mut add = |argument: &[u8]| runtime.argument(argument).context(failed);
    if request.exec {
        ["exec", "--detach", "--process", "process.json"].into_iter().try_for_each(|word| add(word.as_bytes()))?;
    } else {
        if request.run {
            add(b"run")?;
            add(b"--detach")?;
        } else if restores {
            let mode = Mode::from_raw_mode(0o777);
            rustix::fs::mkdir(RESTORE_WORK, mode).context(|| format!("create {RESTORE_WORK}"))?;
            for word in ["restore", "--detach", "--image-path", &request.checkpoint, "--work-path"] {
                add(word.as_bytes())?;
            }
            add(&below(&directory, RESTORE_WORK))?;
            Checkpoint::read(&request.checkpoint)?.flags().into_iter().try_for_each(|flag| add(flag.as_bytes()))?;
        } else {
            add(b"create")?;
        }
        add(b"--bundle")?;
        add(target.bundle.as_bytes())?;
        if request.no_pivot_root {
            add(b"--no-pivot")?;
        }
    }
    if let Some(socket) = console_socket {
        add(b"--console-socket")?;
        add(socket.as_bytes())?;
    }
    // Absolute: runtimes change into the bundle before they write the file.
    add(b"--pid-file")?;
    add(&below(&directory, RUNTIME_PID))?;
    add(target.id.as_bytes())?;
    let copy = request.runtime_copy();
    runtime.file = copy.as_ref().map(AsFd::as_fd);
    runtime.dies_with_parent = true;
    runtime.start().map_err(|e| match e {
        // The same answers as for a program that is looked up before: missing, a directory, not executable.
        Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::ISDIR => {
            Failure::NoRuntime(format!("{} not installed on system", target.runtime.to_string_lossy()))
        }
        e => Failure::System(failed(), e),
    })
}

/// Starts the killing of everything in the container, for one whose init's end does not do it.
pub(crate) fn start_kill_all(target: &Target, request: &Request) -> Result<Pid, Failure> {
    let failed = || starting(target);
    let directory = working_directory()?;
    let environment = variables_without(&[]);
    let stdio = [stdin(), stdout(), stderr()];
    let mut runtime = Spawn::new(&*target.runtime, &environment, stdio).context(failed)?;
    add_common(&mut runtime, request, &directory).context(failed)?;
    let all: [&[u8]; 4] = [b"kill", b"--all", target.id.as_bytes(), b"KILL"];
    runtime.arguments(all).context(failed)?;
    runtime.start().context(failed)
}

/// Kills the children of this process that are in another PID namespace; false if there is none. Their numbers are their own
/// for as long as this process has not reaped them. What a hook has left outside the container is not the shim's to end.
pub(crate) fn kill_children_elsewhere() -> bool {
    let namespace = |pid: &str| readlink(format!("/proc/{pid}/ns/pid"), Vec::new()).ok();
    let own = namespace("self");
    let children = sys::small_file::read_text(CWD, "/proc/thread-self/children").unwrap_or_default();
    let mut some = false;
    for child in children.split_ascii_whitespace() {
        let Some(pid) = child.parse().ok().and_then(Pid::from_raw) else { continue };
        if namespace(child).is_some_and(|namespace| Some(namespace) != own) {
            some = true;
            // One that has ended just now takes the signal without effect.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    some
}

/// What is in front of every subcommand.
fn add_common(runtime: &mut Spawn<'_>, request: &Request, directory: &[u8]) -> io::Result<()> {
    runtime.arguments(request.runtime_args.iter().map(String::as_str))?;
    runtime.argument("--log")?;
    runtime.argument(below(directory, "log.json"))?;
    runtime.arguments(["--log-format", "json"])
}

fn working_directory() -> Result<Vec<u8>, Failure> {
    let directory = rustix::process::getcwd(Vec::new()).context(|| "find the working directory".into())?;
    Ok(directory.into_bytes())
}

fn below(directory: &[u8], name: &str) -> Vec<u8> {
    [directory, b"/", name.as_bytes()].concat()
}

fn starting(target: &Target) -> String {
    format!("start the runtime {}", target.runtime.to_string_lossy())
}
