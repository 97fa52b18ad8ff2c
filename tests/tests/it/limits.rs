//! `UpdateContainer` with resources: every field that the kernel knows is set, read back, and leaves the others alone.

use crate::support::*;
use api::{BlockIoDevice, ThrottleDevice, UpdateContainerRequest, UpdateResource, WeightDevice};
use serde_json::json;
use std::collections::BTreeMap;
use tests::cgroup::{LoopDevice, is_v2, limits};
use tests::{Bundle, Client, Host};
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;
/// -1 as clients send it.
const NONE: u64 = u64::MAX;

async fn update(client: &mut Client, id: &str, resources: UpdateResource) -> Result<(), Status> {
    let resources = Some(resources);
    client.update_container(UpdateContainerRequest { id: id.into(), resources, ..Default::default() }).await.map(|_| ())
}

/// The files that differ, with their new texts.
fn difference(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    after.iter().filter(|(name, text)| before[*name] != **text).map(|(n, t)| (n.clone(), t.clone())).collect()
}

/// A sleeper with limits of its own for nearly everything, so that one that is lost is seen.
fn limited(host: &Host, disk: &LoopDevice) -> Bundle {
    let device = |rate: u64| json!([{"major": disk.major, "minor": disk.minor, "rate": rate}]);
    host.bundle(&["sleep", "100000"]).resources(json!({
        "memory": {"limit": 256 * MIB, "reservation": 128 * MIB, "swap": 512 * MIB},
        "cpu": {"shares": 512, "quota": 150_000, "period": 50_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 100},
        "blockIO": {"throttleReadBpsDevice": device(1_000_000), "throttleWriteIOPSDevice": device(1000)},
    }))
}

/// A change, and what it makes of which files on v1 and on v2.
type Case<'a> = (&'a str, UpdateResource, Vec<(&'a str, String)>, Vec<(&'a str, String)>);

fn cases(disk: &LoopDevice) -> Vec<Case<'_>> {
    let set = |change: &dyn Fn(&mut UpdateResource)| {
        let mut resources = UpdateResource::default();
        change(&mut resources);
        resources
    };
    let device = format!("{}:{}", disk.major, disk.minor);
    let blk_io_device = Some(BlockIoDevice { major: disk.major as i64, minor: disk.minor as i64 });
    let throttle = |rate| vec![ThrottleDevice { blk_io_device, rate }];
    let max = |text: &str| vec![("io.max", format!("{device} {text}"))];
    let mut cases: Vec<Case<'_>> = vec![
        (
            "cpuShares",
            set(&|r| r.cpu_shares = 2048),
            vec![("cpu.shares", "2048".into())],
            vec![("cpu.weight", "79".into())],
        ),
        (
            "cpuPeriod",
            set(&|r| r.cpu_period = 100_000),
            vec![("cpu.cfs_period_us", "100000".into())],
            vec![("cpu.max", "150000 100000".into())],
        ),
        (
            "cpuQuota",
            set(&|r| r.cpu_quota = 50_000),
            vec![("cpu.cfs_quota_us", "50000".into())],
            vec![("cpu.max", "50000 50000".into())],
        ),
        (
            "cpusetCpus",
            set(&|r| r.cpuset_cpus = "0,1".into()),
            vec![("cpuset.cpus", "0-1".into())],
            vec![("cpuset.cpus", "0-1".into())],
        ),
        (
            "memoryLimit",
            set(&|r| r.memory_limit = 100 * MIB + 5),
            vec![("memory.limit_in_bytes", (100 * MIB).to_string())],
            vec![("memory.max", (100 * MIB).to_string())],
        ),
        (
            "memorySwap",
            set(&|r| r.memory_swap = 300 * MIB),
            vec![("memory.memsw.limit_in_bytes", (300 * MIB).to_string())],
            vec![("memory.swap.max", (44 * MIB).to_string())],
        ),
        (
            "memoryReservation",
            set(&|r| r.memory_reservation = 64 * MIB),
            vec![("memory.soft_limit_in_bytes", (64 * MIB).to_string())],
            vec![("memory.low", (64 * MIB).to_string())],
        ),
        ("pidsLimit", set(&|r| r.pids_limit = 50), vec![("pids.max", "50".into())], vec![("pids.max", "50".into())]),
        (
            "pidsLimit -1",
            set(&|r| r.pids_limit = NONE),
            vec![("pids.max", "max".into())],
            vec![("pids.max", "max".into())],
        ),
        (
            "blkioThrottleReadBpsDevice",
            set(&|r| r.blkio_throttle_read_bps_device = throttle(5_000_000)),
            vec![("blkio.throttle.read_bps_device", format!("{device} 5000000"))],
            max("rbps=5000000 wbps=max riops=max wiops=1000"),
        ),
        (
            "blkioThrottleReadBpsDevice -1",
            set(&|r| r.blkio_throttle_read_bps_device = throttle(NONE)),
            vec![("blkio.throttle.read_bps_device", String::new())],
            max("rbps=max wbps=max riops=max wiops=1000"),
        ),
        (
            "blkioThrottleWriteBpsDevice",
            set(&|r| r.blkio_throttle_write_bps_device = throttle(6_000_000)),
            vec![("blkio.throttle.write_bps_device", format!("{device} 6000000"))],
            max("rbps=1000000 wbps=6000000 riops=max wiops=1000"),
        ),
        (
            "blkioThrottleReadIopsDevice",
            set(&|r| r.blkio_throttle_read_iops_device = throttle(70)),
            vec![("blkio.throttle.read_iops_device", format!("{device} 70"))],
            max("rbps=1000000 wbps=max riops=70 wiops=1000"),
        ),
        (
            "blkioThrottleWriteIopsDevice",
            set(&|r| r.blkio_throttle_write_iops_device = throttle(80)),
            vec![("blkio.throttle.write_iops_device", format!("{device} 80"))],
            max("rbps=1000000 wbps=max riops=max wiops=80"),
        ),
    ];
    if !is_v2() {
        cases.push((
            "kernelTCPMemoryLimit",
            set(&|r| r.kernel_tcp_memory_limit = 32 * MIB),
            vec![("memory.kmem.tcp.limit_in_bytes", (32 * MIB).to_string())],
            Vec::new(),
        ));
    }
    if disk.has_bfq() {
        cases.push((
            "blkioWeight",
            set(&|r| r.blkio_weight = 300),
            vec![("blkio.bfq.weight", "300".into()), ("blkio.bfq.weight_device", "default 300".into())],
            vec![("io.bfq.weight", "default 300".into())],
        ));
        let weights = vec![WeightDevice { blk_io_device, weight: 400, leaf_weight: 0 }];
        let text = format!("default 100\n{device} 400");
        cases.push((
            "blkioWeightDevice",
            set(&|r| r.blkio_weight_device = weights.clone()),
            vec![("blkio.bfq.weight_device", text.clone())],
            vec![("io.bfq.weight", text)],
        ));
    } else {
        println!("SKIPPED: blkioWeight and blkioWeightDevice, as this kernel has no bfq");
    }
    cases
}

