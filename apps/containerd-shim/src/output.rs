//! stdout, stderr, or a terminal's output: from the process into what the client named.

use core::time::Duration;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use sys::clock::Instant;

use alloc::format;
use sys::Explained;

use crate::error::warn;
use crate::mover::{Mover, Step};
use crate::stdio::{Opened, reading_end};

/// How long the output of a process that has ended waits for somebody to read it.
pub(crate) const READER_WAIT: Duration = Duration::from_secs(15);

/// How long a FIFO may take nothing before the shim looks whether any process has it open for reading. A reader that is only
/// slow costs nothing until then.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Attempts before the rest of the loop gets its turn.
const TURN: usize = 32;

/// What is known of the process when its output is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// No process of the container can write any more: what is not there by now is not coming.
    pub(crate) nobody_writes: bool,
    pub(crate) now: Instant,
}

/// One output stream.
#[derive(Debug)]
pub(crate) struct Output {
    name: &'static str,
    source: OwnedFd,
    sink: Opened,
    /// Whether the sink is one that can be without a reader.
    fifo: bool,
    /// The source is a pipe.
    splices: bool,
    mover: Mover,
    /// The source has ended.
    over: bool,
    /// Since when nobody has had the FIFO open for reading although there is something in it.
    abandoned: Option<Instant>,
    /// Something went over in the last attempt.
    moved: bool,
    /// Since when the FIFO has been full although there is output.
    full: Option<Instant>,
    /// What the process writes is dropped, until a reader comes.
    drops: bool,
    /// The process has ended.
    winds_up: bool,
    done: bool,
    failed: bool,
}

impl Output {
    /// `splice`: whether the source can be spliced from.
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

    /// What the client reads from.
    pub(crate) fn sink(&self) -> &OwnedFd {
        &self.sink.fd
    }

    /// Whether there are bytes in the client's FIFO and nobody to read them.
    pub(crate) fn waits_for_reader(&self) -> bool {
        !self.done && self.abandoned.is_some()
    }

    /// When it has to be looked at again: it gives up waiting for a reader, or asks whether there is one.
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

