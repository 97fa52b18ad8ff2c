//! How fast what a container writes comes to its client, beside a pipe that the client has to the container itself.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::Instant;

use crate::Scale;
use crate::figures::Values;
use crate::report::{Budget, Kind, Report};
use crate::subject::Subject;

const MEBIBYTES: usize = 1024;

pub(crate) async fn measure(subject: &Subject, report: &mut Report, scale: Scale) -> Result<()> {
    let script = format!("i=0; while [ $i -lt {} ]; do cat /data/67108864; i=$((i+1)); done", MEBIBYTES / 64);
    let (mut ours, mut bare) = (Values::default(), Values::default());
    for _ in 0..scale.batches {
        let (id, bundle) = &subject.bundles(1, &["sh", "-c", &script])[0];
        let fifo = subject.host.fifo();
        let stdout = fifo.path();
        let reading = tokio::task::spawn_blocking(move || read(fifo.reader()));
        let request =
            api::CreateContainerRequest { id: id.clone(), bundle_path: bundle.clone(), stdout, ..Default::default() };
        subject.client.clone().create_container(request).await?;
        ours.push(reading.await??);
        subject.exit(id, "init").await?;
        let (id, bundle) = &subject.bundles(1, &["sh", "-c", &script])[0];
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let reading = tokio::task::spawn_blocking(move || read(reader.into()));
        let mut command = subject.bare_command(&["run", "--detach", "--bundle", bundle, id]);
        command.stdout(Stdio::from(writer)).status().await?;
        drop(command);
        bare.push(reading.await??);
        subject.bare(&["delete", "--force", id]).await?;
    }
    report.beside(Kind::Ratio, ("stdout of a container", &subject.runtime, "MiB/s"), &ours, &bare, Budget::Above(0.8));
    Ok(())
}

/// Reads to the end; MiB a second, from the first byte on.
fn read(mut from: File) -> Result<f64> {
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = from.read(&mut buffer)?;
    let begun = Instant::now();
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => bytes += n,
        }
    }
    let rate = MEBIBYTES as f64 / begun.elapsed().as_secs_f64();
    (bytes == MEBIBYTES << 20).then_some(rate).with_context(|| format!("only {bytes} bytes came"))
}
