//! [`StatsResponse`] as a server sends it.
//!
//! The generated code leaves out a map entry's key or value if it is empty or zero. The protobuf libraries of 2016, with
//! which clients of this API were built, refuse such an entry ("bad map data: missing key/val"). So the two messages that
//! have maps are encoded here.

use prost::bytes::{Buf, BufMut};

use crate::{CgroupStats, MemoryStats, StatsResponse, Writer};

/// An encoded [`StatsResponse`], in which every map entry has a key and a value. It is only sent, never received.
#[derive(Debug, Default)]
pub struct EncodedStats(Vec<u8>);

impl From<StatsResponse> for EncodedStats {
    fn from(mut stats: StatsResponse) -> EncodedStats {
        let mut bytes = Vec::new();
        let mut writer = Writer(&mut bytes);
        for interface in &stats.network_stats {
            writer.encoded(1, interface);
        }
        if let Some(cgroup) = stats.cgroup_stats.take() {
            writer.message(2, |writer| write_cgroup(cgroup, writer));
        }
        stats.network_stats.clear();
        writer.fields_of(&stats);
        EncodedStats(bytes)
    }
}

fn write_cgroup(mut stats: CgroupStats, writer: &mut Writer<'_>) {
    if let Some(cpu) = &stats.cpu_stats {
        writer.encoded(1, cpu);
    }
    if let Some(memory) = stats.memory_stats.take() {
        writer.message(2, |writer| write_memory(memory, writer));
    }
    if let Some(blkio) = &stats.blkio_stats {
        writer.encoded(3, blkio);
    }
    for (size, usage) in &stats.hugetlb_stats {
        writer.map_message(4, size, usage);
    }
    if let Some(pids) = &stats.pids_stats {
        writer.encoded(5, pids);
    }
}

fn write_memory(mut stats: MemoryStats, writer: &mut Writer<'_>) {
    // It has the highest number of the message's fields, so that the order stays that of the numbers.
    let raw = std::mem::take(&mut stats.stats);
    writer.fields_of(&stats);
    for (key, value) in &raw {
        writer.map_number(5, key, *value);
    }
}

impl prost::Message for EncodedStats {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buffer: &mut impl Buf,
        context: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buffer, context)
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlkioStats, BlkioStatsEntry, CpuStats, HugetlbStats, MemoryData, NetworkStats, PidsStats, Timestamp};
    use prost::Message;

    fn full() -> StatsResponse {
        let data = MemoryData { usage: 1, max_usage: 2, failcnt: 3, limit: u64::MAX };
        StatsResponse {
            network_stats: vec![NetworkStats { name: "eth0".into(), rx_bytes: 300, ..Default::default() }; 2],
            cgroup_stats: Some(CgroupStats {
                cpu_stats: Some(CpuStats { system_usage: 1 << 40, ..Default::default() }),
                memory_stats: Some(MemoryStats {
                    cache: 5,
                    usage: Some(data),
                    swap_usage: Some(MemoryData::default()),
                    kernel_usage: None,
                    stats: [("anon".to_string(), 7), ("file".to_string(), u64::MAX)].into(),
                }),
                blkio_stats: Some(BlkioStats {
                    io_queued_recursive: vec![BlkioStatsEntry { major: 8, op: "Read".into(), ..Default::default() }],
                    ..Default::default()
                }),
                hugetlb_stats: [("2MB".to_string(), HugetlbStats { limit: 9, ..Default::default() })].into(),
                pids_stats: Some(PidsStats { current: 1, limit: 0 }),
            }),
            timestamp: Some(Timestamp { seconds: 5, nanos: 6 }),
        }
    }

    #[test]
    fn stats_without_zeros_in_maps_are_encoded_as_the_generated_code_does() {
        for stats in [full(), StatsResponse::default(), StatsResponse { cgroup_stats: None, ..full() }] {
            let encoded = EncodedStats::from(stats.clone());
            assert_eq!(encoded.encode_to_vec(), stats.encode_to_vec());
            assert_eq!(encoded.encoded_len(), stats.encoded_len());
        }
    }

    #[test]
    fn map_entries_carry_empty_keys_and_zero_values() {
        let mut stats = StatsResponse::default();
        let memory = MemoryStats { stats: [("a".to_string(), 0), (String::new(), 1)].into(), ..Default::default() };
        let hugetlb = [(String::new(), HugetlbStats::default())].into();
        stats.cgroup_stats =
            Some(CgroupStats { memory_stats: Some(memory), hugetlb_stats: hugetlb, ..Default::default() });
        let encoded = EncodedStats::from(stats.clone()).encode_to_vec();
        // cgroup_stats { memory_stats { stats { "" 1 } stats { "a" 0 } } hugetlb_stats { "" {} } }
        let expected = b"\x12\x15\x12\x0d\x2a\x04\x0a\x00\x10\x01\x2a\x05\x0a\x01a\x10\x00\x22\x04\x0a\x00\x12\x00";
        assert_eq!(encoded, expected);
        assert_eq!(StatsResponse::decode(&encoded[..]).expect("valid"), stats);
    }
}
