//! Attached sessions: a process whose stdio this program moves.
//!
//! The exit event decides when a session is over, and not the end of the output: the daemon publishes it once all output is in
//! the FIFOs. The session outlives its connection. When the daemon goes away, the session looks for it until it answers, and
//! goes on with the events after the last one received.
//!
//! ```text
//! Session::prepare ─ subscribe, make and open FIFOs ─▶ Prepared ─ start, exec: one call ─▶ Session ─ wait ─▶ Exit
//! ```

use api::{AddProcessRequest, CreateContainerRequest, Event};
use std::time::Duration;
use tokio::time::Instant;

use crate::client::{Client, INIT};
use crate::error::Error;
use crate::events::{Events, Resume, Step, Subscribe};
use crate::fifos::{Fifos, Paths};
use crate::stdio::Stdio;

/// How long the exit event of a process that the daemon no longer has may take to come.
const EVENT_DELAY: Duration = Duration::from_secs(1);

/// How long to wait before the daemon is asked again whether it has the process.
const CHECK_DELAY: Duration = Duration::from_millis(200);

/// The status of a process of which it cannot be found out how it ended.
const UNKNOWN: u32 = 255;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Its exit status, or 128 + the number of the signal that ended it.
    Status(u32),
    /// The daemon no longer has the process, and its journal has no exit event of it.
    Unknown,
}

impl Exit {
    /// The status, which is 255 for [`Exit::Unknown`].
    pub fn code(self) -> u32 {
        match self {
            Exit::Status(status) => status,
            Exit::Unknown => UNKNOWN,
        }
    }
}

/// A session whose process has not been started.
pub struct Prepared(Session);

/// A process whose stdio this program moves.
///
/// Dropping the session ends it, and not the process, whose further output is lost: another client cannot attach, since the
/// FIFOs are removed. A thread that waits in a read of [`Stdio::stdin`] ends when that read returns.
pub struct Session {
    client: Client,
    id: String,
    process: String,
    fifos: Fifos,
    events: Events,
    /// The start of the process has been seen. An exit before that is of an earlier process of the same name.
    has_started: bool,
    /// The status in an exit event that came before the start. It counts if the start was missed.
    early_exit: Option<u32>,
    /// When to ask the daemon whether it has the process.
    check: Option<Instant>,
    /// The daemon does not have the process. By this time, the next event must have come.
    missing_until: Option<Instant>,
    /// All events since the start have been asked for.
    has_replayed: bool,
    exit: Option<Exit>,
    /// The size of the process's terminal.
    size: Option<(u32, u32)>,
    is_size_due: bool,
    /// The end of stdin is still to be passed on.
    is_stdin_end_due: bool,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Prepared").field(&self.0).finish()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("Session");
        f.field("id", &self.id).field("process", &self.process).field("exit", &self.exit).finish_non_exhaustive()
    }
}

impl Session {
    /// Makes what must be there before the process is: a subscription that sees its exit, and the FIFOs, open at both ends.
    ///
    /// `process` is [`INIT`], or a name for an added process. `terminal` says whether the process has a terminal: for
    /// init, its bundle decides that.
    pub async fn prepare(
        client: &Client,
        id: &str,
        process: &str,
        terminal: bool,
        stdio: Stdio,
    ) -> Result<Prepared, Error> {
        let subscribe = Subscribe { container: Some(id.into()), resume: Resume::Always, ..Subscribe::default() };
        let events = client.events(subscribe).await?;
        let fifos = Fifos::new(stdio, terminal)?;
        Ok(Prepared(Session {
            client: client.clone(),
            id: id.into(),
            process: process.into(),
            fifos,
            // If the daemon has not confirmed the subscription, its events may lack the start, and the exit with it.
            check: (!events.is_open()).then(Instant::now),
            events,
            has_started: false,
            early_exit: None,
            missing_until: None,
            has_replayed: false,
            exit: None,
            size: None,
            is_size_due: false,
            is_stdin_end_due: false,
        }))
    }

    /// Copies the process's stdio until the process has exited and all of its output has been copied.
    ///
    /// Fails with [`Error::Output`] if the output cannot be written; the process then goes on running. A missing daemon is not an
    /// error: the session waits for the next one.
    ///
    /// The future may be dropped and this method called again. The first call begins the copying.
    pub async fn wait(&mut self) -> Result<Exit, Error> {
        self.fifos.begin()?;
        let exit = match self.exit {
            Some(exit) => exit,
            None => {
                let exit = self.until_exit().await?;
                self.exit = Some(exit);
                self.fifos.finish();
                exit
            }
        };
        self.fifos.outputs.copied().await?;
        Ok(exit)
    }

    /// Sets the size of the process's terminal, in characters. [`Session::wait`] sends it.
    pub fn set_size(&mut self, width: u32, height: u32) {
        self.size = Some((width, height));
        self.is_size_due = true;
    }

    /// Whether the process is known to have exited.
    pub fn has_exited(&self) -> bool {
        self.exit.is_some()
    }

