//! Random choices that can be made again: the seed is printed, and taken from `SEED` if that is set.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator (splitmix64) with the seed that it began with.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// With the seed of the environment, or one that the clock gives.
    pub fn from_environment() -> Random {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = given.unwrap_or(clock.as_nanos() as u64 % 1_000_000_000);
        Random { seed, state: seed }
    }

    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_number() % end.max(1) as u64) as usize
    }

    /// One of several.
    pub fn of<'a, T>(&mut self, several: &'a [T]) -> &'a T {
        &several[self.below(several.len())]
    }

    /// Another one, whose choices follow from the same seed.
    #[must_use]
    pub fn split(&mut self) -> Random {
        Random { seed: self.seed, state: self.next_number() }
    }
}

impl std::fmt::Display for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SEED={}", self.seed)
    }
}
