//! Where log lines go, without ever waiting for the reader.
//!
//! A line is written at once if the reader has room for it. Otherwise it is kept, and a thread writes what is kept when
//! the reader goes on. No more than [`ROOM`] bytes are kept: what comes then is dropped and counted, and the count is
//! logged when everything before it has been written. The thread is there only while there is something to write.
//!
//! The one lock is held for system calls that do not block, and never while anything is waited for. A regular file is
//! written directly: it has no reader that could be slow.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sys::activation::{LOG, hand_over, take_handed_over};

/// Bytes that are kept for a reader that does not read: some two thousand lines.
const ROOM: usize = 256 << 10;

/// The most that a pipe takes without blocking once poll(2) says that it takes something (pipe(7), `PIPE_BUF`).
const ATOMIC: usize = 4096;

/// The stack of the thread, in which one line is formatted.
const STACK: usize = 256 << 10;

/// How long to wait when the kernel cannot tell when there is room.
const PAUSE: Duration = Duration::from_millis(100);

const JOURNAL: &str = "/run/systemd/journal/socket";

/// A descriptor to write to, and how that is done without blocking.
#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A pipe or a terminal, opened anew so that it does not block: the open file that this program was started with is
    /// shared with others, who do not expect that of it.
    Nonblocking,
    /// One that cannot be opened anew.
    Shared,
    Socket,
    /// systemd's journal: each line is a datagram.
    Journal,
    /// A file or a device that always takes what is written.
    File,
}

/// What has been written of a line.
enum Written {
    /// All of it, or it cannot be written at all.
    Done,
    /// So many bytes: there is no room for more now.
    Part(usize),
}

impl Output {
    /// Stderr, whatever it is.
    pub(super) fn stderr() -> io::Result<Output> {
        let stderr = io::stderr();
        let kind = match rustix::fs::fstat(&stderr).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Fifo) => Kind::Nonblocking,
            Ok(FileType::Socket) => Kind::Socket,
            _ if rustix::termios::isatty(&stderr) => Kind::Nonblocking,
            _ => Kind::File,
        };
        if kind == Kind::Nonblocking {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            if let Ok(fd) = rustix::fs::open("/proc/self/fd/2", flags, Mode::empty()) {
                return Ok(Output { fd, kind });
            }
        }
        let kind = if kind == Kind::Nonblocking { Kind::Shared } else { kind };
        Ok(Output { fd: stderr.as_fd().try_clone_to_owned()?, kind })
    }

    /// The journal of systemd (systemd.io, "Native Journal Protocol").
    pub(super) fn journal() -> io::Result<Output> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(JOURNAL)?)?;
        Ok(Output { fd, kind: Kind::Journal })
    }

    /// Writes as much as there is room for.
    fn write(&self, line: &[u8]) -> Written {
        let mut done = 0;
        while done < line.len() {
            match self.write_some(&line[done..]) {
                Ok(0) => return Written::Done,
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => return Written::Part(done),
                // Nothing can be said about it anywhere.
                Err(_) => return Written::Done,
            }
        }
        Written::Done
    }

    fn write_some(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match self.kind {
            Kind::Nonblocking | Kind::File => rustix::io::write(&self.fd, bytes),
            Kind::Socket => rustix::net::send(&self.fd, bytes, flags),
            Kind::Journal => rustix::net::send(&self.fd, bytes, flags).or_else(|e| match e {
                // It has been started anew.
                Errno::CONNREFUSED | Errno::NOTCONN | Errno::DESTADDRREQ | Errno::CONNRESET => {
                    rustix::net::connect(&self.fd, &SocketAddrUnix::new(JOURNAL)?)?;
                    rustix::net::send(&self.fd, bytes, flags)
                }
                e => Err(e),
            }),
            Kind::Shared if self.has_room(Some(Duration::ZERO)) => {
                rustix::io::write(&self.fd, &bytes[..bytes.len().min(ATOMIC)])
            }
            Kind::Shared => Err(Errno::AGAIN),
        }
    }

    /// Waits until something can be written, or for some time; whether it can, or never will.
    fn has_room(&self, limit: Option<Duration>) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let limit = limit.and_then(|limit| limit.try_into().ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => false,
            Err(_) => {
                std::thread::sleep(PAUSE);
                false
            }
        }
    }
}

