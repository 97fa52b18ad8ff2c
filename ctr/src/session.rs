//! The FIFOs of an attached session, and the threads that copy this program's stdio through them.
//!
//! The threads block: in opening a FIFO until the shim has its other side, in reading, in writing. Whoever waits for
//! them waits for the channels.

use anyhow::Context;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tokio::sync::oneshot;

/// How the copying of an output ended.
pub(crate) type Done = oneshot::Receiver<io::Result<()>>;

/// The paths that the daemon is given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A session's FIFOs and threads.
#[derive(Debug)]
pub(crate) struct Session {
    directory: tempfile::TempDir,
    pub(crate) paths: Paths,
    /// Lets the outputs begin, when this program's terminal is ready for them.
    begin: Vec<mpsc::Sender<()>>,
    /// One for each output: done, or stopped by an error.
    pub(crate) outputs: Vec<Done>,
    /// This program's stdin has ended, and all of it is in the FIFO.
    pub(crate) stdin_ended: tokio::sync::mpsc::Receiver<()>,
}

impl Session {
    /// Makes the FIFOs and starts the threads. With a terminal there is no stderr.
    pub(crate) fn new(terminal: bool) -> anyhow::Result<Session> {
        let directory = tempfile::Builder::new().prefix("ctr-").tempdir().context("make a directory for the FIFOs")?;
        let fifo = |name: &str| -> anyhow::Result<PathBuf> {
            let path = directory.path().join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .with_context(|| format!("make the FIFO {}", path.display()))?;
            Ok(path)
        };
        let (stdin, stdout) = (fifo("stdin")?, fifo("stdout")?);
        let mut begin = Vec::new();
        let mut outputs = vec![copy_out(stdout.clone(), io::stdout(), &mut begin)?];
        let mut paths = Paths { stdin: text(&stdin)?, stdout: text(&stdout)?, stderr: String::new() };
        if !terminal {
            let stderr = fifo("stderr")?;
            paths.stderr = text(&stderr)?;
            outputs.push(copy_out(stderr, io::stderr(), &mut begin)?);
        }
        let (sender, stdin_ended) = tokio::sync::mpsc::channel(1);
        let own = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        std::thread::spawn(move || {
            // If it fails, the process has closed its stdin or is over: then there is nobody to tell.
            if let Ok(()) = File::options().write(true).open(stdin).and_then(|fifo| copy(own, fifo)) {
                let _ = sender.blocking_send(());
            }
        });
        Ok(Session { directory, paths, begin, outputs, stdin_ended })
    }

    /// Lets what the process writes be passed on.
    pub(crate) fn begin(&mut self) {
        for begin in self.begin.drain(..) {
            // A thread that has failed has said so.
            let _ = begin.send(());
        }
    }

    /// Removes the FIFOs. Who has them open keeps them.
    pub(crate) fn remove(self) {
        drop(self.directory);
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("the temporary directory's path is not UTF-8")?.to_string())
}

fn copy_out(fifo: PathBuf, own: impl AsFd, begin: &mut Vec<mpsc::Sender<()>>) -> anyhow::Result<Done> {
    let own = File::from(own.as_fd().try_clone_to_owned()?);
    let (sender, done) = oneshot::channel();
    let (begins, may_begin) = mpsc::channel();
    begin.push(begins);
    std::thread::spawn(move || {
        let copied = File::open(fifo).and_then(|fifo| match may_begin.recv() {
            Ok(()) => copy(fifo, own),
            Err(_) => Ok(()),
        });
        let _ = sender.send(copied);
    });
    Ok(done)
}

/// Each piece is written as soon as it is read.
fn copy(mut from: File, mut to: File) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
