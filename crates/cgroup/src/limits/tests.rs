use super::*;
use crate::hierarchies::test_cgroup;

const GB: u64 = 1 << 30;

fn write(directory: &std::path::Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        std::fs::write(directory.join(name), text).expect("writes");
    }
}

fn read(directory: &std::path::Path, name: &str) -> String {
    std::fs::read_to_string(directory.join(name)).expect("reads")
}

fn to(number: u64) -> Setting {
    Setting::Number(Limit::To(number))
}

#[test]
fn v1_limits_are_read_and_written() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path();
    write(
        path,
        &[
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("cpuset.cpus", "0-2,5\n"),
            ("blkio.bfq.weight_device", "default 100\n7:0 200\n"),
            ("blkio.throttle.read_bps_device", "8:0 1000\n8:16 2000\n"),
            ("pids.max", "max\n"),
        ],
    );
    let cgroup = test_cgroup(&[("cpu,cpuset,memory,blkio,pids", path)]);
    let all = cgroup.limits().expect("reads");
    assert_eq!(all.len(), 6, "{all:?}");
    assert_eq!(all[&Field::MemoryLimit], Value::Number(u64::MAX));
    assert_eq!(all[&Field::CpuQuota], Value::Number(u64::MAX));
    assert_eq!(all[&Field::PidsLimit], Value::Number(u64::MAX));
    assert_eq!(all[&Field::CpusetCpus], Value::List([0, 1, 2, 5].into()));
    assert_eq!(all[&Field::BlkioWeightDevice], Value::Devices([((7, 0), 200)].into()));
    let devices = &all[&Field::BlkioThrottleReadBpsDevice];
    assert!(devices.is(&Value::Devices([((8, 16), 2000), ((9, 9), u64::MAX)].into())));
    assert!(!devices.is(&Value::Devices([((8, 16), 2001)].into())));

    let changes = Changes::from([(Field::MemoryLimit, to(GB + 1)), (Field::CpusetCpus, Setting::List("1,0".into()))]);
    let expected = cgroup.expected(&changes).expect("all are there");
    assert!(expected[&Field::MemoryLimit].contains(&Value::Number(GB)), "whole pages");
    assert_eq!(expected[&Field::CpusetCpus], [Value::List([0, 1].into())]);
    cgroup.set_limit(Field::MemoryLimit, &Value::Number(u64::MAX)).expect("writes");
    assert_eq!(read(path, "memory.limit_in_bytes"), "-1");
    cgroup.set_limit(Field::PidsLimit, &Value::Number(u64::MAX)).expect("writes");
    assert_eq!(read(path, "pids.max"), "max");
    let back = Value::Devices([((8, 0), 1), ((8, 32), 5)].into()).back_to(devices);
    assert_eq!(back, Value::Devices([((8, 0), 1000), ((8, 16), 2000), ((8, 32), u64::MAX)].into()));
    cgroup.set_limit(Field::BlkioThrottleReadBpsDevice, &Value::Devices([((8, 32), u64::MAX)].into())).expect("writes");
    assert_eq!(read(path, "blkio.throttle.read_bps_device"), "8:32 0");
}

#[test]
fn field_that_the_kernel_lacks_is_named_in_the_error() {
    let directory = tempfile::tempdir().expect("tempdir");
    for cgroup in [test_cgroup(&[("memory,blkio", directory.path())]), test_cgroup(&[("", directory.path())])] {
        for field in [Field::KernelTcpMemoryLimit, Field::BlkioLeafWeight] {
            let error = cgroup.expected(&Changes::from([(field, to(100))])).expect_err("missing");
            assert!(matches!(error, LimitError::Missing { .. }), "{error}");
            assert!(error.to_string().contains(field.name()), "{error}");
        }
    }
}

