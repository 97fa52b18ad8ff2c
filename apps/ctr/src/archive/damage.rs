//! Tests with archives that are made to do harm, and with randomly damaged ones. Reading must not panic, take much memory, or
//! leave a trace outside the bundle. The damage is the same in each run, so that a failure can be reproduced.

use super::tests::{Source, import};
use std::io::{Cursor, Read, Write};
use std::path::Path;
use tar::{EntryType, Header};

/// The most memory for reading an archive: more than a small one takes, and far less than the archives here unpack to.
const MEMORY: u64 = 64 << 20;

/// The number of rounds for each kind of damage.
const ROUNDS: u32 = 2000;

/// This process's peak and present memory.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("is there");
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    (kib("VmHWM:") << 10, kib("VmRSS:") << 10)
}

/// Runs `work`, and checks how much memory it took.
fn in_little_memory<T>(what: &str, work: impl FnOnce() -> T) -> T {
    // Resets the peak (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").expect("begins anew; as root");
    let (_, before) = memory();
    let result = work();
    let (peak, _) = memory();
    assert!(peak.saturating_sub(before) < MEMORY, "{what} took {} MiB", (peak - before) >> 20);
    result
}

fn header(kind: EntryType, name: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_path(name).expect("fits");
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

/// Makes a file that is compressed while it is written.
fn compressed(window: u32, make: impl FnOnce(&mut dyn Write)) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("tempfile");
    let mut encoder = zstd::Encoder::new(file.as_file(), 1).expect("begins");
    encoder.window_log(window).expect("a window");
    make(&mut encoder);
    encoder.finish().expect("ends");
    file
}

fn said(archive: &Path) -> String {
    import(archive).1.err().expect("is refused")
}

#[test]
fn header_bombs_are_refused_in_little_memory() {
    const SIZE: u64 = 64 << 20;
    let record = format!("{SIZE} comment=");
    let one = || {
        let filling = SIZE - record.len() as u64 - 1;
        Cursor::new(record.clone()).chain(std::io::repeat(b'a').take(filling)).chain(Cursor::new("\n"))
    };
    for (kind, says) in [
        (EntryType::XHeader, "extended header of more than"),
        (EntryType::GNULongName, "extended header of more than"),
        (EntryType::GNULongLink, "extended header of more than"),
        (EntryType::XGlobalHeader, "does not belong here"),
        (EntryType::GNUSparse, "does not belong here"),
    ] {
        let bomb = compressed(20, |out| {
            let mut tar = tar::Builder::new(out);
            tar.append(&header(kind, "x", SIZE), one()).expect("adds");
            tar.finish().expect("ends");
        });
        assert!(bomb.as_file().metadata().expect("is there").len() < 50_000, "it is small");
        let said = in_little_memory(&format!("{kind:?}"), || said(bomb.path()));
        assert!(said.contains(says), "{kind:?}: {said}");
    }
    // Many small headers.
    let bomb = compressed(20, |out| {
        let mut tar = tar::Builder::new(out);
        for _ in 0..100_000 {
            tar.append(&header(EntryType::XHeader, "x", 6), &b"6 a=b\n"[..]).expect("adds");
        }
        tar.finish().expect("ends");
    });
    let said = in_little_memory("many", || said(bomb.path()));
    assert!(said.contains("two extended headers"), "{said}");
}

#[test]
fn wide_window_and_endless_padding_are_refused_in_little_memory() {
    let wide = compressed(27, |out| {
        for n in 0..(96_u32 << 20) / 4096 {
            out.write_all(&[n as u8; 4096]).expect("writes");
        }
    });
    let refused = in_little_memory("a wide window", || said(wide.path()));
    assert!(refused.contains("refused"), "{refused}");
    let source = Source::new();
    let whole = std::fs::read(source.archive()).expect("reads");
    let tar = zstd::decode_all(&whole[..]).expect("is whole");
    let padded = compressed(20, |out| {
        out.write_all(&tar).expect("writes");
        for _ in 0..(64 << 20) / 4096 {
            out.write_all(&[0; 4096]).expect("writes");
        }
    });
    let refused = in_little_memory("padding", || said(padded.path()));
    assert!(refused.contains("goes on after its end"), "{refused}");
}

/// A sequence of pseudo-random numbers (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// Does a little damage: changes bytes and bits, doubles, moves or removes blocks, cuts off the end.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    const BLOCK: usize = 512;
    for _ in 0..=random.below(3) {
        let (place, length) = (random.below(bytes.len()), bytes.len());
        let block = place / BLOCK * BLOCK;
        let end = (block + BLOCK).min(length);
        match random.below(8) {
            0 | 1 => bytes[place] ^= 1 << random.below(8),
            2 | 3 => bytes[place] = random.below(256) as u8,
            4 => bytes.copy_within(block..end, random.below(length / BLOCK) * BLOCK % (length - (end - block) + 1)),
            5 => drop(bytes.drain(block..end)),
            6 => {
                let doubled = bytes[block..end].to_vec();
                bytes.splice(block..block, doubled);
            }
            _ => bytes.truncate(place.max(1)),
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

/// Gives each header a valid checksum, so that damage gets past the first check.
fn with_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[test]
fn randomly_damaged_archive_never_panics_or_writes_outside_the_bundle() {
    let source = Source::new();
    let whole = std::fs::read(source.archive()).expect("reads");
    let tar = zstd::decode_all(&whole[..]).expect("is whole");
    let outside = tempfile::tempdir().expect("tempdir");
    let path = outside.path().join("archive");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut taken = 0;
    in_little_memory("damage", || {
        for round in 0..3 * ROUNDS {
            let bytes = if round % 3 == 0 {
                let mut bytes = whole.clone();
                damage(&mut bytes, &mut random);
                bytes
            } else {
                let mut bytes = tar.clone();
                damage(&mut bytes, &mut random);
                if round % 3 == 1 {
                    with_checksums(&mut bytes);
                }
                zstd::encode_all(&bytes[..], 1).expect("compresses")
            };
            std::fs::write(&path, bytes).expect("writes");
            // `import` checks that a refused archive leaves nothing.
            let (directory, imported) = import(&path);
            taken += u32::from(imported.is_ok());
            let names: Vec<_> = std::fs::read_dir(directory.path()).expect("lists").flatten().collect();
            assert!(names.iter().all(|entry| entry.file_name() == "bundle"), "round {round}: {names:?}");
        }
    });
    let names = std::fs::read_dir(outside.path()).expect("lists").count();
    assert_eq!(names, 1, "nothing was unpacked beside the archive");
    assert!(taken > 0 && taken < ROUNDS, "{taken} were taken: damage that means nothing, such as to a time");
}
