//! The shim's life: prepare stdio, run the runtime, then one loop until the process has ended and all that it
//! wrote has been delivered.
//!
//! Every turn of the loop tries everything that moves bytes; what woke it only matters for the descriptors that
//! are read for themselves (children, control, console, the container's init, a reader's coming).

use alloc::format;
use alloc::vec::Vec;
use contract::process_files::{CONTROL, EXIT};
use contract::{Command, ConsoleSize, Decoder, Request, UnknownCommand, status};
use core::time::Duration;
use failpoint::{Point, reach};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, inotify, open};
use rustix::io::{self, Errno};
use rustix::process::{Pid, set_child_subreaper};
use rustix::termios::{Winsize, tcsetwinsize};
use sys::Explained;
use sys::child::ExitStatus;
use sys::clock::Instant;
use sys::pidfd::PidFd;
use sys::signal::SignalFd;

use crate::console::ConsoleSocket;
use crate::error::{Context, Failure, warn};
use crate::files;
use crate::input::{Input, Sink};
use crate::oci::{self, ProcessStdio, Target};
use crate::oom::OomCount;
use crate::output::{Ended, Output, READER_WAIT};
use crate::poller::{Poller, Ready, Token};
use crate::request;
use crate::stdio::{Direction, Opened, open_client, process_pipe, set_nonblocking};

/// How many seconds to wait before the status is written again, where it could not be: nothing tells when it can.
const STATUS_PAUSE: u32 = 1;

/// How often readers are looked for that cannot be watched for.
const BLIND_PAUSE: Duration = Duration::from_millis(250);

/// How long what a failed runtime has left may take to die.
const CHILDREN_LIMIT: Duration = Duration::from_secs(5);

/// Another descriptor of the same open file.
fn copy(fd: &OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
}

/// Whose end ends everything else.
#[derive(Debug)]
enum ContainerInit {
    /// This shim's own process. `namespace`: it is the first of its PID namespace, so that the kernel kills all
    /// others before its end can be seen (pid_namespaces(7)).
    Own { namespace: bool },
    /// Another shim's process, still there when it was looked up.
    Other(OwnedFd),
    /// Another shim's process that has ended.
    Gone(Instant),
}

/// The whole state.
#[derive(Debug)]
pub(crate) struct Shim {
    target: Target,
    request: Request,
    poller: Poller,
    children: SignalFd,
    control: OwnedFd,
    commands: Decoder,
    /// Held open for as long as the process is not over.
    _exit: OwnedFd,
    console: Option<ConsoleSocket>,
    /// A terminal's client side until the terminal is there.
    terminal_stdio: Option<(Option<Opened>, Opened)>,
    terminal: Option<OwnedFd>,
    input: Option<Input>,
    outputs: Vec<Output>,
    /// There is no inotify instance or watch to be had.
    blind: bool,
    /// Tells when somebody opens a FIFO; made when first needed.
    readers: Option<OwnedFd>,
    init: ContainerInit,
    killing: Option<Pid>,
    ended: Option<(ExitStatus, Instant)>,
    childless: bool,
    /// The process's pid, once it is there.
    process: u32,
    /// Kills for memory in the group of a container's init.
    oom: Option<OomCount>,
}

