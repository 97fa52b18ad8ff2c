//! Starting containers and added processes, one after the other and many at once, beside the runtime's own commands.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Bundle, Client, Host, Options};
use tokio::task::JoinSet;

use crate::figures::{Times, row};

/// A control group whose CPU time the kernel counts, whoever detaches from whom.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Result<Group> {
        let path = PathBuf::from("/sys/fs/cgroup/cpuacct").join(name);
        std::fs::create_dir(&path)
            .with_context(|| format!("create {}: control groups v1 are needed", path.display()))?;
        Ok(Group(path))
    }

    fn add(&self, pid: u32) -> Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).with_context(|| format!("move {pid}"))
    }

    fn used(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(self.0.join("cpuacct.usage"))?;
        Ok(Duration::from_nanos(text.trim().parse()?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let parent = self.0.with_file_name("cgroup.procs");
        for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = std::fs::write(&parent, pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Wall and CPU time.
#[derive(Default)]
struct Cost {
    wall: Times,
    cpu: Times,
}

/// What is measured together.
struct Bench {
    host: Host,
    client: Client,
    ours: Group,
    bare: Group,
}

impl Bench {
    async fn new() -> Result<Bench> {
        let host = Host::with(Options { without_debug: true, ..Options::default() }).await;
        let client = host.client().await;
        let name = host.path().file_name().and_then(|name| name.to_str()).context("a name")?.to_string();
        let (ours, bare) = (Group::new(&format!("{name}-ours"))?, Group::new(&format!("{name}-bare"))?);
        ours.add(host.pid())?;
        Ok(Bench { host, client, ours, bare })
    }

    /// Does something in a group, with what this program itself uses.
    async fn in_group<T>(group: &Group, cost: &mut Cost, work: impl Future<Output = Result<T>>) -> Result<T> {
        group.add(std::process::id())?;
        let (before, begun) = (group.used()?, Instant::now());
        let result = work.await?;
        cost.wall.add(begun.elapsed());
        cost.cpu.add(group.used()?.saturating_sub(before));
        Ok(result)
    }

    async fn runtime(&self, arguments: &[&str]) -> Result<()> {
        let mut command = tokio::process::Command::new(tests::runtime());
        command.arg(format!("--root={}", self.host.join("root"))).args(arguments);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await?;
        if !status.success() {
            bail!("{} {arguments:?}: {status}", tests::runtime());
        }
        Ok(())
    }

    async fn start(&self, id: &str, bundle: &str) -> Result<()> {
        let request = api::CreateContainerRequest { id: id.into(), bundle_path: bundle.into(), ..Default::default() };
        self.client.clone().create_container(request).await?;
        Ok(())
    }

    /// Ends a container of ours, and waits until it has gone.
    async fn end(&self, id: &str) -> Result<()> {
        let request = api::SignalRequest { id: id.into(), pid: "init".into(), signal: 9 };
        self.client.clone().signal(request).await?;
        let directory = self.host.state_dir().join(id);
        while directory.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

fn bundles(template: &Bundle, number: usize) -> Vec<(String, String)> {
    let one = |n: usize| {
        let id = format!("b{n}");
        (id.clone(), template.copy(&id, &["sleep", "100000"]).write())
    };
    (0..number).map(one).collect()
}

pub(crate) async fn measure(rounds: usize, at_once: usize) -> Result<()> {
    let bench = Bench::new().await?;
    let all = bundles(&bench.host.bundle(&[]), at_once.max(1));
    let (id, bundle) = &all[0];
    let (mut ours, mut run, mut two) = (Cost::default(), Cost::default(), Cost::default());
    let (mut exec, mut bare_exec) = (Cost::default(), Cost::default());
    for _ in 0..rounds {
        Bench::in_group(&bench.ours, &mut ours, bench.start(id, bundle)).await?;
        Bench::in_group(&bench.ours, &mut exec, bench.exec(id)).await?;
        bench.end(id).await?;
        Bench::in_group(&bench.bare, &mut run, bench.runtime(&["run", "--detach", "--bundle", bundle, id])).await?;
        Bench::in_group(&bench.bare, &mut bare_exec, bench.runtime(&["exec", id, "true"])).await?;
        bench.runtime(&["delete", "--force", id]).await?;
        let both = async {
            bench.runtime(&["create", "--bundle", bundle, id]).await?;
            bench.runtime(&["start", id]).await
        };
        Bench::in_group(&bench.bare, &mut two, both).await?;
        bench.runtime(&["delete", "--force", id]).await?;
    }
    let version = Command::new(tests::runtime()).arg("--version").output()?.stdout;
    let version = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_string();
    println!("{version}, {rounds} rounds; medians in ms (a quarter, three quarters)");
    println!("{:<22} {:<26} {:<26} ratio", "", "containerd", "bare runtime");
    row("start, over run -d", &ours.wall, &run.wall);
    row("start, over two calls", &ours.wall, &two.wall);
    row("  CPU, over run -d", &ours.cpu, &run.cpu);
    row("  CPU, over two calls", &ours.cpu, &two.cpu);
    row("exec until its end", &exec.wall, &bare_exec.wall);
    row("  CPU", &exec.cpu, &bare_exec.cpu);
    let (mut together, mut bare_together) = (Times::default(), Times::default());
    for _ in 0..rounds.div_ceil(5) {
        together.add(many(&bench, &all, true).await?);
        bare_together.add(many(&bench, &all, false).await?);
    }
    row(&format!("{at_once} at once, each"), &together.each(at_once), &bare_together.each(at_once));
    let Bench { host, ours, bare, client } = bench;
    drop((ours, bare, client));
    host.finish();
    Ok(())
}

impl Bench {
    /// Adds a process that ends at once, and waits for its exit event.
    async fn exec(&self, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        let request = api::EventsRequest { id: id.into(), ..Default::default() };
        let mut events = client.events(request).await?.into_inner();
        let (id, pid, args) = (id.to_string(), "p".to_string(), vec!["true".to_string()]);
        client.add_process(api::AddProcessRequest { id, pid, args, ..Default::default() }).await?;
        while let Some(event) = events.message().await? {
            if event.r#type == "exit" && event.pid == "p" {
                return Ok(());
            }
        }
        bail!("the events ended")
    }
}

/// Starts all of them at the same time; how long that took. Then they are ended.
async fn many(bench: &Bench, all: &[(String, String)], ours: bool) -> Result<Duration> {
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for (id, bundle) in all.iter().cloned() {
        let (mut client, root) = (bench.client.clone(), format!("--root={}", bench.host.join("root")));
        tasks.spawn(async move {
            if ours {
                let request = api::CreateContainerRequest { id, bundle_path: bundle, ..Default::default() };
                client.create_container(request).await?;
                return Ok(());
            }
            let mut command = tokio::process::Command::new(tests::runtime());
            command.args([&root, "run", "--detach", "--bundle", &bundle, &id]);
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await?;
            if status.success() { Ok(()) } else { bail!("run {id}: {status}") }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let took = begun.elapsed();
    for (id, _) in all {
        if ours {
            bench.end(id).await?;
        } else {
            bench.runtime(&["delete", "--force", id]).await?;
        }
    }
    Ok(took)
}
