//! Conversion of resource usage.

use supervisor::{BlkioEntry, ContainerStats, Interface, Stats, Usage};

use super::timestamp;

/// The message for a container's resource usage.
pub(crate) fn stats(stats: ContainerStats) -> api::StatsResponse {
    api::StatsResponse {
        network_stats: stats.network.into_iter().map(interface).collect(),
        cgroup_stats: Some(cgroup(stats.cgroup, stats.system_cpu)),
        timestamp: Some(timestamp(stats.timestamp)),
    }
}

fn interface(interface: Interface) -> api::NetworkStats {
    api::NetworkStats {
        name: interface.name,
        rx_bytes: interface.rx_bytes,
        rx_packets: interface.rx_packets,
        rx_errors: interface.rx_errors,
        rx_dropped: interface.rx_dropped,
        tx_bytes: interface.tx_bytes,
        tx_packets: interface.tx_packets,
        tx_errors: interface.tx_errors,
        tx_dropped: interface.tx_dropped,
    }
}

fn cgroup(stats: Stats, system_cpu: u64) -> api::CgroupStats {
    let (cpu, memory, blkio) = (stats.cpu, stats.memory, stats.blkio);
    api::CgroupStats {
        cpu_stats: Some(api::CpuStats {
            cpu_usage: Some(api::CpuUsage {
                total_usage: cpu.total,
                percpu_usage: cpu.per_cpu,
                usage_in_kernelmode: cpu.kernel,
                usage_in_usermode: cpu.user,
            }),
            throttling_data: Some(api::ThrottlingData {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled_time,
            }),
            system_usage: system_cpu,
        }),
        memory_stats: Some(api::MemoryStats {
            cache: memory.cache,
            usage: Some(usage(memory.usage)),
            swap_usage: Some(usage(memory.swap)),
            kernel_usage: Some(usage(memory.kernel)),
            stats: memory.raw.into_iter().map(Into::into).collect(),
        }),
        blkio_stats: Some(api::BlkioStats {
            io_service_bytes_recursive: entries(blkio.service_bytes),
            io_serviced_recursive: entries(blkio.serviced),
            io_queued_recursive: entries(blkio.queued),
            io_service_time_recursive: entries(blkio.service_time),
            io_wait_time_recursive: entries(blkio.wait_time),
            io_merged_recursive: entries(blkio.merged),
            io_time_recursive: entries(blkio.time),
            sectors_recursive: entries(blkio.sectors),
        }),
        hugetlb_stats: stats.hugetlb.into_iter().map(|(size, pages)| (size, hugetlb(pages)).into()).collect(),
        pids_stats: Some(api::PidsStats { current: stats.pids, limit: stats.pids_limit }),
    }
}

fn usage(usage: Usage) -> api::MemoryData {
    let Usage { usage, max_usage, failures, limit } = usage;
    api::MemoryData { usage, max_usage, failcnt: failures, limit }
}

fn hugetlb(usage: Usage) -> api::HugetlbStats {
    let Usage { usage, max_usage, failures, limit } = usage;
    api::HugetlbStats { usage, max_usage, failcnt: failures, limit }
}

fn entries(entries: Vec<BlkioEntry>) -> Vec<api::BlkioStatsEntry> {
    let entry = |entry: BlkioEntry| {
        let BlkioEntry { major, minor, operation, value } = entry;
        api::BlkioStatsEntry { major, minor, op: operation, value }
    };
    entries.into_iter().map(entry).collect()
}
