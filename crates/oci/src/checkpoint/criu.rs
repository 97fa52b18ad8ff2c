//! What CRIU does and leaves behind: its process, its errors and its statistics.

use prost::Message;
use rustix::process::Pid;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use sys::pidfd::PidFd;

use super::{CRIU_WORK, LARGEST_CONFIG};

/// How much of the end of a log is read. CRIU's logs are long.
const LOG_TAIL: u64 = 256 << 10;

/// How many errors of a log are repeated.
const MOST_ERRORS: usize = 5;

/// Returns the directory in which the runtime and its CRIU work while they restore a container. It is in the process's
/// own directory, so that any number of containers can be restored from one checkpoint at the same time.
pub fn restore_work(process: &Path) -> PathBuf {
    process.join(CRIU_WORK)
}

/// Returns the CRIU that is at work on process `pid`, if there is one: CRIU traces the processes that it dumps.
pub fn criu_at(pid: u32) -> io::Result<Option<(Pid, PidFd)>> {
    let Some(tracer) = sys::procfs::tracer(pid)? else { return Ok(None) };
    let Some(stat) = sys::procfs::stat(tracer)? else { return Ok(None) };
    let Some(process) = PidFd::open(tracer, stat.starttime)? else { return Ok(None) };
    // Another tracer may be a debugger.
    let is_criu = sys::procfs::read(tracer, "comm")?.is_some_and(|name| name.trim() == "criu");
    let pid = i32::try_from(tracer).ok().and_then(Pid::from_raw);
    Ok(pid.filter(|_| is_criu).map(|pid| (pid, process)))
}

/// Returns the reasons of a failure that CRIU's log gives, if it gives any.
pub fn criu_errors(log: &Path) -> Option<String> {
    let mut text = Vec::new();
    let read = sys::foreign_file::open_regular(log).and_then(|mut file| {
        let tail = file.metadata()?.len().saturating_sub(LOG_TAIL);
        file.seek(SeekFrom::Start(tail))?;
        file.take(LOG_TAIL).read_to_end(&mut text)
    });
    read.ok().and_then(|_| errors_in(&String::from_utf8_lossy(&text)))
}

fn errors_in(log: &str) -> Option<String> {
    let mut errors: Vec<&str> = Vec::new();
    for line in log.lines() {
        let Some((_, error)) = line.split_once("Error (") else { continue };
        // The message follows the place in CRIU's source.
        let error = error.split_once("): ").map_or(error, |(_, error)| error).trim();
        // These are harmless or only follow from the other errors.
        let says_nothing = ["Can't setup RLIMIT_NOFILE", "Dumping FAILED", "Restoring FAILED"];
        if error.starts_with("exited, status=") || says_nothing.iter().any(|words| error.contains(words)) {
            continue;
        }
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    let more = errors.len().saturating_sub(MOST_ERRORS);
    errors.truncate(MOST_ERRORS);
    let mut reasons = errors.join("; ");
    if more > 0 {
        reasons.push_str(&format!("; and {more} more"));
    }
    (!reasons.is_empty()).then_some(reasons)
}

/// The part of CRIU's statistics (criu/images/stats.proto) that is read.
#[derive(Clone, PartialEq, Message)]
struct Statistics {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStatistics>,
}

#[derive(Clone, PartialEq, Message)]
struct DumpStatistics {
    /// In microseconds.
    #[prost(uint32, tag = "2")]
    frozen_time: u32,
}

/// Returns how long a container stood still for its checkpoint in `directory`, according to CRIU's statistics.
pub fn time_frozen(directory: &Path) -> Option<Duration> {
    frozen_in(&sys::foreign_file::read(&directory.join(CRIU_WORK).join("stats-dump"), LARGEST_CONFIG).ok()?)
}

fn frozen_in(stats: &[u8]) -> Option<Duration> {
    // The file begins with two magic numbers and the length of the message, four bytes each (criu/include/magic.h,
    // criu/protobuf.c).
    let (length, message) = stats.get(8..)?.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let statistics = Statistics::decode(message.get(..length)?).ok()?;
    Some(Duration::from_micros(statistics.dump?.frozen_time.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_found_in_a_criu_log() {
        let log = "(00.06) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
            (00.09) Warn  (criu/seize.c:404): x\n(00.09) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.\n\
            Error (criu/util.c:641): execvp(\"iptables-restore\", ...) failed: No such file or directory\n\
            (00.17) Error (criu/util.c:656): exited, status=1\n(00.18) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        let reasons = errors_in(log).expect("some");
        let expected = "inet: Connected TCP socket, consider using --tcp-established option.; \
            execvp(\"iptables-restore\", ...) failed: No such file or directory";
        assert_eq!(reasons, expected);
        assert_eq!(errors_in("(00.1) all well\n"), None);
        assert_eq!(criu_errors(Path::new("/nonexistent")), None);
    }

    #[test]
    fn frozen_time_is_read_from_criu_statistics() {
        let dump = Some(DumpStatistics { frozen_time: 81_234 });
        let message = Statistics { dump }.encode_to_vec();
        let mut file = vec![0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57];
        file.extend_from_slice(&(message.len() as u32).to_le_bytes());
        file.extend_from_slice(&message);
        assert_eq!(frozen_in(&file), Some(Duration::from_micros(81_234)));
        for end in 0..file.len() {
            assert_eq!(frozen_in(&file[..end]), None);
        }
    }
}
