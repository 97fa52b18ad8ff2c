//! Moves bytes from one descriptor to another, neither of which blocks: with splice(2), without a copy, where
//! the kernel can, otherwise through a buffer. Bytes that were taken and could not be put down are kept.

use alloc::vec::Vec;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

/// How one attempt ended.
#[derive(Debug)]
pub(crate) enum Step {
    /// So many bytes went over; there may be more.
    Moved(u64),
    /// Nothing to do before one of the two changes.
    Blocked,
    /// The source has nothing more to say: end of file, or a terminal that nobody has open.
    End,
    /// The sink takes nothing any more: a pipe that nobody reads.
    SinkGone,
    /// The sink failed on these bytes, which are lost.
    Failed(Errno),
}

/// The largest piece moved in one attempt.
const PIECE: usize = 1 << 20;
/// Enough for a terminal's line or a file's page; kept small since every shim that used it keeps it.
const BUFFER: usize = 8 << 10;

/// One direction of one stream.
#[derive(Debug)]
pub(crate) struct Mover {
    splice: bool,
    /// Taken from the source, not yet in the sink.
    pending: Vec<u8>,
    /// The last attempt found the source empty (only known when copying).
    empty: bool,
}

impl Mover {
    /// `splice`: whether to try it at all; the mover falls back by itself where the kernel refuses.
    pub(crate) fn new(splice: bool) -> Mover {
        Mover { splice, pending: Vec::new(), empty: false }
    }

    /// Bytes that are in neither of the two.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether everything that the source held is in the sink. Only to be asked when the last attempt did not
    /// move anything, of a source in which nothing can appear any more.
    pub(crate) fn is_drained(&self, source: BorrowedFd<'_>) -> bool {
        // FIONREAD does not count what is still on its way through a terminal; a read that found nothing does.
        let empty = if self.splice { rustix::io::ioctl_fionread(source).is_ok_and(|n| n == 0) } else { self.empty };
        empty && self.pending.is_empty()
    }

    /// Moves at most `limit` bytes.
    pub(crate) fn step(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, limit: u64) -> Step {
        if !self.pending.is_empty() {
            return self.put(to);
        }
        let length = usize::try_from(limit).unwrap_or(PIECE).min(PIECE);
        if self.splice {
            match splice(from, None, to, None, length, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
                Ok(0) => return Step::End,
                Ok(n) => return Step::Moved(n as u64),
                Err(Errno::AGAIN | Errno::INTR) => return Step::Blocked,
                Err(Errno::PIPE) => return Step::SinkGone,
                // Not for this pair: a file opened for appending, a device without splice.
                Err(Errno::INVAL) => self.splice = false,
                Err(e) => return Step::Failed(e),
            }
        }
        self.copy(from, to, length)
    }

    fn copy(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> Step {
        let mut buffer = [0; BUFFER];
        let length = length.min(BUFFER);
        self.empty = false;
        match rustix::io::read(from, &mut buffer[..length]) {
            // A terminal whose last slave was closed answers EIO, after its last byte.
            Ok(0) | Err(Errno::IO) => Step::End,
            Ok(n) => {
                self.pending.extend_from_slice(&buffer[..n]);
                self.put(to)
            }
            Err(Errno::AGAIN) => {
                self.empty = true;
                Step::Blocked
            }
            Err(Errno::INTR) => Step::Moved(0),
            Err(e) => Step::Failed(e),
        }
    }

    fn put(&mut self, to: BorrowedFd<'_>) -> Step {
        match rustix::io::write(to, &self.pending) {
            Ok(n) if n == self.pending.len() => {
                self.pending = Vec::new();
                Step::Moved(n as u64)
            }
            Ok(n) => {
                self.pending.drain(..n);
                Step::Moved(n as u64)
            }
            Err(Errno::AGAIN) => Step::Blocked,
            Err(Errno::INTR) => Step::Moved(0),
            Err(Errno::PIPE) => Step::SinkGone,
            Err(e) => {
                self.pending = Vec::new();
                Step::Failed(e)
            }
        }
    }

    /// Takes what the source has and drops it.
    pub(crate) fn drop_from(&mut self, from: BorrowedFd<'_>) -> Step {
        self.pending = Vec::new();
        match rustix::io::read(from, &mut [0; BUFFER]) {
            Ok(0) | Err(Errno::IO) => Step::End,
            Ok(n) => Step::Moved(n as u64),
            Err(Errno::AGAIN) => Step::Blocked,
            Err(Errno::INTR) => Step::Moved(0),
            Err(e) => Step::Failed(e),
        }
    }

    /// Forgets what could not be put down.
    pub(crate) fn discard(&mut self) {
        self.pending = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::Read;

    #[test]
    fn splice_falls_back_for_a_file_opened_for_appending() {
        let path = std::env::temp_dir().join(format!("mover-{}", std::process::id()));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).expect("opens");
        let (read, write) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        rustix::io::write(&write, b"hello").expect("fits");
        let mut mover = Mover::new(true);
        assert!(matches!(mover.step(read.as_fd(), file.as_fd(), u64::MAX), Step::Moved(5)));
        assert!(matches!(mover.step(read.as_fd(), file.as_fd(), u64::MAX), Step::Blocked));
        assert!(mover.is_drained(read.as_fd()));
        drop(write);
        assert!(matches!(mover.step(read.as_fd(), file.as_fd(), u64::MAX), Step::End));
        assert_eq!(std::fs::read(&path).expect("reads"), b"hello");
        std::fs::remove_file(path).expect("removes");
    }

    #[test]
    fn what_a_full_sink_refused_is_kept_in_order() {
        let (source, feed) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        let (read, sink) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        rustix::pipe::fcntl_setpipe_size(&sink, 4096).expect("small");
        let data: Vec<u8> = (0..20_000u32).map(|n| n as u8).collect();
        rustix::io::write(&feed, &data).expect("fits");
        drop(feed);
        let mut mover = Mover::new(false);
        let mut got = Vec::new();
        let mut reader = std::fs::File::from(read);
        loop {
            match mover.step(source.as_fd(), sink.as_fd(), u64::MAX) {
                Step::End => break,
                Step::Blocked => {
                    assert!(mover.pending() > 0);
                    let mut piece = [0; 1000];
                    let n = reader.read(&mut piece).expect("has bytes");
                    got.extend_from_slice(&piece[..n]);
                }
                Step::Moved(_) => {}
                other => panic!("{other:?}"),
            }
        }
        drop(sink);
        reader.read_to_end(&mut got).expect("reads");
        assert_eq!(got, data);
    }

    #[test]
    fn no_more_than_the_limit_is_taken() {
        for splice in [true, false] {
            let (source, feed) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
            let (_read, sink) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
            rustix::io::write(&feed, b"0123456789").expect("fits");
            let mut mover = Mover::new(splice);
            assert!(matches!(mover.step(source.as_fd(), sink.as_fd(), 4), Step::Moved(4)));
            assert_eq!(rustix::io::ioctl_fionread(&source).expect("a pipe"), 6);
        }
    }
}