impl Shim {
    /// Everything up to a running process: stdio open, the runtime run, `pid` written.
    pub(crate) fn prepare(target: Target) -> Result<Shim, Failure> {
        reach(Point::ShimBegun);
        sys::signal::block_all().context(|| "block signals".into())?;
        set_child_subreaper(Pid::from_raw(1)).context(|| "become a subreaper".into())?;
        let exit = match open(EXIT, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NXIO) => return Err(Failure::NoDaemon),
            Err(e) => return Err(Failure::System("open exit".into(), e)),
        };
        reach(Point::ShimExitOpened);
        let control = open(CONTROL, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open control".into())?;
        // A daemon that is spared by the OOM killer does not mean its containers to be. Refused where the value
        // was set by someone with more rights.
        let _ = files::write("/proc/self/oom_score_adj", "0");
        let request = request::read()?;
        files::reserve_status().context(|| "make room for the exit status".into())?;
        let poller = Poller::new().context(|| "make an epoll instance".into())?;
        let children =
            SignalFd::new(&[rustix::process::Signal::CHILD.as_raw()]).context(|| "make a signalfd".into())?;
        poller.watch(&children, Token::Children).context(|| "watch children".into())?;
        poller.watch(&control, Token::Control).context(|| "watch control".into())?;
        let mut shim = Shim {
            target,
            request,
            poller,
            children,
            control,
            commands: Decoder::default(),
            _exit: exit,
            console: None,
            terminal_stdio: None,
            terminal: None,
            input: None,
            outputs: Vec::new(),
            blind: false,
            readers: None,
            init: ContainerInit::Own { namespace: true },
            killing: None,
            ended: None,
            childless: false,
            process: 0,
            oom: None,
        };
        let stdio = if shim.request.terminal { shim.open_terminal()? } else { shim.open_pipes()? };
        reach(Point::ShimStdioOpened);
        shim.run_runtime(stdio)?;
        Ok(shim)
    }

    fn open_pipes(&mut self) -> Result<ProcessStdio, Failure> {
        let mut stdio = ProcessStdio::default();
        let request = &self.request;
        if let Some(client) = open_client("stdin", &request.containerd_stdin, Direction::FromClient)? {
            let (theirs, ours) = process_pipe(request, Direction::FromClient)?;
            stdio.stdin = Some(theirs);
            self.input = Some(Input::new(Some(client), Sink::Pipe(ours)));
        }
        for (name, path) in [("stdout", &request.containerd_stdout), ("stderr", &request.containerd_stderr)] {
            if let Some(client) = open_client(name, path, Direction::ToClient)? {
                let (theirs, ours) = process_pipe(request, Direction::ToClient)?;
                let end = if name == "stdout" { &mut stdio.stdout } else { &mut stdio.stderr };
                *end = Some(theirs);
                self.outputs.push(Output::new(name, ours, client, true));
            }
        }
        self.watch_stdio()?;
        Ok(stdio)
    }

    fn open_terminal(&mut self) -> Result<ProcessStdio, Failure> {
        let from = open_client("stdin", &self.request.containerd_stdin, Direction::FromClient)?;
        let to = match open_client("stdout", &self.request.containerd_stdout, Direction::ToClient)? {
            Some(opened) => opened,
            // What nobody wants is read all the same, or the process would block.
            None => {
                let fd = open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
                Opened { fd: fd.context(|| "open /dev/null".into())?, keeper: None }
            }
        };
        self.terminal_stdio = Some((from, to));
        let console = ConsoleSocket::listen()?;
        self.poller.watch(console.waits_on(), Token::Console).context(|| "watch the console socket".into())?;
        self.console = Some(console);
        Ok(ProcessStdio::default())
    }

    fn watch_stdio(&self) -> Result<(), Failure> {
        let inputs = self.input.iter().flat_map(Input::descriptors);
        for fd in inputs.chain(self.outputs.iter().flat_map(Output::descriptors)) {
            match self.poller.watch_edges(fd) {
                // A terminal's master is the source of one and the sink of the other.
                Err(Errno::EXIST) => {}
                result => result.context(|| "watch stdio".into())?,
            }
        }
        Ok(())
    }

