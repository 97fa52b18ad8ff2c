//! Counts how often the kernel kills for memory (OOM) in a process's cgroup.
//!
//! A daemon that comes later may be unable to find that out. The program that made the cgroup may remove it as soon as it is
//! empty: systemd does so some milliseconds after the last process has ended. After that, reading an open file of the cgroup fails with `ENODEV`.
//! So the shim reads the count when the kernel reports a change, and when a child has ended, before it reaps the child.

use alloc::format;
use core::str;
use core::time::Duration;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::{Errno, pread, read};
use sys::child::ExitStatus;
use sys::clock::Instant;

use crate::files;
use crate::poller::{Poller, Token};

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// More bytes than `memory.events` or `memory.oom_control` has.
const ROOM: usize = 256;

/// How long after an alarm of cgroup v1 the kill may come. The kernel raises the alarm before it kills.
const KILL_FOLLOWS: Duration = Duration::from_secs(5);

/// How long the kernel may take to signal the removal of a v1 cgroup, which it does from a workqueue.
const REMOVAL_SIGNAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The status of a process that SIGKILL has killed.
const KILLED: ExitStatus = 137;

/// The count of one cgroup.
#[derive(Debug)]
pub struct OomCount {
    /// `memory.events` (v2) or `memory.oom_control` (v1). `None` once the cgroup is gone.
    file: Option<OwnedFd>,
    /// The eventfd of v1.
    alarm: Option<OwnedFd>,
    /// The count that was read last.
    kills: u64,
    /// When v1 raised an alarm that no rise of the count has followed.
    alarmed: Option<Instant>,
    /// Signals of v1's eventfd that were read after the group was gone. One of them only reports the removal.
    signals_since: u64,
}

