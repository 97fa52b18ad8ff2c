//! `soak MINUTES`: containers do all that containers do, while the daemon and shims are killed, stopped and replaced at
//! random; then what the daemon told is held against what this side knows. `SEED` makes the same choices again.
#![allow(clippy::unwrap_used)]

use api::{AddProcessRequest, CreateContainerRequest, StateRequest};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tests::{Bundle, Client, Host, Ledger, Options, Random, ends_with, eventually};

const LANES: usize = 5;

/// How often something was done.
#[derive(Debug, Default)]
struct Counts {
    containers: AtomicUsize,
    execs: AtomicUsize,
    calls: AtomicUsize,
    cut_off: AtomicUsize,
    /// Calls that this side's own library never came back from.
    lost: AtomicUsize,
    bytes: AtomicUsize,
    checkpoints: AtomicUsize,
    restored: AtomicUsize,
}

fn count(counter: &AtomicUsize, n: usize) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// One line of containers, one after the other.
struct Lane {
    client: Client,
    ledger: Arc<Ledger>,
    counts: Arc<Counts>,
    template: Bundle,
    directory: PathBuf,
    random: Random,
    name: usize,
    made: usize,
    /// Containers can be checkpointed here.
    criu: bool,
    over: Arc<AtomicBool>,
    /// How many daemons there have been.
    daemons: Arc<AtomicUsize>,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let said = Arc::new(std::sync::Mutex::new(String::new()));
    let (words, usual) = (said.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        words.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push_str(&format!("{panic}\n"));
        usual(panic);
    }));
    if tokio::spawn(soak()).await.is_ok() {
        return std::process::ExitCode::SUCCESS;
    }
    // After the daemon's log, which is long: what is read first is the end.
    eprintln!("soak: FAILED: {}", said.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    std::process::ExitCode::FAILURE
}

