//! Figures of several rounds.

use std::time::Duration;

/// Times in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    /// The same for each of so many.
    pub(crate) fn each(&self, number: usize) -> Times {
        Times(self.0.iter().map(|ms| ms / number as f64).collect())
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
}

/// One row of a table: ours, the bare runtime's, and the ratio of the medians, with the quarter and three quarters of each.
pub(crate) fn row(name: &str, ours: &Times, bare: &Times) {
    let spread =
        |times: &Times| format!("{:8.1} ({:.1}–{:.1})", times.median(), times.quantile(0.25), times.quantile(0.75));
    println!("{name:<22} {:<26} {:<26} {:.3}", spread(ours), spread(bare), ours.median() / bare.median());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut times = Times::default();
        for ms in [5, 1, 3, 2, 4] {
            times.add(Duration::from_millis(ms));
        }
        assert_eq!((times.quantile(0.0), times.median(), times.quantile(1.0)), (1.0, 3.0, 5.0));
        assert!(Times::default().median().is_nan());
    }
}
