//! The FIFOs of an attached session, and the threads that copy through them.
//!
//! All FIFOs are opened before the daemon is asked to start the process, both ends of each. No open waits for the other side,
//! and the output of a process has a reader from its first byte on, also if the process ends at once. The threads wait only in
//! reads, writes and polls. A write to where the output goes can take for ever; no task of the client waits for a thread
//! without waiting for events as well.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat, open};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::stdio::Stdio;

/// The most bytes that are copied at a time: as many as a FIFO holds by default (pipe(7)).
const BUFFER: usize = 64 << 10;

/// The paths of FIFOs, as the API's requests name them. An empty one means `/dev/null`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// The FIFO that the process reads from.
    pub stdin: String,
    /// The FIFO of the process's output.
    pub stdout: String,
    /// The FIFO of the process's errors.
    pub stderr: String,
}

/// A session's FIFOs and threads.
pub(crate) struct Fifos {
    /// Removed with this. Programs that have the FIFOs open keep them.
    _directory: tempfile::TempDir,
    pub(crate) paths: Paths,
    /// What [`Fifos::begin`] starts to copy.
    idle: Option<Idle>,
    /// Closed when the process has ended and no more output comes.
    unfinished: Option<OwnedFd>,
    pub(crate) outputs: Outputs,
    /// Receives a message when stdin has ended and all of it is in the FIFO.
    pub(crate) stdin_ended: mpsc::Receiver<()>,
}

/// The outputs whose copying has not ended.
#[derive(Default)]
pub(crate) struct Outputs(Vec<Copying>);

/// An output that a thread copies.
struct Copying {
    name: &'static str,
    /// The error that stopped the copying, if any. Closed without a result if the thread panicked.
    result: oneshot::Receiver<io::Result<()>>,
}

/// Open FIFOs before anything is copied.
struct Idle {
    stdin: Option<Input>,
    outputs: Vec<Output>,
    finished: Arc<OwnedFd>,
    ended: mpsc::Sender<()>,
}

struct Input {
    from: Box<dyn Read + Send>,
    fifo: File,
    /// Stands in for the shim's end of the FIFO until the shim has opened it.
    reader: OwnedFd,
}

struct Output {
    name: &'static str,
    fifo: File,
    to: Box<dyn Write + Send>,
}

impl Fifos {
    /// Makes and opens a FIFO for each stream in `stdio`. A process with a terminal gets none for stderr.
    pub(crate) fn new(stdio: Stdio, terminal: bool) -> Result<Fifos, Error> {
        let directory = tempfile::Builder::new().prefix("containerd-client-").tempdir();
        let directory = directory.map_err(failed("make a directory for the FIFOs"))?;
        let mut paths = Paths::default();
        let stdin = match stdio.stdin {
            Some(from) => {
                let path = make(directory.path(), "stdin")?;
                let reader = open_fifo(&path, OFlags::RDONLY)?;
                let writer = open_fifo(&path, OFlags::WRONLY)?;
                set_blocking(&writer).map_err(failed("make writes to the FIFO of stdin wait"))?;
                paths.stdin = text(&path)?;
                Some(Input { from, fifo: File::from(writer), reader })
            }
            None => None,
        };
        let mut outputs = Vec::new();
        let mut output = |name: &'static str, to: Option<Box<dyn Write + Send>>| -> Result<String, Error> {
            let Some(to) = to else { return Ok(String::new()) };
            let path = make(directory.path(), name)?;
            // For writing too, so that no read returns end-of-file when the shim closes its end: another process of the
            // container may open it again.
            let fifo = open_fifo(&path, OFlags::RDWR)?.into();
            outputs.push(Output { name, fifo, to });
            text(&path)
        };
        paths.stdout = output("stdout", stdio.stdout)?;
        if !terminal {
            paths.stderr = output("stderr", stdio.stderr)?;
        }
        let (finished, unfinished) =
            pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(failed("make a pipe"))?;
        let (ended, stdin_ended) = mpsc::channel(1);
        Ok(Fifos {
            _directory: directory,
            paths,
            idle: Some(Idle { stdin, outputs, finished: Arc::new(finished), ended }),
            unfinished: Some(unfinished),
            outputs: Outputs::default(),
            stdin_ended,
        })
    }

    /// Starts the threads that copy, unless they have been started. The process must have been started before.
    pub(crate) fn begin(&mut self) -> Result<(), Error> {
        let Some(Idle { stdin, outputs, finished, ended }) = self.idle.take() else { return Ok(()) };
        for Output { name, fifo, mut to } in outputs {
            let (sender, result) = oneshot::channel();
            let finished = finished.clone();
            let copy = move || {
                // Nothing receives the result if the session was dropped.
                let _ = sender.send(copy_output(&fifo, &mut *to, &finished));
            };
            spawn(name, copy)?;
            self.outputs.0.push(Copying { name, result });
        }
        if let Some(Input { mut from, mut fifo, reader }) = stdin {
            // The shim has opened the FIFO by now. If it has closed it again, with the process's stdin, writes fail from
            // here on.
            drop(reader);
            let copy = move || {
                // A failure means that the process has closed its stdin or has ended, and needs no end-of-file.
                if copy_input(&mut *from, &mut fifo).is_ok() {
                    let _ = ended.blocking_send(());
                }
            };
            spawn("stdin", copy)?;
        }
        Ok(())
    }

    /// Tells the threads that the process has exited. All of its output is in the FIFOs: they end once they have copied it.
    pub(crate) fn finish(&mut self) {
        self.unfinished = None;
    }
}

