//! How long to wait before the next try.

/// Exponential backoff with jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first wait.
    pub base_millis: u64,
    /// No wait is longer.
    pub max_millis: u64,
}

impl Backoff {
    /// The wait before try `n` (from 1), without jitter: `base * 2^(n-1)`, at most `max`.
    pub fn delay_millis(&self, n: u32) -> u64 {
        let factor = 1u64.checked_shl(n.saturating_sub(1)).unwrap_or(u64::MAX);
        self.base_millis.saturating_mul(factor).min(self.max_millis)
    }

    /// The same, spread over the upper half by `noise` (any number; a random one spreads a crowd).
    pub fn jittered_millis(&self, n: u32, noise: u64) -> u64 {
        let full = self.delay_millis(n);
        let half = full / 2;
        half + noise % (full - half + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_never_overflows() {
        let backoff = Backoff { base_millis: 100, max_millis: 5_000 };
        assert_eq!([1, 2, 3, 7, 200].map(|n| backoff.delay_millis(n)), [100, 200, 400, 5_000, 5_000]);
        assert!((0..1000).all(|noise| (200..=400).contains(&backoff.jittered_millis(3, noise))));
    }
}
