//! Conversion of the limits in `UpdateContainer`. Zero and the empty string mean that a limit stays as it is. -1, which arrives
//! as its two's complement, means no limit.

use std::collections::BTreeMap;
use supervisor::{Changes, Device, Field, Limit, Setting};
use tonic::Status;

use crate::errors::invalid;

/// The changes that a client asks for.
pub(crate) fn changes(asked: api::UpdateResource) -> Result<Changes, Status> {
    let mut changes = Changes::new();
    for (field, value) in [
        (Field::BlkioWeight, asked.blkio_weight),
        (Field::BlkioLeafWeight, asked.blkio_leaf_weight),
        (Field::CpuShares, asked.cpu_shares),
        (Field::CpuPeriod, asked.cpu_period),
    ] {
        if value != 0 {
            changes.insert(field, Setting::Number(Limit::To(positive(field, value)?)));
        }
    }
    for (field, value) in [
        (Field::CpuQuota, asked.cpu_quota),
        (Field::MemoryLimit, asked.memory_limit),
        (Field::MemorySwap, asked.memory_swap),
        (Field::MemoryReservation, asked.memory_reservation),
        (Field::KernelMemoryLimit, asked.kernel_memory_limit),
        (Field::KernelTcpMemoryLimit, asked.kernel_tcp_memory_limit),
        (Field::PidsLimit, asked.pids_limit),
    ] {
        if let Some(limit) = limit(field, value)? {
            changes.insert(field, Setting::Number(limit));
        }
    }
    for (field, text) in [(Field::CpusetCpus, asked.cpuset_cpus), (Field::CpusetMems, asked.cpuset_mems)] {
        if !text.is_empty() {
            changes.insert(field, Setting::List(text));
        }
    }
    for (field, devices) in [
        (Field::BlkioThrottleReadBpsDevice, asked.blkio_throttle_read_bps_device),
        (Field::BlkioThrottleWriteBpsDevice, asked.blkio_throttle_write_bps_device),
        (Field::BlkioThrottleReadIopsDevice, asked.blkio_throttle_read_iops_device),
        (Field::BlkioThrottleWriteIopsDevice, asked.blkio_throttle_write_iops_device),
    ] {
        let named = devices.into_iter().map(|entry| (entry.blk_io_device, entry.rate));
        insert_devices(&mut changes, field, named)?;
    }
    let weights = &asked.blkio_weight_device;
    let named = weights.iter().map(|entry| (entry.blk_io_device, entry.weight.into()));
    insert_devices(&mut changes, Field::BlkioWeightDevice, named)?;
    let named = weights.iter().map(|entry| (entry.blk_io_device, entry.leaf_weight.into()));
    insert_devices(&mut changes, Field::BlkioLeafWeightDevice, named)?;
    Ok(changes)
}

fn insert_devices(
    changes: &mut Changes,
    field: Field,
    named: impl Iterator<Item = (Option<api::BlockIoDevice>, u64)>,
) -> Result<(), Status> {
    let mut devices: BTreeMap<Device, Limit> = BTreeMap::new();
    for (device, value) in named {
        let device = device.ok_or_else(|| invalid(field.name(), "", "has an entry without blkIODevice"))?;
        // The kernel's device numbers have at most 32 bits, and -1 in 32 bits stands for any device.
        let number = |number: i64| u32::try_from(number).ok().filter(|number| *number != u32::MAX).map(u64::from);
        let (Some(major), Some(minor)) = (number(device.major), number(device.minor)) else {
            let text = format!("{}:{}", device.major, device.minor);
            return Err(invalid(field.name(), text, "is not a device number"));
        };
        if let Some(limit) = limit(field, value)? {
            devices.insert((major, minor), limit);
        }
    }
    if !devices.is_empty() {
        changes.insert(field, Setting::Devices(devices));
    }
    Ok(())
}

/// The limit that a number stands for; `None` for zero, which changes nothing.
fn limit(field: Field, value: u64) -> Result<Option<Limit>, Status> {
    match value {
        0 => Ok(None),
        u64::MAX => Ok(Some(Limit::Unlimited)),
        value => positive(field, value).map(|value| Some(Limit::To(value))),
    }
}

fn positive(field: Field, value: u64) -> Result<u64, Status> {
    // A client sends a negative number as its two's complement.
    match i64::try_from(value) {
        Ok(_) => Ok(value),
        Err(_) => Err(invalid(field.name(), value as i64, "is negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const UNLIMITED: u64 = -1i64 as u64;

    #[test]
    fn zeros_change_no_limit() {
        assert!(changes(api::UpdateResource::default()).expect("valid").is_empty());
        let device = Some(api::BlockIoDevice { major: 8, minor: 0 });
        let asked = api::UpdateResource {
            blkio_weight_device: vec![api::WeightDevice { blk_io_device: device, weight: 0, leaf_weight: 0 }],
            blkio_throttle_read_bps_device: vec![api::ThrottleDevice { blk_io_device: device, rate: 0 }],
            ..Default::default()
        };
        assert!(changes(asked).expect("valid").is_empty());
    }

    #[test]
    fn minus_one_means_unlimited_and_is_refused_where_a_limit_is_required() {
        let (memory_limit, pids_limit, cpu_quota) = (UNLIMITED, UNLIMITED, UNLIMITED);
        let asked = api::UpdateResource { memory_limit, pids_limit, cpu_quota, ..Default::default() };
        let all = changes(asked).expect("valid");
        assert_eq!(all.len(), 3);
        assert!(all.values().all(|setting| *setting == Setting::Number(Limit::Unlimited)));
        for asked in [
            api::UpdateResource { cpu_shares: UNLIMITED, ..Default::default() },
            api::UpdateResource { memory_limit: UNLIMITED - 1, ..Default::default() },
        ] {
            assert_eq!(changes(asked).expect_err("refused").code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn weight_and_leaf_weight_of_a_device_become_two_fields() {
        let device = Some(api::BlockIoDevice { major: 8, minor: 16 });
        let asked = api::UpdateResource {
            blkio_weight_device: vec![api::WeightDevice { blk_io_device: device, weight: 5, leaf_weight: 6 }],
            ..Default::default()
        };
        let all = changes(asked).expect("valid");
        assert_eq!(all[&Field::BlkioWeightDevice], Setting::Devices([((8, 16), Limit::To(5))].into()));
        assert_eq!(all[&Field::BlkioLeafWeightDevice], Setting::Devices([((8, 16), Limit::To(6))].into()));
    }

    #[test]
    fn malformed_device_numbers_are_refused() {
        let device = |major, minor| Some(api::BlockIoDevice { major, minor });
        let any = i64::from(u32::MAX);
        for device in [None, device(-1, 0), device(8, -1), device(any, 0), device(8, any), device(8, 1 << 32)] {
            let asked = api::UpdateResource {
                blkio_throttle_write_iops_device: vec![api::ThrottleDevice { blk_io_device: device, rate: 1 }],
                ..Default::default()
            };
            let status = changes(asked).expect_err("refused");
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains("blkioThrottleWriteIopsDevice"), "{status:?}");
        }
    }
}
