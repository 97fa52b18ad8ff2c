//! The stdio of one process: its input and outputs, its terminal, and the readers of its FIFOs.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, inotify, open};
use rustix::io::{self, Errno};
use rustix::termios::{Winsize, tcsetwinsize};
use sys::Explained;
use sys::clock::Instant;

use crate::Warn;
use crate::console::{ConsoleSocket, Progress};
use crate::error::{Context, Error};
use crate::input::{Input, Sink};
use crate::output::{Ended, Output};
use crate::poller::{Poller, Token};
use crate::stdio::{Direction, Opened, Owner, ProcessStdio, process_pipe, set_nonblocking};

/// The client's side of a process's stdio: what [`open_client`](crate::stdio::open_client) opened.
#[derive(Debug, Default)]
pub struct Client {
    /// Where stdin comes from.
    pub stdin: Option<Opened>,
    /// Where stdout, or the output of a terminal, goes to.
    pub stdout: Option<Opened>,
    /// Where stderr goes to. Not used with a terminal.
    pub stderr: Option<Opened>,
}

/// The stdio of one process. All descriptors that it waits on are watched with one token.
#[derive(Debug)]
pub struct Streams {
    token: Token,
    input: Option<Input>,
    outputs: Vec<Output>,
    awaited: Option<AwaitedTerminal>,
    terminal: Option<OwnedFd>,
    readers: Readers,
}

/// What is needed once the runtime has sent the terminal.
#[derive(Debug)]
struct AwaitedTerminal {
    console: ConsoleSocket,
    stdin: Option<Opened>,
    output: Opened,
    size: Option<Winsize>,
}

/// How the shim learns that a process has opened one of the client's FIFOs for reading.
#[derive(Debug)]
enum Readers {
    /// No output waits for a reader, or none has yet.
    NotAwaited,
    /// An inotify instance reports it.
    Watched(OwnedFd),
    /// The kernel had no inotify instance or watch left. The event loop has to look again and again.
    Unwatchable,
}

/// A terminal's size.
fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn resize(terminal: &OwnedFd, size: Winsize, warn: Warn<'_>) {
    if let Err(e) = tcsetwinsize(terminal, size) {
        warn(&format!("resize the terminal: {}", Explained(e)));
    }
}

impl Streams {
    fn new(token: Token) -> Streams {
        Streams { token, input: None, outputs: Vec::new(), awaited: None, terminal: None, readers: Readers::NotAwaited }
    }

    /// Makes pipes for a process without a terminal. Returns the process's ends too: the caller passes them to the runtime and
    /// then drops them, because a pipe that the shim holds open never ends.
    pub fn with_pipes(
        client: Client,
        owner: Owner,
        poller: &Poller,
        token: Token,
    ) -> Result<(Streams, ProcessStdio), Error> {
        let mut streams = Streams::new(token);
        let mut stdio = ProcessStdio::default();
        if let Some(opened) = client.stdin {
            let (theirs, ours) = process_pipe(owner, Direction::FromClient)?;
            stdio.stdin = Some(theirs);
            streams.input = Some(Input::new(Some(opened), Sink::Pipe(ours)));
        }
        let outputs = [("stdout", client.stdout, &mut stdio.stdout), ("stderr", client.stderr, &mut stdio.stderr)];
        for (name, opened, end) in outputs {
            if let Some(opened) = opened {
                let (theirs, ours) = process_pipe(owner, Direction::ToClient)?;
                *end = Some(theirs);
                streams.outputs.push(Output::new(name, ours, opened, true));
            }
        }
        streams.watch(poller)?;
        Ok((streams, stdio))
    }

    /// Listens on a console socket at the path `console` for a process with a terminal. The terminal gets `size` (columns, rows)
    /// if there is one. Output that no client wants is read too, or the process would block.
    pub fn with_terminal(
        client: Client,
        console: &str,
        size: Option<(u16, u16)>,
        poller: &Poller,
        token: Token,
    ) -> Result<Streams, Error> {
        let output = match client.stdout {
            Some(opened) => opened,
            None => {
                let fd = open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
                Opened { fd: fd.context(|| "open /dev/null".into())?, keeper: None }
            }
        };
        let console = ConsoleSocket::listen(console)?;
        poller.watch(console.waits_on(), token).context(|| "watch the console socket".into())?;
        let size = size.map(|(columns, rows)| winsize(columns, rows));
        let mut streams = Streams::new(token);
        streams.awaited = Some(AwaitedTerminal { console, stdin: client.stdin, output, size });
        Ok(streams)
    }

