//! What the client side knows of containers, held against what the daemon tells: that each exit is told once, truly and
//! in order, whatever died in between.

use api::{Event, EventsRequest};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::host::Client;

/// What is expected of a process.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Whether the daemon has said that it was started. Otherwise it may be there or not, but wholly.
    pub acknowledged: bool,
    /// The statuses with which it may end; none if any may be.
    pub statuses: Vec<u32>,
}

/// What is known.
#[derive(Debug, Default)]
struct Known {
    events: Vec<Event>,
    findings: Vec<String>,
    /// By container id and the process's name.
    expected: BTreeMap<(String, String), Expected>,
    /// Further statuses, of a process or, without a name, of all of a container.
    allowed: HashMap<(String, String), Vec<u32>>,
}

/// Subscribes to all events and goes on after each daemon with the last that it saw.
#[derive(Debug)]
pub struct Ledger {
    known: Arc<Mutex<Known>>,
    count: watch::Receiver<usize>,
    reader: JoinHandle<()>,
}

impl Known {
    fn allows(&self, id: &str, process: &str, status: u32) -> bool {
        let of = |process: &str| self.allowed.get(&(id.to_string(), process.to_string()));
        of(process).into_iter().chain(of("")).any(|statuses| statuses.contains(&status))
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanoseconds(event: &Event) -> i128 {
    let timestamp = event.timestamp.unwrap_or_default();
    i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos)
}

impl Ledger {
    /// Begins. `client` connects again by itself.
    pub fn new(mut client: Client) -> Ledger {
        let known = Arc::new(Mutex::new(Known::default()));
        let (counted, count) = watch::channel(0);
        let written = known.clone();
        let reader = tokio::spawn(async move {
            let mut last = None;
            loop {
                let timestamp = Some(last.unwrap_or(api::Timestamp { seconds: 1, nanos: 0 }));
                let request = EventsRequest { timestamp, stored_only: false, id: String::new() };
                if let Ok(stream) = client.events(request).await {
                    let mut stream = stream.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(event)) => {
                                last = event.timestamp;
                                let mut known = lock(&written);
                                let before = known.events.last().map(nanoseconds);
                                if before.is_some_and(|before| before >= nanoseconds(&event)) {
                                    known.findings.push(format!("told twice, or out of order: {event:?}"));
                                }
                                known.events.push(event);
                                counted.send_replace(known.events.len());
                            }
                            Err(status) if status.code() == tonic::Code::DataLoss => {
                                lock(&written).findings.push(format!("events were lost: {status}"));
                                break;
                            }
                            _ => break,
                        }
                    }
                }
                // No daemon is there: nothing tells when the next one is.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Ledger { known, count, reader }
    }

    /// Says what is expected of a process; what was said before of it counts no more.
    pub fn expect(&self, id: &str, process: &str, acknowledged: bool, statuses: &[u32]) {
        let expected = Expected { acknowledged, statuses: statuses.to_vec() };
        lock(&self.known).expected.insert((id.into(), process.into()), expected);
    }

    /// Allows one more status, where a process was killed on purpose; all of a container's if no process is named.
    pub fn allow(&self, id: &str, process: &str, status: u32) {
        lock(&self.known).allowed.entry((id.into(), process.into())).or_default().push(status);
    }

    /// Adds what somebody else has found.
    pub fn found(&self, finding: String) {
        lock(&self.known).findings.push(finding);
    }

