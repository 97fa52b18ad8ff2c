//! Counting how often the kernel kills for memory in the group of the process, for the daemon that comes later.
//!
//! Whoever made the group may remove it as soon as it is empty: systemd does so some milliseconds after the last process has
//! ended. After that an open file of the group reads as `ENODEV`, and no daemon can find out any more. So the count is read
//! when the kernel says that it has changed, and when a child has ended, before anything else is done about that.

use alloc::format;
use alloc::string::ToString;
use contract::process_files::OOM_KILLS;
use contract::status::KILLED;
use core::str;
use core::time::Duration;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::{Errno, pread, read};
use sys::clock::Instant;

use crate::files;
use crate::poller::{Poller, Token};

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// More than either version's file is long.
const ROOM: usize = 256;

/// How long after an alarm of v1 a kill may come. The alarm comes before the kernel kills.
const KILL_FOLLOWS: Duration = Duration::from_secs(5);

/// How long the kernel may take to signal the removal of a v1 group, which it does from a workqueue.
const REMOVAL_SIGNAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The count of one memory group.
#[derive(Debug)]
pub(crate) struct OomCount {
    /// `memory.events` or `memory.oom_control`; none once the group is gone.
    file: Option<OwnedFd>,
    /// v1's eventfd.
    alarm: Option<OwnedFd>,
    /// The count that was read last.
    kills: u64,
    /// An alarm of v1 that no rise of the count has followed.
    alarmed: Option<Instant>,
    /// Signals of v1's eventfd that were read after the group was gone. One of them only reports the removal.
    signals_since: u64,
}

impl OomCount {
    /// Begins to count for `process`; `None` where nothing counts. `mount`: the v1 controller, or nothing for v2, a colon, and
    /// where its hierarchy is mounted.
    pub(crate) fn begin(mount: &str, process: u32, poller: &Poller) -> Option<OomCount> {
        let places = sys::small_file::read(CWD, format!("/proc/{process}/cgroup")).ok()?;
        let (controller, mount) = mount.split_once(':')?;
        let path = str::from_utf8(path_of(&places, controller)?).ok()?;
        let group = open(format!("{mount}{path}"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let is_v1 = !controller.is_empty();
        let file =
            openat(&group, if is_v1 { "memory.oom_control" } else { "memory.events" }, READ, Mode::empty()).ok()?;
        let mut count = OomCount { file: None, alarm: None, kills: 0, alarmed: None, signals_since: 0 };
        if is_v1 {
            // Without an alarm the count is still read when a child ends.
            count.alarm = alarm(&group, &file).filter(|alarm| poller.watch(alarm, Token::Memory).is_ok());
        } else {
            let _ = poller.watch_priority(&file, Token::Memory);
        }
        count.file = Some(file);
        count.look();
        Some(count)
    }

    /// Reads the count.
    pub(crate) fn look(&mut self) {
        let mut signals = [0; 8];
        if self.alarm.as_ref().is_some_and(|alarm| read(alarm, &mut signals).is_ok()) {
            // The kernel also signals the removal of the group, some time later (mm/memcontrol-v1.c, `memcg_event_remove`). As long
            // as the group is there, each signal is an alarm.
            if self.count().is_none() {
                self.signals_since += u64::from_ne_bytes(signals);
            }
            if self.count().is_some() || self.signals_since > 1 {
                self.alarmed = Some(Instant::now());
            }
        }
        match self.count() {
            Some(kills) => {
                if kills > self.kills {
                    self.alarmed = None;
                }
                self.kills = kills;
            }
            None => self.file = None,
        }
    }

    /// The count now; `None` once the group is gone.
    fn count(&self) -> Option<u64> {
        let mut room = [0; ROOM];
        match pread(self.file.as_ref()?, &mut room, 0) {
            Ok(length) => Some(oom_kill(room.get(..length)?)),
            Err(Errno::NODEV) => None,
            Err(_) => Some(self.kills),
        }
    }

    /// Writes the count down, if there is one; it was read when the process ended. `status`: how it ended.
    pub(crate) fn end(mut self, status: u32) {
        if self.file.is_none() && status == KILLED && self.alarmed.is_none() && self.signals_since == 1 {
            // It is an alarm if another signal follows, which then reports the removal.
            if let Some(alarm) = &self.alarm {
                let _ = poll(&mut [PollFd::new(alarm, PollFlags::IN)], Some(&REMOVAL_SIGNAL));
            }
            self.look();
        }
        if self.file.is_none() && status == KILLED && self.alarmed.is_some_and(|at| at.elapsed() < KILL_FOLLOWS) {
            // The group went before the kill could be read.
            self.kills += 1;
        }
        if self.kills > 0 {
            if let Err(e) = files::write_whole(OOM_KILLS, &self.kills.to_string()) {
                crate::error::warn(&format!("the count of kills for memory is lost: {}", sys::Explained(e)));
            }
        }
    }
}

/// v1's eventfd for an out-of-memory of a group (admin-guide/cgroup-v1/memory.rst, "OOM Control").
fn alarm(group: &OwnedFd, file: &OwnedFd) -> Option<OwnedFd> {
    let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    let control = openat(group, "cgroup.event_control", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    files::write_all(control.ok()?, format!("{} {}", alarm.as_raw_fd(), file.as_raw_fd()).as_bytes()).ok()?;
    Some(alarm)
}

/// The path of a group, of the lines of `/proc/<pid>/cgroup` (cgroups(7)); `None` if it is the root, whose processes are not
/// a container's. Bytes are cheaper than text: this is done once for each container.
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

/// `oom_kill` in a file of lines with a key and a number.
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
    fn the_memory_group_is_found_and_its_kills_are_read() {
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
