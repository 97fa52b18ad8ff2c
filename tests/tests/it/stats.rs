//! `Stats` against loads of known size.

use crate::support::*;
use api::{
    BlockIoDevice, CgroupStats, StatsRequest, StatsResponse, ThrottleDevice, UpdateContainerRequest, UpdateResource,
};
use serde_json::json;
use std::process::Command;
use tests::cgroup::LoopDevice;
use tests::{Client, Host, Options, eventually};
use tonic::Code;

async fn stats(client: &mut Client, id: &str) -> StatsResponse {
    client.stats(StatsRequest { id: id.into() }).await.unwrap().into_inner()
}

async fn groups(client: &mut Client, id: &str) -> CgroupStats {
    stats(client, id).await.cgroup_stats.unwrap()
}

/// Runs a process in the container to its end.
async fn run(client: &mut Client, watch: &mut Watch, request: api::AddProcessRequest) -> u32 {
    let (id, pid) = (request.id.clone(), request.pid.clone());
    client.add_process(request).await.unwrap();
    watch.exit(&id, &pid).await
}

#[track_caller]
fn within_5_percent(actual: u64, expected: u64) {
    assert!(actual.abs_diff(expected) * 20 <= expected, "{actual} is not within 5 % of {expected}");
}

#[tokio::test]
async fn a_second_of_cpu_is_seen() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let usage = |stats: &CgroupStats| stats.cpu_stats.clone().unwrap().cpu_usage.unwrap();
    let busy = process("c", "busy", &["sh", "-c", "while :; do :; done"]);
    let pid = client.add_process(busy).await.unwrap().into_inner().system_pid;
    // The scheduler's own account of it (proc_pid_schedstat(5)): nanoseconds on a CPU.
    let used = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let is_stopped = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    // Both accounts are looked at while it stands still: before, it has been the runtime's, elsewhere in part.
    signal(&mut client, "c", "busy", 19).await.unwrap();
    eventually("it has stopped", is_stopped);
    let (before, used_before) = (usage(&groups(&mut client, "c").await), used());
    signal(&mut client, "c", "busy", 18).await.unwrap();
    eventually("it has used a second", || used() >= used_before + 1_000_000_000);
    signal(&mut client, "c", "busy", 19).await.unwrap();
    eventually("it has stopped again", is_stopped);
    let stats = groups(&mut client, "c").await;
    let after = usage(&stats);
    within_5_percent(after.total_usage - before.total_usage, used() - used_before);
    let both = |usage: &api::CpuUsage| usage.usage_in_usermode + usage.usage_in_kernelmode;
    // Clock ticks of 10 ms on v1.
    assert!(both(&after).abs_diff(after.total_usage) <= 40_000_000, "{after:?}");
    if !tests::cgroup::is_v2() {
        assert_eq!(after.percpu_usage.iter().sum::<u64>().abs_diff(after.total_usage) / 1_000_000, 0, "{after:?}");
    }
    assert!(stats.cpu_stats.unwrap().system_usage > after.total_usage);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_quota_is_seen_as_throttling() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sh", "-c", "while :; do :; done"]);
    let bundle = bundle.resources(json!({"cpu": {"quota": 10_000, "period": 50_000}}));
    start(&mut client, "c", &bundle.write()).await;
    let mut last = api::ThrottlingData::default();
    let deadline = std::time::Instant::now() + tests::LIMIT;
    while last.throttled_periods < 10 {
        assert!(std::time::Instant::now() < deadline, "{last:?}");
        last = groups(&mut client, "c").await.cpu_stats.unwrap().throttling_data.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(last.periods >= last.throttled_periods, "{last:?}");
    // On a busy machine the container hardly runs, and is held back for little of each period.
    assert!(last.throttled_time > 0, "{last:?}");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn fifty_mib_are_seen() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    let before = groups(&mut client, "c").await.memory_stats.unwrap();
    // In a tmpfs, so that nothing but the container's end takes it back.
    let write = process("c", "write", &["dd", "if=/dev/zero", "of=/tmp/file", "bs=1M", "count=50"]);
    assert_eq!(run(&mut client, &mut watch, write).await, 0);
    let after = groups(&mut client, "c").await.memory_stats.unwrap();
    let usage = |memory: &api::MemoryStats| memory.usage.unwrap().usage;
    within_5_percent(usage(&after) - usage(&before), 50 << 20);
    let shmem = |memory: &api::MemoryStats| api::value_of(&memory.stats, "shmem").unwrap();
    within_5_percent(shmem(&after) - shmem(&before), 50 << 20);
    within_5_percent(after.cache - before.cache, 50 << 20);
    let most = after.usage.unwrap().max_usage;
    // v2 has it since Linux 5.19.
    assert!(most >= usage(&after) || most == 0, "{after:?}");
    assert!(after.swap_usage.unwrap().usage >= usage(&after) / 2, "{after:?}");
    assert!(after.kernel_usage.unwrap().usage > 0, "{after:?}");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_container_is_found_in_all_hierarchies_wherever_the_daemon_is_in_each() {
    // As under a service manager, which has groups for its services in some hierarchies and not in others.
    let id = format!("elsewhere-{}", std::process::id());
    let Some(memory) = crate::faults::Group::new("memory", &id) else { return };
    let Some(pids) = crate::faults::Group::new("pids", &id) else { return };
    let enter = r#"for group in "$0" "$1"; do echo $$ > "$group/cgroup.procs"; done; shift; exec "$@""#;
    let paths = [&memory.0, &pids.0].map(|path| path.to_str().unwrap().to_string());
    let wrapper = ["sh", "-c", enter].map(String::from).into_iter().chain(paths).collect();
    let mut host = Host::with(Options { wrapper, ..Options::default() }).await;
    let mut client = host.client().await;
    let mut bundle = host.bundle(&["sleep", "1000"]).resources(json!({"memory": {"limit": 64 << 20}}));
    // Runtimes do not agree on where it is then.
    bundle.config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    start(&mut client, &id, &bundle.write()).await;
    for restarted in [false, true] {
        if restarted {
            host.restart(rustix::process::Signal::KILL).await;
            client = host.client().await;
        }
        let all = groups(&mut client, &id).await;
        assert_eq!(all.memory_stats.unwrap().usage.unwrap().limit, 64 << 20);
        assert_eq!(all.pids_stats.unwrap().current, 1);
        assert_eq!(state(&mut client).await[0].pids.len(), 1);
        let mut watch = Watch::new(&mut client).await;
        client.add_process(process(&id, "p", &["tail", "/dev/zero"])).await.unwrap();
        let told = [watch.next().await, watch.next().await, watch.next().await];
        assert_eq!(told.map(|event| event.r#type), ["start-process", "oom", "exit"]);
    }
    kill(&mut client, &id).await;
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let left = [hierarchy.path().join(&id), hierarchy.path().join(format!("{id}-daemon")).join(&id)];
        assert!(left.iter().all(|group| !group.exists()), "{left:?}");
    }
    host.finish();
}

#[tokio::test]
async fn twenty_mib_to_a_disk_are_seen() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let disk = LoopDevice::new(host.path());
    let (major, minor) = (disk.major as i64, disk.minor as i64);
    let mut bundle = host.bundle(&["sleep", "100000"]).resources(json!({
        "devices": [{"allow": true, "type": "b", "major": major, "minor": minor, "access": "rwm"}],
    }));
    bundle.config["linux"]["devices"] = json!([{"path": "/dev/disk", "type": "b", "major": major, "minor": minor, "fileMode": 0o600, "uid": 0, "gid": 0}]);
    start(&mut client, "c", &bundle.write()).await;
    if !disk.has_bfq() {
        // v1 counts for a disk that has bfq, or any limit.
        let blk_io_device = Some(BlockIoDevice { major, minor });
        let resources = UpdateResource {
            blkio_throttle_write_bps_device: vec![ThrottleDevice { blk_io_device, rate: 10 << 30 }],
            ..Default::default()
        };
        let request = UpdateContainerRequest { id: "c".into(), resources: Some(resources), ..Default::default() };
        client.update_container(request).await.unwrap();
    }
    let write = ["dd", "if=/dev/zero", "of=/dev/disk", "bs=1M", "count=20", "oflag=direct"];
    assert_eq!(run(&mut client, &mut watch, process("c", "write", &write)).await, 0);
    let blkio = groups(&mut client, "c").await.blkio_stats.unwrap();
    let of = |entries: &[api::BlkioStatsEntry], op: &str| {
        let of_disk = entries.iter().filter(|entry| (entry.major, entry.minor) == (disk.major, disk.minor));
        of_disk.filter(|entry| entry.op == op).map(|entry| entry.value).sum::<u64>()
    };
    within_5_percent(of(&blkio.io_service_bytes_recursive, "Write"), 20 << 20);
    within_5_percent(of(&blkio.io_service_bytes_recursive, "Total"), 20 << 20);
    assert!(of(&blkio.io_serviced_recursive, "Write") >= 20, "{blkio:?}");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn ten_megabytes_over_a_veth_are_seen() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let pid = |container: api::Container| container.processes[0].system_pid.to_string();
    let sender = pid(sleeper(&host, &mut client, "sender").await);
    let receiver = pid(sleeper(&host, &mut client, "receiver").await);
    let ip = |arguments: &[&str]| {
        let output = Command::new("nsenter").args(["-t", &sender, "-n", "ip"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    ip(&["link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", &receiver]);
    ip(&["addr", "add", "192.0.2.1/24", "dev", "veth0"]);
    ip(&["link", "set", "veth0", "up"]);
    for arguments in [["addr", "add", "192.0.2.2/24", "dev", "veth1"].as_slice(), &["link", "set", "veth1", "up"]] {
        let mut command = Command::new("nsenter");
        assert!(command.args(["-t", &receiver, "-n", "ip"]).args(arguments).status().unwrap().success());
    }
    let script = "head -c 10000000 /dev/zero > /tmp/file; exec httpd -f -p 5000 -h /tmp";
    client.add_process(process("sender", "server", &["sh", "-c", script])).await.unwrap();
    eventually("the server listens", || {
        let sockets = |file| std::fs::read_to_string(format!("/proc/{sender}/net/{file}")).unwrap_or_default();
        ["tcp", "tcp6"].into_iter().any(|file| sockets(file).contains(":1388 "))
    });
    let get = process("receiver", "get", &["wget", "-q", "-O", "/dev/null", "http://192.0.2.1:5000/file"]);
    assert_eq!(run(&mut client, &mut watch, get).await, 0);
    let interface = |stats: &StatsResponse, name: &str| {
        stats.network_stats.iter().find(|row| row.name == name).cloned().unwrap_or_else(|| panic!("{stats:?}"))
    };
    let sent = interface(&stats(&mut client, "sender").await, "veth0");
    let received = interface(&stats(&mut client, "receiver").await, "veth1");
    within_5_percent(sent.tx_bytes, 10_000_000);
    within_5_percent(received.rx_bytes, 10_000_000);
    assert!(sent.tx_packets > 0 && received.rx_packets > 0 && sent.rx_bytes < 1_000_000, "{sent:?}");
    assert_eq!(stats(&mut client, "sender").await.network_stats.len(), 2, "lo and the veth");
    for id in ["sender", "receiver"] {
        kill(&mut client, id).await;
    }
    host.finish();
}

#[tokio::test]
async fn stats_of_what_is_not_there_and_of_huge_pages() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let request = || StatsRequest { id: "c".into() };
    refused(client.stats(request()).await, Code::NotFound, &["containerd: container not found"]);
    refused(client.stats(StatsRequest { id: "../x".into() }).await, Code::InvalidArgument, &["id"]);
    let sizes: Vec<String> = std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .map(|name| name.trim_start_matches("hugepages-").trim_end_matches("kB").parse::<u64>().unwrap())
        .map(|kb| if kb >= 1 << 20 { format!("{}GB", kb >> 20) } else { format!("{}MB", kb >> 10) })
        .collect();
    let has_2mb = sizes.iter().any(|size| size == "2MB");
    let mut resources = json!({"pids": {"limit": 55}});
    if has_2mb {
        resources["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
    }
    start(&mut client, "c", &host.bundle(&["sleep", "100000"]).resources(resources).write()).await;
    let stats = groups(&mut client, "c").await;
    let pids = stats.pids_stats.unwrap();
    // The runtime's own threads may be there until the program has been run.
    assert!(pids.current >= 1 && pids.limit == 55, "{pids:?}");
    for size in &sizes {
        assert!(api::value_of(&stats.hugetlb_stats, size).is_some(), "{size}: {:?}", stats.hugetlb_stats);
    }
    if has_2mb {
        assert_eq!(api::value_of(&stats.hugetlb_stats, "2MB").map(|usage| usage.limit), Some(4 << 20));
    }
    kill(&mut client, "c").await;
    refused(client.stats(request()).await, Code::NotFound, &["containerd: container not found"]);
    host.finish();
}
