//! How long to wait before the next attempt.

use std::time::Duration;

/// Bounds of a back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffConfig {
    /// Longest first delay; at least 1 ms.
    pub first: Duration,
    /// Longest delay of all.
    pub cap: Duration,
}

impl Default for BackoffConfig {
    /// 0.2 s, then up to 30 s.
    fn default() -> Self {
        Self { first: Duration::from_millis(200), cap: Duration::from_secs(30) }
    }
}

/// Back-off with decorrelated jitter: each delay is drawn between the first one and three times the one before, so that a fleet which
/// lost its broker at one moment does not come back at one moment. The first delay is drawn from the upper half of `first`.
#[derive(Debug, Clone)]
pub struct Backoff {
    config: BackoffConfig,
    previous: Option<Duration>,
}

impl Backoff {
    /// A back-off that has not delayed anything yet.
    #[must_use]
    pub fn new(config: BackoffConfig) -> Self {
        let first = config.first.max(Duration::from_millis(1));
        Self { config: BackoffConfig { first, cap: config.cap.max(first) }, previous: None }
    }

    /// The next delay. `random` is any 64 random bits.
    pub fn next(&mut self, random: u64) -> Duration {
        let first = self.config.first;
        let (low, high) = match self.previous {
            None => (first / 2, first),
            Some(previous) => (first, previous.saturating_mul(3).max(first)),
        };
        // A fraction of 32 bits keeps the multiplication below exact for every span up to the cap.
        let fraction = f64::from((random >> 32) as u32) / f64::from(u32::MAX);
        let delay = (low + (high - low).mul_f64(fraction)).min(self.config.cap);
        self.previous = Some(delay.max(first));
        delay
    }

    /// Starts again with the first delay.
    pub fn reset(&mut self) {
        self.previous = None;
    }
}

/// A small generator for jitter (SplitMix64, Steele, Lea, Flood 2014). Not for secrets. The same seed gives the same numbers.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator that differs from node to node and start to start.
    #[must_use]
    pub fn from_system() -> Self {
        let mut seed = [0; 8];
        // Without system randomness jitter only loses its spread; the address of a local still differs between processes.
        if getrandom::fill(&mut seed).is_err() {
            seed = (std::ptr::from_ref(&seed) as usize as u64 ^ u64::from(std::process::id())).to_le_bytes();
        }
        Self(u64::from_le_bytes(seed))
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
