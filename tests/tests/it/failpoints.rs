//! The daemon and the shim are killed at every step that has a name, one by one, and each time another daemon takes up
//! what is left: every exit is told once, truly and in order, what was acknowledged is there, what was not is there
//! wholly or not at all, and nothing stays behind.

use crate::support::*;
use failpoint::{Point, Program};
use rustix::process::Signal;
use std::time::Duration;
use tests::{Client, Host, Ledger, Options, READY, ends_with, eventually};
use tonic::{Code, Status};

/// A host whose daemon is started anew whenever it has died.
struct Walk {
    host: Host,
    client: Client,
    ledger: Ledger,
    point: Point,
    /// How many containers and processes have been asked for.
    asked: usize,
    deaths: usize,
    /// To be armed when there is a container, for what happens to its processes.
    late: bool,
}

impl Walk {
    async fn new(point: Point, late: bool) -> Walk {
        let flags = vec!["--start-timeout=20s".into()];
        let mut host = Host::prepare(Options { failpoints: true, flags, ..Options::default() });
        std::fs::create_dir(host.state_dir()).unwrap();
        if matches!(point, Point::JournalShortened | Point::JournalReplaced) {
            // A damaged journal is written anew at the start.
            std::fs::write(host.state_dir().join("events.log"), "rubbish\n").unwrap();
        }
        let recovery = point.name().starts_with("recovery");
        if !recovery && !late {
            host.arm(point, 0);
        }
        let mut deaths = 0;
        while !host.try_start().await {
            deaths += 1;
        }
        let client = host.lazy_client();
        let ledger = Ledger::new(host.lazy_client());
        Walk { host, client, ledger, point, asked: 0, deaths, late }
    }

    /// Starts another daemon, if there is none, until one answers.
    async fn recover(&mut self) {
        loop {
            if self.host.has_died() {
                self.deaths += 1;
                while !self.host.try_start().await {
                    self.deaths += 1;
                }
            }
            let answer = self.client.state(api::StateRequest::default()).await;
            if answer.is_ok() && !self.host.has_died() {
                return;
            }
        }
    }

    /// Makes a call; what to do about an error is its caller's business, but a daemon is there afterwards.
    async fn call<T>(&mut self, call: impl AsyncFnOnce(&mut Client) -> Result<T, Status>) -> Result<T, Status> {
        let result = call(&mut self.client).await;
        if let Err(status) = &result {
            // Whoever has been killed cannot have said why.
            let shim = self.point.program() == Program::Shim && !self.host.is_armed();
            let expected = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
            let allowed = expected.contains(&status.code()) || shim;
            assert!(allowed, "at {}: {status:?}", self.point.name());
        }
        self.recover().await;
        result
    }

    fn name(&mut self, prefix: &str) -> (String, String) {
        self.asked += 1;
        let name = format!("{prefix}{}", self.asked);
        let out = self.host.join(&format!("out-{name}"));
        std::fs::write(&out, "").unwrap();
        (name, out)
    }

    /// What a process may end with beside its own status.
    fn statuses(&self, own: u32) -> Vec<u32> {
        match self.point.program() {
            Program::Daemon => vec![own],
            // Its shim may be the one that dies.
            Program::Shim => vec![own, 137],
        }
    }

    /// A container that runs.
    async fn container(&mut self) -> String {
        loop {
            let (id, out) = self.name("c");
            let memory = serde_json::json!({"memory": {"limit": 32 << 20}});
            let bundle = self.host.bundle(&["sh", "-c", &ends_with(5)]).resources(memory).write();
            let mut request = container(&id, &bundle);
            request.stdout.clone_from(&out);
            let created = self.call(async |client| client.create_container(request).await).await;
            self.ledger.expect(&id, "init", created.is_ok(), &self.statuses(5));
            if created.is_ok() && self.is_ready(&id, "init", &out).await {
                return id;
            }
            self.be_rid_of(&id).await;
        }
    }

    /// Ends a container that nobody acknowledged, or whose shim has died, if it is there.
    async fn be_rid_of(&mut self, id: &str) {
        let all = state(&mut self.client).await;
        if all.iter().any(|container| container.id == id) {
            self.ledger.allow(id, "init", 137);
            let _ = self.call(async |client| signal(client, id, "init", 9).await).await;
        }
    }

    /// Whether the process gets so far.
    async fn is_ready(&mut self, id: &str, process: &str, out: &str) -> bool {
        loop {
            if std::fs::read_to_string(out).unwrap().starts_with(READY) {
                return true;
            }
            if self.ledger.has_ended(id, process) {
                return false;
            }
            self.recover().await;
        }
    }

    /// A process in it that runs; the container may be another one by then.
    async fn exec(&mut self, id: &mut String) -> String {
        loop {
            let (name, out) = self.name("p");
            let mut request = process(id, &name, &["sh", "-c", &ends_with(6)]);
            request.stdout.clone_from(&out);
            let added = self.call(async |client| client.add_process(request).await).await;
            self.ledger.expect(id, &name, added.is_ok(), &self.statuses(6));
            // It ends with a container that ends.
            self.ledger.allow(id, &name, 137);
            if added.is_ok() && self.is_ready(id, &name, &out).await {
                return name;
            }
            if self.ledger.has_ended(id, "init") {
                *id = self.container().await;
            }
        }
    }

