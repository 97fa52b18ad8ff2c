//! The shim's life: open the stdio, run the runtime, then one loop until the process is over.
//!
//! Every turn of the loop tries to move bytes, whatever woke it. The [`Token`]s matter only for the descriptors that are read for
//! a message.

use alloc::format;
use contract::process_files::{CONSOLE, CONTROL, EXIT, OOM_KILLS};
use contract::{Command, ConsoleSize, Decoder, Request, UnknownCommand, status};
use core::time::Duration;
use failpoint::{Point, reach};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Pid, set_child_subreaper};
use shim_core::oom::OomCount;
use shim_core::poller::{Poller, Token};
use shim_core::process::{Process, Role};
use shim_core::stdio::{Direction, Opened, Owner, ProcessStdio, open_client};
use shim_core::streams::{Client, Streams};
use shim_core::{Context, Error, strays};
use sys::Explained;
use sys::child::ExitStatus;
use sys::clock::Instant;
use sys::pidfd::PidFd;
use sys::signal::SignalFd;

use crate::error::{Failure, warn};
use crate::files;
use crate::request;
use crate::runtime::{self, Target};

/// SIGCHLD is pending: a child has ended.
const CHILDREN: Token = Token(0);
/// The daemon has sent a command.
const CONTROL_READABLE: Token = Token(1);
/// The container's init, another shim's process, has ended.
const CONTAINER_INIT: Token = Token(2);
/// The count of OOM kills has changed.
const MEMORY: Token = Token(3);
/// Bytes can be moved.
const STREAMS: Token = Token(4);

/// The set of tokens that one wait reported.
#[derive(Debug, Default, Clone, Copy)]
struct Ready(u64);

impl Ready {
    fn add(&mut self, token: Token) {
        self.0 |= 1 << token.0;
    }

    fn has(self, token: Token) -> bool {
        self.0 & (1 << token.0) != 0
    }
}

/// How long the processes that a failed runtime has left may take to die.
const CHILDREN_LIMIT: Duration = Duration::from_secs(5);

/// The shim with everything that it holds open.
#[derive(Debug)]
struct Shim {
    target: Target,
    request: Request,
    poller: Poller,
    children: SignalFd,
    control: OwnedFd,
    commands: Decoder,
    /// The writing end of `exit`. It closes when the shim ends, which tells the daemon that the process is over.
    _exit: OwnedFd,
    process: Process,
    /// The process's pid, once the runtime has made the process.
    pid: u32,
    /// The runtime that kills what is left in the container.
    killing: Option<Pid>,
    /// The container's init, for an added process.
    container_init: Option<PidFd>,
    /// Counts OOM kills in the cgroup of a container's init.
    oom: Option<OomCount>,
}

/// Runs the shim, from the opening of its files until the process is over and `exitStatus` is written. It calls `prepared` once the
/// process is there. All of it is one function, because each move of the shim's state costs as many instructions as it has bytes.
pub(crate) fn run(target: Target, prepared: fn()) -> Result<(), Failure> {
    reach(Point::ShimBegun);
    sys::signal::block_all().context(|| "block signals".into())?;
    set_child_subreaper(Pid::from_raw(1)).context(|| "become a subreaper".into())?;
    let exit = match open(EXIT, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NXIO) => return Err(Failure::NoDaemon),
        exit => exit.context(|| "open exit".into())?,
    };
    reach(Point::ShimExitOpened);
    let control = open(CONTROL, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .context(|| "open control".into())?;
    // The OOM killer may spare the daemon. That is not meant for containers. The kernel refuses this if a process with more
    // rights has set the value.
    let _ = shim_core::files::write(CWD, "/proc/self/oom_score_adj", "0");
    let request = request::read()?;
    files::reserve_status().context(|| "make room for the exit status".into())?;
    let poller = Poller::new().context(|| "make an epoll instance".into())?;
    let children = SignalFd::new(&[rustix::process::Signal::CHILD.as_raw()]).context(|| "make a signalfd".into())?;
    poller.watch(&children, CHILDREN).context(|| "watch children".into())?;
    poller.watch(&control, CONTROL_READABLE).context(|| "watch control".into())?;
    let (streams, stdio) = open_streams(&request, &poller)?;
    reach(Point::ShimStdioOpened);
    let mut shim = Shim {
        target,
        request,
        poller,
        children,
        control,
        commands: Decoder::default(),
        _exit: exit,
        process: Process::new(streams),
        pid: 0,
        killing: None,
        container_init: None,
        oom: None,
    };
    shim.make_process(stdio)?;
    prepared();
    shim.serve()
}

