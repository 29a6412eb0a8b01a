//! A token bucket.

use std::time::Duration;
use tokio::time::Instant;

/// Fills at a rate, up to a level; what is taken out is taken at once.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// Tokens times [`NANOS`], so that no fraction is lost.
    level: u128,
    full: u128,
    per_sec: u32,
    seen: Instant,
}

const NANOS: u128 = 1_000_000_000;

impl Bucket {
    /// A full one.
    pub(super) fn new(burst: u32, per_sec: u32, now: Instant) -> Self {
        let full = u128::from(burst) * NANOS;
        Self { level: full, full, per_sec, seen: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.seen).as_nanos();
        self.level = passed.saturating_mul(u128::from(self.per_sec)).saturating_add(self.level).min(self.full);
        self.seen = self.seen.max(now);
    }

    /// Takes one token; otherwise tells when there will be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        if self.level >= NANOS {
            self.level -= NANOS;
            return Ok(());
        }
        let nanos = (NANOS - self.level).div_ceil(u128::from(self.per_sec.max(1)));
        Err(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Puts tokens back.
    pub(super) fn give(&mut self, tokens: u32) {
        self.level = self.level.saturating_add(u128::from(tokens) * NANOS).min(self.full);
    }

    /// Whether it is as if it had never been used.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.level == self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::runtime_now;

    #[test]
    fn takes_what_is_there_and_fills_at_its_rate() {
        let start = runtime_now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::new(3, 10, start);
        assert_eq!([0; 4].map(|_| bucket.take(start).is_ok()), [true, true, true, false]);
        assert_eq!(bucket.take(at(50)), Err(Duration::from_millis(50)));
        assert_eq!(bucket.take(at(100)), Ok(()));
        assert!(bucket.take(at(100)).is_err() && !bucket.is_full(at(399)) && bucket.is_full(at(400)));
        // However long it was quiet, it holds no more than it holds; and a clock that goes back gives nothing.
        assert_eq!([0; 4].map(|_| bucket.take(at(10_000)).is_ok()), [true, true, true, false]);
        assert!(bucket.take(at(5_000)).is_err());
        bucket.give(1);
        assert_eq!(bucket.take(at(10_000)), Ok(()));
        assert!(Bucket::new(0, 0, start).take(at(1_000)).is_err());
    }
}