    /// Runs the runtime, moving bytes meanwhile, and writes down which process it made.
    fn run_runtime(&mut self, stdio: ProcessStdio) -> Result<(), Failure> {
        let socket = self.console.as_ref().map(ConsoleSocket::path);
        let pid = oci::start(&self.target, &self.request, socket.as_deref(), &stdio)?;
        // The process has its ends; ours would keep a pipe open that it has closed.
        drop(stdio);
        reach(Point::ShimRuntimeStarted);
        let mut more = false;
        let status = loop {
            while self.children.take().context(|| "read signals".into())?.is_some() {}
            // Only the runtime is reaped here: the process may end before it is known which one it is.
            if let Some(status) = sys::child::try_reap(pid).context(|| "wait for the runtime".into())? {
                break status;
            }
            let timeout = more.then_some(Duration::ZERO);
            let ready = self.poller.wait(timeout).context(|| "wait for events".into())?;
            more = self.attend(ready);
        };
        self.attend_console();
        if status != 0 {
            self.end_children();
            let (how, what) = (status::describe(status), self.request.way().name());
            return Err(Failure::Runtime(format!("{} {what} ended with {how}", self.target.runtime.to_string_lossy())));
        }
        if self.request.terminal && self.terminal.is_none() {
            self.end_children();
            return Err(Failure::Runtime(format!("{} sent no terminal", self.target.runtime.to_string_lossy())));
        }
        self.console = None;
        if !self.request.checkpoint.is_empty() {
            oci::forget_restore();
        }
        reach(Point::ShimRuntimeEnded);
        let process = files::record_process()?;
        // The daemon starts the program by another runtime, if it has not been started yet.
        self.oom = OomCount::begin(&self.request.memory_mount, process, &self.poller);
        self.init = if self.request.exec {
            self.find_init()
        } else {
            ContainerInit::Own { namespace: sys::procfs::is_namespace_init(process).unwrap_or(false) }
        };
        self.process = process;
        Ok(())
    }

