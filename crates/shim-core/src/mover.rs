//! Moves bytes from one descriptor to another, neither of which blocks. splice(2) does it without a copy where the kernel
//! can; a buffer does it elsewhere. The mover keeps the bytes that it has read and could not write.

use alloc::vec::Vec;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

/// The result of one attempt.
#[derive(Debug)]
pub(crate) enum Step {
    /// So many bytes were moved; there may be more.
    Moved(u64),
    /// Nothing can be moved before one of the descriptors becomes ready.
    Blocked,
    /// The source is at its end: end of file, or no process has the terminal open.
    End,
    /// The sink is a pipe without a reader.
    SinkGone,
    /// Reading or writing failed. Bytes that were read and not written are lost.
    Failed(Errno),
}

/// The largest piece that one attempt moves.
const PIECE: usize = 1 << 20;
/// The size of the buffer on the stack. Small, because the kernel does not take a used page of the stack back by itself.
const BUFFER: usize = 8 << 10;

/// One direction of one stream.
#[derive(Debug)]
pub(crate) struct Mover {
    splice: bool,
    /// The bytes that were read from the source and not yet written to the sink.
    pending: Vec<u8>,
    /// Whether the last attempt found the source empty. Only known when copying.
    empty: bool,
}

impl Mover {
    /// `splice`: whether to try splice(2). The mover copies if the kernel refuses it.
    pub(crate) fn new(splice: bool) -> Mover {
        Mover { splice, pending: Vec::new(), empty: false }
    }

    /// The number of bytes that were read from the source and not yet written to the sink.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether all that the source held is in the sink. Only meaningful if the last attempt moved nothing and nothing can be
    /// written to the source any more.
    pub(crate) fn is_drained(&self, source: BorrowedFd<'_>) -> bool {
        // FIONREAD does not count the bytes that are still on their way through a terminal. A read does.
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
                // The kernel cannot splice between these two: a file opened for appending, or a device without splice.
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
            // A terminal's master returns EIO after the last byte, once no process has the terminal open.
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

    /// Reads what the source has and drops it.
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

    /// Drops the bytes that could not be written.
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
    fn file_opened_for_appending_is_copied_to() {
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
    fn bytes_that_a_full_sink_refuses_are_kept_in_order() {
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
    fn mover_takes_no_more_than_the_limit() {
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
