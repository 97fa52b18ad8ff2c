//! stdin: from what the client named into the process's pipe or terminal.

use rustix::fd::{AsFd, OwnedFd};

use alloc::format;
use sys::Explained;

use crate::error::warn;
use crate::mover::{Mover, Step};
use crate::stdio::Opened;
use crate::terminal_end::TerminalEnd;

/// Attempts before the rest of the loop gets its turn.
const TURN: usize = 32;

/// What the process's stdin is.
#[derive(Debug)]
pub(crate) enum Sink {
    /// End of file is its closing.
    Pipe(OwnedFd),
    /// The terminal's master; end of file is a state ([`TerminalEnd`]), which only a client can bring about.
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
    /// Both gone once a pipe has been closed. Only a terminal can be without a source.
    ends: Option<(Option<Opened>, Sink)>,
    mover: Mover,
    /// `closeStdin` has been asked for: so many bytes were in the FIFO then, and are still to go.
    closing: Option<u64>,
    /// The end of a terminal's input, once everything before it has been written.
    terminal_end: Option<TerminalEnd>,
}

impl Input {
    pub(crate) fn new(source: Option<Opened>, sink: Sink) -> Input {
        let mover = Mover::new(matches!(sink, Sink::Pipe(_)));
        Input { ends: Some((source, sink)), mover, closing: None, terminal_end: None }
    }

    /// Whether it goes to a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.ends, Some((_, Sink::Terminal(_))))
    }

    /// What tells of a change after which [`Input::advance`] has to be called, once there is an end to be kept.
    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal_end.as_ref().map(TerminalEnd::descriptor)
    }

    /// The descriptors to wait on.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        self.ends.iter().flat_map(|(source, sink)| {
            // The process reads its end of a pipe; of a terminal the output side waits on the same master.
            let sink = matches!(sink, Sink::Pipe(_)).then_some(sink.fd());
            source.iter().map(|opened| &opened.fd).chain(sink)
        })
    }

    /// Passes on end-of-file after every byte that is in the FIFO now.
    pub(crate) fn close(&mut self) {
        if self.closing.is_some() {
            return;
        }
        let Some((source, _)) = &self.ends else { return };
        self.closing = match source {
            // What has been taken and not yet passed on comes first.
            Some(Opened { fd, keeper: Some(_) }) => {
                Some(rustix::io::ioctl_fionread(fd).unwrap_or(0) + self.mover.pending() as u64)
            }
            // What is left of a plain file is not cut off.
            Some(_) => Some(u64::MAX),
            None => Some(0),
        };
    }

    /// Moves what can be moved; true if there may be more at once.
    pub(crate) fn advance(&mut self) -> bool {
        for _ in 0..TURN {
            if !self.attempt() {
                return false;
            }
        }
        true
    }

    fn attempt(&mut self) -> bool {
        if self.closing == Some(0) && self.mover.pending() == 0 {
            return self.pass_on_end();
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
            Step::End => self.source_ended(),
            // The process has closed its stdin: so do we, and the client's writer gets a broken pipe.
            Step::SinkGone => {
                self.ends = None;
                false
            }
            Step::Failed(e) => {
                warn(&format!("stdin: {}; what could not be passed on is lost", Explained(e)));
                self.source_ended()
            }
        }
    }

    /// A pipe ends with a plain file. A terminal only then has no input, unless its client has asked for the end.
    fn source_ended(&mut self) -> bool {
        match &mut self.ends {
            Some((source, Sink::Terminal(_))) => {
                *source = None;
                self.closing = self.closing.map(|_| 0);
                self.closing.is_some()
            }
            _ => self.pass_on_end(),
        }
    }

    fn pass_on_end(&mut self) -> bool {
        let Some((source, Sink::Terminal(master))) = &mut self.ends else {
            self.ends = None;
            return false;
        };
        // Its writers learn that nobody reads any more.
        *source = None;
        let kept = match &mut self.terminal_end {
            Some(end) => end.keep(master),
            None => TerminalEnd::new(master).and_then(|end| self.terminal_end.insert(end).keep(master)),
        };
        match kept {
            Ok(()) => return false,
            // Hung up: there is nothing to be read any more.
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
    fn the_end_comes_after_what_is_on_its_way_too() {
        let (fd, keeper) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        let (reader, sink) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        rustix::pipe::fcntl_setpipe_size(&sink, 4096).expect("small");
        let data: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
        rustix::io::write(&keeper, &data).expect("fits");
        // Copied, as it is for a terminal.
        let ends = Some((Some(Opened { fd, keeper: Some(keeper) }), Sink::Pipe(sink)));
        let mut input = Input { ends, mover: Mover::new(false), closing: None, terminal_end: None };
        input.advance();
        assert!(input.mover.pending() > 0, "the sink is full, and some bytes are in neither");
        input.close();
        let mut got = Vec::new();
        let mut piece = [0; 1000];
        while let Ok(n @ 1..) = rustix::io::read(&reader, &mut piece) {
            got.extend_from_slice(&piece[..n]);
            input.advance();
        }
        assert!(input.ends.is_none() && got == data);
    }
}