    fn watch(&self, poller: &Poller) -> Result<(), Error> {
        let inputs = self.input.iter().flat_map(Input::descriptors);
        for fd in inputs.chain(self.outputs.iter().flat_map(Output::descriptors)) {
            match poller.watch_edges(fd, self.token) {
                // The input and the output of a terminal share its master.
                Err(Errno::EXIST) => {}
                result => result.context(|| "watch stdio".into())?,
            }
        }
        Ok(())
    }

    /// Receives the terminal if the runtime has sent it, and closes the console socket. To be called once the runtime has
    /// ended. Returns whether the process has a terminal.
    pub fn finish_console(&mut self, poller: &Poller, warn: Warn<'_>) -> bool {
        self.attend_console(poller, warn);
        self.awaited = None;
        self.terminal.is_some()
    }

    fn attend_console(&mut self, poller: &Poller, warn: Warn<'_>) {
        let Some(awaited) = &mut self.awaited else { return };
        match awaited.console.advance() {
            Ok(Progress::Nothing) => {}
            Ok(Progress::Connected) => {
                let _ = poller.watch(awaited.console.waits_on(), self.token);
            }
            Ok(Progress::Terminal(master)) => {
                if let Err(e) = self.take_terminal(master, poller, warn) {
                    warn(&format!("take the terminal: {e}"));
                }
            }
            Err(e) => warn(&format!("receive the terminal: {}", Explained(e))),
        }
    }

    fn take_terminal(&mut self, master: OwnedFd, poller: &Poller, warn: Warn<'_>) -> Result<(), Error> {
        // Closes the console socket, so that the runtime's hanging up does not wake the shim.
        let Some(AwaitedTerminal { stdin, output, size, .. }) = self.awaited.take() else { return Ok(()) };
        let operation = || String::from("its descriptor");
        let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        set_nonblocking(&master).context(operation)?;
        if let Some(size) = size {
            resize(&master, size, warn);
        }
        self.input = Some(Input::new(stdin, Sink::Terminal(copy(&master).context(operation)?)));
        self.outputs.push(Output::new("terminal", copy(&master).context(operation)?, output, false));
        self.terminal = Some(master);
        self.watch(poller)
    }

    /// Ends the process's stdin after the bytes that the client has written so far.
    pub fn close_stdin(&mut self) {
        if let Some(input) = &mut self.input {
            input.close();
        }
    }

    /// Resizes the terminal. Does nothing without one.
    pub fn resize(&mut self, columns: u16, rows: u16, warn: Warn<'_>) {
        if let Some(terminal) = &self.terminal {
            resize(terminal, winsize(columns, rows), warn);
        }
    }

    /// Moves what can be moved. True if there may be more to move at once. `ended`: what is known of the process, once it has
    /// ended.
    pub(crate) fn advance(&mut self, ended: Option<Ended>, poller: &Poller, warn: Warn<'_>) -> bool {
        self.attend_console(poller, warn);
        if let Readers::Watched(readers) = &self.readers {
            let mut buffer = [0; 1024];
            // It does not matter which FIFO was opened: all outputs get a turn.
            while rustix::io::read(readers, &mut buffer).is_ok() {}
        }
        let mut more = self.advance_input(ended.is_some(), poller, warn);
        for output in &mut self.outputs {
            if self.terminal.is_some() {
                output.look_again();
            }
            more |= match ended {
                None => output.serve(Instant::now, warn),
                Some(ended) => output.wind_up(ended, warn),
            };
        }
        more | self.watch_for_readers(poller, warn)
    }

    fn advance_input(&mut self, has_ended: bool, poller: &Poller, warn: Warn<'_>) -> bool {
        if has_ended && self.input.as_ref().is_some_and(Input::is_terminal) {
            // The end of a terminal's input holds the terminal open, so that its output would not end.
            self.input = None;
        }
        let Some(input) = &mut self.input else { return false };
        let was_watched = input.terminal().is_some();
        let more = input.advance(warn);
        if let Some(terminal) = input.terminal().filter(|_| !was_watched) {
            if let Err(e) = poller.watch_edges(terminal, self.token) {
                warn(&format!("watch the terminal: {}; its program may not see the end of stdin", Explained(e)));
            }
        }
        more
    }