    async fn until_exit(&mut self) -> Result<Exit, Error> {
        loop {
            if self.check.is_some_and(|check| check <= Instant::now()) {
                self.check_process().await?;
            }
            self.send_size().await;
            self.send_end_of_stdin().await;
            let timer = self.check.into_iter().chain(self.missing_until).min();
            tokio::select! {
                step = self.events.step() => match step {
                    Ok(step) => {
                        if let Some(status) = self.take(step) {
                            return Ok(Exit::Status(status));
                        }
                    }
                    // The next step subscribes again. The daemon tells whether the exit is among the lost events.
                    Err(Error::EventsLost { .. }) => {}
                    Err(error) => return Err(error),
                },
                Some(()) = self.fifos.stdin_ended.recv() => self.is_stdin_end_due = true,
                error = self.fifos.outputs.failed() => return Err(error),
                () = sleep_until(timer), if timer.is_some() => {}
            }
            if self.missing_until.is_some_and(|until| until <= Instant::now()) {
                if self.has_replayed {
                    return Ok(self.early_exit.map_or(Exit::Unknown, Exit::Status));
                }
                // The exit is among the recorded events, if anywhere.
                self.missing_until = None;
                self.events.restart();
            }
        }
    }

    /// Takes note of an event. Returns the status of the process if the event is its exit.
    fn take(&mut self, step: Step) -> Option<u32> {
        let event = match step {
            Step::Event(event) => event,
            Step::Resubscribed | Step::End => {
                self.has_replayed = true;
                self.missing_until = None;
                self.check = Some(Instant::now());
                self.is_size_due = self.size.is_some();
                return None;
            }
        };
        if self.missing_until.is_some() {
            self.missing_until = Some(Instant::now() + EVENT_DELAY);
        }
        if !self.concerns(&event) {
            return None;
        }
        if event.r#type.starts_with("start-") {
            self.has_started = true;
            self.early_exit = None;
        } else if event.r#type == "exit" {
            if self.has_started {
                return Some(event.status);
            }
            self.early_exit = Some(event.status);
            self.check = Some(Instant::now());
        }
        None
    }

    fn concerns(&self, event: &Event) -> bool {
        let process = if event.r#type == "start-container" { INIT } else { &event.pid };
        event.id == self.id && process == self.process
    }

    /// Asks the daemon whether it has the process. If not, the exit must be among the events that come next.
    async fn check_process(&mut self) -> Result<(), Error> {
        match self.is_known().await {
            Ok(true) => {
                // The exit that was seen, if any, is of an earlier process of the same name.
                self.early_exit = None;
                self.missing_until = None;
            }
            Ok(false) => self.missing_until = Some(Instant::now() + EVENT_DELAY),
            Err(error) if error.is_passing() => {
                self.check = Some(Instant::now() + CHECK_DELAY);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.check = None;
        Ok(())
    }

    async fn is_known(&self) -> Result<bool, Error> {
        match self.client.state_of(&self.id).await {
            Ok(state) => {
                let containers = state.containers.iter().filter(|container| container.id == self.id);
                Ok(containers.flat_map(|container| &container.processes).any(|process| process.pid == self.process))
            }
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends the size of the terminal, if it is due. A process that has just ended needs none, and a daemon that is away gets
    /// it when the session has subscribed again.
    async fn send_size(&mut self) {
        if let Some((width, height)) = self.size.filter(|_| self.is_size_due) {
            let _ = self.client.resize(&self.id, &self.process, width, height).await;
            self.is_size_due = false;
        }
    }

    /// Passes on the end of stdin, if it is due. A process that has just ended does not need it. A daemon that is away gets it
    /// when it answers again.
    async fn send_end_of_stdin(&mut self) {
        if self.is_stdin_end_due {
            let result = self.client.close_stdin(&self.id, &self.process).await;
            self.is_stdin_end_due = result.is_err_and(|error| error.is_passing());
        }
    }
}

impl Prepared {
    /// The paths of the FIFOs.
    pub fn paths(&self) -> &Paths {
        &self.0.fifos.paths
    }

    /// Creates and starts the container, with the session's FIFOs as the stdio of its init process.
    ///
    /// The id and the paths of stdio in `request` are replaced by the session's.
    pub async fn start(self, mut request: CreateContainerRequest) -> Result<Session, Error> {
        let Prepared(mut session) = self;
        request.id.clone_from(&session.id);
        (request.stdin, request.stdout, request.stderr) = session.streams();
        session.keep_size(request.width, request.height);
        session.client.create_container(request).await?;
        Ok(session)
    }

    /// Adds the process to its container, with the session's FIFOs as its stdio.
    ///
    /// The id, the process's name and the paths of stdio in `request` are replaced by the session's.
    pub async fn exec(self, mut request: AddProcessRequest) -> Result<Session, Error> {
        let Prepared(mut session) = self;
        request.id.clone_from(&session.id);
        request.pid.clone_from(&session.process);
        (request.stdin, request.stdout, request.stderr) = session.streams();
        session.keep_size(request.width, request.height);
        session.client.add_process(request).await?;
        Ok(session)
    }
}

impl Session {
    fn streams(&self) -> (String, String, String) {
        let Paths { stdin, stdout, stderr } = self.fifos.paths.clone();
        (stdin, stdout, stderr)
    }

    /// Keeps the size in a request, to send it once more: a daemon may be too old to know these fields of the request.
    fn keep_size(&mut self, width: u32, height: u32) {
        if width != 0 && height != 0 {
            self.set_size(width, height);
        }
    }
}

/// Waits for ever without a time.
async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