impl Shim {
    /// Runs the runtime, moving bytes meanwhile, and records the process that it made.
    fn make_process(&mut self, stdio: ProcessStdio) -> Result<(), Failure> {
        let runtime = runtime::start_making(&self.target, &self.request, &stdio)?;
        // The runtime has its ends now. A pipe that the shim holds open would not end when the process closes it.
        drop(stdio);
        reach(Point::ShimRuntimeStarted);
        let status = self.wait_for_runtime(runtime)?;
        let has_terminal = self.process.streams().finish_console(&self.poller, &warn);
        if status != 0 {
            self.end_children();
            let (how, what) = (status::describe(status), self.request.way().name());
            return Err(Failure::Runtime(format!("{} {what} ended with {how}", self.target.runtime_name())));
        }
        if self.request.terminal && !has_terminal {
            self.end_children();
            return Err(Failure::Runtime(format!("{} sent no terminal", self.target.runtime_name())));
        }
        if !self.request.checkpoint.is_empty() {
            runtime::forget_restore();
        }
        reach(Point::ShimRuntimeEnded);
        self.pid = files::record_process()?;
        // If the daemon has not started the program yet, it does so by another runtime.
        self.oom = OomCount::begin(&self.request.memory_mount, self.pid, &self.poller, MEMORY);
        if self.request.exec {
            self.process.set_role(Role::Added);
            self.watch_container_init();
        } else {
            let ends_namespace = sys::procfs::is_namespace_init(self.pid).unwrap_or(false);
            self.process.set_role(Role::Init { ends_namespace });
        }
        Ok(())
    }