async fn soak() {
    let minutes: f64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("usage: soak MINUTES");
    let mut random = Random::from_environment();
    println!("soak: {minutes} minutes, {random}");
    let flags = vec!["--retain-count=0".into(), "--start-timeout=20s".into(), "--log-level=warn".into()];
    let host = Host::with(Options { flags, without_debug: true, ..Options::default() }).await;
    std::fs::create_dir(host.join("out")).unwrap();
    let ledger = Arc::new(Ledger::new(host.lazy_client()));
    let (counts, over) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let daemons = Arc::new(AtomicUsize::new(1));
    let mut lanes = tokio::task::JoinSet::new();
    let criu = tests::has_criu();
    for name in 0..LANES {
        let lane = Lane {
            client: host.lazy_client(),
            ledger: ledger.clone(),
            counts: counts.clone(),
            template: host.bundle(&[]),
            directory: PathBuf::from(host.join("out")),
            random: random.split(),
            name,
            made: 0,
            criu,
            over: over.clone(),
            daemons: daemons.clone(),
        };
        lanes.spawn(lane.run());
    }
    let deadline = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let (mut host, chaos) = make_chaos(host, &ledger, &daemons, random.split(), deadline).await;
    over.store(true, Ordering::SeqCst);
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
    // What nobody acknowledged and is there all the same has to be ended too.
    let mut client = host.client().await;
    client.state(StateRequest::default()).await.unwrap();
    for id in ledger.running() {
        for process in ["init", "long"] {
            ledger.allow(&id, process, 137);
        }
        let _ = signal(&mut client, &id, "init", 9).await;
    }
    ledger.all_ended().await;
    eventually("nothing is left in the state directory", || directories(&host.state_dir()).is_empty());
    let findings = ledger.findings();
    println!("soak: {} events; {counts:?}; {chaos}", ledger.events());
    assert!(!host.has_died(), "the daemon lives");
    assert_eq!(findings, Vec::<String>::new(), "{random}");
    drop(ledger);
    host.finish();
    println!("soak: no findings, {random}");
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

async fn signal(client: &mut Client, id: &str, pid: &str, signal: u32) -> Result<(), tonic::Status> {
    client.signal(api::SignalRequest { id: id.into(), pid: pid.into(), signal }).await.map(drop)
}

impl Lane {
    async fn run(mut self) {
        while !self.over.load(Ordering::SeqCst) {
            self.made += 1;
            let id = format!("c{}-{}", self.name, self.made);
            match self.random.below(10) {
                0..5 => self.short(&id).await,
                5..7 => self.flood(&id).await,
                _ => self.long(&id).await,
            }
            // Whoever was cut off waits until there is a daemon.
            while self.state().await.is_err() {
                count(&self.counts.cut_off, 1);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// The answer to a call. One that outlives the daemon that it was for was lost on this side: each daemon answers all, or
    /// its connections end. One that does not was lost by the daemon.
    async fn answer<T>(&self, call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, tonic::Status> {
        let before = self.daemons.load(Ordering::SeqCst);
        if let Ok(answer) = tokio::time::timeout(tests::LIMIT, call).await {
            return answer;
        }
        if self.daemons.load(Ordering::SeqCst) == before {
            self.ledger.found(format!("a call was not answered, in c{}-{}", self.name, self.made));
        }
        count(&self.counts.lost, 1);
        Err(tonic::Status::cancelled("it was lost"))
    }

    async fn state(&self) -> Result<(), tonic::Status> {
        let mut client = self.client.clone();
        self.answer(client.state(StateRequest::default())).await.map(drop)
    }

    async fn create(&mut self, id: &str, script: &str, stdout: &str, statuses: &[u32]) -> bool {
        let bundle_path = self.template.copy(id, &["sh", "-c", script]).write();
        let id = id.to_string();
        let request = CreateContainerRequest { id, bundle_path, stdout: stdout.into(), ..Default::default() };
        self.create_as(request, statuses).await
    }

    async fn create_as(&mut self, request: CreateContainerRequest, statuses: &[u32]) -> bool {
        let id = request.id.clone();
        let mut client = self.client.clone();
        let created = self.answer(client.create_container(request)).await;
        count(&self.counts.containers, 1);
        count(&self.counts.cut_off, usize::from(created.is_err()));
        self.ledger.expect(&id, "init", created.is_ok(), statuses);
        created.is_ok()
    }

    /// Goes to disk, and on from there as another container. The name of what runs then, if it is known to.
    async fn move_on(&mut self, id: &str) -> Option<String> {
        let checkpoint = Some(api::Checkpoint { name: "one".into(), exit: true, ..Default::default() });
        let request = api::CreateCheckpointRequest { id: id.into(), checkpoint, ..Default::default() };
        let mut client = self.client.clone();
        let made = self.answer(client.create_checkpoint(request)).await;
        count(&self.counts.checkpoints, 1);
        count(&self.counts.cut_off, usize::from(made.is_err()));
        if made.is_err() {
            return Some(id.to_string());
        }
        self.ledger.exit(id, "init").await;
        let next = format!("{id}-on");
        let bundle_path = self.template.path().with_file_name(id).to_str().unwrap().to_string();
        let request =
            CreateContainerRequest { id: next.clone(), bundle_path, checkpoint: "one".into(), ..Default::default() };
        let restored = self.create_as(request, &[77, 137]).await;
        count(&self.counts.restored, usize::from(restored));
        restored.then_some(next)
    }

    /// Ends by itself, sometimes at once.
    async fn short(&mut self, id: &str) {
        let (status, time) = (self.random.below(256) as u32, self.random.below(50));
        let script = match self.random.below(3) {
            0 => format!("exit {status}"),
            _ => format!("sleep 0.{time:02}; exit {status}"),
        };
        if self.create(id, &script, "", &[status]).await && self.random.below(2) == 0 {
            self.exec(id, "p").await;
        }
    }

    /// Writes more than any pipe holds.
    async fn flood(&mut self, id: &str) {
        let out = self.directory.join(id);
        std::fs::write(&out, "").unwrap();
        let size = 1 + self.random.below(8 << 20);
        let script = format!("head -c {size} /dev/zero; exit 9");
        if self.create(id, &script, out.to_str().unwrap(), &[9]).await {
            let status = self.ledger.exit(id, "init").await;
            let written = std::fs::metadata(&out).unwrap().len();
            count(&self.counts.bytes, written as usize);
            if status == 9 && written != size as u64 {
                self.ledger.found(format!("{id} wrote {size} bytes and {written} were delivered before its exit"));
            }
        }
        let _ = std::fs::remove_file(&out);
    }

    /// Lives until it is ended, and has things done to it.
    async fn long(&mut self, id: &str) {
        if !self.create(id, &ends_with(77), "", &[77, 137]).await {
            return;
        }
        let mut long = false;
        for n in 0..self.random.below(8) {
            count(&self.counts.calls, 1);
            let failed = match self.random.below(7) {
                0 | 1 => {
                    self.exec(id, &format!("p{n}")).await;
                    false
                }
                2 if !long => {
                    long = self.add(id, "long", "sleep 1000", &[137, 143]).await;
                    !long
                }
                3 => self.set(id, "paused").await | self.set(id, "running").await,
                4 => {
                    let resources = Some(api::UpdateResource { pids_limit: 200, ..Default::default() });
                    let request = api::UpdateContainerRequest { id: id.into(), resources, ..Default::default() };
                    let mut client = self.client.clone();
                    self.answer(client.update_container(request)).await.is_err()
                }
                5 => {
                    let mut client = self.client.clone();
                    self.answer(client.stats(api::StatsRequest { id: id.into() })).await.is_err()
                }
                _ => self.send(id, "init", 28).await.is_err(),
            };
            count(&self.counts.cut_off, usize::from(failed));
        }
        if long && self.random.below(2) == 0 {
            let _ = self.send(id, "long", 15).await;
        }
        let moves = self.criu && !long && self.random.below(3) == 0;
        let runs = if moves { self.move_on(id).await } else { Some(id.to_string()) };
        let Some(id) = &runs else { return };
        // It may not have set its trap yet, or be paused where that cannot be undone just now.
        let number = if self.random.below(2) == 0 { 10 } else { 9 };
        let mut tries = 0;
        while !self.ledger.has_ended(id, "init") {
            let sent = self.send(id, "init", if tries < 5 { number } else { 9 }).await;
            tries += 1;
            if sent.is_ok() && self.ledger.ends_within(id, "init", Duration::from_millis(200)).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn send(&self, id: &str, pid: &str, number: u32) -> Result<(), tonic::Status> {
        let mut client = self.client.clone();
        self.answer(signal(&mut client, id, pid, number)).await
    }

    async fn set(&self, id: &str, status: &str) -> bool {
        let request = api::UpdateContainerRequest { id: id.into(), status: status.into(), ..Default::default() };
        let mut client = self.client.clone();
        self.answer(client.update_container(request)).await.is_err()
    }

    async fn exec(&mut self, id: &str, name: &str) {
        let status = self.random.below(256) as u32;
        // Its container may end first.
        self.add(id, name, &format!("exit {status}"), &[status, 137]).await;
    }

    async fn add(&mut self, id: &str, name: &str, script: &str, statuses: &[u32]) -> bool {
        let args = vec!["sh".into(), "-c".into(), script.into()];
        let request = AddProcessRequest { id: id.into(), pid: name.into(), args, ..Default::default() };
        let mut client = self.client.clone();
        let added = self.answer(client.add_process(request)).await;
        count(&self.counts.execs, 1);
        self.ledger.expect(id, name, added.is_ok(), statuses);
        added.is_ok()
    }
}

/// The shims that are at work: pid, container and process.
fn shims(state_dir: &Path) -> Vec<(Pid, String, String)> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of = |pid: i32| {
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let place = cwd.strip_prefix(state_dir).ok().filter(|_| exe.ends_with("containerd-shim"))?;
        let mut names = place.iter().map(|name| name.to_string_lossy().into_owned());
        Some((Pid::from_raw(pid)?, names.next()?, names.next()?))
    };
    pids.filter_map(of).collect()
}

/// Does harm until `deadline`.
async fn make_chaos(
    mut host: Host,
    ledger: &Ledger,
    daemons: &AtomicUsize,
    mut random: Random,
    deadline: Instant,
) -> (Host, String) {
    let (mut kills, mut stops, mut replaced, mut shims_killed, mut shims_stopped) = (0, 0, 0, 0, 0);
    let state_dir = host.state_dir().canonicalize().unwrap();
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(random.below(700) as u64)).await;
        daemons.store(1 + kills + stops + replaced, Ordering::SeqCst);
        assert!(!host.has_died(), "nobody has killed the daemon");
        match random.below(10) {
            0..4 => {
                host.restart(Signal::KILL).await;
                kills += 1;
                // Again, while it recovers.
                if random.below(3) == 0 {
                    host.restart(Signal::KILL).await;
                    kills += 1;
                }
            }
            4 => {
                host.restart(Signal::TERM).await;
                stops += 1;
            }
            5 => {
                kill_process(Pid::from_raw(host.pid() as i32).unwrap(), Signal::HUP).unwrap();
                replaced += 1;
            }
            what => {
                let shims = shims(&state_dir);
                if shims.is_empty() {
                    continue;
                }
                let (pid, id, process) = random.of(&shims).clone();
                if what < 8 {
                    // With both gone it may be that nobody knows.
                    for status in [137, 255] {
                        // With the container's, all others end.
                        ledger.allow(&id, if process == "init" { "" } else { &process }, status);
                    }
                    let _ = kill_process(pid, Signal::KILL);
                    shims_killed += 1;
                } else {
                    let _ = kill_process(pid, Signal::STOP);
                    tokio::time::sleep(Duration::from_millis(random.below(300) as u64)).await;
                    let _ = kill_process(pid, Signal::CONT);
                    shims_stopped += 1;
                }
            }
        }
    }
    daemons.store(1 + kills + stops + replaced, Ordering::SeqCst);
    let chaos = format!(
        "daemon killed {kills} times, stopped {stops}, replaced {replaced}; shims killed {shims_killed}, stopped {shims_stopped}"
    );
    (host, chaos)
}
