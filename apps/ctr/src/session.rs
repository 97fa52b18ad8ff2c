//! The FIFOs of an attached session, and the threads that copy this program's stdio through them.
//!
//! All FIFOs are opened before the process is asked for, both ends of each, so that no open waits for the other side and
//! what a process writes has a reader from its first byte on, also if it ends at once. The threads wait in reads and writes
//! only. A write to this program's own stdio can last for ever, and no part of the program waits for one without
//! watching for signals as well.

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat, open};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;

/// How the copying of an output ended: the name of the stream, and the error that stopped it.
pub(crate) struct Done {
    pub(crate) name: &'static str,
    pub(crate) result: oneshot::Receiver<io::Result<()>>,
}

/// The paths that the daemon is given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A session's FIFOs and threads.
pub(crate) struct Session {
    /// Removed with this. Programs that have the FIFOs open keep them.
    _directory: tempfile::TempDir,
    pub(crate) paths: Paths,
    /// What [`Session::begin`] starts to copy.
    waiting: Option<Waiting>,
    /// Closed when no more output is to come.
    unfinished: Option<OwnedFd>,
    /// One for each output: done, or stopped by an error.
    pub(crate) outputs: Vec<Done>,
    /// This program's stdin has ended, and all of it is in the FIFO.
    pub(crate) stdin_ended: tokio::sync::mpsc::Receiver<()>,
}

/// The FIFOs before anything is copied.
struct Waiting {
    stdin: File,
    /// Takes the place of the shim's end of stdin until that is there.
    stdin_reader: OwnedFd,
    outputs: Vec<(&'static str, File, File)>,
    finished: Arc<OwnedFd>,
    ended: tokio::sync::mpsc::Sender<()>,
}

impl Session {
    /// Makes the FIFOs and opens them. With a terminal there is no stderr.
    pub(crate) fn new(terminal: bool) -> anyhow::Result<Session> {
        let directory = tempfile::Builder::new().prefix("ctr-").tempdir().context("make a directory for the FIFOs")?;
        let stdin = fifo(directory.path(), "stdin")?;
        let stdin_reader = open_fifo(&stdin, OFlags::RDONLY)?;
        let stdin_writer = open_fifo(&stdin, OFlags::WRONLY)?;
        set_blocking(&stdin_writer).context("open the FIFO of stdin")?;
        let mut paths = Paths { stdin: text(&stdin)?, ..Default::default() };
        let mut outputs = Vec::new();
        let mut output = |name: &'static str, own: BorrowedFd<'_>| -> anyhow::Result<String> {
            let path = fifo(directory.path(), name)?;
            // The writer's side too: the end of the shim's is not the end of the file.
            let source = open_fifo(&path, OFlags::RDWR)?;
            let own = own.try_clone_to_owned().with_context(|| format!("keep {name}"))?;
            outputs.push((name, File::from(source), File::from(own)));
            text(&path)
        };
        paths.stdout = output("stdout", io::stdout().as_fd())?;
        if !terminal {
            paths.stderr = output("stderr", io::stderr().as_fd())?;
        }
        let (finished, unfinished) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).context("make a pipe")?;
        let (ended, stdin_ended) = tokio::sync::mpsc::channel(1);
        let stdin = File::from(stdin_writer);
        let waiting = Waiting { stdin, stdin_reader, outputs, finished: Arc::new(finished), ended };
        Ok(Session {
            _directory: directory,
            paths,
            waiting: Some(waiting),
            unfinished: Some(unfinished),
            outputs: Vec::new(),
            stdin_ended,
        })
    }

