//! Attached sessions: `start --attach` and `exec --attach`.
//!
//! The exit event decides when a session is over. The session outlives its connection: when the daemon goes away, it
//! is looked for again, and the events are taken up where they were left. Signals are watched for in every phase, from
//! before the connection until the last byte of output has been written.

use anyhow::Context;
use std::cell::Cell;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use sys::foreign_file;
use tonic::Status;

use crate::CONFIG_LIMIT;
use crate::client::{Client, Target};
use crate::failure::Failure;
use crate::out;
use crate::session::{Done, Paths, Session};
use crate::signals::{SIGWINCH, Signals};
use crate::subscription::{self, Subscription};
use crate::terminal::{self, RawMode};

const SIGPIPE: i32 = rustix::process::Signal::PIPE.as_raw();

/// How long to wait before the daemon is looked for again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How long the events of a process that has ended already may take to come.
const EVENT_DELAY: Duration = Duration::from_secs(1);

/// The status of a process of which nothing is known.
const UNKNOWN: u32 = 255;

/// A process, as the API names it.
#[derive(Debug, Clone)]
struct Name {
    id: String,
    process: String,
}

impl Name {
    /// What this program says when it ends before the process does.
    fn goes_on(&self) -> String {
        let Name { id, process } = self;
        let which = if process == "init" { String::new() } else { format!(" --pid {process}") };
        format!("process {process} of container {id} goes on running; `ctr containers kill{which} {id}` ends it")
    }
}

/// Starts a container with this program's stdio.
pub(crate) async fn start(target: &Target, mut request: api::CreateContainerRequest) -> Result<ExitCode, Failure> {
    let name = Name { id: request.id.clone(), process: "init".into() };
    let terminal = bundle_has_terminal(&request.bundle_path);
    (request.width, request.height) = terminal_size(terminal);
    let signals = Signals::take()?;
    attach(target, signals, name, terminal, async move |client: &mut Client, paths: Paths| {
        (request.stdin, request.stdout, request.stderr) = (paths.stdin, paths.stdout, paths.stderr);
        client.create_container(request).await.map(drop)
    })
    .await
}

/// Adds a process with this program's stdio.
pub(crate) async fn exec(
    target: &Target,
    signals: Signals,
    mut request: api::AddProcessRequest,
) -> Result<ExitCode, Failure> {
    let name = Name { id: request.id.clone(), process: request.pid.clone() };
    let terminal = request.terminal;
    (request.width, request.height) = terminal_size(terminal);
    attach(target, signals, name, terminal, async move |client: &mut Client, paths: Paths| {
        (request.stdin, request.stdout, request.stderr) = (paths.stdin, paths.stdout, paths.stderr);
        client.add_process(request).await.map(drop)
    })
    .await
}

/// Whether the bundle asks for a terminal. The daemon reports what is wrong with a bundle.
fn bundle_has_terminal(bundle: &str) -> bool {
    let text = foreign_file::read(&Path::new(bundle).join("config.json"), CONFIG_LIMIT).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    config["process"]["terminal"].as_bool().unwrap_or_default()
}

/// The size that the process's terminal begins with: that of ours, or zeros for none.
fn terminal_size(terminal: bool) -> (u32, u32) {
    terminal::size().filter(|_| terminal).unwrap_or_default()
}

/// Subscribes, opens the FIFOs, has the daemon start the process by `ask`, and stays with it.
async fn attach(
    target: &Target,
    signals: Signals,
    name: Name,
    terminal: bool,
    ask: impl AsyncFnOnce(&mut Client, Paths) -> Result<(), Status>,
) -> Result<ExitCode, Failure> {
    let asked = Cell::new(false);
    let goes_on = || match asked.get() {
        false => "nothing was started".to_string(),
        true => format!("the daemon may still start it: `ctr containers state {}` tells", name.id),
    };
    let start = async {
        let mut attached = Attached::new(target, &name, terminal).await?;
        asked.set(true);
        let paths = attached.session.paths.clone();
        ask(&mut attached.client, paths).await.map_err(|status| target.explain(status))?;
        Ok(attached)
    };
    let attached = signals.end(goes_on, start).await?;
    attached.run(&signals).await
}

struct Attached {
    target: Target,
    client: Client,
    name: Name,
    terminal: bool,
    session: Session,
    events: Subscription,
    /// The subscription was open before the process was asked for, so that its start is among the events.
    sees_start: bool,
    /// All up to here has been seen.
    seen: api::Timestamp,
    /// Its start has been seen: an exit before that is an earlier one's of the same name.
    started: bool,
    /// The end of our stdin is still to be passed on.
    stdin_ended: bool,
}

