//! Prints what each running container uses, a number of times at an interval of one second.
//!
//!     top ADDRESS [COUNT]

use containerd_client::{Client, Config, Error, api};
use std::collections::HashMap;
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("usage: top ADDRESS [COUNT]")?;
    let count: u32 = arguments.next().map_or(Ok(1), |count| count.parse())?;
    let client = Client::new(Config { address: address.parse()?, ..Config::default() });
    let mut before = HashMap::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..count {
        ticks.tick().await;
        let now = readings(&client).await?;
        println!("{:<20} {:>8} {:>12} {:>6}", "ID", "CPU %", "MEMORY", "PIDS");
        let mut ids: Vec<&String> = now.keys().collect();
        ids.sort();
        for id in ids {
            let groups = now[id].cgroup_stats.clone().unwrap_or_default();
            let memory = groups.memory_stats.unwrap_or_default().usage.unwrap_or_default().usage;
            let pids = groups.pids_stats.unwrap_or_default().current;
            let cpu = before.get(id).map_or(0.0, |before| cpu(before, &now[id]));
            println!("{id:<20} {cpu:>8.1} {memory:>12} {pids:>6}");
        }
        before = now;
    }
    Ok(())
}

/// One reading of each container.
async fn readings(client: &Client) -> Result<HashMap<String, api::StatsResponse>, Error> {
    let mut readings = HashMap::new();
    for container in client.state().await?.containers {
        match client.stats(&container.id).await {
            Ok(stats) => drop(readings.insert(container.id, stats)),
            // It has ended since the state was read.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(readings)
}

/// The CPU time between two readings, in percent of one CPU.
fn cpu(before: &api::StatsResponse, now: &api::StatsResponse) -> f64 {
    let used = |stats: &api::StatsResponse| {
        let groups = stats.cgroup_stats.clone().unwrap_or_default();
        groups.cpu_stats.unwrap_or_default().cpu_usage.unwrap_or_default().total_usage as f64
    };
    let time = |stats: &api::StatsResponse| {
        let timestamp = stats.timestamp.unwrap_or_default();
        timestamp.seconds as f64 * 1e9 + f64::from(timestamp.nanos)
    };
    100.0 * (used(now) - used(before)).max(0.0) / (time(now) - time(before)).max(1.0)
}
