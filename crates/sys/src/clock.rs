//! Time that only goes forward (clock_gettime(2), `CLOCK_MONOTONIC`), for programs with and without std.

use core::ops::Add;
use core::time::Duration;

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// This one.
    pub fn now() -> Instant {
        let now = crate::raw::monotonic();
        // Counted from the machine's start: neither is negative, and there are less than 10⁹ nanoseconds.
        Instant(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default()))
    }

    /// How long after `earlier` this is; nothing if it is before.
    pub fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// How long ago this was.
    pub fn elapsed(self) -> Duration {
        Instant::now().since(self)
    }
}

/// Now, in the ticks since the machine's start in which `/proc/<pid>/stat` has start times (proc_pid_stat(5), field 22). On
/// all architectures that this program is built for there are 100 a second (`USER_HZ`).
#[cfg(feature = "std")]
pub fn ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 100 + now.tv_nsec.unsigned_abs() / 10_000_000
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_those_of_process_start_times() {
        let before = ticks();
        let child = std::process::Command::new("true").spawn();
        let mut child = child.expect("true starts");
        let started = crate::procfs::stat(child.id()).expect("proc").expect("not reaped").starttime;
        assert!((before..=ticks()).contains(&started));
        child.wait().expect("reaps");
    }

    #[test]
    fn it_goes_forward() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(3600);
        assert_eq!(later.since(begun), Duration::from_secs(3600));
        assert_eq!(begun.since(later), Duration::ZERO);
        assert!(begun.elapsed() < Duration::from_secs(3600) && begun < later);
    }
}