/// Why a session is over.
enum End {
    Exit(u32),
    /// The reader of our output has gone.
    Unread,
    /// The output could not be written, or not all of it.
    Unwritten(&'static str, std::io::Error),
}

impl Attached {
    /// Everything that must be there before the process is: the FIFOs, and a subscription that sees its exit.
    async fn new(target: &Target, name: &Name, terminal: bool) -> Result<Attached, Failure> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seen = api::Timestamp {
            seconds: i64::try_from(now.as_secs()).unwrap_or_default(),
            // Less than a thousand million.
            nanos: now.subsec_nanos() as i32,
        };
        let request = api::EventsRequest { id: name.id.clone(), ..Default::default() };
        let (client, events) = subscription::subscribe(target, request).await?;
        let session = Session::new(terminal)?;
        Ok(Attached {
            target: target.clone(),
            client,
            name: name.clone(),
            terminal,
            session,
            sees_start: events.is_open(),
            events,
            seen,
            started: false,
            stdin_ended: false,
        })
    }

    /// Goes on until the process is over and all that it wrote has been passed on, or until a signal comes.
    async fn run(mut self, signals: &Signals) -> Result<ExitCode, Failure> {
        let raw = if self.terminal { RawMode::enter().context("put the terminal into raw mode") } else { Ok(None) };
        let raw = raw.inspect_err(|_| out::say(self.name.goes_on()))?;
        let resized = tokio::sync::Notify::new();
        let deadly = async {
            loop {
                match signals.next().await? {
                    SIGWINCH => resized.notify_one(),
                    signal => return Ok::<i32, Failure>(signal),
                }
            }
        };
        let mut exited = false;
        let end = tokio::select! {
            biased;
            signal = deadly => Err(signal?),
            end = self.until_over(&resized, &mut exited) => Ok(end),
        };
        // The terminal first: what is said next belongs on it as it was.
        drop(raw);
        let name = self.name.clone();
        drop(self.session);
        let goes_on = || if exited { String::new() } else { format!("; {}", name.goes_on()) };
        match end {
            Ok(Ok(End::Exit(status))) => Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))),
            Ok(Ok(End::Unread)) => sys::signal::die_by(SIGPIPE),
            Ok(Ok(End::Unwritten(stream, error))) => {
                Err(anyhow::anyhow!("write to {stream}: {error}{}", goes_on()).into())
            }
            Ok(Err(failure)) => {
                if !exited {
                    out::say(name.goes_on());
                }
                Err(failure)
            }
            Err(signal) => {
                if !exited {
                    out::say(name.goes_on());
                }
                sys::signal::die_by(signal)
            }
        }
    }

    async fn until_over(&mut self, resized: &tokio::sync::Notify, exited: &mut bool) -> Result<End, Failure> {
        self.session.begin()?;
        // A daemon that does not know the size in the request gets to know it here.
        self.resize().await;
        let mut end = self.until_exit(resized).await?;
        if let End::Exit(_) = end {
            *exited = true;
            self.session.finish();
            for Done { name, result } in std::mem::take(&mut self.session.outputs) {
                // A thread that is gone without a result has panicked, which it has reported.
                if let Ok(Err(e)) = result.await {
                    end = unwritten(name, e);
                }
            }
        }
        Ok(end)
    }

    async fn until_exit(&mut self, resized: &tokio::sync::Notify) -> Result<End, Failure> {
        if !self.sees_start {
            if let Some(status) = self.find_early_exit().await? {
                return Ok(End::Exit(status));
            }
        }
        loop {
            let failure = tokio::select! {
                event = self.events.next() => match event {
                    Ok(Some(event)) => match self.exit_status(&event).await {
                        Ok(Some(status)) => return Ok(End::Exit(status)),
                        Ok(None) => continue,
                        Err(failure) => Some(failure),
                    },
                    Ok(None) => None,
                    Err(status) => Some(Failure::from(status)),
                },
                () = resized.notified() => {
                    self.resize().await;
                    continue;
                }
                Some(()) = self.session.stdin_ended.recv() => {
                    self.stdin_ended = true;
                    self.close_stdin().await;
                    continue;
                }
                Some(end) = failed_output(&mut self.session.outputs) => return Ok(end),
            };
            if let Some(failure) = failure.filter(|failure| !failure.is_passing()) {
                return Err(failure);
            }
            if let Some(status) = self.reconnect().await? {
                return Ok(End::Exit(status));
            }
        }
    }

    /// A subscription that was not known to be open may have missed the start of the process, and its exit with it.
    async fn find_early_exit(&mut self) -> Result<Option<u32>, Failure> {
        match self.is_known().await {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            Err(failure) if failure.is_passing() => return self.reconnect().await,
            Err(failure) => return Err(failure),
        }
        let in_time = tokio::time::timeout(EVENT_DELAY, async {
            while let Some(event) = self.events.next().await? {
                if let Some(status) = self.exit_status(&event).await? {
                    return Ok(Some(status));
                }
            }
            Ok::<_, Failure>(None)
        });
        match in_time.await {
            Ok(Ok(Some(status))) => Ok(Some(status)),
            // Then it is among the stored events, if anywhere.
            Ok(Ok(None) | Err(_)) | Err(_) => self.reconnect().await,
        }
    }

    /// The status of the process, if that is its exit.
    async fn exit_status(&mut self, event: &api::Event) -> Result<Option<u32>, Failure> {
        let name = if event.r#type == "start-container" { "init" } else { event.pid.as_str() };
        let mut status = None;
        if event.id == self.name.id && name == self.name.process {
            self.started |= event.r#type.starts_with("start-");
            if event.r#type == "exit" && (self.started || (!self.sees_start && !self.is_known().await?)) {
                status = Some(event.status);
            }
        }
        self.seen = event.timestamp.unwrap_or(self.seen);
        Ok(status)
    }

    /// Looks for the daemon until it is there, and takes up the events where they were left. Returns the status of the
    /// process if it has exited.
    async fn reconnect(&mut self) -> Result<Option<u32>, Failure> {
        loop {
            match self.resume().await {
                Err(failure) if failure.is_passing() => tokio::time::sleep(RETRY_DELAY).await,
                result => return result,
            }
        }
    }

    async fn resume(&mut self) -> Result<Option<u32>, Failure> {
        let id = self.name.id.clone();
        let request = api::EventsRequest { timestamp: Some(self.seen), stored_only: true, id: id.clone() };
        let mut stored = self.target.connect().await?.events(request).await?.into_inner();
        while let Some(event) = stored.message().await? {
            if let Some(status) = self.exit_status(&event).await? {
                return Ok(Some(status));
            }
        }
        // The call has returned, so that it has been started, seen or not.
        self.started = true;
        let request = api::EventsRequest { timestamp: Some(self.seen), stored_only: false, id };
        (self.client, self.events) = subscription::subscribe(&self.target, request).await?;
        if self.is_known().await? {
            self.resize().await;
            self.close_stdin().await;
            return Ok(None);
        }
        // It may have ended since the stored events were read; then its exit is in the live ones already.
        while let Ok(Ok(Some(event))) = tokio::time::timeout(RETRY_DELAY, self.events.next()).await {
            if let Some(status) = self.exit_status(&event).await? {
                return Ok(Some(status));
            }
        }
        out::say(format_args!("{} in {} has ended, and how is no longer known", self.name.process, self.name.id));
        Ok(Some(UNKNOWN))
    }

    /// Whether the daemon has the process.
    async fn is_known(&mut self) -> Result<bool, Failure> {
        match self.client.state(api::StateRequest { id: self.name.id.clone() }).await {
            Ok(state) => {
                let containers = state.into_inner().containers;
                let mut processes =
                    containers.iter().filter(|container| container.id == self.name.id).flat_map(|c| &c.processes);
                Ok(processes.any(|process| process.pid == self.name.process))
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
            Err(status) => Err(status.into()),
        }
    }

    /// Gives the process's terminal the size of ours. A process that has just ended needs none.
    async fn resize(&mut self) {
        if let Some((width, height)) = terminal::size().filter(|_| self.terminal) {
            let (id, pid) = (self.name.id.clone(), self.name.process.clone());
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
        let (id, pid) = (self.name.id.clone(), self.name.process.clone());
        let request = api::UpdateProcessRequest { id, pid, close_stdin: true, ..Default::default() };
        match self.client.update_process(request).await {
            Err(status) if Failure::from(status.clone()).is_passing() => {}
            _ => self.stdin_ended = false,
        }
    }
}

fn unwritten(name: &'static str, error: std::io::Error) -> End {
    if error.kind() == ErrorKind::BrokenPipe { End::Unread } else { End::Unwritten(name, error) }
}

/// Waits for an output that cannot be written. Outputs that are done are taken out.
async fn failed_output(outputs: &mut Vec<Done>) -> Option<End> {
    std::future::poll_fn(|context| {
        let mut failed = None;
        outputs.retain_mut(|Done { name, result }| match Future::poll(std::pin::Pin::new(result), context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(result) => {
                if let Ok(Err(e)) = result {
                    failed = Some(unwritten(name, e));
                }
                false
            }
        });
        if failed.is_some() { std::task::Poll::Ready(failed) } else { std::task::Poll::Pending }
    })
    .await
}
