//! stdin: from what the client named into the process's pipe or terminal.

use rustix::fd::{AsFd, OwnedFd};
use rustix::termios::{SpecialCodeIndex, tcgetattr};

use alloc::format;
use sys::Explained;

use crate::error::warn;
use crate::mover::{Mover, Step};
use crate::stdio::Opened;

/// Attempts before the rest of the loop gets its turn.
const TURN: usize = 32;

/// What the process's stdin is.
#[derive(Debug)]
pub(crate) enum Sink {
    /// End of file is its closing.
    Pipe(OwnedFd),
    /// The terminal's master; end of file is its VEOF character.
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
    /// Both gone once the end has been passed on. A source that is absent is at its end from the start.
    ends: Option<(Option<Opened>, Sink)>,
    mover: Mover,
    /// `closeStdin` has been asked for: so many bytes were in the FIFO then, and are still to go.
    closing: Option<u64>,
    /// VEOF is to be written to the terminal, which was full.
    at_end: bool,
}

impl Input {
    pub(crate) fn new(source: Option<Opened>, sink: Sink) -> Input {
        let mover = Mover::new(matches!(sink, Sink::Pipe(_)));
        let at_end = source.is_none();
        Input { ends: Some((source, sink)), mover, closing: None, at_end }
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
        let Some((Some(source), _)) = &self.ends else { return };
        // A plain file passes its end on by itself; what is left of it is not cut off.
        self.closing = if source.keeper.is_some() {
            // What has been taken and not yet passed on comes first.
            Some(rustix::io::ioctl_fionread(&source.fd).unwrap_or(0) + self.mover.pending() as u64)
        } else {
            Some(u64::MAX)
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
        let Some((source, sink)) = &self.ends else { return false };
        if self.closing == Some(0) && self.mover.pending() == 0 {
            self.at_end = true;
        }
        let Some(source) = source.as_ref().filter(|_| !self.at_end) else {
            return self.pass_on_end();
        };
        match self.mover.step(source.fd.as_fd(), sink.fd().as_fd(), self.closing.unwrap_or(u64::MAX)) {
            Step::Moved(n) => {
                if let Some(left) = &mut self.closing {
                    *left = left.saturating_sub(n);
                }
                true
            }
            Step::Blocked => false,
            Step::End => {
                self.at_end = true;
                true
            }
            // The process has closed its stdin: so do we, and the client's writer gets a broken pipe.
            Step::SinkGone => {
                self.ends = None;
                false
            }
            Step::Failed(e) => {
                warn(&format!("stdin: {}; what could not be passed on is lost", Explained(e)));
                self.at_end = true;
                true
            }
        }
    }

    fn pass_on_end(&mut self) -> bool {
        if let Some((_, Sink::Terminal(master))) = &self.ends {
            let veof = tcgetattr(master).map_or(4, |termios| termios.special_codes[SpecialCodeIndex::VEOF]);
            if let Err(rustix::io::Errno::AGAIN) = rustix::io::write(master, &[veof]) {
                return false;
            }
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
        // No terminal, but treated as one: copied, and its end is a character.
        let mut input = Input::new(Some(Opened { fd, keeper: Some(keeper) }), Sink::Terminal(sink));
        input.advance();
        assert!(input.mover.pending() > 0, "the sink is full, and some bytes are in neither");
        input.close();
        let mut got = Vec::new();
        let mut piece = [0; 1000];
        while let Ok(n @ 1..) = rustix::io::read(&reader, &mut piece) {
            got.extend_from_slice(&piece[..n]);
            input.advance();
        }
        assert_eq!(got.pop(), Some(4), "the end-of-file character is last");
        assert!(got == data);
    }
}
