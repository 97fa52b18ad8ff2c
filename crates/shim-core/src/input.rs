//! stdin: moves bytes from the client's path into the process's pipe or terminal.

use rustix::fd::{AsFd, OwnedFd};

use alloc::format;
use sys::Explained;

use crate::Warn;
use crate::mover::{Mover, Step};
use crate::stdio::Opened;
use crate::terminal_end::TerminalEnd;

/// The number of attempts in one turn, after which the event loop looks at everything else.
const TURN: usize = 32;

/// The shim's side of the process's stdin.
#[derive(Debug)]
pub(crate) enum Sink {
    /// A pipe. Closing it is the end of file.
    Pipe(OwnedFd),
    /// A terminal's master. The end of file is a state ([`TerminalEnd`]), which only a client's request begins.
    Terminal(OwnedFd),
}

impl Sink {
    fn fd(&self) -> &OwnedFd {
        match self {
            Sink::Pipe(fd) | Sink::Terminal(fd) => fd,
        }
    }
}

/// The stdin of one process.
#[derive(Debug)]
pub(crate) struct Input {
    /// `None` once stdin is closed. A terminal can have a sink and no source.
    ends: Option<(Option<Opened>, Sink)>,
    mover: Mover,
    /// A client has asked for the end: the number of bytes that have to be moved first.
    closing: Option<u64>,
    /// Keeps the end of a terminal's input, once everything before it has been written.
    terminal_end: Option<TerminalEnd>,
}

impl Input {
    pub(crate) fn new(source: Option<Opened>, sink: Sink) -> Input {
        let mover = Mover::new(matches!(sink, Sink::Pipe(_)));
        Input { ends: Some((source, sink)), mover, closing: None, terminal_end: None }
    }

    /// Whether the sink is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.ends, Some((_, Sink::Terminal(_))))
    }

    /// A further descriptor to wait on, once the terminal's input has ended: the program may change the terminal's mode.
    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal_end.as_ref().map(TerminalEnd::descriptor)
    }

    /// The descriptors to wait on.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        self.ends.iter().flat_map(|(source, sink)| {
            // A pipe becomes writable when the process reads. The output waits on the same master of a terminal.
            let sink = matches!(sink, Sink::Pipe(_)).then_some(sink.fd());
            source.iter().map(|opened| &opened.fd).chain(sink)
        })
    }

    /// Ends the process's stdin after the bytes that are in the FIFO now.
    pub(crate) fn close(&mut self) {
        if self.closing.is_some() {
            return;
        }
        let Some((source, _)) = &self.ends else { return };
        self.closing = match source {
            // The bytes that the mover has read and not written come first.
            Some(Opened { fd, keeper: Some(_) }) => {
                Some(rustix::io::ioctl_fionread(fd).unwrap_or(0) + self.mover.pending() as u64)
            }
            // A plain file is moved to its own end.
            Some(_) => Some(u64::MAX),
            None => Some(0),
        };
    }

    /// Moves what can be moved. True if there may be more to move at once.
    pub(crate) fn advance(&mut self, warn: Warn<'_>) -> bool {
        for _ in 0..TURN {
            if !self.attempt(warn) {
                return false;
            }
        }
        true
    }

    fn attempt(&mut self, warn: Warn<'_>) -> bool {
        if self.closing == Some(0) && self.mover.pending() == 0 {
            return self.pass_on_end(warn);
        }
        let Some((Some(source), sink)) = &self.ends else { return false };
        match self.mover.step(source.fd.as_fd(), sink.fd().as_fd(), self.closing.unwrap_or(u64::MAX)) {
            Step::Moved(n) => {
                if let Some(left) = &mut self.closing {
                    *left = left.saturating_sub(n);
                }
                true
            }
            Step::Blocked => false,
            Step::End => self.source_ended(warn),
            // The process has closed its stdin. Closing the FIFO gives the client's writer a broken pipe.
            Step::SinkGone => {
                self.ends = None;
                false
            }
            Step::Failed(e) => {
                warn(&format!("stdin: {}; what could not be passed on is lost", Explained(e)));
                self.source_ended(warn)
            }
        }
    }

    /// Handles the end of a plain file. It ends the stdin of a process with a pipe. It ends a terminal's input only if a client has
    /// asked for the end.
    fn source_ended(&mut self, warn: Warn<'_>) -> bool {
        match &mut self.ends {
            Some((source, Sink::Terminal(_))) => {
                *source = None;
                self.closing = self.closing.map(|_| 0);
                self.closing.is_some()
            }
            _ => self.pass_on_end(warn),
        }
    }

    fn pass_on_end(&mut self, warn: Warn<'_>) -> bool {
        let Some((source, Sink::Terminal(master))) = &mut self.ends else {
            self.ends = None;
            return false;
        };
        // Closing the FIFO gives the client's writer a broken pipe.
        *source = None;
        let kept = match &mut self.terminal_end {
            Some(end) => end.keep(master),
            None => TerminalEnd::new(master).and_then(|end| self.terminal_end.insert(end).keep(master)),
        };
        match kept {
            Ok(()) => return false,
            // No process has the terminal open.
            Err(rustix::io::Errno::IO) => {}
            Err(e) => warn(&format!("stdin: the end of the terminal's input cannot be passed on: {}", Explained(e))),
        }
        self.ends = None;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn end_of_stdin_follows_the_bytes_that_the_mover_holds() {
        let (fd, keeper) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        let (reader, sink) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        rustix::pipe::fcntl_setpipe_size(&sink, 4096).expect("small");
        let data: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
        rustix::io::write(&keeper, &data).expect("fits");
        // The bytes are copied, as for a terminal.
        let ends = Some((Some(Opened { fd, keeper: Some(keeper) }), Sink::Pipe(sink)));
        let mut input = Input { ends, mover: Mover::new(false), closing: None, terminal_end: None };
        input.advance(&|_| {});
        assert!(input.mover.pending() > 0, "the sink is full, and the mover holds bytes");
        input.close();
        let mut got = Vec::new();
        let mut piece = [0; 1000];
        while let Ok(n @ 1..) = rustix::io::read(&reader, &mut piece) {
            got.extend_from_slice(&piece[..n]);
            input.advance(&|_| {});
        }
        assert!(input.ends.is_none() && got == data);
    }
}
