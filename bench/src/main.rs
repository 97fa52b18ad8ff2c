//! What this system costs, beside the bare runtime: the same container, in the same run, one after the other in turn, so
//! that a machine that drifts hurts both.

mod checkpoint;
mod figures;
mod start;

use clap::{Parser, Subcommand};

/// Measures containerd beside the bare OCI runtime. Run as root on a quiet machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Starting containers and added processes, one after the other and many at once
    Start {
        /// How often each is done
        #[arg(long, default_value_t = 40)]
        rounds: usize,
        /// How many are started at once
        #[arg(long, default_value_t = 10)]
        at_once: usize,
    },
    /// Checkpoint and restore of a container with much memory
    Checkpoint {
        /// MiB that it has touched
        #[arg(long, default_value_t = 512)]
        memory: u64,
        /// How often each is done
        #[arg(long, default_value_t = 8)]
        rounds: usize,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().what {
        What::Start { rounds, at_once } => start::measure(rounds, at_once).await,
        What::Checkpoint { memory, rounds } => checkpoint::measure(memory, rounds).await,
    }
}
