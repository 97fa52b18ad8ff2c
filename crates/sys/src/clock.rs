//! The monotonic clock (clock_gettime(2), `CLOCK_MONOTONIC`), for programs with and without std.

use core::ops::Add;
use core::time::Duration;

/// A moment of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// Returns the present moment.
    pub fn now() -> Instant {
        let now = crate::raw::monotonic();
        // The clock starts at zero when the machine starts, so that neither number is negative. The nanoseconds are
        // below 10⁹.
        Instant(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default()))
    }

    /// Returns the time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the time that has passed since this moment.
    pub fn elapsed(self) -> Duration {
        Instant::now().since(self)
    }
}

/// Returns the present time in clock ticks since the machine started, the unit of start times in `/proc/<pid>/stat`
/// (proc_pid_stat(5), field 22). A second has 100 ticks (`USER_HZ`) on every architecture that this program is built
/// for.
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
    fn ticks_have_the_unit_of_process_start_times() {
        let before = ticks();
        let child = std::process::Command::new("true").spawn();
        let mut child = child.expect("true starts");
        let started = crate::procfs::stat(child.id()).expect("proc").expect("not reaped").starttime;
        assert!((before..=ticks()).contains(&started));
        child.wait().expect("reaps");
    }

    #[test]
    fn moments_are_ordered_and_never_negative_apart() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(3600);
        assert_eq!(later.since(begun), Duration::from_secs(3600));
        assert_eq!(begun.since(later), Duration::ZERO);
        assert!(begun.elapsed() < Duration::from_secs(3600) && begun < later);
    }
}
