//! A timer: how often something happened, how long it took, and how often lately.

use hdrhistogram::Histogram;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The length of the steps in which the rates are brought up to date.
const TICK: Duration = Duration::from_secs(5);
/// The windows of the rates, in seconds: 1, 5 and 15 minutes.
const WINDOWS: [f64; 3] = [60.0, 300.0, 900.0];

/// The quantiles of a reading.
pub(crate) const QUANTILES: [f64; 5] = [0.5, 0.75, 0.95, 0.99, 0.999];

/// Counts durations since it was made. It needs no clock tick of its own: the rates are brought up to date when they are used.
#[derive(Debug)]
pub struct Timer(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// Nanoseconds, within 1 %.
    histogram: Histogram<u32>,
    sum: Duration,
    made: Instant,
    ticked: Instant,
    since_tick: u64,
    /// Events per second; `None` before the first tick.
    rates: Option<[f64; 3]>,
}

/// A timer at one moment. Durations are in nanoseconds, rates in events per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// The number of durations.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The shortest.
    pub min: u64,
    /// The longest.
    pub max: u64,
    /// The average.
    pub mean: f64,
    /// The standard deviation.
    pub stddev: f64,
    /// Pairs of a quantile and its duration.
    pub quantiles: [(f64, u64); 5],
    /// Rates over the last 1, 5 and 15 minutes; newer events weigh more.
    pub rates: [f64; 3],
    /// The rate since the timer was made.
    pub mean_rate: f64,
}

impl Default for Timer {
    fn default() -> Timer {
        let now = Instant::now();
        // Two significant digits are always valid.
        let histogram = Histogram::new(2).unwrap_or_else(|_| unreachable!("two digits are allowed"));
        let inner = Inner { histogram, sum: Duration::ZERO, made: now, ticked: now, since_tick: 0, rates: None };
        Timer(Mutex::new(inner))
    }
}

impl Timer {
    /// Counts a duration.
    pub fn record(&self, duration: Duration) {
        self.record_at(duration, Instant::now());
    }

    /// The timer as it is now.
    pub fn read(&self) -> Reading {
        self.read_at(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Held for arithmetic only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_at(&self, duration: Duration, now: Instant) {
        let mut inner = self.lock();
        inner.tick(now);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // The histogram grows as needed, which fails only if there is no memory.
        if inner.histogram.record(nanoseconds.max(1)).is_err() {
            inner.histogram.saturating_record(nanoseconds);
        }
        inner.sum = inner.sum.saturating_add(duration);
        inner.since_tick += 1;
    }

    fn read_at(&self, now: Instant) -> Reading {
        let mut inner = self.lock();
        inner.tick(now);
        let histogram = &inner.histogram;
        let lived = now.saturating_duration_since(inner.made).as_secs_f64();
        let mean_rate = if lived > 0.0 { histogram.len() as f64 / lived } else { 0.0 };
        Reading {
            count: histogram.len(),
            sum: u64::try_from(inner.sum.as_nanos()).unwrap_or(u64::MAX),
            min: if histogram.is_empty() { 0 } else { histogram.min() },
            max: histogram.max(),
            mean: histogram.mean(),
            stddev: histogram.stdev(),
            quantiles: QUANTILES.map(|quantile| (quantile, histogram.value_at_quantile(quantile))),
            rates: inner.rates.unwrap_or_default(),
            mean_rate,
        }
    }
}

impl Inner {
    /// Brings the rates up to date. They are exponentially weighted averages, as the kernel's load averages are.
    fn tick(&mut self, now: Instant) {
        let ticks = now.saturating_duration_since(self.ticked).as_secs() / TICK.as_secs();
        if ticks == 0 {
            return;
        }
        let current = self.since_tick as f64 / TICK.as_secs_f64();
        let rates = self.rates;
        self.rates = Some(std::array::from_fn(|i| {
            let kept = (-TICK.as_secs_f64() / WINDOWS[i]).exp();
            let after_first = match rates {
                Some(rates) => current + kept * (rates[i] - current),
                None => current,
            };
            // Nothing happened in the other steps.
            after_first * kept.powf((ticks - 1) as f64)
        }));
        self.since_tick = 0;
        self.ticked += TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(actual: f64, expected: f64) -> bool {
        (actual - expected).abs() <= expected.abs() / 50.0 + 1e-9
    }

    #[test]
    fn reading_describes_the_recorded_durations() {
        let timer = Timer::default();
        assert_eq!((timer.read().count, timer.read().min, timer.read().max), (0, 0, 0));
        for milliseconds in 1..=100 {
            timer.record(Duration::from_millis(milliseconds));
        }
        let reading = timer.read();
        assert_eq!((reading.count, reading.sum), (100, 5_050_000_000));
        assert!(about(reading.min as f64, 1e6) && about(reading.max as f64, 1e8), "{reading:?}");
        assert!(about(reading.mean, 50.5e6) && about(reading.stddev, 28.87e6), "{reading:?}");
        for (quantile, value) in reading.quantiles {
            assert!(about(value as f64, (quantile * 100.0).ceil() * 1e6), "{reading:?}");
        }
    }

    #[test]
    fn rates_rise_and_fade() {
        let timer = Timer::default();
        let start = timer.lock().made;
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..60 {
            for _ in 0..10 {
                timer.record_at(Duration::from_millis(1), at(second));
            }
        }
        let reading = timer.read_at(at(60));
        assert!(reading.rates.iter().all(|rate| about(*rate, 10.0)), "{reading:?}");
        assert!(about(reading.mean_rate, 10.0));
        let later = timer.read_at(at(120));
        assert!(about(later.rates[0], 10.0 / std::f64::consts::E), "{later:?}");
        assert!(later.rates[2] > later.rates[1] && later.rates[1] > later.rates[0], "{later:?}");
        // After a long silence, without a tick for each step.
        let much_later = timer.read_at(at(1_000_000));
        assert!(much_later.rates.iter().all(|rate| *rate < 1e-6), "{much_later:?}");
    }

    #[test]
    fn extreme_durations_are_recorded() {
        let timer = Timer::default();
        timer.record(Duration::ZERO);
        timer.record(Duration::MAX);
        assert_eq!(timer.read().count, 2);
    }
}
