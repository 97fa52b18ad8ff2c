//! The shim's calls of the OCI runtime: the one that makes the process, and `kill`.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use contract::process_files::{CONSOLE, CRIU_WORK, DIRECTORY_VARIABLE, RUNTIME_LOG, RUNTIME_PID};
use contract::runtime::{Front, Make, Restore, kill_all, make};
use contract::{Request, Way};
use rustix::fd::AsFd;
use rustix::fs::Mode;
use rustix::process::Pid;
use shim_core::runtime::{Call, StartError};
use shim_core::stdio::ProcessStdio;
use shim_core::{Context, Error, files};
use sys::environment::variables_without;
use sys::{stderr, stdin, stdout};

use crate::error::Failure;
use crate::request::{open_copy, read_checkpoint};

/// The shim's arguments: whose process it is for.
#[derive(Debug)]
pub(crate) struct Target {
    /// The container's id.
    pub(crate) id: CString,
    /// The path of the OCI bundle.
    pub(crate) bundle: CString,
    /// The OCI runtime, as a path or a name.
    pub(crate) runtime: CString,
}

impl Target {
    /// The runtime's name in messages.
    pub(crate) fn runtime_name(&self) -> String {
        self.runtime.to_string_lossy().into_owned()
    }

    fn not_started(&self, error: StartError) -> Failure {
        match error {
            StartError::Missing => Failure::NoRuntime(format!("{} not installed on system", self.runtime_name())),
            StartError::Failed(source) => {
                Error { operation: format!("start the runtime {}", self.runtime_name()), source }.into()
            }
        }
    }
}

/// The path of the console socket for the runtime. It fits into the 108 bytes of a socket address wherever the process directory
/// is, and it holds whatever directory the runtime changes into.
fn console_path() -> String {
    format!("/proc/{}/cwd/{CONSOLE}", rustix::process::getpid().as_raw_nonzero())
}

/// Starts the runtime that makes the process. The runtime dies with this shim.
pub(crate) fn start_making(target: &Target, request: &Request, stdio: &ProcessStdio) -> Result<Pid, Failure> {
    let directory = working_directory()?;
    let way = request.way();
    let mut environment = variables_without(&[DIRECTORY_VARIABLE]);
    let (options, work) = match way {
        Way::Restore => {
            let options = read_checkpoint(&request.checkpoint)?;
            rustix::fs::mkdir(CRIU_WORK, Mode::from_raw_mode(0o777)).context(|| format!("create {CRIU_WORK}"))?;
            environment.extend(CString::new([DIRECTORY_VARIABLE.as_bytes(), b"=", &directory].concat()));
            (Some(options), below(&directory, CRIU_WORK))
        }
        _ => (None, Vec::new()),
    };
    let (log, pid_file) = (below(&directory, RUNTIME_LOG), below(&directory, RUNTIME_PID));
    let console = request.terminal.then(console_path);
    let images = request.checkpoint.as_bytes();
    let copy = request.runtime_copy.and_then(open_copy);
    let call = Call {
        program: &target.runtime,
        copy: copy.as_ref().map(AsFd::as_fd),
        environment: &environment,
        stdio: stdio.with([stdin(), stdout(), stderr()]),
        dies_with_parent: true,
    };
    let making = Make {
        id: target.id.as_bytes(),
        way,
        bundle: target.bundle.as_bytes(),
        no_pivot: request.no_pivot_root,
        restore: options.as_ref().map(|options| Restore { images, work: &work, options }),
        console_socket: console.as_deref().map(str::as_bytes),
        pid_file: &pid_file,
    };
    let front = Front { arguments: &request.runtime_args, log: &log };
    call.start(make(front, &making)).map_err(|e| target.not_started(e))
}

/// Starts a runtime that kills everything in the container, for an init whose end does not do that.
pub(crate) fn start_killing(target: &Target, request: &Request) -> Result<Pid, Failure> {
    let environment = variables_without(&[]);
    let call = Call {
        program: &target.runtime,
        copy: None,
        environment: &environment,
        stdio: [stdin(), stdout(), stderr()],
        dies_with_parent: false,
    };
    let log = below(&working_directory()?, RUNTIME_LOG);
    let front = Front { arguments: &request.runtime_args, log: &log };
    call.start(kill_all(front, target.id.as_bytes())).map_err(|e| target.not_started(e))
}

/// Removes what CRIU leaves of a restore that succeeded, which takes memory if the state directory is a tmpfs.
pub(crate) fn forget_restore() {
    files::remove_flat_directory(CRIU_WORK);
}

fn working_directory() -> Result<Vec<u8>, Failure> {
    let directory = rustix::process::getcwd(Vec::new()).context(|| "find the working directory".into())?;
    Ok(directory.into_bytes())
}

fn below(directory: &[u8], name: &str) -> Vec<u8> {
    [directory, b"/", name.as_bytes()].concat()
}