    /// Whether a process's exit comes in that time.
    pub async fn ends_within(&self, id: &str, process: &str, time: Duration) -> bool {
        let mut count = self.count.clone();
        let ended = async {
            while !self.has_ended(id, process) {
                if count.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(time, ended).await.is_ok()
    }

    /// Whether a process's exit has been seen.
    pub fn has_ended(&self, id: &str, process: &str) -> bool {
        lock(&self.known).events.iter().any(|event| is_exit_of(event, id, process))
    }

    /// Waits for a process's exit; its status.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn exit(&self, id: &str, process: &str) -> u32 {
        self.wait(&format!("the exit of {process} in {id}"), |events| {
            events.iter().find(|event| is_exit_of(event, id, process)).map(|event| event.status)
        })
        .await
    }

    /// Waits until `question` has an answer.
    ///
    /// # Panics
    /// When it never has.
    pub async fn wait<T>(&self, what: &str, question: impl Fn(&[Event]) -> Option<T>) -> T {
        let mut count = self.count.clone();
        let deadline = tokio::time::Instant::now() + crate::LIMIT;
        loop {
            count.mark_unchanged();
            if let Some(answer) = question(&lock(&self.known).events) {
                return answer;
            }
            let changed = tokio::time::timeout_at(deadline, count.changed()).await;
            assert!(changed.is_ok(), "still not: {what}; findings: {:#?}", self.findings());
        }
    }

    /// How many events there are.
    pub fn events(&self) -> usize {
        lock(&self.known).events.len()
    }

    /// The containers that were started and have not ended.
    pub fn running(&self) -> Vec<String> {
        let known = lock(&self.known);
        let ended = |id: &str| known.events.iter().any(|event| is_exit_of(event, id, "init"));
        let started = known.events.iter().filter(|event| event.r#type == "start-container");
        started.filter(|event| !ended(&event.id)).map(|event| event.id.clone()).collect()
    }

    /// Waits until all that was acknowledged has ended, and so has what was not and is there all the same.
    ///
    /// # Panics
    /// When that takes too long without anything being told.
    pub async fn all_ended(&self) {
        let mut count = self.count.clone();
        loop {
            count.mark_unchanged();
            let missing = self.missing();
            if missing.is_empty() {
                return;
            }
            let changed = tokio::time::timeout(crate::LIMIT, count.changed()).await;
            assert!(changed.is_ok(), "no exit was told of {missing:?}; findings: {:#?}", self.findings());
        }
    }

    fn missing(&self) -> Vec<(String, String)> {
        let known = lock(&self.known);
        let mut open: HashMap<(String, String), bool> = HashMap::new();
        for ((id, process), expected) in &known.expected {
            if expected.acknowledged {
                open.insert((id.clone(), process.clone()), true);
            }
        }
        for event in &known.events {
            match event.r#type.as_str() {
                "start-container" => drop(open.insert((event.id.clone(), "init".into()), true)),
                "start-process" => drop(open.insert((event.id.clone(), event.pid.clone()), true)),
                "exit" => drop(open.insert((event.id.clone(), event.pid.clone()), false)),
                _ => {}
            }
        }
        open.into_iter().filter(|(_, open)| *open).map(|(name, _)| name).collect()
    }

    /// What is not as it was promised. Ids must have been used once only.
    pub fn findings(&self) -> Vec<String> {
        let known = lock(&self.known);
        let mut findings = known.findings.clone();
        let mut of: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
        for event in &known.events {
            of.entry(&event.id).or_default().push(event);
        }
        for (id, events) in &of {
            if events[0].r#type != "start-container" {
                findings.push(format!("{id}: begins with {:?}", events[0]));
            }
            if let Some(end) = events.iter().position(|event| is_exit_of(event, id, "init")) {
                findings.extend(events[end + 1..].iter().map(|event| format!("{id}: after its end came {event:?}")));
            }
            let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
            for event in events {
                let process = match event.r#type.as_str() {
                    "start-container" => "init",
                    "start-process" | "exit" => &event.pid,
                    _ => continue,
                };
                let kind = if event.r#type == "exit" { "exit" } else { "start" };
                let count = counts.entry((process, kind)).or_default();
                *count += 1;
                if *count > 1 {
                    findings.push(format!("{id}: told again: {event:?}"));
                }
                if kind == "exit" {
                    if !counts.contains_key(&(process, "start")) {
                        findings.push(format!("{id}: ended before it was started: {event:?}"));
                    }
                    let expected = known.expected.get(&((*id).to_string(), process.to_string()));
                    if expected.is_some_and(|e| !e.statuses.is_empty() && !e.statuses.contains(&event.status))
                        && !known.allows(id, process, event.status)
                    {
                        findings.push(format!("{id}: ended with {event:?}, expected {expected:?}"));
                    }
                }
            }
        }
        for ((id, process), expected) in known.expected.iter().filter(|(_, expected)| expected.acknowledged) {
            let is_start = |event: &&Event| match event.r#type.as_str() {
                "start-container" => process == "init",
                "start-process" => event.pid == *process,
                _ => false,
            };
            if !of.get(id.as_str()).is_some_and(|events| events.iter().copied().any(|event| is_start(&event))) {
                findings.push(format!("{id}: {process} was acknowledged and is in no event: {expected:?}"));
            }
        }
        findings
    }
}

fn is_exit_of(event: &Event, id: &str, process: &str) -> bool {
    event.r#type == "exit" && event.id == id && event.pid == process
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