#[tokio::test]
async fn every_limit_is_set_and_leaves_the_others_alone() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let disk = LoopDevice::new(host.path());
    let bundle = limited(&host, &disk);
    let path = bundle.write();
    for (n, (name, resources, v1, v2)) in cases(&disk).into_iter().enumerate() {
        let id = format!("c{n}");
        start(&mut client, &id, &path).await;
        let before = limits(&bundle.cgroup());
        update(&mut client, &id, resources.clone()).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected: BTreeMap<String, String> =
            if is_v2() { v2 } else { v1 }.into_iter().map(|(n, text)| (n.to_string(), text)).collect();
        let mut changed = difference(&before, &limits(&bundle.cgroup()));
        // A newer runtime's curve for the same shares.
        if changed.get("cpu.weight").is_some_and(|weight| weight == "170") {
            changed.insert("cpu.weight".into(), "79".into());
        }
        assert_eq!(changed, expected, "{name}");
        let stats = client.stats(api::StatsRequest { id: id.clone() }).await.unwrap().into_inner();
        let groups = stats.cgroup_stats.unwrap();
        let memory = groups.memory_stats.unwrap();
        let limit = |asked: u64, from_config: u64| if asked == 0 { from_config } else { asked / 4096 * 4096 };
        assert_eq!(memory.usage.unwrap().limit, limit(resources.memory_limit, 256 * MIB), "{name}");
        let mut together = limit(resources.memory_swap, 512 * MIB);
        if is_v2() && resources.memory_limit != 0 {
            // Swap is limited by itself there, and stays as it was.
            together = 256 * MIB + limit(resources.memory_limit, 0);
        }
        assert_eq!(memory.swap_usage.unwrap().limit, together, "{name}");
        let pids = [resources.pids_limit, 100].into_iter().find(|limit| *limit != 0).unwrap();
        assert_eq!(groups.pids_stats.unwrap().limit, if pids == NONE { 0 } else { pids }, "{name}");
        kill(&mut client, &id).await;
    }
    host.finish();
}

