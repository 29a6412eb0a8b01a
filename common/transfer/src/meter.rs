//! Bytes that moved, and the deadlines for the next ones.

use crate::Progress;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A request that moves less than this within its stall timeout counts as stuck: a line of some bytes a second would keep
/// a worker, and whoever waits for it, for days.
pub(crate) const LIVELY_BYTES: u64 = 64 * 1024;

/// A count of bytes, shared between those who move them and those who watch.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Counts>);

#[derive(Default)]
struct Counts {
    now: AtomicU64,
    most: AtomicU64,
}

impl Meter {
    pub(crate) fn add(&self, bytes: u64) {
        let now = self.0.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.most.fetch_max(now, Ordering::Relaxed);
    }

    pub(crate) fn take_back(&self, bytes: u64) {
        self.0.now.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.now.load(Ordering::Relaxed)
    }

    /// The most that it ever was: bytes that are sent once more are no progress.
    fn most(&self) -> u64 {
        self.0.most.load(Ordering::Relaxed)
    }
}

/// Runs a request until it ends, or until it moved next to nothing for `limit`: then `None`.
pub(crate) async fn while_lively<T>(work: impl Future<Output = T>, meter: &Meter, limit: Duration) -> Option<T> {
    while_growing(work, || meter.read(), LIVELY_BYTES, limit).await
}

/// Runs a transfer with all its tries until it ends, or until nothing new has moved for `limit`: then `None`.
pub(crate) async fn while_progressing<T>(work: impl Future<Output = T>, meter: &Meter, limit: Duration) -> Option<T> {
    while_growing(work, || meter.most(), 1, limit).await
}

/// How often within its limit something is looked at: it ends by so much of the limit too late at most.
const LOOKS: u32 = 8;

async fn while_growing<T>(
    work: impl Future<Output = T>,
    read: impl Fn() -> u64,
    least: u64,
    limit: Duration,
) -> Option<T> {
    let mut work = pin!(work);
    let (mut grown, mut quiet) = (read(), 0);
    loop {
        if let Ok(done) = tokio::time::timeout(limit / LOOKS, &mut work).await {
            return Some(done);
        }
        let now = read();
        if now >= grown.saturating_add(least) {
            (grown, quiet) = (now, 0);
            continue;
        }
        quiet += 1;
        if quiet == LOOKS {
            return None;
        }
    }
}

/// How often a progress bar is told: what the eye follows.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Runs `work` and tells `progress` what `meter` says from time to time, and at the end.
pub(crate) async fn telling<T>(work: impl Future<Output = T>, meter: &Meter, progress: Progress<'_>) -> T {
    let mut work = pin!(work);
    loop {
        let done = tokio::time::timeout(TELL_EVERY, &mut work).await;
        progress(meter.read());
        if let Ok(done) = done {
            return done;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "the runtime's own time is what is measured")]
    async fn a_limit_counts_from_what_moved_last() {
        let limit = Duration::from_secs(80);
        let (meter, begun) = (Meter::default(), Instant::now());
        let moving = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                meter.add(1);
            }
            std::future::pending::<()>().await;
        };
        assert_eq!(while_progressing(moving, &meter, limit).await, None);
        let secs = begun.elapsed().as_secs();
        assert!((230..=250).contains(&secs), "it moved last at 150 s, and was given up at {secs} s");
    }
}