    /// Begins to watch for processes that open the client's FIFOs, if an output waits for a reader. True if all outputs should
    /// get another turn, because a reader may have come before the watch began.
    fn watch_for_readers(&mut self, poller: &Poller, warn: Warn<'_>) -> bool {
        if matches!(self.readers, Readers::Watched(_)) || !self.outputs.iter().any(Output::waits_for_reader) {
            return false;
        }
        match self.make_watch(poller) {
            Ok(readers) => {
                self.readers = Readers::Watched(readers);
                return true;
            }
            Err(_) if matches!(self.readers, Readers::Unwatchable) => {}
            Err(e) => {
                self.readers = Readers::Unwatchable;
                warn(&format!("a reader's coming is looked for, as it cannot be watched for: {}", Explained(e)));
            }
        }
        false
    }

    fn make_watch(&self, poller: &Poller) -> io::Result<OwnedFd> {
        let readers = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        for output in &self.outputs {
            let path = format!("/proc/self/fd/{}", output.sink().as_raw_fd());
            inotify::add_watch(&readers, path, inotify::WatchFlags::OPEN)?;
        }
        poller.watch(&readers, self.token)?;
        Ok(readers)
    }

    /// Whether all output has been delivered or dropped.
    pub(crate) fn are_done(&self) -> bool {
        self.outputs.iter().all(Output::is_done)
    }

    /// When the next turn is due even if nothing becomes ready.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.outputs.iter().filter_map(Output::deadline).min()
    }

    /// Whether an output waits for a reader whose coming the kernel does not report.
    pub(crate) fn must_look_for_readers(&self) -> bool {
        matches!(self.readers, Readers::Unwatchable) && self.outputs.iter().any(Output::waits_for_reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use rustix::fd::AsFd;
    use rustix::io::IoSlice;
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, connect,
        sendmsg, socket,
    };
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::tcgetwinsize;
    use std::mem::MaybeUninit;

    const QUIET: Warn<'static> = &|_| {};

    /// Sends a terminal's master as a runtime does.
    fn send(console: &str, master: &OwnedFd) {
        let connection = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("makes");
        connect(&connection, &SocketAddrUnix::new(console).expect("fits")).expect("connects");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [master.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&connection, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::empty()).expect("sends");
    }

    #[test]
    fn terminal_that_the_runtime_sends_is_sized_and_its_output_moved() {
        let directory = std::env::temp_dir().join(std::format!("streams-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("creates");
        let output = directory.join("output");
        std::fs::write(&output, "").expect("writes");
        let stdout = crate::stdio::open_client(output.to_str().expect("text"), Direction::ToClient).expect("opens");
        let client = Client { stdout, ..Client::default() };
        let console = directory.join("console").into_os_string().into_string().expect("text");
        let poller = Poller::new().expect("makes");
        let mut streams =
            Streams::with_terminal(client, &console, Some((132, 43)), &poller, Token(3)).expect("listens");
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("opens");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("is ours");
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("opens");
        send(&console, &master);
        let mut tokens = Vec::new();
        poller.wait(Some(Duration::ZERO), |token| tokens.push(token)).expect("waits");
        assert_eq!(tokens, [Token(3)]);
        streams.advance(None, &poller, QUIET);
        assert!(streams.finish_console(&poller, QUIET) && !std::fs::exists(&console).expect("looks"));
        let size = tcgetwinsize(&slave).expect("a terminal");
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
        streams.resize(80, 24, QUIET);
        assert_eq!(tcgetwinsize(&slave).expect("a terminal").ws_col, 80);
        rustix::io::write(&slave, b"hello").expect("fits");
        streams.advance(None, &poller, QUIET);
        assert_eq!(std::fs::read(&output).expect("reads"), b"hello");
        std::fs::remove_dir_all(&directory).expect("removes");
    }

    #[test]
    fn console_socket_without_a_terminal_is_removed() {
        let console = std::env::temp_dir().join(std::format!("console-{}", std::process::id()));
        let console = console.into_os_string().into_string().expect("text");
        let poller = Poller::new().expect("makes");
        let mut streams =
            Streams::with_terminal(Client::default(), &console, None, &poller, Token(0)).expect("listens");
        assert!(std::fs::exists(&console).expect("looks"));
        assert!(!streams.finish_console(&poller, QUIET) && !std::fs::exists(&console).expect("looks"));
    }
}