#[tokio::test]
async fn all_limits_at_once_and_one_after_the_other() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let disk = LoopDevice::new(host.path());
    let bundle = limited(&host, &disk);
    start(&mut client, "c", &bundle.write()).await;
    let blk_io_device = Some(BlockIoDevice { major: disk.major as i64, minor: disk.minor as i64 });
    // What was written to the cgroup itself is still there after the runtime has had its turn, with the config's own.
    let throttle = vec![ThrottleDevice { blk_io_device, rate: 7_000_000 }];
    let resources = UpdateResource { blkio_throttle_read_bps_device: throttle, ..Default::default() };
    update(&mut client, "c", resources).await.unwrap();
    let before = limits(&bundle.cgroup());
    update(&mut client, "c", UpdateResource { cpu_shares: 1024, ..Default::default() }).await.unwrap();
    let changed: Vec<String> = difference(&before, &limits(&bundle.cgroup())).into_keys().collect();
    assert_eq!(changed, [if is_v2() { "cpu.weight" } else { "cpu.shares" }]);
    let many = UpdateResource {
        memory_limit: 400 * MIB,
        memory_swap: 800 * MIB,
        memory_reservation: 200 * MIB,
        cpu_period: 20_000,
        cpu_quota: 10_000,
        pids_limit: 20,
        cpuset_mems: "0".into(),
        ..Default::default()
    };
    update(&mut client, "c", many).await.unwrap();
    let now = limits(&bundle.cgroup());
    let expected = if is_v2() {
        vec![("memory.max", 400 * MIB), ("memory.swap.max", 400 * MIB), ("memory.low", 200 * MIB), ("pids.max", 20)]
    } else {
        vec![
            ("memory.limit_in_bytes", 400 * MIB),
            ("memory.memsw.limit_in_bytes", 800 * MIB),
            ("memory.soft_limit_in_bytes", 200 * MIB),
            ("cpu.cfs_period_us", 20_000),
            ("cpu.cfs_quota_us", 10_000),
            ("pids.max", 20),
        ]
    };
    for (name, value) in expected {
        assert_eq!(now[name], value.to_string(), "{name}");
    }
    // Without any limit again.
    let none = UpdateResource { memory_limit: NONE, memory_swap: NONE, cpu_quota: NONE, ..Default::default() };
    update(&mut client, "c", none).await.unwrap();
    let now = limits(&bundle.cgroup());
    if is_v2() {
        assert_eq!((now["memory.max"].as_str(), now["cpu.max"].as_str()), ("max", "max 20000"));
    } else {
        assert_eq!(now["memory.limit_in_bytes"], "9223372036854771712");
        assert_eq!(now["cpu.cfs_quota_us"], "-1");
    }
    // A paused container too, and its state in the same call.
    let paused = UpdateContainerRequest {
        id: "c".into(),
        status: "paused".into(),
        resources: Some(UpdateResource { pids_limit: 30, ..Default::default() }),
        ..Default::default()
    };
    client.update_container(paused).await.unwrap();
    assert_eq!(limits(&bundle.cgroup())["pids.max"], "30");
    assert_eq!(state(&mut client).await[0].status, "paused");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn what_the_kernel_refuses_ignores_or_lacks_is_named_and_changes_nothing() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let disk = LoopDevice::new(host.path());
    let bundle = limited(&host, &disk);
    start(&mut client, "c", &bundle.write()).await;
    let before = limits(&bundle.cgroup());
    let blk_io_device = Some(BlockIoDevice { major: disk.major as i64, minor: disk.minor as i64 });
    let unchanged = |name: &str| assert_eq!(difference(&before, &limits(&bundle.cgroup())), BTreeMap::new(), "{name}");

    // Beside something that could be done, which is then not done either.
    let beside = || UpdateResource { memory_reservation: 16 * MIB, pids_limit: 77, ..Default::default() };
    let leaf = WeightDevice { blk_io_device, weight: 0, leaf_weight: 100 };
    for (name, resources) in [
        ("kernelMemoryLimit", UpdateResource { kernel_memory_limit: 64 * MIB, ..beside() }),
        ("blkioLeafWeight", UpdateResource { blkio_leaf_weight: 100, ..beside() }),
        ("blkioWeightDevice.leafWeight", UpdateResource { blkio_weight_device: vec![leaf], ..beside() }),
    ] {
        refused(update(&mut client, "c", resources).await, Code::FailedPrecondition, &[name]);
        unchanged(name);
    }
    let no_device = Some(BlockIoDevice { major: 4095, minor: 7 });
    let throttle = vec![ThrottleDevice { blk_io_device: no_device, rate: 1000 }];
    let resources = UpdateResource { blkio_throttle_write_bps_device: throttle, ..beside() };
    let texts = ["blkioThrottleWriteBpsDevice", "4095:7", "No such device"];
    refused(update(&mut client, "c", resources).await, Code::FailedPrecondition, &texts);
    unchanged("a device that is not there");

    // In the runtime's words, or the kernel's, always with the value.
    for (value, resources) in [
        ("1", UpdateResource { cpu_shares: 1, ..beside() }),
        ("9999", UpdateResource { cpuset_cpus: "9999".into(), ..beside() }),
        ("12345", UpdateResource { cpu_quota: 1, cpu_period: 12345, ..beside() }),
        ("99999", UpdateResource { blkio_weight: 99_999, ..beside() }),
    ] {
        let Err(status) = update(&mut client, "c", resources).await else { panic!("{value} is taken") };
        assert!(status.message().contains(value), "{status:?}");
        assert!(status.message().len() > value.len() + 20, "{status:?}");
        unchanged(value);
    }
    refused(
        update(&mut client, "c", UpdateResource { cpuset_cpus: "x".into(), ..Default::default() }).await,
        Code::InvalidArgument,
        &["cpusetCpus", "\"x\""],
    );
    let resources = || UpdateResource { pids_limit: 5, ..Default::default() };
    refused(update(&mut client, "none", resources()).await, Code::NotFound, &["containerd: container not found"]);
    unchanged("nothing");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn limits_that_stand_in_the_way_are_named() {
    if is_v2() {
        println!("SKIPPED: v2 limits memory and swap independently");
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle =
        host.bundle(&["sleep", "100000"]).resources(json!({"memory": {"limit": 256 * MIB, "swap": 512 * MIB}}));
    start(&mut client, "c", &bundle.write()).await;
    let before = limits(&bundle.cgroup());
    let memory = |memory_limit, memory_swap| UpdateResource { memory_limit, memory_swap, ..Default::default() };
    let (more, less) = ((600 * MIB).to_string(), (100 * MIB).to_string());
    let above = ["memoryLimit", &more, "more than memorySwap", "536870912", "at least", "same call"];
    refused(update(&mut client, "c", memory(600 * MIB, 0)).await, Code::FailedPrecondition, &above);
    let below = ["memorySwap", &less, "less than memoryLimit", "268435456", "at most", "same call"];
    refused(update(&mut client, "c", memory(0, 100 * MIB)).await, Code::FailedPrecondition, &below);
    let both = ["memorySwap", "is less than memoryLimit"];
    refused(update(&mut client, "c", memory(200 * MIB, 100 * MIB)).await, Code::InvalidArgument, &both);
    assert_eq!(difference(&before, &limits(&bundle.cgroup())), BTreeMap::new());
    // Without a limit for memory: bare runc takes the limit of swap away too, and bare crun is refused by the kernel.
    let unlimited = update(&mut client, "c", memory(NONE, 0)).await;
    let mut changed = difference(&before, &limits(&bundle.cgroup()));
    changed.remove("memory.soft_limit_in_bytes");
    match unlimited {
        Ok(()) => assert_eq!(
            changed.into_keys().collect::<Vec<_>>(),
            ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        ),
        Err(status) => {
            assert!(tests::runtime().contains("crun"), "{status:?}");
            let names = ["memoryLimit -1", "memorySwap, which is 536870912", "set it to -1 in the same call"];
            refused(Err::<(), _>(status), Code::FailedPrecondition, &names);
            assert_eq!(changed, BTreeMap::new());
            update(&mut client, "c", memory(NONE, NONE)).await.unwrap();
        }
    }
    let now = limits(&bundle.cgroup());
    assert_eq!(
        (&now["memory.limit_in_bytes"], &now["memory.memsw.limit_in_bytes"]),
        (&"9223372036854771712".to_string(), &"9223372036854771712".to_string())
    );
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn cpu_lists_are_taken_in_every_form_that_the_kernel_takes() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "100000"]).resources(json!({"cpu": {"cpus": "0", "mems": "0"}}));
    start(&mut client, "c", &bundle.write()).await;
    let cpus = |text: &str| UpdateResource { cpuset_cpus: text.into(), ..Default::default() };
    let now = || limits(&bundle.cgroup())["cpuset.cpus"].clone();
    for (asked, expected) in [("0-1:1/2", "0"), ("0,1", "0-1"), ("0-1:2/2", "0-1"), (" 0", "0")] {
        update(&mut client, "c", cpus(asked)).await.unwrap_or_else(|e| panic!("{asked:?}: {e}"));
        assert_eq!(now(), expected, "{asked}");
    }
    let mems = UpdateResource { cpuset_mems: "0-0:1/1".into(), ..Default::default() };
    update(&mut client, "c", mems).await.unwrap();
    update(&mut client, "c", cpus("0")).await.unwrap();
    // How many CPUs these are depends on the machine: what the kernel says of them counts.
    for asked in ["all", "N", "0-N"] {
        let kernel = tests::cgroup::directories(&bundle.cgroup());
        let file = kernel.iter().map(|group| group.join("cpuset.cpus")).find(|file| file.exists()).unwrap();
        let taken = std::fs::write(&file, asked).is_ok();
        let expected = now();
        std::fs::write(&file, "0").unwrap();
        match update(&mut client, "c", cpus(asked)).await {
            Ok(()) => assert!(taken && now() == expected, "{asked}"),
            // More CPUs than there are, say.
            Err(status) => {
                assert!(!taken && status.message().contains(asked), "{status:?}");
                assert_eq!(now(), "0");
            }
        }
    }
    for nothing in ["x", "0-", "1-4000000000"] {
        update(&mut client, "c", cpus("0")).await.unwrap();
        let named = ["cpusetCpus", nothing];
        refused(update(&mut client, "c", cpus(nothing)).await, Code::InvalidArgument, &named);
        assert_eq!(now(), "0");
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_runtime_without_update_is_no_hindrance() {
    let script = "for a; do [ \"$a\" = update ] && { echo unknown command >&2; exit 1; }; done; exec $RUNTIME \"$@\"";
    let host = Host::with(tests::Options { fake_runtime: Some(script), ..Default::default() }).await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "100000"]);
    start(&mut client, "c", &bundle.write()).await;
    update(&mut client, "c", UpdateResource { pids_limit: 5, cpu_shares: 77, ..Default::default() }).await.unwrap();
    let now = limits(&bundle.cgroup());
    assert_eq!(now["pids.max"], "5");
    assert!(is_v2() || now["cpu.shares"] == "77");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn ctr_changes_limits_and_shows_them() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sleep", "100000"]);
    start(&mut client, "c", &bundle.write()).await;
    let ctr = |arguments: &[&str]| {
        let output = host.ctr(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let flags = ["--memory-limit", "50M", "--memory-reservation", "40M", "--cpu-shares", "500", "--pids-limit", "9"];
    let more = ["--cpu-period", "50000", "--cpu-quota", "25000", "--cpuset-cpus", "0", "--cpuset-mems", "0"];
    let arguments = [&["containers", "update", "c"][..], &flags, &more].concat();
    assert_eq!(ctr(&arguments), (Some(0), String::new(), String::new()));
    let (code, json, _) = ctr(&["containers", "stats", "c"]);
    assert_eq!(code, Some(0));
    let stats: serde_json::Value = serde_json::from_str(&json).unwrap();
    let groups = &stats["cgroup_stats"];
    assert_eq!(groups["memory_stats"]["usage"]["limit"], 50 * MIB);
    assert_eq!(groups["pids_stats"]["limit"], 9);
    assert!(groups["cpu_stats"]["cpu_usage"]["total_usage"].as_u64().unwrap() > 0);
    assert!(groups["cpu_stats"]["system_usage"].as_u64().unwrap() > 0);
    assert!(!groups["memory_stats"]["stats"].as_object().unwrap().is_empty());
    assert_eq!(stats["network_stats"][0]["name"], "lo");
    let time = stats["timestamp"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    let (code, _, said) = ctr(&["containers", "update", "c"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("[ctr] nothing to change"), "{said}");
    let (code, _, said) = ctr(&["containers", "update", "c", "--kernel-limit", "1M"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("[ctr] ") && said.contains("kernelMemoryLimit"), "{said}");
    let (code, _, said) = ctr(&["containers", "stats", "none"]);
    assert_eq!((code, said.contains("container not found")), (Some(1), true));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_table_of_stats_is_refreshed_until_it_is_interrupted() {
    use std::io::BufRead;
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let mut command = host.ctr(&["containers", "stats", "--watch", "--interval", "100ms", "c"]);
    let mut watching = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(watching.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("ID   CPU"));
    let first = lines.next().unwrap();
    assert!(first.starts_with("c    -"), "{first}");
    let second = lines.next().unwrap();
    assert!(second.starts_with("c ") && second.contains('%'), "{second}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&watching), rustix::process::Signal::INT).unwrap();
    assert!(watching.wait().unwrap().success());
    kill(&mut client, "c").await;
    host.finish();
}