impl Outputs {
    /// Waits for an output that cannot be written. Never returns if there is none.
    pub(crate) async fn failed(&mut self) -> Error {
        std::future::poll_fn(|context| match self.poll(context) {
            Some(error) => Poll::Ready(error),
            None => Poll::Pending,
        })
        .await
    }

    /// Waits until all output has been copied.
    pub(crate) async fn copied(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|context| match self.poll(context) {
            Some(error) => Poll::Ready(Err(error)),
            None if self.0.is_empty() => Poll::Ready(Ok(())),
            None => Poll::Pending,
        })
        .await
    }

    /// Looks whether outputs have ended, and returns the error of one that failed.
    fn poll(&mut self, context: &mut std::task::Context<'_>) -> Option<Error> {
        let mut error = None;
        self.0.retain_mut(|Copying { name, result }| {
            if error.is_some() {
                return true;
            }
            match Future::poll(std::pin::Pin::new(result), context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    if let Ok(Err(source)) = result {
                        error = Some(Error::Output { stream: name, source });
                    }
                    false
                }
            }
        });
        error
    }
}

fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Session { operation: operation.into(), source }
}

fn spawn(stream: &str, copy: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    std::thread::Builder::new().spawn(copy).map(drop).map_err(failed(format!("start a thread for {stream}")))
}

fn make(directory: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = directory.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(io::Error::from)
        .map_err(failed(format!("make the FIFO {}", path.display())))?;
    Ok(path)
}

fn open_fifo(path: &Path, access: OFlags) -> Result<OwnedFd, Error> {
    open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)
        .map_err(failed(format!("open the FIFO {}", path.display())))
}

/// Only for a file that this library opened: another program may share an open file description, and its flags.
fn set_blocking(file: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&file)?;
    Ok(fcntl_setfl(&file, flags - OFlags::NONBLOCK)?)
}

fn text(path: &Path) -> Result<String, Error> {
    let not_utf8 = || io::Error::new(ErrorKind::InvalidInput, "its path is not UTF-8");
    let text = path.to_str().ok_or_else(not_utf8);
    text.map(str::to_string).map_err(failed(format!("use the FIFO {}", path.display())))
}

/// Copies until all output of the process has been copied. Each piece is written as soon as it has been read.
fn copy_output(fifo: &File, to: &mut dyn Write, finished: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut polled = [PollFd::new(fifo, PollFlags::IN), PollFd::new(finished, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        // Checked before the FIFO is read: if the process has ended, all of its output is in the FIFO already.
        let is_last = !polled[1].revents().is_empty();
        loop {
            match read(&mut &*fifo, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    to.write_all(&buffer[..n])?;
                    to.flush()?;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Copies until the end of `from`.
fn copy_input(from: &mut dyn Read, fifo: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match read(from, &mut buffer)? {
            0 => return Ok(()),
            n => fifo.write_all(&buffer[..n])?,
        }
    }
}

fn read(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A place for output that can be looked at.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stdio(to: &Shared) -> Stdio {
        let to = || Some(Box::new(to.clone()) as Box<dyn Write + Send>);
        Stdio { stdin: Some(Box::new(io::empty())), stdout: to(), stderr: to() }
    }

    #[tokio::test]
    async fn output_of_a_process_that_ended_before_the_copying_began_is_complete() {
        let shared = Shared::default();
        let mut fifos = Fifos::new(stdio(&shared), false).expect("makes the FIFOs");
        // As the shim opens it: without waiting. The process has written and ended before anything is copied.
        let writer = open_fifo(Path::new(&fifos.paths.stdout), OFlags::WRONLY).expect("has a reader");
        let data = vec![7; 60_000];
        File::from(writer).write_all(&data).expect("fits");
        fifos.finish();
        fifos.begin().expect("starts threads");
        fifos.outputs.copied().await.expect("copies");
        assert!(*shared.0.lock().expect("no panic") == data);
    }

    #[tokio::test]
    async fn full_disk_stops_the_copying_with_its_error() {
        let full = File::options().write(true).open("/dev/full").expect("opens");
        let stdio = Stdio { stdout: Some(Box::new(full)), ..Stdio::default() };
        let mut fifos = Fifos::new(stdio, true).expect("makes the FIFOs");
        assert_eq!((fifos.paths.stdin.as_str(), fifos.paths.stderr.as_str()), ("", ""));
        let writer = open_fifo(Path::new(&fifos.paths.stdout), OFlags::WRONLY).expect("has a reader");
        File::from(writer).write_all(b"x").expect("fits");
        fifos.begin().expect("starts threads");
        let error = fifos.outputs.failed().await;
        let Error::Output { stream: "stdout", source } = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), ErrorKind::StorageFull);
    }

    #[tokio::test]
    async fn end_of_stdin_is_reported_once_all_of_it_is_in_the_fifo() {
        let stdio = Stdio { stdin: Some(Box::new(&b"input"[..])), ..Stdio::default() };
        let mut fifos = Fifos::new(stdio, false).expect("makes the FIFOs");
        let mut reader = File::from(open_fifo(Path::new(&fifos.paths.stdin), OFlags::RDONLY).expect("opens"));
        fifos.begin().expect("starts threads");
        fifos.stdin_ended.recv().await.expect("ends");
        let mut got = [0; 5];
        reader.read_exact(&mut got).expect("is there");
        assert_eq!(&got, b"input");
    }

    #[test]
    fn fifos_are_removed_with_the_session() {
        let fifos = Fifos::new(stdio(&Shared::default()), false).expect("makes the FIFOs");
        let directory = Path::new(&fifos.paths.stdin).parent().expect("has one").to_path_buf();
        assert!(directory.exists());
        drop(fifos);
        assert!(!directory.exists());
    }
}
