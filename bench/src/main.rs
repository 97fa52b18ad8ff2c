//! What this system costs, beside the bare runtime: the same container, in the same run, one after the other in turn, so
//! that a machine that drifts hurts both.

mod checkpoint;
mod density;
mod exec;
mod figures;
mod group;
mod growth;
mod output;
mod plot;
mod report;
mod start;
mod subject;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use std::path::PathBuf;

use report::Report;
use subject::Subject;

/// Measures containerd beside the bare OCI runtime. Run as root on a quiet machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// What is measured; all but the checkpoints if nothing is named
    #[arg(value_enum)]
    what: Vec<What>,
    /// Fewer rounds and fewer containers: all of it within three minutes
    #[arg(long)]
    quick: bool,
    /// Containers are only started one after the other
    #[arg(long)]
    alone: bool,
    /// The runtimes
    #[arg(long, value_delimiter = ',', default_value = "crun,runc")]
    runtime: Vec<String>,
    /// Measure the daemon of this API that listens there, unix:///path, in place of one of our own; it must use the one
    /// runtime that is given
    #[arg(long)]
    address: Option<String>,
    /// Where results.json and the plots go
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Containers, one after the other and many at once
    Start,
    /// Added processes, until their exit event
    Exec,
    /// What a container writes, through the shim
    Output,
    /// A thousand containers: memory, wake-ups, State, Stats, a restart
    Density,
    /// Memory and descriptors after ten thousand of each
    Growth,
    /// Checkpoint and restore of a container with much memory
    Checkpoint,
}

/// How much is done.
#[derive(Debug, Clone, Copy)]
struct Scale {
    rounds: usize,
    batches: usize,
    at_once: usize,
    concurrency: &'static [usize],
    containers: usize,
    idle_seconds: u64,
    growth: usize,
}

const FULL: Scale = Scale {
    rounds: 150,
    batches: 6,
    at_once: 96,
    concurrency: &[4, 10, 16, 32],
    containers: 1000,
    idle_seconds: 60,
    growth: 10_000,
};

const QUICK: Scale = Scale {
    rounds: 30,
    batches: 3,
    at_once: 64,
    concurrency: &[10, 32],
    containers: 200,
    idle_seconds: 5,
    growth: 300,
};

// One thread: what a client of many threads spends on waking them is not what is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut scale = if args.quick { QUICK } else { FULL };
    if args.alone {
        scale.concurrency = &[];
    }
    if args.address.is_some() && args.runtime.len() != 1 {
        bail!("--address measures one daemon, whose runtime --runtime must name");
    }
    let all = [What::Start, What::Exec, What::Output, What::Density, What::Growth];
    let what = if args.what.is_empty() { all.to_vec() } else { args.what.clone() };
    let mut report = Report::new(args.address.as_deref(), &args.runtime)?;
    for (n, runtime) in args.runtime.iter().enumerate() {
        for what in &what {
            // What depends on the runtime only in how long it takes is measured with the first.
            if n > 0 && matches!(what, What::Output | What::Density | What::Growth) {
                continue;
            }
            eprintln!("{what:?} with {runtime} …");
            if *what == What::Checkpoint {
                checkpoint::measure(&mut report, runtime, if args.quick { 3 } else { 8 }).await?;
                continue;
            }
            let mut subject = Subject::new(args.address.as_deref(), runtime).await?;
            match what {
                What::Start => start::measure(&subject, &mut report, scale).await?,
                What::Exec => exec::measure(&subject, &mut report, scale).await?,
                What::Output => output::measure(&subject, &mut report, scale).await?,
                What::Density => density::measure(&mut subject, &mut report, scale).await?,
                What::Growth => growth::measure(&subject, &mut report, scale).await?,
                What::Checkpoint => {}
            }
            subject.finish();
        }
    }
    report.print();
    report.write(&args.output)
}
