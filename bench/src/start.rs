//! Starting containers: one after the other, and many at once.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

use crate::Scale;
use crate::figures::{Cost, Values};
use crate::report::{Budget, Kind, Report};
use crate::subject::Subject;

pub(crate) async fn measure(subject: &Subject, report: &mut Report, scale: Scale) -> Result<()> {
    let bundles = subject.bundles(scale.at_once, &["sleep", "100000"]);
    let (id, bundle) = &bundles[0];
    let (mut ours, mut run, mut two) = (Cost::default(), Cost::default(), Cost::default());
    for _ in 0..scale.rounds {
        subject.cost(true, &mut ours, subject.create(id, bundle)).await?;
        subject.end(id).await?;
        subject.cost(false, &mut run, subject.bare(&["run", "--detach", "--bundle", bundle, id])).await?;
        subject.bare(&["delete", "--force", id]).await?;
        let both = async {
            subject.bare(&["create", "--bundle", bundle, id]).await?;
            subject.bare(&["start", id]).await
        };
        subject.cost(false, &mut two, both).await?;
        subject.bare(&["delete", "--force", id]).await?;
    }
    let runtime = &subject.runtime;
    let is_crun = runtime.ends_with("crun");
    let floor = if run.wall.median() <= two.wall.median() { &run } else { &two };
    report.beside(
        Kind::Ratio,
        ("start, wall time", runtime, "ms"),
        &ours.wall,
        &floor.wall,
        Budget::Below(if is_crun { 1.3 } else { 1.15 }),
    );
    report.beside(Kind::Above, ("start, CPU", runtime, "ms"), &ours.cpu, &floor.cpu, Budget::Below(3.0));
    report.beside(Kind::Ratio, ("start, over create + start", runtime, "ms"), &ours.wall, &two.wall, Budget::None);
    for at_once in scale.concurrency {
        let at_once = *at_once;
        let (mut rates, mut bare_rates) = (Values::default(), Values::default());
        let mut latencies = Values::default();
        for _ in 0..scale.batches {
            rates.push(many(subject, &bundles, at_once, true, &mut latencies).await?);
            bare_rates.push(many(subject, &bundles, at_once, false, &mut Values::default()).await?);
        }
        let budget = match at_once {
            10 | 32 => Budget::Above(if is_crun { 0.8 } else { 0.9 }),
            _ => Budget::None,
        };
        report.beside(
            Kind::Ratio,
            (&format!("starts/s, {at_once} at once"), runtime, "/s"),
            &rates,
            &bare_rates,
            budget,
        );
        if at_once == 10 {
            let ratio = latencies.quantile(0.99) / latencies.median();
            report.single(("start, 10 at once: p99 over p50", runtime, ""), ratio, Budget::Below(3.0));
        }
    }
    Ok(())
}

/// Starts all of them, always so many at once; how many a second. Then they are ended.
async fn many(
    subject: &Subject,
    all: &[(String, String)],
    at_once: usize,
    ours: bool,
    latencies: &mut Values,
) -> Result<f64> {
    let root = format!("--root={}", subject.host.join("root"));
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for lane in 0..at_once {
        let of_lane = all.iter().skip(lane).step_by(at_once);
        let of_lane: Vec<_> = of_lane.map(|(id, bundle)| subject.request(id, bundle)).collect();
        let (mut client, root, runtime) = (subject.client.clone(), root.clone(), subject.runtime.clone());
        tasks.spawn(async move {
            let mut times: Vec<Duration> = Vec::new();
            for request in of_lane {
                let begun = Instant::now();
                if ours {
                    client.create_container(request).await?;
                } else {
                    let mut command = tokio::process::Command::new(&runtime);
                    let (id, bundle) = (&request.id, &request.bundle_path);
                    command.args([&root, "run", "--detach", "--bundle", bundle, id]);
                    let null = std::process::Stdio::null;
                    let status = command.stdin(null()).stdout(null()).stderr(null()).status().await?;
                    if !status.success() {
                        bail!("run {id}: {status}");
                    }
                }
                times.push(begun.elapsed());
            }
            Ok(times)
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??.into_iter().for_each(|time| latencies.add(time));
    }
    let rate = all.len() as f64 / begun.elapsed().as_secs_f64();
    for (id, _) in all {
        if ours {
            subject.end(id).await?;
        } else {
            subject.bare(&["delete", "--force", id]).await?;
        }
    }
    Ok(rate)
}