    /// Moves what can be moved while the process runs; true if there may be more at once. Output that fills a FIFO which no
    /// process has had open for reading for some time is dropped, so that the process goes on.
    pub(crate) fn serve(&mut self, now: impl Fn() -> Instant) -> bool {
        if self.drops {
            if !self.has_reader() {
                return self.drop_output();
            }
            self.drops = false;
        }
        self.moved = false;
        let more = self.advance();
        if !self.fifo {
            return more;
        }
        let is_full = !self.moved
            && (self.mover.pending() > 0 || rustix::io::ioctl_fionread(&self.source).is_ok_and(|bytes| bytes > 0));
        if !is_full {
            (self.full, self.abandoned) = (None, None);
            if self.sink.keeper.is_none() {
                // Without it a write fails as soon as there is no reader, where the FIFO would still take some.
                self.sink.keeper = reading_end(&self.sink.fd).ok();
            }
            return more;
        }
        let now = now();
        if now.since(*self.full.get_or_insert(now)) < LOOK_AFTER && self.sink.keeper.is_some() {
            return more;
        }
        // The kernel tells of other readers once this program is none. From now on it also wakes the shim when the last one goes.
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

    /// Drops what the process has written; true if there may be more at once.
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

    /// Moves what can be moved; true if there may be more at once.
    fn advance(&mut self) -> bool {
        if self.over && self.mover.pending() == 0 {
            return false;
        }
        for _ in 0..TURN {
            match self.mover.step(self.source.as_fd(), self.sink.fd.as_fd(), u64::MAX) {
                Step::Moved(_) => self.moved = true,
                // A terminal that nobody has open now may be opened again, while the process lives.
                Step::End => {
                    self.over = true;
                    return false;
                }
                // Only when our own reading end is closed: kept until a reader comes.
                Step::Blocked => return false,
                Step::SinkGone => {
                    // splice(2) tells of the reader that is missing before it tells of the end.
                    self.over |= self.is_at_end();
                    return false;
                }
                Step::Failed(e) => {
                    if !self.failed {
                        warn(&format!("{}: {}; output is lost", self.name, Explained(e)));
                    }
                    self.failed = true;
                    // Spliced bytes were not taken; they must not stand in the way of the process.
                    self.mover = Mover::new(false);
                }
            }
        }
        true
    }

    /// Whether the process's end of a pipe is closed, and nothing is left in it. A terminal may be opened again.
    fn is_at_end(&self) -> bool {
        let mut polled = [PollFd::new(&self.source, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let events = poll(&mut polled, Some(&at_once)).map(|_| polled[0].revents());
        self.splices && events.is_ok_and(|events| events.contains(PollFlags::HUP) && !events.contains(PollFlags::IN))
    }

    /// A terminal's end is the end of those who had it open; somebody may have opened it again.
    pub(crate) fn look_again(&mut self) {
        self.over = false;
    }

    /// After the process's end: moves on, and decides whether all has been delivered. True if there may be more
    /// at once.
    pub(crate) fn wind_up(&mut self, ended: Ended) -> bool {
        if self.done {
            return false;
        }
        if !self.winds_up {
            // From the end on there is time for a reader to come, as long as if it had just left.
            (self.winds_up, self.drops, self.full, self.abandoned) = (true, false, None, None);
        }
        // From now on the kernel tells whether somebody else reads.
        self.sink.keeper = None;
        let more = self.advance();
        let drained = self.mover.pending() == 0
            && (self.over || (ended.nobody_writes && !more && self.mover.is_drained(self.source.as_fd())));
        if !self.fifo || self.has_reader() || !self.has_output() {
            self.abandoned = None;
            self.done = drained;
        } else {
            let since = *self.abandoned.get_or_insert(ended.now);
            if ended.now.since(since) >= READER_WAIT {
                self.give_up("nobody has read it");
            }
        }
        more && !self.done
    }

    /// Drops what has not been delivered.
    pub(crate) fn give_up(&mut self, why: &str) {
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

    /// Whether anybody has the FIFO open for reading. Our own reading end must be closed.
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

    struct Fifo(PathBuf);

    impl Fifo {
        fn new(name: &str) -> Fifo {
            let path = std::env::temp_dir().join(format!("output-{name}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("fifo");
            Fifo(path)
        }
        fn open(&self) -> Opened {
            open_client("stdout", self.0.to_str().expect("utf-8"), Direction::ToClient).expect("opens").expect("a fifo")
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
        Ended { nobody_writes: true, now }
    }

    #[test]
    fn silence_needs_no_reader() {
        let fifo = Fifo::new("silent");
        let (theirs, mut output) = output(&fifo);
        drop(theirs);
        output.wind_up(ended(Instant::now()));
        assert!(output.is_done());
    }

    #[test]
    fn silent_end_of_an_added_process_is_seen_without_a_reader() {
        let fifo = Fifo::new("silent-exec");
        let (theirs, mut output) = output(&fifo);
        let now = Instant::now();
        // Its container goes on, so that another process could still write.
        let of_exec = Ended { nobody_writes: false, now };
        output.wind_up(of_exec);
        assert!(!output.is_done());
        drop(theirs);
        output.wind_up(of_exec);
        assert!(output.is_done());
    }

    #[test]
    fn output_waits_for_a_reader_and_then_counts_as_delivered() {
        let fifo = Fifo::new("late");
        let (theirs, mut output) = output(&fifo);
        rustix::io::write(&theirs, b"hello").expect("fits");
        drop(theirs);
        let start = Instant::now();
        output.wind_up(ended(start));
        assert!(!output.is_done() && output.waits_for_reader());
        let mut reader = std::fs::File::open(&fifo.0).expect("opens at once, a writer is there");
        output.wind_up(ended(start));
        assert!(output.is_done());
        drop(output);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "hello");
    }

    #[test]
    fn without_a_reader_it_is_dropped_after_its_time() {
        let fifo = Fifo::new("never");
        let (theirs, mut output) = output(&fifo);
        rustix::io::write(&theirs, b"hello").expect("fits");
        drop(theirs);
        let start = Instant::now();
        output.wind_up(ended(start));
        assert_eq!(output.deadline(), Some(start + READER_WAIT));
        output.wind_up(ended(start + READER_WAIT));
        assert!(output.is_done());
    }

    #[test]
    fn a_writer_outside_the_container_delays_nothing_once_all_others_are_gone() {
        let fifo = Fifo::new("outside");
        let (theirs, mut output) = output(&fifo);
        let now = Instant::now();
        output.wind_up(Ended { nobody_writes: false, now });
        assert!(!output.is_done(), "somebody may still write");
        output.wind_up(ended(now));
        assert!(output.is_done());
        drop(theirs);
    }

    /// Writes until neither the process's pipe nor the FIFO takes anything; how much that was.
    fn fill(theirs: &OwnedFd, output: &mut Output, now: Instant) -> usize {
        set_nonblocking(theirs).expect("flags");
        let mut sent = 0;
        while let Ok(n) = rustix::io::write(theirs, &[7; 4096]).or_else(|_| {
            output.serve(|| now);
            rustix::io::write(theirs, &[7; 4096])
        }) {
            sent += n;
            assert!(sent < 1 << 20, "a fifo that nobody reads takes no end of bytes");
        }
        sent
    }

    #[test]
    fn output_of_a_running_process_is_dropped_once_no_reader_has_come_in_time() {
        for unlinked in [false, true] {
            let fifo = Fifo::new(if unlinked { "unlinked" } else { "left" });
            let (theirs, mut output) = output(&fifo);
            if unlinked {
                std::fs::remove_file(&fifo.0).expect("removes");
            }
            let start = Instant::now();
            fill(&theirs, &mut output, start);
            assert_eq!(output.deadline(), Some(start + LOOK_AFTER));
            output.serve(|| start + LOOK_AFTER);
            assert!(output.waits_for_reader());
            let last = start + LOOK_AFTER + READER_WAIT;
            assert_eq!(output.deadline(), Some(last));
            output.serve(|| last);
            assert!(rustix::io::write(&theirs, &[7; 4096]).is_ok() && output.deadline().is_none());
            if unlinked {
                continue;
            }
            // What the FIFO held is still there, and what comes from now on follows it.
            let mut reader = std::fs::File::open(&fifo.0).expect("opens");
            output.serve(|| last);
            let mut held = vec![0; 1 << 16];
            reader.read_exact(&mut held).expect("reads");
            rustix::io::write(&theirs, b"again").expect("fits");
            output.serve(|| last);
            drop((output, theirs));
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).expect("reads");
            assert!(rest.ends_with(b"again"), "{} bytes", rest.len());
        }
    }

    #[test]
    fn nothing_of_a_running_process_is_dropped_as_long_as_a_reader_is_there() {
        let fifo = Fifo::new("held");
        let (theirs, mut output) = output(&fifo);
        let mut reader = std::fs::File::open(&fifo.0).expect("opens");
        let start = Instant::now();
        let mut sent = fill(&theirs, &mut output, start);
        for minutes in 1..5 {
            output.serve(|| start + minutes * 60 * LOOK_AFTER);
            assert!(!output.drops && output.deadline().is_none());
        }
        let later = start + 600 * LOOK_AFTER;
        let mut got = 0;
        while got < sent {
            let mut piece = [0; 10_000];
            got += reader.read(&mut piece).expect("reads");
            output.serve(|| later);
        }
        assert!(output.sink.keeper.is_some(), "a reader that goes now is no error");
        drop(reader);
        sent = fill(&theirs, &mut output, later);
        assert!(sent > 0);
    }

    #[test]
    fn a_slow_reader_is_waited_for_without_limit() {
        let fifo = Fifo::new("slow");
        let (theirs, mut output) = output(&fifo);
        let mut reader = std::fs::File::open(&fifo.0).expect("opens");
        set_nonblocking(&theirs).expect("flags");
        let mut sent = 0;
        // Until both the process's pipe and the FIFO are full.
        while let Ok(n) = rustix::io::write(&theirs, &[7; 4096]).or_else(|_| {
            output.advance();
            rustix::io::write(&theirs, &[7; 4096])
        }) {
            sent += n;
            assert!(sent < 1 << 20, "a fifo that nobody reads takes no end of bytes");
        }
        drop(theirs);
        let later = Instant::now() + 10 * READER_WAIT;
        output.wind_up(ended(later));
        assert!(!output.is_done() && output.deadline().is_none());
        let mut got = 0;
        while !output.is_done() {
            let mut piece = [0; 10_000];
            got += reader.read(&mut piece).expect("reads");
            output.wind_up(ended(later));
        }
        drop(output);
        got += reader.read_to_end(&mut Vec::new()).expect("reads");
        assert_eq!(got, sent);
    }
}
