//! When things were last used: one count for all kinds of them, so that they can be compared.

use railyard_service::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Gives each use a number: the time in milliseconds since 1970, so that numbers of an earlier process are lower, and always a higher
/// one than before, whatever the clock does.
pub struct Uses {
    clock: Arc<dyn Clock>,
    last: AtomicU64,
}

impl std::fmt::Debug for Uses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uses").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Uses {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, last: AtomicU64::new(0) }
    }

    /// The number of a use now.
    pub fn next(&self) -> u64 {
        let now = self.clock.now().0;
        let above = |last: u64| now.max(last.saturating_add(1));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(above(last)));
        above(last.unwrap_or_else(|last| last))
    }

    /// A use that an earlier process has numbered.
    pub fn seen(&self, number: u64) {
        self.last.fetch_max(number, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::time::Millis;
    use std::time::Duration;

    struct Set(AtomicU64);

    impl Clock for Set {
        fn now(&self) -> Millis {
            Millis(self.0.load(Ordering::Relaxed))
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[test]
    fn a_later_use_has_a_higher_number_whatever_the_clock_does() {
        let clock = Arc::new(Set(AtomicU64::new(1000)));
        let uses = Uses::new(clock.clone());
        assert_eq!([uses.next(), uses.next()], [1000, 1001]);
        clock.0.store(500, Ordering::Relaxed);
        assert_eq!(uses.next(), 1002);
        clock.0.store(5000, Ordering::Relaxed);
        assert_eq!(uses.next(), 5000);
        uses.seen(9000);
        assert_eq!(uses.next(), 9001);
    }
}