/// An output and what it has no room for.
#[derive(Debug)]
pub(super) struct Sink {
    output: Output,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Vec<u8>>,
    /// How much of the first one has been written.
    written: usize,
    bytes: usize,
    /// Until this has been logged, no line is kept: the report stands where the lines are missing.
    dropped: u64,
    /// The thread that writes is there.
    has_thread: bool,
    /// Another program has taken over what is kept.
    is_closed: bool,
}

impl Kept {
    fn push(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
    }
}

impl Sink {
    /// Begins with what the program before this one, in the same process, had not written.
    pub(super) fn new(output: Output) -> Arc<Sink> {
        let sink = Arc::new(Sink { output, kept: Mutex::default() });
        for left in take_handed_over(LOG) {
            let lines = read_lines(File::from(left)).unwrap_or_default();
            let mut kept = sink.lock();
            lines.iter().for_each(|line| kept.push(line));
            sink.begin_writing(&mut kept);
        }
        sink
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a whole line, or keeps it, or drops it.
    pub(super) fn line(self: &Arc<Self>, line: &[u8]) {
        let mut kept = self.lock();
        if kept.is_closed {
            return;
        }
        if kept.lines.is_empty() && kept.dropped == 0 {
            match self.output.write(line) {
                Written::Done => return,
                Written::Part(written) => kept.push(&line[written..]),
            }
        } else if kept.dropped == 0 && kept.bytes + line.len() <= ROOM {
            kept.push(line);
        } else {
            kept.dropped += 1;
        }
        self.begin_writing(&mut kept);
    }

    fn begin_writing(self: &Arc<Self>, kept: &mut Kept) {
        if kept.has_thread || kept.is_closed {
            return;
        }
        let sink = self.clone();
        let thread = std::thread::Builder::new().name("log".into()).stack_size(STACK);
        // Where there is no thread to be had, the next line tries again.
        kept.has_thread = thread.spawn(move || sink.write_kept()).is_ok();
    }

    /// The thread.
    fn write_kept(self: Arc<Self>) {
        loop {
            let mut kept = self.lock();
            if kept.is_closed {
                return;
            }
            if !self.advance(&mut kept) {
                drop(kept);
                self.output.has_room(None);
            } else if kept.dropped > 0 {
                let dropped = std::mem::take(&mut kept.dropped);
                drop(kept);
                report(dropped);
            } else {
                *kept = Kept::default();
                return;
            }
        }
    }

    /// Writes what there is room for; whether that was all.
    fn advance(&self, kept: &mut Kept) -> bool {
        while let Some(line) = kept.lines.front() {
            match self.output.write(&line[kept.written..]) {
                Written::Done => {
                    kept.bytes -= line.len();
                    kept.written = 0;
                    kept.lines.pop_front();
                }
                Written::Part(written) => {
                    kept.written += written;
                    return false;
                }
            }
        }
        true
    }

    /// Waits until all has been written, but not longer than `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let mut kept = self.lock();
            if self.advance(&mut kept) {
                match std::mem::take(&mut kept.dropped) {
                    0 => return,
                    dropped => {
                        drop(kept);
                        report(dropped);
                        continue;
                    }
                }
            }
            drop(kept);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.output.has_room(Some(left));
        }
    }

    /// Closes this sink and puts what is kept into a file that stays open over execve(2).
    pub(super) fn hand_over(&self) -> Option<(&'static str, String)> {
        let mut kept = self.lock();
        if self.advance(&mut kept) && kept.dropped == 0 {
            return None;
        }
        kept.is_closed = true;
        let lines = kept.lines.iter().enumerate();
        let lines = lines.map(|(at, line)| if at == 0 { &line[kept.written..] } else { line.as_slice() });
        let file = write_lines(lines).ok()?;
        let handed_over = hand_over(LOG, std::slice::from_ref(&file)).ok();
        // It is the next program's.
        std::mem::forget(file);
        handed_over
    }
}

