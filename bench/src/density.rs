//! Many idle containers: what they cost in memory and wake-ups, and how long it takes to see them all.

use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

use crate::Scale;
use crate::figures::Values;
use crate::group::Group;
use crate::report::{Budget, Kind, Report};
use crate::subject::Subject;

pub(crate) async fn measure(subject: &mut Subject, report: &mut Report, scale: Scale) -> Result<()> {
    let runtime = subject.runtime.clone();
    let (number, budgets) = (scale.containers, scale.containers == 1000);
    // Budgets are for a thousand.
    let below = |limit: f64| if budgets { Budget::Below(limit) } else { Budget::None };
    let bundles = subject.bundles(number, &["sleep", "100000"]);
    let name = subject.host.path().file_name().and_then(|name| name.to_str()).context("a name")?.to_string();
    let group = Group::memory(&format!("{name}-memory")).ok();
    if let Some(group) = &group {
        group.add(subject.pid())?;
    }
    let before = tests::children_of(subject.pid());
    let mut tasks = JoinSet::new();
    for lane in 0..8 {
        let of_lane = bundles.iter().skip(lane).step_by(8);
        let of_lane: Vec<_> = of_lane.map(|(id, bundle)| subject.request(id, bundle)).collect();
        let mut client = subject.client.clone();
        tasks.spawn(async move {
            for request in of_lane {
                client.create_container(request).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let shims: Vec<u32> = tests::children_of(subject.pid()).into_iter().filter(|pid| !before.contains(pid)).collect();
    let (mut private, mut threads) = (Values::default(), Values::default());
    for shim in &shims {
        let usage = tests::usage(*shim);
        private.push(usage.anonymous as f64);
        threads.push(usage.threads as f64);
    }
    report.value(("shim: private memory", &runtime, "kB"), &private, Budget::Below(100.0));
    report.value(("shim: threads", &runtime, ""), &threads, Budget::Below(1.0));
    if subject.is_ours() {
        restart(subject, report, number, below(200.0)).await?;
        if let Some(group) = &group {
            let mut charged = Values::default();
            charged.push(group.memory_charged()? as f64 / 1024.0 / number as f64);
            let bare = bare_charge(subject, &name, number.min(200)).await?;
            // What the runtime leaves of a container in the memory of whoever ran it: its state, its groups.
            report.beside(
                Kind::Above,
                ("shim: charged to its memory group", &runtime, "kB"),
                &charged,
                &bare,
                Budget::Below(200.0),
            );
        }
        // What was taken for the answer is given back by then.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let usage = tests::usage(subject.pid());
        report.single(
            (&format!("daemon, fresh, {number} containers: PSS"), &runtime, "kB"),
            usage.pss as f64,
            below(16384.0),
        );
    }
    states(subject, report, number, below(15.0)).await?;
    idle(subject, report, number, scale.idle_seconds).await?;
    for (id, _) in &bundles {
        subject.end(id).await?;
    }
    Ok(())
}

/// What stays charged to the group in which the bare runtime started a container, for each.
async fn bare_charge(subject: &Subject, name: &str, number: usize) -> Result<Values> {
    let group = Group::memory(&format!("{name}-memory-bare"))?;
    group.add(std::process::id())?;
    let bundles = subject.bundles(number, &["sleep", "100000"]);
    let before = group.memory_charged()?;
    for (id, bundle) in &bundles {
        subject.bare(&["run", "--detach", "--bundle", bundle, id]).await?;
    }
    let mut charged = Values::default();
    charged.push((group.memory_charged()?.saturating_sub(before)) as f64 / 1024.0 / number as f64);
    for (id, _) in &bundles {
        subject.bare(&["delete", "--force", id]).await?;
    }
    Ok(charged)
}

/// Kills the daemon, and asks the next one for all containers as soon as it answers.
async fn restart(subject: &mut Subject, report: &mut Report, number: usize, budget: Budget) -> Result<()> {
    let mut times = Values::default();
    for _ in 0..5 {
        let begun = Instant::now();
        subject.restart().await?;
        let all = subject.client.clone().state(api::StateRequest::default()).await?.into_inner().containers;
        times.add(begun.elapsed());
        anyhow::ensure!(all.len() == number, "{} of {number} are there", all.len());
    }
    report.value((&format!("{number} live: SIGKILL, restart, State"), &subject.runtime, "ms"), &times, budget);
    subject.follow().await
}

async fn states(subject: &Subject, report: &mut Report, number: usize, budget: Budget) -> Result<()> {
    let mut client = subject.client.clone();
    let (mut states, mut stats, mut nothing) = (Values::default(), Values::default(), Values::default());
    let all = client.state(api::StateRequest::default()).await?.into_inner().containers;
    let id = &all.first().context("there are containers")?.id;
    for _ in 0..50 {
        let begun = Instant::now();
        client.state(api::StateRequest::default()).await?;
        states.add(begun.elapsed());
    }
    for _ in 0..200 {
        let begun = Instant::now();
        client.stats(api::StatsRequest { id: id.clone() }).await?;
        stats.add(begun.elapsed());
    }
    for _ in 0..200 {
        let begun = Instant::now();
        client.get_server_version(api::GetServerVersionRequest {}).await?;
        nothing.add(begun.elapsed());
    }
    report.value(("a call that does nothing", &subject.runtime, "ms"), &nothing, Budget::None);
    report.value((&format!("State of {number}"), &subject.runtime, "ms"), &states, budget);
    report.value(("Stats of one", &subject.runtime, "ms"), &stats, Budget::Below(0.3));
    Ok(())
}

/// How often the daemon wakes when nothing happens, and what that costs.
async fn idle(subject: &Subject, report: &mut Report, number: usize, seconds: u64) -> Result<()> {
    subject.settle().await?;
    let wakes = || -> Result<u64> {
        let mut count = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", subject.pid()))? {
            let text = std::fs::read_to_string(task?.path().join("status"))?;
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            count += field("voluntary_ctxt_switches:").context("switches")?;
        }
        Ok(count)
    };
    // What was started for the calls before goes.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = wakes()?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let woken = (wakes()? - before) as f64;
    let what = format!("daemon idle, {number} containers: wake-ups in {seconds} s");
    report.single((&what, &subject.runtime, ""), woken, Budget::Below(0.0));
    Ok(())
}