    /// Begins to copy: the process is there, and this program's terminal is ready for it.
    pub(crate) fn begin(&mut self) -> anyhow::Result<()> {
        let Some(Waiting { stdin, stdin_reader, outputs, finished, ended }) = self.waiting.take() else {
            return Ok(());
        };
        for (name, source, own) in outputs {
            let (sender, result) = oneshot::channel();
            let finished = finished.clone();
            let copy = move || {
                // This session may be over by now.
                let _ = sender.send(copy_output(&source, &own, &finished));
            };
            std::thread::Builder::new().spawn(copy).with_context(|| format!("start a thread for {name}"))?;
            self.outputs.push(Done { name, result });
        }
        // The shim has the FIFO open, or has closed it with the process's stdin: then writes to it fail from here on.
        drop(stdin_reader);
        let own = File::from(io::stdin().as_fd().try_clone_to_owned().context("keep stdin")?);
        let copy = move || {
            // If it fails, the process has closed its stdin or has ended, and needs no end of file.
            if copy_input(&own, &stdin).is_ok() {
                let _ = ended.blocking_send(());
            }
        };
        std::thread::Builder::new().spawn(copy).context("start a thread for stdin")?;
        Ok(())
    }

    /// The process has exited, so that all of its output is in the FIFOs: the copying ends when that has been copied.
    pub(crate) fn finish(&mut self) {
        self.unfinished = None;
    }
}

fn fifo(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(io::Error::from)
        .with_context(|| format!("make the FIFO {}", path.display()))?;
    Ok(path)
}

fn open_fifo(path: &Path, access: OFlags) -> anyhow::Result<OwnedFd> {
    let opened = open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
    opened.with_context(|| format!("open the FIFO {}", path.display()))
}

/// Only for a file that this program opened itself: others may share an open file, and its flags.
fn set_blocking(file: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&file)?;
    Ok(fcntl_setfl(&file, flags - OFlags::NONBLOCK)?)
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("the temporary directory's path is not UTF-8")?.to_string())
}

/// Copies until all that the process wrote has been copied. Each piece is written as soon as it is read.
fn copy_output(fifo: &File, own: &File, finished: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut polled = [PollFd::new(fifo, PollFlags::IN), PollFd::new(finished, PollFlags::IN)];
        if let Err(e) = poll(&mut polled, None).map_err(io::Error::from) {
            if e.kind() == ErrorKind::Interrupted {
                continue;
            }
            return Err(e);
        }
        // Looked at before the FIFO is read: what is in it by then is all.
        let last = !polled[1].revents().is_empty();
        loop {
            match read(fifo, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => write_whole(own, &buffer[..n])?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        if last {
            return Ok(());
        }
    }
}

/// Copies until this program's stdin ends.
fn copy_input(own: &File, fifo: &File) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match read(own, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => write_whole(fifo, &buffer[..n])?,
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait_for(own, PollFlags::IN)?,
            Err(e) => return Err(e),
        }
    }
}

fn read(mut from: &File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Another program that shares this one's stdio may have made it non-blocking.
fn write_whole(mut to: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait_for(to, PollFlags::OUT)?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait_for(file: &File, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(file, flags)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;

    #[test]
    fn output_of_a_process_that_ended_before_the_copying_began_is_complete() {
        let session = Session::new(false).expect("makes the FIFOs");
        let Waiting { mut outputs, finished, .. } = session.waiting.expect("has not begun");
        // As the shim opens it: without waiting. All has been written and closed before anything reads.
        let writer = open_fifo(Path::new(&session.paths.stdout), OFlags::WRONLY).expect("has a reader");
        let data = vec![7; 60_000];
        write_whole(&File::from(writer), &data).expect("fits");
        drop(session.unfinished);
        let (reader, own) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let own = File::from(own);
        let (_, source, _) = outputs.remove(0);
        let copied = std::thread::spawn(move || copy_output(&source, &own, &finished));
        let mut got = Vec::new();
        File::from(reader).read_to_end(&mut got).expect("reads");
        copied.join().expect("no panic").expect("copies");
        assert!(got == data);
    }

    #[test]
    fn full_disk_stops_the_copying_with_its_error() {
        let session = Session::new(true).expect("makes the FIFOs");
        let Waiting { mut outputs, finished, .. } = session.waiting.expect("has not begun");
        let (_, source, _) = outputs.remove(0);
        assert!(outputs.is_empty(), "a terminal has one output");
        write_whole(&source, b"x").expect("fits");
        let full = File::options().write(true).open("/dev/full").expect("opens");
        let error = copy_output(&source, &full, &finished).expect_err("is full");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
