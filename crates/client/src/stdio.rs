//! Where the streams of an attached process come from and go to.

use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// The client's side of the stdin, stdout and stderr of an attached process.
///
/// Each stream is copied by a thread of its own, which may wait in a read or write for as long as it takes. `None` gives the
/// process `/dev/null` for that stream.
#[derive(Default)]
pub struct Stdio {
    /// What the process reads. At its end, the process reads end-of-file.
    pub stdin: Option<Box<dyn Read + Send>>,
    /// Where the process's output goes. With a terminal, this is all of its output.
    pub stdout: Option<Box<dyn Write + Send>>,
    /// Where the process's errors go. A process with a terminal has no separate stream of errors.
    pub stderr: Option<Box<dyn Write + Send>>,
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("Stdio");
        f.field("stdin", &self.stdin.is_some()).field("stdout", &self.stdout.is_some());
        f.field("stderr", &self.stderr.is_some()).finish()
    }
}

impl Stdio {
    /// The streams of this program, unbuffered. Another program that shares them may have made them non-blocking.
    pub fn inherit() -> io::Result<Stdio> {
        Ok(Stdio {
            stdin: Some(Box::new(Waiting::new(io::stdin().as_fd())?)),
            stdout: Some(Box::new(Waiting::new(io::stdout().as_fd())?)),
            stderr: Some(Box::new(Waiting::new(io::stderr().as_fd())?)),
        })
    }
}

/// A file whose reads and writes wait, also when its open file description is non-blocking.
struct Waiting(File);

impl Waiting {
    fn new(file: BorrowedFd<'_>) -> io::Result<Waiting> {
        Ok(Waiting(file.try_clone_to_owned()?.into()))
    }

    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.0, flags)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Read for Waiting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                result => return result,
            }
        }
    }
}

impl Write for Waiting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn reads_and_writes_of_a_non_blocking_pipe_wait() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("makes a pipe");
        let mut to = Waiting::new(writer.as_fd()).expect("clones");
        let mut from = Waiting::new(reader.as_fd()).expect("clones");
        drop((reader, writer));
        // Larger than a pipe, so that the writer waits for the reader; the reader begins before there is anything.
        let data = vec![7; 300_000];
        let expected = data.clone();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            from.read_to_end(&mut got).map(|_| got)
        });
        to.write_all(&data).expect("writes");
        drop(to);
        assert!(reading.join().expect("no panic").expect("reads") == expected);
    }
}
