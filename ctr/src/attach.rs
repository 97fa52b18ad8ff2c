//! Attached sessions: `start --attach` and `exec --attach`.
//!
//! The exit event decides when a session is over. The session outlives its connection: when the daemon goes away, it
//! is looked for again, and the events are taken up where they were left.

use anyhow::Context;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;
use sys::signal::SignalFd;
use tokio::io::unix::AsyncFd;

use crate::client::{Client, Target};
use crate::failure::Failure;
use crate::session::{Done, Session};
use crate::terminal::{self, RawMode};

const SIGWINCH: i32 = rustix::process::Signal::WINCH.as_raw();
const SIGPIPE: i32 = rustix::process::Signal::PIPE.as_raw();

/// How long to wait before the daemon is looked for again.
const RETRY: Duration = Duration::from_millis(200);

/// The status of a process of which nothing is known.
const UNKNOWN: u32 = 255;

/// Starts a container with this program's stdio.
pub(crate) async fn start(target: &Target, mut request: api::CreateContainerRequest) -> Result<ExitCode, Failure> {
    let terminal = bundle_has_terminal(&request.bundle_path);
    let mut attached = Attached::new(target, &request.id, "init", terminal).await?;
    let paths = attached.session.paths.clone();
    (request.stdin, request.stdout, request.stderr) = (paths.stdin, paths.stdout, paths.stderr);
    attached.client.create_container(request).await?;
    attached.run().await
}

/// Adds a process with this program's stdio.
pub(crate) async fn exec(target: &Target, mut request: api::AddProcessRequest) -> Result<ExitCode, Failure> {
    let mut attached = Attached::new(target, &request.id, &request.pid, request.terminal).await?;
    let paths = attached.session.paths.clone();
    (request.stdin, request.stdout, request.stderr) = (paths.stdin, paths.stdout, paths.stderr);
    attached.client.add_process(request).await?;
    attached.run().await
}

