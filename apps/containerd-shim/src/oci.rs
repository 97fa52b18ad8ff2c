//! The shim's calls of the OCI runtime.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use contract::process_files::{CRIU_WORK, DIRECTORY_VARIABLE, RUNTIME_LOG, RUNTIME_PID};
use contract::runtime::{self, Front, Make, Restore};
use contract::{Request, Way};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Dir, Mode, OFlags, open, readlink, unlinkat};
use rustix::io::Errno;
use rustix::process::Pid;
use sys::environment::variables_without;
use sys::spawn::Spawn;
use sys::{stderr, stdin, stdout};

use crate::error::{Context, Failure};
use crate::request::{open_copy, read_checkpoint};

/// Removes what CRIU leaves of a restore that went well, which takes memory where the state directory is a tmpfs. File by
/// file: what else there may be is not to be gone into, as it may be a mount.
pub(crate) fn forget_restore() {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(directory) = open(CRIU_WORK, flags, Mode::empty()) {
        for entry in Dir::read_from(&directory).into_iter().flatten().flatten() {
            let _ = unlinkat(&directory, entry.file_name(), rustix::fs::AtFlags::empty());
        }
    }
    let _ = unlinkat(CWD, CRIU_WORK, rustix::fs::AtFlags::REMOVEDIR);
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
    let way = request.way();
    let mut environment = variables_without(&[DIRECTORY_VARIABLE]);
    let restored = match way {
        Way::Restore => Some(read_checkpoint(&request.checkpoint)?),
        _ => None,
    };
    let mut work = Vec::new();
    if restored.is_some() {
        work = below(&directory, CRIU_WORK);
        rustix::fs::mkdir(CRIU_WORK, Mode::from_raw_mode(0o777)).context(|| format!("create {CRIU_WORK}"))?;
        environment.extend(CString::new([DIRECTORY_VARIABLE.as_bytes(), b"=", &directory].concat()));
    }
    let (log, pid_file) = (below(&directory, RUNTIME_LOG), below(&directory, RUNTIME_PID));
    let images = request.checkpoint.as_bytes();
    let make = Make {
        id: target.id.as_bytes(),
        way,
        bundle: target.bundle.as_bytes(),
        no_pivot: request.no_pivot_root,
        restore: restored.as_ref().map(|options| Restore { images, work: &work, options }),
        console_socket: console_socket.map(str::as_bytes),
        pid_file: &pid_file,
    };
    let stdio = [
        stdio.stdin.as_ref().map_or(stdin(), AsFd::as_fd),
        stdio.stdout.as_ref().map_or(stdout(), AsFd::as_fd),
        stdio.stderr.as_ref().map_or(stderr(), AsFd::as_fd),
    ];
    let mut runtime = Spawn::new(&*target.runtime, &environment, stdio).context(failed)?;
    let arguments = runtime::make(Front { arguments: &request.runtime_args, log: &log }, &make);
    runtime.arguments(arguments).context(failed)?;
    let copy = request.runtime_copy.and_then(open_copy);
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
    let log = below(&directory, RUNTIME_LOG);
    let front = Front { arguments: &request.runtime_args, log: &log };
    runtime.arguments(runtime::kill_all(front, target.id.as_bytes())).context(failed)?;
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