    /// Kills and reaps what a failed runtime has left in the container. A zombie in the container's PID namespace would keep the
    /// container from ending until the zombie's new parent has reaped it (pid_namespaces(7)), which PID 1 may do late or never.
    fn end_children(&self) {
        let begun = Instant::now();
        // Only a child's end is waited for here.
        self.poller.forget(&self.control);
        loop {
            while self.children.take().is_ok_and(|taken| taken.is_some()) {}
            while sys::child::try_reap_any().is_ok_and(|ended| ended.is_some()) {}
            if !oci::kill_children_elsewhere() {
                return;
            }
            let Some(left) = CHILDREN_LIMIT.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
                return warn("what the runtime has left in the container does not end");
            };
            // The signal of a child that has ended since the signals were taken is still there.
            let _ = self.poller.wait(Some(left));
        }
    }

    fn find_init(&self) -> ContainerInit {
        let init =
            files::recorded_process("../init").and_then(|(pid, starttime)| PidFd::open(pid, starttime).ok().flatten());
        match init {
            Some(pidfd) => {
                let pidfd = pidfd.into_fd();
                if let Err(e) = self.poller.watch(&pidfd, Token::ContainerInit) {
                    warn(&format!("watch the container's init: {}", Explained(e)));
                }
                ContainerInit::Other(pidfd)
            }
            None => ContainerInit::Gone(Instant::now()),
        }
    }

    /// The loop, until all is delivered and `exitStatus` is written.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let mut ready = Ready::default();
        reach(Point::ShimWatches);
        loop {
            // Who has ended is found out before the bytes are moved: what counts as delivered depends on it.
            self.reap()?;
            let more = self.attend(ready);
            if self.is_over() {
                break;
            }
            let timeout = if more { Some(Duration::ZERO) } else { self.next_deadline() };
            ready = self.poller.wait(timeout).context(|| "wait for events".into())?;
        }
        reach(Point::ShimDelivered);
        let status = self.ended.map_or(status::UNKNOWN, |(status, _)| status);
        if let Some(oom) = self.oom.take() {
            oom.end(status);
        }
        // Nobody else knows it: `exit` stays open until it is written, however long the disk is full or read-only.
        while let Err(e) = files::write_status(status) {
            if !sys::exhausted::will_pass(e) {
                return Err(Failure::System("write exitStatus".into(), e));
            }
            files::sleep(STATUS_PAUSE);
        }
        Ok(())
    }

    /// Reacts to what is ready and moves bytes; true if there may be more to move at once.
    fn attend(&mut self, ready: Ready) -> bool {
        if ready.has(Token::Memory) {
            self.count_oom();
        }
        if ready.has(Token::Control) {
            self.obey();
        }
        if ready.has(Token::Console) {
            self.attend_console();
        }
        if ready.has(Token::ContainerInit) {
            if let ContainerInit::Other(pidfd) = &self.init {
                self.poller.forget(pidfd);
                self.init = ContainerInit::Gone(Instant::now());
            }
        }
        if ready.has(Token::Reader) {
            if let Some(readers) = &self.readers {
                let mut buffer = [0; 1024];
                // Which FIFO it was does not matter: all are looked at again.
                while rustix::io::read(readers, &mut buffer).is_ok() {}
            }
        }
        let mut more = self.advance_input();
        let ended = self.ended.map(|_| Ended { nobody_writes: self.nobody_writes(), now: Instant::now() });
        for output in &mut self.outputs {
            if self.terminal.is_some() {
                output.look_again();
            }
            more |= match ended {
                None => output.serve(Instant::now),
                Some(ended) => output.wind_up(ended),
            };
        }
        if let (Some(ended), ContainerInit::Gone(since)) = (ended, &self.init) {
            if ended.now.since(*since) >= READER_WAIT {
                self.outputs
                    .iter_mut()
                    .for_each(|output| output.give_up("the container has ended and it was not taken"));
            }
        }
        more | self.wait_for_readers()
    }

    /// Moves what can be moved of stdin; true if there may be more at once.
    fn advance_input(&mut self) -> bool {
        if self.ended.is_some() && self.input.as_ref().is_some_and(Input::is_terminal) {
            // Its end holds the terminal open.
            self.input = None;
        }
        let Some(input) = &mut self.input else { return false };
        let was_watched = input.terminal().is_some();
        let more = input.advance();
        if let Some(terminal) = input.terminal().filter(|_| !was_watched) {
            if let Err(e) = self.poller.watch_edges(terminal) {
                warn(&format!("watch the terminal: {}; its program may not see the end of stdin", Explained(e)));
            }
        }
        more
    }

    /// Whether nothing in the container can write any more.
    fn nobody_writes(&self) -> bool {
        match self.init {
            ContainerInit::Own { namespace } => namespace || self.childless || self.has_waited_enough(),
            ContainerInit::Other(_) => false,
            ContainerInit::Gone(_) => true,
        }
    }

    fn is_over(&self) -> bool {
        self.ended.is_some()
            && (self.killing.is_none() || self.has_waited_enough())
            && self.outputs.iter().all(Output::is_done)
    }

    /// Whether the process has been over for so long that what hangs delays its exit no more.
    fn has_waited_enough(&self) -> bool {
        self.ended.is_some_and(|(_, at)| at.elapsed() >= READER_WAIT)
    }

    fn next_deadline(&self) -> Option<Duration> {
        let last = self.ended.and_then(|(_, ended)| match self.init {
            ContainerInit::Own { namespace: false } if !self.has_waited_enough() => Some(ended + READER_WAIT),
            ContainerInit::Gone(since) => Some(since + READER_WAIT),
            _ => None,
        });
        let own = self.outputs.iter().filter_map(Output::deadline);
        let left = own.chain(last).min().map(|at| at.since(Instant::now()));
        if self.blind && self.outputs.iter().any(Output::waits_for_reader) {
            return Some(left.map_or(BLIND_PAUSE, |left| left.min(BLIND_PAUSE)));
        }
        left
    }

    fn reap(&mut self) -> Result<(), Failure> {
        let mut some = false;
        while self.children.take().context(|| "read signals".into())?.is_some() {
            some = true;
        }
        if some && self.ended.is_none() {
            self.count_oom();
        }
        loop {
            match sys::child::try_reap_any() {
                Ok(Some((pid, status))) => self.child_ended(pid, status),
                Ok(None) => break,
                Err(Errno::CHILD) => {
                    self.childless = true;
                    break;
                }
                Err(e) => return Err(Failure::System("wait for children".into(), e)),
            }
        }
        Ok(())
    }

    fn count_oom(&mut self) {
        if let Some(oom) = &mut self.oom {
            oom.look();
        }
    }

    fn child_ended(&mut self, pid: Pid, status: ExitStatus) {
        if self.killing == Some(pid) {
            self.killing = None;
        } else if pid.as_raw_nonzero().get() as u32 == self.process {
            self.ended = Some((status, Instant::now()));
            reach(Point::ShimReaped);
            if matches!(self.init, ContainerInit::Own { namespace: false }) {
                match oci::start_kill_all(&self.target, &self.request) {
                    Ok(child) => self.killing = Some(child),
                    Err(e) => warn(&format!("what is left in the container was not killed: {e}")),
                }
            }
        }
    }

    /// Sees to it that somebody's opening a FIFO that is waited for wakes the loop. True if all is to be tried
    /// again, since one may have come before the watch was there.
    fn wait_for_readers(&mut self) -> bool {
        if self.readers.is_some() || !self.outputs.iter().any(Output::waits_for_reader) {
            return false;
        }
        let watched =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).and_then(|readers| {
                for output in &self.outputs {
                    let path = format!("/proc/self/fd/{}", output.sink().as_raw_fd());
                    inotify::add_watch(&readers, path, inotify::WatchFlags::OPEN)?;
                }
                self.poller.watch(&readers, Token::Reader)?;
                Ok(readers)
            });
        match watched {
            Ok(readers) => self.readers = Some(readers),
            Err(e) if !self.blind => {
                self.blind = true;
                warn(&format!("a reader's coming is looked for, as it cannot be watched for: {}", Explained(e)));
            }
            Err(_) => {}
        }
        self.readers.is_some()
    }

    fn attend_console(&mut self) {
        let Some(console) = &mut self.console else { return };
        match console.advance() {
            Ok(Some(master)) => {
                // The runtime's hanging up is not to wake anybody.
                self.console = None;
                if let Err(e) = self.take_terminal(master) {
                    warn(&format!("take the terminal: {e}"));
                }
            }
            Ok(None) => {
                let _ = self.poller.watch(console.waits_on(), Token::Console);
            }
            Err(e) => warn(&format!("receive the terminal: {}", Explained(e))),
        }
    }

    fn take_terminal(&mut self, master: OwnedFd) -> Result<(), Failure> {
        let Some((from, to)) = self.terminal_stdio.take() else { return Ok(()) };
        let what = || "its descriptor".into();
        set_nonblocking(&master).context(what)?;
        if let Some(ConsoleSize { width, height }) = self.request.console_size.filter(|size| size.width > 0) {
            resize(&master, width, height);
        }
        self.input = Some(Input::new(from, Sink::Terminal(copy(&master).context(what)?)));
        self.outputs.push(Output::new("terminal", copy(&master).context(what)?, to, false));
        self.terminal = Some(master);
        self.watch_stdio()
    }

    fn obey(&mut self) {
        let mut buffer = [0; 512];
        while let Ok(n @ 1..) = rustix::io::read(&self.control, &mut buffer) {
            for command in self.commands.decode(&buffer[..n]) {
                match command {
                    Err(UnknownCommand(line)) => warn(&format!("control: not a command: {line:?}")),
                    Ok(Command::CloseStdin) => {
                        if let Some(input) = &mut self.input {
                            input.close();
                        }
                    }
                    Ok(Command::Resize { columns, rows }) => {
                        if let Some(terminal) = &self.terminal {
                            resize(terminal, columns, rows);
                        }
                    }
                }
            }
        }
    }
}

fn resize(terminal: &OwnedFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    if let Err(e) = tcsetwinsize(terminal, size) {
        warn(&format!("resize the terminal: {}", Explained(e)));
    }
}