/// Whether the bundle asks for a terminal. What is wrong with a bundle the daemon says.
fn bundle_has_terminal(bundle: &str) -> bool {
    let text = std::fs::read(format!("{bundle}/config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    config["process"]["terminal"].as_bool().unwrap_or_default()
}

struct Attached {
    target: Target,
    client: Client,
    id: String,
    process: String,
    terminal: bool,
    session: Session,
    signals: AsyncFd<OwnedFd>,
    events: tonic::Streaming<api::Event>,
    /// All up to here has been seen.
    seen: api::Timestamp,
    /// Its start has been seen: an exit before that is an earlier one's of the same name.
    started: bool,
    /// The end of our stdin is still to be passed on.
    stdin_ended: bool,
}

impl Attached {
    /// Everything that must be there before the process is: FIFOs, signals, and a subscription that sees its exit.
    async fn new(target: &Target, id: &str, process: &str, terminal: bool) -> Result<Attached, Failure> {
        let mut client = target.connect().await?;
        let mut signals = sys::signal::deadly();
        signals.push(SIGWINCH);
        sys::signal::block(&signals)?;
        let signals = sys::watched::readable(SignalFd::new(&signals).map_err(std::io::Error::from)?.into())?;
        // Threads are started from here on, with the signals blocked.
        let session = Session::new(terminal)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seen = api::Timestamp {
            seconds: i64::try_from(now.as_secs()).unwrap_or_default(),
            // Less than a thousand million.
            nanos: now.subsec_nanos() as i32,
        };
        let request = api::EventsRequest { id: id.into(), ..Default::default() };
        let events = client.events(request).await?.into_inner();
        let (target, id, process) = (target.clone(), id.to_string(), process.to_string());
        Ok(Attached {
            target,
            client,
            id,
            process,
            terminal,
            session,
            signals,
            events,
            seen,
            started: false,
            stdin_ended: false,
        })
    }

    /// Goes on until the process is over and all that it wrote has been passed on.
    async fn run(mut self) -> Result<ExitCode, Failure> {
        let raw = if self.terminal { RawMode::enter().context("put the terminal into raw mode")? } else { None };
        self.resize().await;
        self.session.begin();
        let ended = self.until_exit().await;
        let status = match ended {
            Ok(End::Exit(status)) => status,
            Ok(End::Signal(signal)) => {
                drop(raw);
                self.session.remove();
                sys::signal::die_by(signal);
            }
            Err(failure) => return Err(failure),
        };
        for output in std::mem::take(&mut self.session.outputs) {
            // A failed output has been dealt with, or is the end of whoever reads it.
            let _ = output.await;
        }
        drop(raw);
        self.session.remove();
        Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
    }

    async fn until_exit(&mut self) -> Result<End, Failure> {
        loop {
            tokio::select! {
                event = self.events.message() => match event {
                    Ok(Some(event)) => {
                        if let Some(status) = self.exit_status(&event) {
                            return Ok(End::Exit(status));
                        }
                    }
                    Ok(None) => {
                        if let Some(end) = self.reconnect().await? {
                            return Ok(end);
                        }
                    }
                    Err(status) => {
                        let failure = Failure::from(status);
                        if !failure.is_passing() {
                            return Err(failure);
                        }
                        if let Some(end) = self.reconnect().await? {
                            return Ok(end);
                        }
                    }
                },
                signal = next_signal(&self.signals) => match signal? {
                    SIGWINCH => self.resize().await,
                    signal => return Ok(End::Signal(signal)),
                },
                Some(()) = self.session.stdin_ended.recv() => {
                    self.stdin_ended = true;
                    self.close_stdin().await;
                }
                Some(end) = broken_output(&mut self.session.outputs) => return Ok(end),
            }
        }
    }

    fn exit_status(&mut self, event: &api::Event) -> Option<u32> {
        self.seen = event.timestamp.unwrap_or(self.seen);
        let name = if event.r#type == "start-container" { "init" } else { event.pid.as_str() };
        if event.id != self.id || name != self.process {
            return None;
        }
        self.started |= event.r#type.starts_with("start-");
        (event.r#type == "exit" && self.started).then_some(event.status)
    }

    /// Looks for the daemon until it is there, and takes up the events where they were left.
    async fn reconnect(&mut self) -> Result<Option<End>, Failure> {
        loop {
            match self.resume().await {
                Ok(end) => return Ok(end),
                Err(failure) if !failure.is_passing() => return Err(failure),
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                signal = next_signal(&self.signals) => match signal? {
                    SIGWINCH => {}
                    signal => return Ok(Some(End::Signal(signal))),
                },
            }
        }
    }

    async fn resume(&mut self) -> Result<Option<End>, Failure> {
        self.client = self.target.connect().await?;
        let request = api::EventsRequest { timestamp: Some(self.seen), stored_only: true, id: self.id.clone() };
        let mut stored = self.client.events(request).await?.into_inner();
        while let Some(event) = stored.message().await? {
            if let Some(status) = self.exit_status(&event) {
                return Ok(Some(End::Exit(status)));
            }
        }
        // The call has returned, so that it has been started, seen or not.
        self.started = true;
        let request = api::EventsRequest { timestamp: Some(self.seen), stored_only: false, id: self.id.clone() };
        self.events = self.client.events(request).await?.into_inner();
        let known = match self.client.state(api::StateRequest { id: self.id.clone() }).await {
            Ok(state) => {
                let containers = state.into_inner().containers;
                containers.iter().flat_map(|c| &c.processes).any(|process| process.pid == self.process)
            }
            Err(status) if status.code() == tonic::Code::NotFound => false,
            Err(status) => return Err(status.into()),
        };
        if known {
            self.resize().await;
            self.close_stdin().await;
            return Ok(None);
        }
        // It may have ended since the stored events were read; then its exit is in the live ones already.
        while let Ok(Ok(Some(event))) = tokio::time::timeout(RETRY, self.events.message()).await {
            if let Some(status) = self.exit_status(&event) {
                return Ok(Some(End::Exit(status)));
            }
        }
        eprintln!("[ctr] {} in {} has ended, and how is no longer known", self.process, self.id);
        Ok(Some(End::Exit(UNKNOWN)))
    }

    /// Gives the process's terminal the size of ours. A process that has just ended needs none.
    async fn resize(&mut self) {
        if let Some((width, height)) = terminal::size().filter(|_| self.terminal) {
            let (id, pid) = (self.id.clone(), self.process.clone());
            let request = api::UpdateProcessRequest { id, pid, width, height, close_stdin: false };
            let _ = self.client.update_process(request).await;
        }
    }

    /// Passes on the end of our stdin, if it has come. A process that has just ended needs it no more; a daemon that
    /// is away gets to know it when it is found again.
    async fn close_stdin(&mut self) {
        if !self.stdin_ended {
            return;
        }
        let (id, pid) = (self.id.clone(), self.process.clone());
        let request = api::UpdateProcessRequest { id, pid, close_stdin: true, ..Default::default() };
        match self.client.update_process(request).await {
            Err(status) if Failure::from(status.clone()).is_passing() => {}
            _ => self.stdin_ended = false,
        }
    }
}

enum End {
    Exit(u32),
    Signal(i32),
}

async fn next_signal(signals: &AsyncFd<OwnedFd>) -> Result<i32, Failure> {
    loop {
        let mut ready = signals.readable().await?;
        if let Some(signal) = sys::signal::take_from(signals).map_err(std::io::Error::from)? {
            return Ok(signal as i32);
        }
        ready.clear_ready();
    }
}

/// Whoever reads our output has gone: then this program ends as others do. Outputs that are done are taken out.
async fn broken_output(outputs: &mut Vec<Done>) -> Option<End> {
    std::future::poll_fn(|context| {
        let mut broken = false;
        outputs.retain_mut(|output| match Future::poll(std::pin::Pin::new(output), context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(result) => {
                broken |= matches!(result, Ok(Err(e)) if e.kind() == std::io::ErrorKind::BrokenPipe);
                false
            }
        });
        if broken { std::task::Poll::Ready(Some(End::Signal(SIGPIPE))) } else { std::task::Poll::Pending }
    })
    .await
}
