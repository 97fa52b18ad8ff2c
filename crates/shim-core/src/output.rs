//! stdout, stderr, or a terminal's output: moves bytes from the process to the client's path, and decides when all of it has been
//! delivered.
//!
//! The shim keeps a reading end of the client's FIFO open, so that the FIFO takes bytes while no client reads. As long as that end
//! is open, the kernel does not tell whether a client has the FIFO open. So the shim closes it when it has to know.

use core::time::Duration;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use sys::clock::Instant;

use alloc::format;
use sys::Explained;

use crate::Warn;
use crate::mover::{Mover, Step};
use crate::stdio::{Opened, reading_end};

/// How long the output of a process waits for a reader before it is dropped.
pub(crate) const READER_WAIT: Duration = Duration::from_secs(15);

/// How long a FIFO is full before the shim checks whether a process has it open for reading. Until then a slow reader costs
/// nothing.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// The number of attempts in one turn, after which the event loop looks at everything else.
const TURN: usize = 32;

/// What is known of a process that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// No process of the container can write any more. What is not in the pipe now will not come.
    pub nobody_writes: bool,
    /// The output has waited long enough. What is not delivered in this attempt is dropped.
    pub is_last_attempt: bool,
    /// The time now.
    pub now: Instant,
}

/// One output stream.
#[derive(Debug)]
pub(crate) struct Output {
    name: &'static str,
    source: OwnedFd,
    sink: Opened,
    /// Whether the sink is a FIFO, which may have no reader.
    fifo: bool,
    /// Whether the source is a pipe.
    splices: bool,
    mover: Mover,
    /// Whether the source is at its end.
    over: bool,
    /// When the FIFO was first seen to have bytes and no reader.
    abandoned: Option<Instant>,
    /// Whether the last turn moved bytes.
    moved: bool,
    /// When the FIFO was first seen to be full.
    full: Option<Instant>,
    /// Whether output is dropped until a process opens the FIFO.
    drops: bool,
    /// Whether the process has ended.
    winds_up: bool,
    /// Whether everything has been delivered or dropped.
    done: bool,
    /// Whether a failure of the sink has been reported.
    failed: bool,
}

impl Output {
    /// `splice`: whether the source is a pipe, from which splice(2) can move.
    pub(crate) fn new(name: &'static str, source: OwnedFd, sink: Opened, splice: bool) -> Output {
        let (mover, fifo) = (Mover::new(splice), sink.keeper.is_some());
        Output {
            name,
            source,
            sink,
            fifo,
            splices: splice,
            mover,
            over: false,
            abandoned: None,
            moved: false,
            full: None,
            drops: false,
            winds_up: false,
            done: false,
            failed: false,
        }
    }

    /// The descriptors to wait on.
    pub(crate) fn descriptors(&self) -> [&OwnedFd; 2] {
        [&self.source, &self.sink.fd]
    }

    /// The writing end of the client's FIFO, or the client's file.
    pub(crate) fn sink(&self) -> &OwnedFd {
        &self.sink.fd
    }

    /// Whether the client's FIFO has bytes and no reader.
    pub(crate) fn waits_for_reader(&self) -> bool {
        !self.done && self.abandoned.is_some()
    }

