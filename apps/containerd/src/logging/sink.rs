//! The log's destination. Logging never waits for its reader.
//!
//! A line is written at once if the destination has room for it. Otherwise it is kept, and a thread writes the kept lines when
//! the reader goes on. At most [`ROOM`] bytes are kept. Further lines are dropped and counted, and the count is logged once
//! everything before it has been written. The thread exists only while lines are kept.
//!
//! The lock is held only during system calls that do not block. A regular file is written directly: it has no reader that
//! could be slow.

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

/// The most bytes that are kept for a slow reader: some two thousand lines.
const ROOM: usize = 256 << 10;

/// The most bytes that a pipe accepts without blocking once poll(2) reports room (pipe(7), `PIPE_BUF`).
const ATOMIC: usize = 4096;

/// The size of the thread's stack. The thread formats one line: the report of dropped lines.
const STACK: usize = 256 << 10;

/// How long to wait before writing is tried again, if poll(2) fails.
const RETRY_DELAY: Duration = Duration::from_millis(100);

const JOURNAL: &str = "/run/systemd/journal/socket";

/// A descriptor to write to, and how to write to it without blocking.
#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A pipe or a terminal, opened a second time in non-blocking mode. The open file that this process inherited is shared with
    /// other processes, which do not expect that mode.
    Nonblocking,
    /// A pipe or a terminal that cannot be opened a second time.
    Shared,
    Socket,
    /// systemd's journal: each line is a datagram.
    Journal,
    /// A file or device that always accepts what is written.
    File,
}

/// How much of a line has been written.
enum Written {
    /// All of it. Also if writing failed: there is no place to report that.
    Done,
    /// So many bytes. There is no room for more now.
    Part(usize),
}

impl Output {
    /// Standard error, whatever it is connected with.
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

    /// systemd's journal (systemd.io, "Native Journal Protocol").
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
                // The journal has been restarted.
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

    /// Waits until a write would not block, at most for `limit`. Returns false if the time is over. True also means that a write
    /// would fail at once.
    fn has_room(&self, limit: Option<Duration>) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let limit = limit.and_then(|limit| limit.try_into().ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => false,
            Err(_) => {
                std::thread::sleep(RETRY_DELAY);
                false
            }
        }
    }
}

/// An output, and the lines for which it has no room yet.
#[derive(Debug)]
pub(super) struct Sink {
    output: Output,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Vec<u8>>,
    /// How many bytes of the first line have been written.
    written: usize,
    /// The length of all lines together.
    bytes: usize,
    /// How many lines have been dropped since the last report of it. No line is kept before the next report, so that the report
    /// stands where the lines are missing.
    dropped: u64,
    /// The writing thread is running.
    has_thread: bool,
    /// The lines have been handed over to the next program.
    is_closed: bool,
}

impl Kept {
    fn push(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
    }
}

impl Sink {
    /// Creates a sink. Its first lines are those that the previous program in this process could not write.
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

    /// Writes a line, keeps it, or drops it.
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

    /// Starts the writing thread, unless it is running.
    fn begin_writing(self: &Arc<Self>, kept: &mut Kept) {
        if kept.has_thread || kept.is_closed {
            return;
        }
        let sink = self.clone();
        let thread = std::thread::Builder::new().name("log".into()).stack_size(STACK);
        // If the thread cannot be started, the next line tries again.
        kept.has_thread = thread.spawn(move || sink.write_kept()).is_ok();
    }

    /// Writes the kept lines as the reader makes room, until none is left. This is the thread's work.
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

    /// Writes as many kept lines as there is room for. Returns true if none is left.
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

    /// Waits until all lines have been written, at most for `limit`.
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

    /// Closes the sink and puts the kept lines into a file that stays open across execve(2). Returns the variable, with its
    /// value, that names the file in the next program's environment; `None` if no line is left.
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
        // The next program owns the descriptor.
        std::mem::forget(file);
        handed_over
    }
}

fn report(dropped: u64) {
    // An error, so that every log level shows it.
    tracing::error!(lines = dropped, "the log's reader is too slow, and lines were dropped");
}

/// Writes lines into a file in memory, each after its length.
fn write_lines<'a>(lines: impl Iterator<Item = &'a [u8]>) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC)?);
    for line in lines {
        file.write_all(&(line.len() as u64).to_ne_bytes())?;
        file.write_all(line)?;
    }
    Ok(file.into())
}

/// Reads the lines that [`write_lines`] wrote.
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

/// A writer for one line. The formatter writes the whole line at once.
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
    fn lines_for_a_slow_reader_are_kept_in_order_up_to_the_limit_and_then_counted() {
        let (mut reader, sink) = pipe();
        let line = |n: usize| format!("{n:0>99}\n");
        // Far more than the 64 kB of a pipe and the 256 kB of the sink.
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
        // The report of the dropped lines goes nowhere: this test has no subscriber for log messages.
        while sink.lock().has_thread {
            std::thread::yield_now();
        }
        sink.line(b"again\n");
        let mut read = [0; 6];
        reader.read_exact(&mut read).expect("the sink is open");
        assert_eq!(&read, b"again\n");
    }

    #[test]
    fn flush_ends_at_its_limit_and_unwritten_lines_are_handed_over() {
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
    fn lines_for_a_closed_pipe_are_neither_kept_nor_counted() {
        let (reader, sink) = pipe();
        drop(reader);
        for _ in 0..10_000 {
            sink.line(&[b'x'; 100]);
        }
        let kept = sink.lock();
        assert_eq!((kept.bytes, kept.dropped, kept.has_thread), (0, 0, false));
    }
}
