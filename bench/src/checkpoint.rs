//! Checkpoint and restore of a container that has touched much memory, beside the runtime's own commands on the same
//! container.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Client, Host, Options};

use crate::figures::Values;
use crate::report::{Budget, Kind, Report};

/// What the container has touched.
const MEBIBYTES: u64 = 512;

pub(crate) async fn measure(report: &mut Report, runtime: &str, rounds: usize) -> Result<()> {
    if !tests::has_criu() {
        bail!("without CRIU there is nothing to measure");
    }
    let host = Host::with(Options { runtime: Some(runtime.into()), ..Options::default() }).await;
    let mut client = host.client().await;
    let bytes = MEBIBYTES << 20;
    // `tail` holds what it may have to write at the end.
    let script = format!("(head -c {} /dev/zero; sleep 1000000) | tail -c {bytes}", bytes + 4096);
    let bundle = host.bundle(&["sh", "-c", &script]);
    let path = bundle.write();
    let request = |checkpoint: &str| api::CreateContainerRequest {
        id: "c".into(),
        bundle_path: path.clone(),
        checkpoint: checkpoint.into(),
        ..Default::default()
    };
    client.create_container(request("")).await?;
    wait_for_memory(&mut client, bytes).await?;
    let (mut total, mut frozen, mut restore) = (Pair::default(), Pair::default(), Pair::default());
    let mut sizes = (0, 0);
    let bare = host.path().join("bare");
    for round in 0..rounds {
        // Both of the same container, which goes on; each comes first as often as the other.
        for ours in [round % 2 == 0, round % 2 == 1] {
            // What is still to be written would be written in the next one's time.
            rustix::fs::sync();
            let begun = Instant::now();
            if ours {
                create(&mut client, "on", false).await?;
                total.ours.add(begun.elapsed());
                let checkpoint = bundle.path().join("checkpoints/on");
                frozen.ours.add(oci::time_frozen(&checkpoint).context("CRIU's statistics")?);
                sizes.0 = size_of(&checkpoint)?;
                remove(&mut client, "on").await?;
            } else {
                run(&host, runtime, &["checkpoint", "--leave-running"], &bare, &["c"])?;
                total.bare.add(begun.elapsed());
                frozen.bare.add(oci::time_frozen(&bare).context("CRIU's statistics")?);
                sizes.1 = size_of(&bare)?;
                std::fs::remove_dir_all(&bare)?;
            }
        }
        // Stopped, and restored from the same images by each.
        create(&mut client, "stopped", true).await?;
        let images = bundle.path().join("checkpoints/stopped");
        for ours in [round % 2 == 0, round % 2 == 1] {
            rustix::fs::sync();
            let begun = Instant::now();
            if ours {
                client.create_container(request("stopped")).await?;
                restore.ours.add(begun.elapsed());
                create(&mut client, "again", true).await?;
                std::fs::remove_dir_all(bundle.path().join("checkpoints/again"))?;
            } else {
                run(&host, runtime, &["restore", "--detach", "--bundle", &path], &images, &["bare"])?;
                restore.bare.add(begun.elapsed());
                run(&host, runtime, &["delete", "--force"], Path::new(""), &["bare"])?;
            }
        }
        client.create_container(request("stopped")).await?;
        remove(&mut client, "stopped").await?;
    }
    report.beside(Kind::Ratio, ("checkpoint of 512 MiB", runtime, "ms"), &total.ours, &total.bare, Budget::Below(1.1));
    report.beside(
        Kind::Ratio,
        ("checkpoint of 512 MiB, frozen", runtime, "ms"),
        &frozen.ours,
        &frozen.bare,
        Budget::Below(1.1),
    );
    report.beside(Kind::Ratio, ("restore of 512 MiB", runtime, "ms"), &restore.ours, &restore.bare, Budget::Below(1.1));
    let ratio = sizes.0 as f64 / sizes.1 as f64;
    report.single(("checkpoint of 512 MiB: size over the runtime's own", runtime, ""), ratio, Budget::Below(1.01));
    client.signal(api::SignalRequest { id: "c".into(), pid: "init".into(), signal: 9 }).await?;
    let gone = || !host.state_dir().join("c").exists();
    tests::eventually("it has gone", gone);
    host.finish();
    Ok(())
}

#[derive(Default)]
struct Pair {
    ours: Values,
    bare: Values,
}

async fn create(client: &mut Client, name: &str, exit: bool) -> Result<()> {
    let checkpoint = Some(api::Checkpoint { name: name.into(), exit, ..Default::default() });
    let request = api::CreateCheckpointRequest { id: "c".into(), checkpoint, ..Default::default() };
    client.create_checkpoint(request).await?;
    Ok(())
}

async fn remove(client: &mut Client, name: &str) -> Result<()> {
    let request = api::DeleteCheckpointRequest { id: "c".into(), name: name.into(), ..Default::default() };
    client.delete_checkpoint(request).await?;
    Ok(())
}

/// Waits until the container has touched its memory.
async fn wait_for_memory(client: &mut Client, bytes: u64) -> Result<()> {
    let deadline = Instant::now() + tests::LIMIT;
    loop {
        let stats = client.stats(api::StatsRequest { id: "c".into() }).await?.into_inner();
        let usage = stats.cgroup_stats.and_then(|stats| stats.memory_stats?.usage).map_or(0, |usage| usage.usage);
        if usage >= bytes {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the container has only {usage} bytes");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs the bare runtime as the daemon does, with its images in `images`.
fn run(host: &Host, runtime: &str, arguments: &[&str], images: &Path, last: &[&str]) -> Result<()> {
    let mut command = Command::new(runtime);
    command.env("PATH", tests::path_with_criu()).arg(format!("--root={}", host.join("root"))).args(arguments);
    if images != Path::new("") {
        command.arg("--image-path").arg(images).arg("--work-path").arg(images.join("criu.work"));
    }
    let status = command.args(last).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let status = status.context("run the runtime")?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

fn size_of(checkpoint: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(checkpoint)? {
        let metadata = entry?.metadata()?;
        if metadata.is_file() {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}