    /// When the next turn is due even if nothing becomes ready: to drop output, or to check for a reader.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.done || self.drops {
            return None;
        }
        let look = self.full.filter(|_| self.sink.keeper.is_some()).map(|since| since + LOOK_AFTER);
        self.abandoned.map(|since| since + READER_WAIT).or(look)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Moves what can be moved while the process runs. True if there may be more to move at once. If no process has had a full
    /// FIFO open for reading for [`READER_WAIT`], output is dropped, so that the process goes on.
    pub(crate) fn serve(&mut self, now: impl Fn() -> Instant, warn: Warn<'_>) -> bool {
        if self.drops {
            if !self.has_reader() {
                return self.drop_output();
            }
            self.drops = false;
        }
        self.moved = false;
        let more = self.advance(warn);
        if !self.fifo {
            return more;
        }
        let is_full = !self.moved
            && (self.mover.pending() > 0 || rustix::io::ioctl_fionread(&self.source).is_ok_and(|bytes| bytes > 0));
        if !is_full {
            (self.full, self.abandoned) = (None, None);
            if self.sink.keeper.is_none() {
                // With it, the FIFO takes bytes while no client reads.
                self.sink.keeper = reading_end(&self.sink.fd).ok();
            }
            return more;
        }
        let now = now();
        if now.since(*self.full.get_or_insert(now)) < LOOK_AFTER && self.sink.keeper.is_some() {
            return more;
        }
        // Without the shim's own reading end, the kernel tells whether there is a reader, and wakes the shim when the last one
        // goes.
        self.sink.keeper = None;
        if self.has_reader() {
            self.abandoned = None;
            return more;
        }
        if now.since(*self.abandoned.get_or_insert(now)) < READER_WAIT {
            return more;
        }
        let (name, seconds) = (self.name, READER_WAIT.as_secs());
        warn(&format!("{name}: no process has read it for {seconds} s; output is dropped until one opens it"));
        self.drops = true;
        self.drop_output()
    }

    /// Drops what the process has written. True if there may be more to drop at once.
    fn drop_output(&mut self) -> bool {
        for _ in 0..TURN {
            match self.mover.drop_from(self.source.as_fd()) {
                Step::Moved(_) => {}
                Step::End => {
                    self.over = true;
                    return false;
                }
                _ => return false,
            }
        }
        true
    }

    /// Moves what can be moved. True if there may be more to move at once.
    fn advance(&mut self, warn: Warn<'_>) -> bool {
        if self.over && self.mover.pending() == 0 {
            return false;
        }
        for _ in 0..TURN {
            match self.mover.step(self.source.as_fd(), self.sink.fd.as_fd(), u64::MAX) {
                Step::Moved(_) => self.moved = true,
                // While the process lives, a process may open the terminal again (`look_again`).
                Step::End => {
                    self.over = true;
                    return false;
                }
                Step::Blocked => return false,
                // This happens only while the shim's own reading end is closed. The bytes are kept until a reader comes.
                Step::SinkGone => {
                    // splice(2) reports the missing reader even if the source is at its end.
                    self.over |= self.is_at_end();
                    return false;
                }
                Step::Failed(e) => {
                    if !self.failed {
                        warn(&format!("{}: {}; output is lost", self.name, Explained(e)));
                    }
                    self.failed = true;
                    // splice(2) has left the bytes in the pipe, where they would block the process. Copying takes them out.
                    self.mover = Mover::new(false);
                }
            }
        }
        true
    }

    /// Whether the source is a pipe that has no writer and no bytes. False for a terminal, which may be opened again.
    fn is_at_end(&self) -> bool {
        let mut polled = [PollFd::new(&self.source, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let events = poll(&mut polled, Some(&at_once)).map(|_| polled[0].revents());
        self.splices && events.is_ok_and(|events| events.contains(PollFlags::HUP) && !events.contains(PollFlags::IN))
    }

    /// Forgets that the source was at its end: another process may have opened the terminal since.
    pub(crate) fn look_again(&mut self) {
        self.over = false;
    }

    /// Moves what can be moved after the process's end, and decides whether all of it has been delivered. True if there may be
    /// more to move at once.
    pub(crate) fn wind_up(&mut self, ended: Ended, warn: Warn<'_>) -> bool {
        if self.done {
            return false;
        }
        if !self.winds_up {
            // A reader has the whole time from the process's end on.
            (self.winds_up, self.drops, self.full, self.abandoned) = (true, false, None, None);
        }
        // Without the shim's own reading end, the kernel tells whether there is a reader.
        self.sink.keeper = None;
        let more = self.advance(warn);
        let drained = self.mover.pending() == 0
            && (self.over || (ended.nobody_writes && !more && self.mover.is_drained(self.source.as_fd())));
        if !self.fifo || self.has_reader() || !self.has_output() {
            self.abandoned = None;
            self.done = drained;
        } else {
            let since = *self.abandoned.get_or_insert(ended.now);
            if ended.now.since(since) >= READER_WAIT {
                self.give_up("nobody has read it", warn);
            }
        }
        if ended.is_last_attempt {
            self.give_up("the container has ended and it was not taken", warn);
        }
        more && !self.done
    }

    /// Drops what has not been delivered.
    fn give_up(&mut self, why: &str, warn: Warn<'_>) {
        if !self.done {
            warn(&format!("{}: output was dropped: {why} for {} s", self.name, READER_WAIT.as_secs()));
            self.mover.discard();
            self.done = true;
        }
    }

    fn has_output(&self) -> bool {
        self.mover.pending() > 0
            || rustix::io::ioctl_fionread(&self.source).is_ok_and(|bytes| bytes > 0)
            || rustix::io::ioctl_fionread(&self.sink.fd).is_ok_and(|bytes| bytes > 0)
    }

    /// Whether a process has the FIFO open for reading. The shim's own reading end must be closed.
    fn has_reader(&self) -> bool {
        let mut polled = [PollFd::new(&self.sink.fd, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&at_once)).is_ok() && !polled[0].revents().contains(PollFlags::ERR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdio::{Direction, open_client, set_nonblocking};
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::Read;
    use std::path::PathBuf;

    const QUIET: Warn<'static> = &|_| {};

    struct Fifo(PathBuf);

    impl Fifo {
        fn new(name: &str) -> Fifo {
            let path = std::env::temp_dir().join(format!("output-{name}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("fifo");
            Fifo(path)
        }
        fn open(&self) -> Opened {
            open_client(self.0.to_str().expect("utf-8"), Direction::ToClient).expect("opens").expect("a fifo")
        }
    }

    impl Drop for Fifo {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn output(fifo: &Fifo) -> (OwnedFd, Output) {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        set_nonblocking(&ours).expect("flags");
        (theirs, Output::new("stdout", ours, fifo.open(), true))
    }

    fn ended(now: Instant) -> Ended {
        Ended { nobody_writes: true, is_last_attempt: false, now }
    }

    #[test]
    fn silent_output_is_delivered_without_a_reader() {
        let fifo = Fifo::new("silent");
        let (theirs, mut output) = output(&fifo);
        drop(theirs);
        output.wind_up(ended(Instant::now()), QUIET);
        assert!(output.is_done());
    }

    #[test]
    fn closed_pipe_is_seen_without_a_reader() {
        let fifo = Fifo::new("silent-exec");
        let (theirs, mut output) = output(&fifo);
        let now = Instant::now();
        // The container goes on, and another of its processes could write.
        let of_exec = Ended { nobody_writes: false, is_last_attempt: false, now };
        output.wind_up(of_exec, QUIET);
        assert!(!output.is_done());
        drop(theirs);
        output.wind_up(of_exec, QUIET);
        assert!(output.is_done());
    }

    #[test]
    fn output_is_delivered_once_a_reader_opens_the_fifo() {
        let fifo = Fifo::new("late");
        let (theirs, mut output) = output(&fifo);
        rustix::io::write(&theirs, b"hello").expect("fits");
        drop(theirs);
        let start = Instant::now();
        output.wind_up(ended(start), QUIET);
        assert!(!output.is_done() && output.waits_for_reader());
        let mut reader = std::fs::File::open(&fifo.0).expect("opens at once, a writer is there");
        output.wind_up(ended(start), QUIET);
        assert!(output.is_done());
        drop(output);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "hello");
    }

    #[test]
    fn output_without_a_reader_is_dropped_after_the_wait() {
        let fifo = Fifo::new("never");
        let (theirs, mut output) = output(&fifo);
        rustix::io::write(&theirs, b"hello").expect("fits");
        drop(theirs);
        let start = Instant::now();
        output.wind_up(ended(start), QUIET);
        assert_eq!(output.deadline(), Some(start + READER_WAIT));
        output.wind_up(ended(start + READER_WAIT), QUIET);
        assert!(output.is_done());
    }

    #[test]
    fn writer_outside_the_container_does_not_delay_the_end() {
        let fifo = Fifo::new("outside");
        let (theirs, mut output) = output(&fifo);
        let now = Instant::now();
        output.wind_up(Ended { nobody_writes: false, is_last_attempt: false, now }, QUIET);
        assert!(!output.is_done(), "another process may still write");
        output.wind_up(ended(now), QUIET);
        assert!(output.is_done());
        drop(theirs);
    }

    /// Writes until neither the process's pipe nor the FIFO takes anything; how much that was.
    fn fill(theirs: &OwnedFd, output: &mut Output, now: Instant) -> usize {
        set_nonblocking(theirs).expect("flags");
        let mut sent = 0;
        while let Ok(n) = rustix::io::write(theirs, &[7; 4096]).or_else(|_| {
            output.serve(|| now, QUIET);
            rustix::io::write(theirs, &[7; 4096])
        }) {
            sent += n;
            assert!(sent < 1 << 20, "a fifo that nobody reads takes no end of bytes");
        }
        sent
    }

    #[test]
    fn output_of_a_running_process_is_dropped_while_no_reader_comes() {
        for unlinked in [false, true] {
            let fifo = Fifo::new(if unlinked { "unlinked" } else { "left" });
            let (theirs, mut output) = output(&fifo);
            if unlinked {
                std::fs::remove_file(&fifo.0).expect("removes");
            }
            let start = Instant::now();
            fill(&theirs, &mut output, start);
            assert_eq!(output.deadline(), Some(start + LOOK_AFTER));
            output.serve(|| start + LOOK_AFTER, QUIET);
            assert!(output.waits_for_reader());
            let last = start + LOOK_AFTER + READER_WAIT;
            assert_eq!(output.deadline(), Some(last));
            output.serve(|| last, QUIET);
            assert!(rustix::io::write(&theirs, &[7; 4096]).is_ok() && output.deadline().is_none());
            if unlinked {
                continue;
            }
            // The FIFO still has its bytes, and new output follows them.
            let mut reader = std::fs::File::open(&fifo.0).expect("opens");
            output.serve(|| last, QUIET);
            let mut held = vec![0; 1 << 16];
            reader.read_exact(&mut held).expect("reads");
            rustix::io::write(&theirs, b"again").expect("fits");
            output.serve(|| last, QUIET);
            drop((output, theirs));
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).expect("reads");
            assert!(rest.ends_with(b"again"), "{} bytes", rest.len());
        }
    }

    #[test]
    fn output_of_a_running_process_is_kept_while_there_is_a_reader() {
        let fifo = Fifo::new("held");
        let (theirs, mut output) = output(&fifo);
        let mut reader = std::fs::File::open(&fifo.0).expect("opens");
        let start = Instant::now();
        let mut sent = fill(&theirs, &mut output, start);
        for minutes in 1..5 {
            output.serve(|| start + minutes * 60 * LOOK_AFTER, QUIET);
            assert!(!output.drops && output.deadline().is_none());
        }
        let later = start + 600 * LOOK_AFTER;
        let mut got = 0;
        while got < sent {
            let mut piece = [0; 10_000];
            got += reader.read(&mut piece).expect("reads");
            output.serve(|| later, QUIET);
        }
        assert!(output.sink.keeper.is_some(), "a reader that goes now is no error");
        drop(reader);
        sent = fill(&theirs, &mut output, later);
        assert!(sent > 0);
    }

    #[test]
    fn slow_reader_is_waited_for_without_limit() {
        let fifo = Fifo::new("slow");
        let (theirs, mut output) = output(&fifo);
        let mut reader = std::fs::File::open(&fifo.0).expect("opens");
        set_nonblocking(&theirs).expect("flags");
        let mut sent = 0;
        // Until both the process's pipe and the FIFO are full.
        while let Ok(n) = rustix::io::write(&theirs, &[7; 4096]).or_else(|_| {
            output.advance(QUIET);
            rustix::io::write(&theirs, &[7; 4096])
        }) {
            sent += n;
            assert!(sent < 1 << 20, "a fifo that nobody reads takes no end of bytes");
        }
        drop(theirs);
        let later = Instant::now() + 10 * READER_WAIT;
        output.wind_up(ended(later), QUIET);
        assert!(!output.is_done() && output.deadline().is_none());
        let mut got = 0;
        while !output.is_done() {
            let mut piece = [0; 10_000];
            got += reader.read(&mut piece).expect("reads");
            output.wind_up(ended(later), QUIET);
        }
        drop(output);
        got += reader.read_to_end(&mut Vec::new()).expect("reads");
        assert_eq!(got, sent);
    }
}
