//! `stats`: one reading as JSON, or a table that is refreshed.

use containerd_client::{Client, api};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use crate::args::Stats;
use crate::failure::Failure;
use crate::out;
use crate::table;

const HEAD: [&str; 8] = ["ID", "CPU", "MEMORY", "LIMIT", "PIDS", "NET RX / TX", "BLOCK R / W", "THROTTLED"];

pub(crate) async fn execute(client: &Client, options: Stats) -> Result<ExitCode, Failure> {
    let first = client.stats(&options.id).await?;
    if !options.watch {
        return out::write_json(&first);
    }
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::select! {
        result = refresh(client, &options, first) => result,
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
    }
}

/// Shows a line for each reading, for ever.
async fn refresh(client: &Client, options: &Stats, mut stats: api::StatsResponse) -> Result<ExitCode, Failure> {
    let mut ticks = tokio::time::interval(options.interval.max(Duration::from_millis(100)));
    // The first tick comes at once.
    ticks.tick().await;
    let mut before = None;
    loop {
        let row = row(&options.id, &stats, before.as_ref());
        show(&table::text(&HEAD, &[row]), before.is_none())?;
        before = Some(stats);
        ticks.tick().await;
        stats = client.stats(&options.id).await?;
    }
}

/// On a terminal, each table is written over the one before. Elsewhere, one row follows the other.
fn show(table: &str, first: bool) -> Result<(), Failure> {
    if first {
        out::write(table)
    } else if std::io::stdout().is_terminal() {
        // Moves up two lines and clears everything below (ECMA-48: CPL, ED).
        out::write(format!("\x1b[2F\x1b[J{table}"))
    } else if let Some((_, row)) = table.split_once('\n') {
        out::write(row)
    } else {
        Ok(())
    }
}

fn row(id: &str, now: &api::StatsResponse, before: Option<&api::StatsResponse>) -> Vec<String> {
    let groups = now.cgroup_stats.clone().unwrap_or_default();
    let memory = groups.memory_stats.unwrap_or_default().usage.unwrap_or_default();
    let pids = groups.pids_stats.unwrap_or_default();
    let blkio = groups.blkio_stats.unwrap_or_default();
    let moved = |operation: &str| {
        let of = blkio.io_service_bytes_recursive.iter().filter(|entry| entry.op == operation);
        bytes(of.map(|entry| entry.value).sum())
    };
    let network = |get: fn(&api::NetworkStats) -> u64| bytes(now.network_stats.iter().map(get).sum());
    let throttling = groups.cpu_stats.unwrap_or_default().throttling_data.unwrap_or_default();
    vec![
        id.to_string(),
        cpu(now, before),
        bytes(memory.usage),
        // Cgroup v1 reports the absence of a limit as a number that is larger than any machine's memory.
        if memory.limit == 0 || memory.limit >= 1 << 60 { "-".into() } else { bytes(memory.limit) },
        if pids.limit == 0 { pids.current.to_string() } else { format!("{} / {}", pids.current, pids.limit) },
        format!("{} / {}", network(|row| row.rx_bytes), network(|row| row.tx_bytes)),
        format!("{} / {}", moved("Read"), moved("Write")),
        format!("{} of {}", throttling.throttled_periods, throttling.periods),
    ]
}

/// The CPU time since the last reading, in percent of one CPU. A dash for the first reading.
fn cpu(now: &api::StatsResponse, before: Option<&api::StatsResponse>) -> String {
    let used = |stats: &api::StatsResponse| {
        let groups = stats.cgroup_stats.clone().unwrap_or_default();
        groups.cpu_stats.unwrap_or_default().cpu_usage.unwrap_or_default().total_usage as f64
    };
    let at = |stats: &api::StatsResponse| {
        let timestamp = stats.timestamp.unwrap_or_default();
        timestamp.seconds as f64 * 1e9 + f64::from(timestamp.nanos)
    };
    match before {
        Some(before) if at(now) > at(before) => {
            format!("{:.1} %", 100.0 * (used(now) - used(before)).max(0.0) / (at(now) - at(before)))
        }
        _ => "-".into(),
    }
}

/// Formats a number of bytes for a person.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_formatted_with_binary_units() {
        let all = [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (50 << 20, "50.0 MiB"), (3 << 30, "3.0 GiB")];
        for (number, text) in all {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn cpu_is_the_time_used_between_two_readings() {
        let at = |seconds, total_usage| api::StatsResponse {
            timestamp: Some(api::Timestamp { seconds, nanos: 0 }),
            cgroup_stats: Some(api::CgroupStats {
                cpu_stats: Some(api::CpuStats {
                    cpu_usage: Some(api::CpuUsage { total_usage, ..Default::default() }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(cpu(&at(5, 1), None), "-");
        assert_eq!(cpu(&at(7, 2_000_000_000), Some(&at(5, 1_000_000_000))), "50.0 %");
        assert_eq!(cpu(&at(5, 5), Some(&at(5, 1))), "-");
    }
}