fn report(dropped: u64) {
    // As an error, so that it is logged at every level.
    tracing::error!(lines = dropped, "the log was not read in time, and lines were dropped");
}

/// Lines in a file in memory, each after its length.
fn write_lines<'a>(lines: impl Iterator<Item = &'a [u8]>) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC)?);
    for line in lines {
        file.write_all(&(line.len() as u64).to_ne_bytes())?;
        file.write_all(line)?;
    }
    Ok(file.into())
}

fn read_lines(mut file: File) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    let mut lines = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let Ok(length) = usize::try_from(u64::from_ne_bytes(*length)) else { break };
        let Some((line, after)) = after.split_at_checked(length) else { break };
        lines.push(line.to_vec());
        rest = after;
    }
    Ok(lines)
}

/// One line for a formatter, which writes it as a whole.
pub(super) struct Line(pub(super) Arc<Sink>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.line(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    fn pipe() -> (File, Arc<Sink>) {
        let (reader, fd) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        let kind = Kind::Nonblocking;
        rustix::io::ioctl_fionbio(&reader, false).expect("a pipe");
        (reader.into(), Sink::new(Output { fd, kind }))
    }

    #[test]
    fn lines_of_a_reader_that_waits_are_kept_in_order_and_then_counted() {
        let (mut reader, sink) = pipe();
        let line = |n: usize| format!("{n:0>99}\n");
        // A pipe holds 64 kB, and the sink four times as much.
        let all = 5 * 1024 * 1024 / 100;
        for n in 0..all {
            sink.line(line(n).as_bytes());
        }
        let kept = sink.lock();
        assert!(kept.bytes <= ROOM && kept.has_thread);
        let accepted = all - kept.dropped as usize;
        drop(kept);
        assert!(accepted * 100 >= ROOM, "{accepted}");
        let mut read = vec![0; accepted * 100];
        reader.read_exact(&mut read).expect("the sink is open");
        assert_eq!(read, (0..accepted).flat_map(|n| line(n).into_bytes()).collect::<Vec<_>>());
        // The report of what was dropped goes to this test's own subscriber, which there is none of.
        while sink.lock().has_thread {
            std::thread::yield_now();
        }
        sink.line(b"again\n");
        let mut read = [0; 6];
        reader.read_exact(&mut read).expect("the sink is open");
        assert_eq!(&read, b"again\n");
    }

    #[test]
    fn flush_ends_at_its_limit_and_what_is_left_is_handed_over() {
        let (mut reader, sink) = pipe();
        for n in 0..2000 {
            sink.line(format!("{n:0>99}\n").as_bytes());
        }
        sink.flush(Duration::from_millis(10));
        let (variable, value) = sink.hand_over().expect("something is left");
        assert_eq!(variable, LOG);
        sink.line(b"lost\n");
        let number = value.split_once(':').expect("a number").1;
        let left = File::open(format!("/proc/self/fd/{number}")).expect("it is open");
        let left = read_lines(left).expect("reads").concat();
        let mut read = vec![0; 200_000 - left.len()];
        reader.read_exact(&mut read).expect("the sink is open");
        read.extend(left);
        assert_eq!(read, (0..2000).flat_map(|n| format!("{n:0>99}\n").into_bytes()).collect::<Vec<_>>());
    }

    #[test]
    fn reader_that_has_gone_costs_nothing() {
        let (reader, sink) = pipe();
        drop(reader);
        for _ in 0..10_000 {
            sink.line(&[b'x'; 100]);
        }
        let kept = sink.lock();
        assert_eq!((kept.bytes, kept.dropped, kept.has_thread), (0, 0, false));
    }
}
