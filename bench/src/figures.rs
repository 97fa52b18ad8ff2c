//! Figures of several rounds.

use serde::Serialize;
use std::time::Duration;

/// Values that were measured one after the other.
#[derive(Debug, Default, Clone)]
pub(crate) struct Values(Vec<f64>);

/// Wall and CPU time, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    pub(crate) wall: Values,
    pub(crate) cpu: Values,
}

/// The middle of some values and how far they spread.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) quarter: f64,
    pub(crate) three_quarters: f64,
}

impl Values {
    /// Adds a time, in milliseconds.
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value below which that part of them is, of those that were measured.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn spread(&self) -> Spread {
        let [quarter, median, three_quarters] = [0.25, 0.5, 0.75].map(|part| self.quantile(part));
        Spread { median, quarter, three_quarters }
    }
}

impl From<f64> for Spread {
    /// Of what was measured once.
    fn from(value: f64) -> Spread {
        Spread { median: value, quarter: value, three_quarters: value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut times = Values::default();
        for ms in [5, 1, 3, 2, 4] {
            times.add(Duration::from_millis(ms));
        }
        assert_eq!((times.quantile(0.0), times.median(), times.quantile(1.0)), (1.0, 3.0, 5.0));
        assert!(Values::default().median().is_nan());
    }
}