#[test]
fn v2_limits_are_read_converted_and_written() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path();
    write(
        path,
        &[
            ("memory.max", "1073741824\n"),
            ("memory.swap.max", "max\n"),
            ("cpu.max", "max 100000\n"),
            ("cpu.weight", "100\n"),
            ("io.weight", "default 100\n8:0 50\n"),
            ("io.max", "8:0 rbps=1000 wbps=max riops=max wiops=7\n"),
        ],
    );
    let cgroup = test_cgroup(&[("", path)]);
    let all = cgroup.limits().expect("reads");
    assert_eq!(all[&Field::CpuQuota], Value::Number(u64::MAX));
    assert_eq!(all[&Field::CpuPeriod], Value::Number(100_000));
    assert_eq!(all[&Field::BlkioWeight], Value::Number(100));
    assert_eq!(all[&Field::BlkioThrottleWriteBpsDevice], Value::Devices(BTreeMap::new()));
    assert_eq!(all[&Field::BlkioThrottleWriteIopsDevice], Value::Devices([((8, 0), 7)].into()));

    let swap = |changes: &[(Field, u64)]| {
        let changes: Changes = changes.iter().map(|(field, number)| (*field, to(*number))).collect();
        cgroup.expected(&changes).map(|mut all| all.remove(&Field::MemorySwap))
    };
    let half = vec![Value::Number(GB / 2), Value::Number(GB / 2)];
    assert_eq!(swap(&[(Field::MemorySwap, GB + GB / 2)]).expect("with the present memory limit"), Some(half.clone()));
    let both = [(Field::MemoryLimit, 2 * GB), (Field::MemorySwap, 2 * GB + GB / 2)];
    assert_eq!(swap(&both).expect("with the requested memory limit"), Some(half));
    assert!(swap(&[(Field::MemorySwap, 1)]).expect_err("too little").to_string().contains("memorySwap 1 is less"));

    cgroup.set_limit(Field::CpuPeriod, &Value::Number(50_000)).expect("writes");
    assert_eq!(read(path, "cpu.max"), "max 50000");
    let devices = Value::Devices([((8, 0), 5), ((8, 16), u64::MAX)].into());
    let cases = [
        (Field::BlkioThrottleReadBpsDevice, "8:0 rbps=5", "8:16 rbps=max"),
        (Field::BlkioWeightDevice, "8:0 5", "8:16 default"),
    ];
    for (field, first, second) in cases {
        assert_eq!(v2::lines(&cgroup, field, &devices), [first, second]);
    }
}

#[test]
fn list_in_another_form_is_passed_to_the_kernel() {
    let directory = tempfile::tempdir().expect("tempdir");
    let cgroup = test_cgroup(&[("pids,cpuset", directory.path())]);
    for text in ["all", "N", "0-N:1/2", "x", "0-", ",", "1-4000000000", &"0-8000,".repeat(1000)] {
        write(directory.path(), &[("cpuset.cpus", "0\n")]);
        let change = Changes::from([(Field::CpusetCpus, Setting::List(text.into()))]);
        let expected = cgroup.expected(&change).expect("passed on");
        assert_eq!(expected[&Field::CpusetCpus], [Value::Text(text.into())]);
        cgroup.set_limit(Field::CpusetCpus, &expected[&Field::CpusetCpus][0]).expect("writes");
        assert_eq!(read(directory.path(), "cpuset.cpus"), text);
        assert!(change[&Field::CpusetCpus].to_string().len() < 100);
    }
}

#[test]
fn conflicting_limit_is_named_with_advice() {
    let directory = tempfile::tempdir().expect("tempdir");
    let files = [("memory.limit_in_bytes", "1073741824\n"), ("memory.memsw.limit_in_bytes", "2147483648\n")];
    write(directory.path(), &files);
    let cgroup = test_cgroup(&[("memory", directory.path())]);
    let said = |changes: &[(Field, Limit)]| {
        let changes = changes.iter().map(|(field, limit)| (*field, Setting::Number(*limit))).collect();
        cgroup.conflict(&changes).expect("reads").map(|error| error.to_string())
    };
    let (memory, swap) = (Field::MemoryLimit, Field::MemorySwap);
    assert_eq!(said(&[(memory, Limit::To(2 * GB))]), None);
    assert_eq!(said(&[(memory, Limit::To(2 * GB + 5))]), None, "whole pages count");
    assert_eq!(said(&[(memory, Limit::To(3 * GB)), (swap, Limit::Unlimited)]), None);
    assert_eq!(
        said(&[(memory, Limit::To(3 * GB))]).expect("does not fit"),
        "memoryLimit 3221225472 is more than memorySwap, which is 2147483648: memorySwap limits memory and swap together, \
         so set it to at least 3221225472 in the same call"
    );
    let unlimited = said(&[(memory, Limit::Unlimited)]).expect("does not fit");
    assert!(unlimited.ends_with("so set it to -1 in the same call"), "{unlimited}");
    assert_eq!(
        said(&[(swap, Limit::To(GB / 2))]).expect("does not fit"),
        "memorySwap 536870912 is less than memoryLimit, which is 1073741824: memorySwap limits memory and swap together, \
         so set memoryLimit to at most 536870912 in the same call"
    );
    let both = said(&[(memory, Limit::To(3 * GB)), (swap, Limit::To(GB))]).expect("does not fit");
    assert_eq!(both, "memorySwap 1073741824 is less than memoryLimit, which it includes");
}