    /// Ends a process by the signal that it waits for.
    async fn end(&mut self, id: &str, process: &str) {
        while !self.ledger.has_ended(id, process) {
            let ended = self.call(async |client| signal(client, id, process, 10).await).await;
            if ended.is_ok() {
                // Whoever dies now is started anew.
                let deadline = std::time::Instant::now() + tests::LIMIT;
                while !self.ledger.has_ended(id, process) {
                    assert!(std::time::Instant::now() < deadline, "{}: no exit of {process}", self.point.name());
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    if self.host.has_died() {
                        self.recover().await;
                    }
                }
            }
        }
    }

    /// All that can be done with a container.
    async fn live(&mut self) {
        let mut id = self.container().await;
        if std::mem::take(&mut self.late) {
            self.host.arm(self.point, 0);
        }
        let process = self.exec(&mut id).await;
        let of = id.clone();
        for status in ["paused", "running"] {
            let set = self.call(async |client| set_status(client, &of, status).await).await;
            if set.is_err() && !self.ledger.has_ended(&of, "init") {
                // It may have come to it all the same.
                let is = state(&mut self.client).await.into_iter().find(|c| c.id == of).map(|c| c.status);
                if is.is_some_and(|is| is != status) {
                    set_status(&mut self.client, &of, status).await.unwrap();
                }
            }
        }
        let resources = Some(api::UpdateResource { pids_limit: 100, ..Default::default() });
        let request = api::UpdateContainerRequest { id: of.clone(), resources, ..Default::default() };
        let _ = self.call(async |client| client.update_container(request).await).await;
        // The kernel kills it, and tells.
        let (hog, _) = self.name("hog");
        let request = super::support::process(&id, &hog, &["tail", "/dev/zero"]);
        let added = self.call(async |client| client.add_process(request).await).await;
        self.ledger.expect(&id, &hog, added.is_ok(), &[137]);
        if added.is_ok() {
            while !self.ledger.has_ended(&id, &hog) {
                tokio::time::sleep(Duration::from_millis(2)).await;
                self.recover().await;
            }
        }
        self.end(&id, &process).await;
        self.end(&id, "init").await;
    }

    /// Kills the daemon where a container is half made, and the next one at the point.
    async fn die_in_recovery(&mut self) {
        self.container().await;
        self.host.arm(Point::PidSeen, 0);
        let bundle = self.host.bundle(&["sleep", "1000"]).write();
        let (id, _) = self.name("half");
        self.ledger.expect(&id, "init", false, &[]);
        self.client.create_container(container(&id, &bundle)).await.expect_err("its daemon dies");
        let host = &mut self.host;
        eventually("the daemon has died", || host.has_died());
        self.deaths += 1;
        self.host.arm(self.point, 0);
        let before = self.deaths;
        let deadline = std::time::Instant::now() + tests::LIMIT;
        // Not everything that it does is waited for by those who call.
        while self.deaths == before {
            assert!(std::time::Instant::now() < deadline, "{} is not reached", self.point.name());
            self.recover().await;
        }
    }

    async fn finish(mut self) {
        for id in self.ledger.running() {
            self.end(&id, "init").await;
        }
        // Once more, so that what the last one did is looked at too.
        self.recover().await;
        assert!(!self.host.is_armed(), "{} is never reached", self.point.name());
        if self.point.program() == Program::Daemon {
            assert!(self.deaths > 0, "{}: the daemon has died", self.point.name());
        }
        self.host.restart(Signal::KILL).await;
        self.recover().await;
        let host = &self.host;
        eventually("nothing is left", || {
            let entries = std::fs::read_dir(host.state_dir()).unwrap().flatten();
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count() == 0
        });
        self.ledger.all_ended().await;
        assert_eq!(self.ledger.findings(), Vec::<String>::new(), "at {}: {}", self.point.name(), self.host.log());
        drop(self.ledger);
        self.host.finish();
    }
}

/// Steps that come but once for a container, or when a daemon starts.
const ONCE: [Point; 7] = [
    Point::IdTaken,
    Point::DirectoryMade,
    Point::StateWritten,
    Point::CgroupKept,
    Point::Started,
    Point::JournalShortened,
    Point::JournalReplaced,
];

async fn walk(part: usize) {
    // Those of checkpoints have a walk of their own.
    let points = Point::ALL.iter().filter(|point| !point.name().starts_with("checkpoint"));
    for point in points.skip(part).step_by(PARTS) {
        let recovers = point.name().starts_with("recovery");
        for late in [false, true] {
            if late && (recovers || ONCE.contains(point)) {
                continue;
            }
            let begun = std::time::Instant::now();
            let mut walk = Walk::new(*point, late).await;
            if recovers {
                walk.die_in_recovery().await;
            }
            walk.live().await;
            walk.finish().await;
            println!("{}{}: {:?}", point.name(), if late { ", late" } else { "" }, begun.elapsed());
        }
    }
}

/// They run side by side.
const PARTS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_dies_at_a_named_step_loses_nothing_0() {
    walk(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_dies_at_a_named_step_loses_nothing_1() {
    walk(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_dies_at_a_named_step_loses_nothing_2() {
    walk(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_dies_at_a_named_step_loses_nothing_3() {
    walk(3).await;
}