    fn wait_for_runtime(&mut self, runtime: Pid) -> Result<ExitStatus, Failure> {
        let mut more = false;
        loop {
            self.take_signals()?;
            // Only the runtime is reaped here. The process may end before the shim knows its pid.
            if let Some(status) = sys::child::try_reap(runtime).context(|| "wait for the runtime".into())? {
                return Ok(status);
            }
            let ready = self.wait(more.then_some(Duration::ZERO))?;
            more = self.attend(ready);
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<Ready, Failure> {
        let mut ready = Ready::default();
        self.poller.wait(timeout, |token| ready.add(token)).context(|| "wait for events".into())?;
        Ok(ready)
    }

    /// Takes the pending signals. True if there were any.
    fn take_signals(&self) -> Result<bool, Failure> {
        let mut some = false;
        while self.children.take().context(|| "read signals".into())?.is_some() {
            some = true;
        }
        Ok(some)
    }

    /// Kills and reaps what a failed runtime has left in the container ([`strays`]).
    fn end_children(&self) {
        let begun = Instant::now();
        // Only the end of a child may wake this loop.
        self.poller.forget(&self.control);
        loop {
            let _ = self.take_signals();
            while sys::child::try_reap_any().is_ok_and(|ended| ended.is_some()) {}
            if !strays::kill_in_other_namespaces(&strays::children()) {
                return;
            }
            let Some(left) = CHILDREN_LIMIT.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
                return warn("what the runtime has left in the container does not end");
            };
            // If a child has ended since the signals were taken, its signal is pending, and this returns at once.
            let _ = self.wait(Some(left));
        }
    }

    fn watch_container_init(&mut self) {
        match files::recorded_init().and_then(|(pid, starttime)| PidFd::open(pid, starttime).ok().flatten()) {
            Some(init) => {
                if let Err(e) = self.poller.watch(&init, CONTAINER_INIT) {
                    warn(&format!("watch the container's init: {}", Explained(e)));
                }
                self.container_init = Some(init);
            }
            None => self.process.init_has_ended(),
        }
    }

    /// Runs the loop until the process is over, and writes `exitStatus`.
    fn serve(&mut self) -> Result<(), Failure> {
        let mut ready = Ready::default();
        reach(Point::ShimWatches);
        loop {
            // Reaps before it moves bytes, because what counts as delivered depends on who has ended.
            self.reap()?;
            let more = self.attend(ready);
            if self.process.is_over() {
                break;
            }
            ready = self.wait(if more { Some(Duration::ZERO) } else { self.process.timeout() })?;
        }
        reach(Point::ShimDelivered);
        let status = self.process.status().unwrap_or(status::UNKNOWN);
        if let Some(mut oom) = self.oom.take() {
            oom.wait_for_removal(status);
            write_oom_kills(oom.finish(status));
        }
        Ok(files::write_status(status)?)
    }

    /// Reacts to what is ready and moves bytes. True if there may be more to move at once.
    fn attend(&mut self, ready: Ready) -> bool {
        if ready.has(MEMORY) {
            self.count_oom();
        }
        if ready.has(CONTROL_READABLE) {
            self.obey();
        }
        if ready.has(CONTAINER_INIT) {
            if let Some(init) = self.container_init.take() {
                self.poller.forget(&init);
                self.process.init_has_ended();
            }
        }
        self.process.advance(&self.poller, &warn)
    }

    fn reap(&mut self) -> Result<(), Failure> {
        if self.take_signals()? && self.process.status().is_none() {
            self.count_oom();
        }
        loop {
            match sys::child::try_reap_any() {
                Ok(Some((pid, status))) => self.child_ended(pid, status),
                Ok(None) => return Ok(()),
                Err(Errno::CHILD) => {
                    self.process.set_childless();
                    return Ok(());
                }
                Err(source) => return Err(Error { operation: "wait for children".into(), source }.into()),
            }
        }
    }

    fn count_oom(&mut self) {
        if let Some(oom) = &mut self.oom {
            oom.look();
        }
    }

    fn child_ended(&mut self, pid: Pid, status: ExitStatus) {
        if self.killing == Some(pid) {
            self.killing = None;
            self.process.set_killing(false);
        } else if pid.as_raw_nonzero().get().unsigned_abs() == self.pid {
            let others_may_be_left = self.process.has_ended(status);
            reach(Point::ShimReaped);
            if others_may_be_left {
                match runtime::start_killing(&self.target, &self.request) {
                    Ok(child) => {
                        self.killing = Some(child);
                        self.process.set_killing(true);
                    }
                    Err(e) => warn(&format!("what is left in the container was not killed: {e}")),
                }
            }
        }
    }

    /// Carries out the commands on `control`.
    fn obey(&mut self) {
        let mut buffer = [0; 512];
        while let Ok(n @ 1..) = rustix::io::read(&self.control, &mut buffer) {
            for command in self.commands.decode(&buffer[..n]) {
                match command {
                    Ok(Command::CloseStdin) => self.process.streams().close_stdin(),
                    Ok(Command::Resize { columns, rows }) => self.process.streams().resize(columns, rows, &warn),
                    Err(UnknownCommand(line)) => warn(&format!("control: not a command: {line:?}")),
                }
            }
        }
    }
}

/// Opens the client's stdio, and makes the pipes or the console socket of the process.
fn open_streams(request: &Request, poller: &Poller) -> Result<(Streams, ProcessStdio), Failure> {
    let stdin = open_stdio("stdin", &request.containerd_stdin, Direction::FromClient)?;
    let stdout = open_stdio("stdout", &request.containerd_stdout, Direction::ToClient)?;
    if request.terminal {
        let client = Client { stdin, stdout, stderr: None };
        let size = request.console_size.filter(|size| size.width > 0);
        let size = size.map(|ConsoleSize { width, height }| (width, height));
        let streams = Streams::with_terminal(client, CONSOLE, size, poller, STREAMS)?;
        return Ok((streams, ProcessStdio::default()));
    }
    let stderr = open_stdio("stderr", &request.containerd_stderr, Direction::ToClient)?;
    let owner = Owner { uid: request.root_uid, gid: request.root_gid };
    Ok(Streams::with_pipes(Client { stdin, stdout, stderr }, owner, poller, STREAMS)?)
}

fn open_stdio(name: &str, path: &str, direction: Direction) -> Result<Option<Opened>, Failure> {
    open_client(path, direction).context(|| format!("open {name} {path}")).map_err(Failure::Stdio)
}

/// Writes the number of OOM kills for the daemon, if there were any.
fn write_oom_kills(kills: u64) {
    if kills > 0 {
        if let Err(e) = shim_core::files::write_whole(CWD, OOM_KILLS, &format!("{kills}")) {
            warn(&format!("the count of kills for memory is lost: {}", Explained(e)));
        }
    }
}
