//! `start --attach` and `exec --attach`: a session of the client library on this program's stdio and terminal.
//!
//! The library moves the bytes and follows the daemon. This module adds what belongs to the program: raw mode, the size of
//! the terminal, and signals, which are watched in every phase, from before the connection until the last byte of output has
//! been written.

use anyhow::Context;
use containerd_client::api::{AddProcessRequest, CreateContainerRequest};
use containerd_client::{Client, Error, Exit, INIT, Prepared, Session, Stdio};
use std::cell::Cell;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;
use sys::foreign_file;

use crate::CONFIG_LIMIT;
use crate::failure::Failure;
use crate::out;
use crate::signals::{SIGWINCH, Signals};
use crate::terminal::{self, RawMode};

const SIGPIPE: i32 = rustix::process::Signal::PIPE.as_raw();

/// A process, as the API names it.
#[derive(Debug, Clone)]
struct Name {
    id: String,
    process: String,
}

impl Name {
    /// The message for the user when this program ends before the process does.
    fn goes_on(&self) -> String {
        let Name { id, process } = self;
        let which = if process == INIT { String::new() } else { format!(" --pid {process}") };
        format!("process {process} of container {id} goes on running; `ctr containers kill{which} {id}` ends it")
    }
}

/// Starts a container with this program's stdio.
pub(crate) async fn start(client: &Client, mut request: CreateContainerRequest) -> Result<ExitCode, Failure> {
    let name = Name { id: request.id.clone(), process: INIT.into() };
    let terminal = bundle_has_terminal(&request.bundle_path);
    (request.width, request.height) = terminal_size(terminal);
    let signals = Signals::take()?;
    attach(client, signals, name, terminal, async move |prepared: Prepared| prepared.start(request).await).await
}

/// Adds a process with this program's stdio.
pub(crate) async fn exec(
    client: &Client,
    signals: Signals,
    mut request: AddProcessRequest,
) -> Result<ExitCode, Failure> {
    let name = Name { id: request.id.clone(), process: request.pid.clone() };
    let terminal = request.terminal;
    (request.width, request.height) = terminal_size(terminal);
    attach(client, signals, name, terminal, async move |prepared: Prepared| prepared.exec(request).await).await
}

/// Whether the bundle asks for a terminal. An unreadable bundle is for the daemon to report.
fn bundle_has_terminal(bundle: &str) -> bool {
    let text = foreign_file::read(&Path::new(bundle).join("config.json"), CONFIG_LIMIT).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    config["process"]["terminal"].as_bool().unwrap_or_default()
}

/// The first size of the process's terminal: that of this program's, or zeros if either has none.
fn terminal_size(terminal: bool) -> (u32, u32) {
    terminal::size().filter(|_| terminal).unwrap_or_default()
}

/// Prepares a session, has the daemon start the process by `call`, and stays with the process.
async fn attach(
    client: &Client,
    signals: Signals,
    name: Name,
    terminal: bool,
    call: impl AsyncFnOnce(Prepared) -> Result<Session, Error>,
) -> Result<ExitCode, Failure> {
    let is_sent = Cell::new(false);
    let message = || match is_sent.get() {
        false => "nothing was started".to_string(),
        true => format!("the daemon may still start it: `ctr containers state {}` shows it", name.id),
    };
    let start = async {
        let stdio = Stdio::inherit().context("keep stdin, stdout and stderr")?;
        let prepared = Session::prepare(client, &name.id, &name.process, terminal, stdio).await?;
        is_sent.set(true);
        Ok(call(prepared).await?)
    };
    let session = signals.end(message, start).await?;
    stay(session, &signals, &name, terminal).await
}

/// Waits until the process has ended and all of its output has been written, or until a signal comes.
async fn stay(mut session: Session, signals: &Signals, name: &Name, terminal: bool) -> Result<ExitCode, Failure> {
    let raw = if terminal { RawMode::enter().context("put the terminal into raw mode") } else { Ok(None) };
    let raw = raw.inspect_err(|_| out::say(name.goes_on()))?;
    let end = loop {
        tokio::select! {
            biased;
            signal = signals.next() => match signal? {
                SIGWINCH => {
                    if let Some((width, height)) = terminal::size().filter(|_| terminal) {
                        session.set_size(width, height);
                    }
                }
                signal => break Err(signal),
            },
            exit = session.wait() => break Ok(exit),
        }
    };
    // The terminal first: the messages below are for it as it was.
    drop(raw);
    let has_exited = session.has_exited();
    // Removes the FIFOs. A signal that ends this program below would leave them.
    drop(session);
    match end {
        Ok(Ok(exit)) => {
            if exit == Exit::Unknown {
                out::say(format_args!("{} in {} has ended, and its exit status is not known", name.process, name.id));
            }
            Ok(ExitCode::from(u8::try_from(exit.code()).unwrap_or(u8::MAX)))
        }
        // The reader of the output has gone.
        Ok(Err(Error::Output { source, .. })) if source.kind() == ErrorKind::BrokenPipe => sys::signal::die_by(SIGPIPE),
        Ok(Err(e @ Error::Output { .. })) => {
            let goes_on = if has_exited { String::new() } else { format!("; {}", name.goes_on()) };
            Err(anyhow::anyhow!("{e}{goes_on}").into())
        }
        Ok(Err(e)) => {
            if !has_exited {
                out::say(name.goes_on());
            }
            Err(e.into())
        }
        Err(signal) => {
            if !has_exited {
                out::say(name.goes_on());
            }
            sys::signal::die_by(signal)
        }
    }
}
