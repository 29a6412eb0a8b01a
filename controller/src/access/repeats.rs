//! How often the same thing may be done again that is recorded each time.
//!
//! Whoever has a certificate may renew it, and whoever joined may ask for the answer again; neither may fill the audit.

use railyard_service::clock::Clock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Times that somebody may do it at once: a host that starts again and again, with room to spare.
const BURST: u32 = 20;
/// After that it may be done once in this time.
const EVERY: Duration = Duration::from_secs(10);
/// Names that are remembered. They are those of certificates and tokens that the farm gave out, so nobody makes them up.
const NAMES_MAX: usize = 20_000;

/// Who did it how often of late. Cheap to clone.
#[derive(Clone)]
pub struct Repeats {
    clock: Arc<dyn Clock>,
    /// By name: until when it has used up what it may do; monotonic.
    used: Arc<Mutex<BTreeMap<String, Duration>>>,
}

impl Repeats {
    /// Nobody has done it yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, used: Arc::default() }
    }

    /// `name` does it once more, or hears for how many seconds it has to wait.
    ///
    /// # Errors
    /// These seconds.
    pub fn once_more(&self, name: &str) -> Result<(), u64> {
        let now = self.clock.monotonic();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let until = used.get(name).copied().unwrap_or_default().max(now);
        let wait = (until + EVERY).saturating_sub(now + EVERY * BURST);
        if !wait.is_zero() {
            return Err(wait.as_millis().div_ceil(1000) as u64);
        }
        if used.len() >= NAMES_MAX && !used.contains_key(name) {
            used.retain(|_, until| *until > now);
            if used.len() >= NAMES_MAX {
                // Whoever did it least often is forgotten.
                let least = used.iter().min_by_key(|(_, until)| **until).map(|(name, _)| name.clone());
                least.map(|least| used.remove(&least));
            }
        }
        used.insert(name.to_owned(), until + EVERY);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::time::Millis;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Seconds that the test counts.
    #[derive(Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Millis {
            Millis(self.0.load(Ordering::SeqCst) * 1000)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn some_at_once_then_six_a_minute_each_for_itself() {
        let hand = Arc::new(Hand::default());
        let repeats = Repeats::new(hand.clone());
        let done = |name: &str| (0..1_000).filter(|_| repeats.once_more(name).is_ok()).count();
        assert_eq!((done("worker/a"), done("worker/b")), (20, 20));
        assert_eq!(repeats.once_more("worker/a"), Err(10));
        hand.0.store(9, Ordering::SeqCst);
        assert_eq!(repeats.once_more("worker/a"), Err(1));
        hand.0.store(60, Ordering::SeqCst);
        assert_eq!(done("worker/a"), 6);
        hand.0.store(10_000, Ordering::SeqCst);
        assert_eq!(done("worker/a"), 20);
    }

    #[test]
    fn many_names_take_no_more_memory() {
        let repeats = Repeats::new(Arc::new(Hand::default()));
        (0..20).for_each(|_| repeats.once_more("stubborn").unwrap());
        for n in 0..NAMES_MAX + 10 {
            repeats.once_more(&n.to_string()).unwrap();
        }
        assert_eq!(repeats.used.lock().unwrap().len(), NAMES_MAX);
        assert!(repeats.once_more("stubborn").is_err());
    }
}