impl OomCount {
    /// Begins to count in the cgroup of `process`. `mount` is the v1 controller, or nothing for v2; a colon; the mount point of the
    /// hierarchy. `poller` reports changes of the count as `token`. `None` if the process is in the root cgroup, or the cgroup
    /// counts nothing.
    pub fn begin(mount: &str, process: u32, poller: &Poller, token: Token) -> Option<OomCount> {
        let places = sys::small_file::read(CWD, format!("/proc/{process}/cgroup")).ok()?;
        let (controller, mount) = mount.split_once(':')?;
        let path = str::from_utf8(path_of(&places, controller)?).ok()?;
        let group = open(format!("{mount}{path}"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let is_v1 = !controller.is_empty();
        let file =
            openat(&group, if is_v1 { "memory.oom_control" } else { "memory.events" }, READ, Mode::empty()).ok()?;
        let mut count = OomCount { file: None, alarm: None, kills: 0, alarmed: None, signals_since: 0 };
        if is_v1 {
            // Without an alarm the shim still reads the count when a child ends.
            count.alarm = alarm(&group, &file).filter(|alarm| poller.watch(alarm, token).is_ok());
        } else {
            let _ = poller.watch_changes(&file, token);
        }
        count.file = Some(file);
        count.look();
        Some(count)
    }

    /// Reads the count.
    pub fn look(&mut self) {
        let mut signals = [0; 8];
        let is_signalled = self.alarm.as_ref().is_some_and(|alarm| read(alarm, &mut signals).is_ok());
        let count = self.count();
        if is_signalled {
            // The kernel also signals the removal of the cgroup, some time later (mm/memcontrol-v1.c, `memcg_event_remove`). If the
            // cgroup is there after the signals were read, each of them is an alarm.
            if count.is_none() {
                self.signals_since += u64::from_ne_bytes(signals);
            }
            if count.is_some() || self.signals_since > 1 {
                self.alarmed = Some(Instant::now());
            }
        }
        match count {
            Some(kills) => {
                if kills > self.kills {
                    self.alarmed = None;
                }
                self.kills = kills;
            }
            None => self.file = None,
        }
    }

    /// The count now. `None` once the cgroup is gone.
    fn count(&self) -> Option<u64> {
        let mut room = [0; ROOM];
        match pread(self.file.as_ref()?, &mut room, 0) {
            Ok(length) => Some(oom_kill(room.get(..length)?)),
            Err(Errno::NODEV) => None,
            Err(_) => Some(self.kills),
        }
    }

    /// Waits for the signal of the cgroup's removal, for a process that ended with `status`, if that signal decides whether the
    /// kernel killed the process for memory. That is so if the cgroup is gone and one signal was read since: it is an alarm if a
    /// second one follows. Blocks for 200 ms at most. A program that must not block leaves this out, and may miss such a kill.
    pub fn wait_for_removal(&mut self, status: ExitStatus) {
        let is_ambiguous = self.file.is_none() && status == KILLED && self.alarmed.is_none() && self.signals_since == 1;
        if let Some(alarm) = self.alarm.as_ref().filter(|_| is_ambiguous) {
            let _ = poll(&mut [PollFd::new(alarm, PollFlags::IN)], Some(&REMOVAL_SIGNAL));
            self.look();
        }
    }

    /// The final count, for a process that ended with `status`.
    pub fn finish(self, status: ExitStatus) -> u64 {
        let is_missed =
            self.file.is_none() && status == KILLED && self.alarmed.is_some_and(|at| at.elapsed() < KILL_FOLLOWS);
        // The cgroup was removed before the shim could read the kill.
        self.kills + u64::from(is_missed)
    }
}

/// Makes the eventfd that cgroup v1 signals when the cgroup is out of memory (admin-guide/cgroup-v1/memory.rst, "OOM Control").
fn alarm(group: &OwnedFd, file: &OwnedFd) -> Option<OwnedFd> {
    let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    let control = openat(group, "cgroup.event_control", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    files::write_all(control.ok()?, format!("{} {}", alarm.as_raw_fd(), file.as_raw_fd()).as_bytes()).ok()?;
    Some(alarm)
}

/// The path of the cgroup in the lines of `/proc/<pid>/cgroup` (cgroups(7)). `None` for the root cgroup, which is no container's.
/// Bytes take fewer instructions than text.
fn path_of<'a>(places: &'a [u8], controller: &str) -> Option<&'a [u8]> {
    let is_it = |line: &&[u8]| match controller {
        "" => line.starts_with(b"0::"),
        name => {
            let mut names = line.splitn(3, |byte| *byte == b':').nth(1).unwrap_or_default().split(|byte| *byte == b',');
            names.any(|found| found == name.as_bytes())
        }
    };
    let line = places.split(|byte| *byte == b'\n').find(is_it)?;
    line.splitn(3, |byte| *byte == b':').nth(2).filter(|path| *path != b"/")
}

/// The value of `oom_kill` in a file whose lines have a key and a number.
fn oom_kill(text: &[u8]) -> u64 {
    let mut lines = text.split(|byte| *byte == b'\n');
    let digits = lines.find_map(|line| line.strip_prefix(b"oom_kill ")).unwrap_or_default();
    digits
        .iter()
        .fold(0, |number: u64, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_cgroup_is_found_and_its_kills_are_read() {
        let places = b"4:memory:/a/b\n3:cpu,cpuacct:/c\n2:pids:/\n0::/x\n";
        assert_eq!(path_of(places, "memory"), Some(&b"/a/b"[..]));
        assert_eq!(path_of(places, "cpuacct"), Some(&b"/c"[..]));
        assert_eq!((path_of(places, "cpu,"), path_of(places, "pids")), (None, None));
        assert_eq!(path_of(places, ""), Some(&b"/x"[..]));
        assert_eq!(oom_kill(b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(oom_kill(b"max 9\noom 7\noom_kill 2\noom_group_kill 1\n"), 2);
        assert_eq!(oom_kill(b""), 0);
    }
}
