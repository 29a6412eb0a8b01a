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

async fn while_growing<T>(
    work: impl Future<Output = T>,
    read: impl Fn() -> u64,
    least: u64,
    limit: Duration,
) -> Option<T> {
    let mut work = pin!(work);
    loop {
        let before = read();
        match tokio::time::timeout(limit, &mut work).await {
            Ok(done) => return Some(done),
            Err(_) if read() < before.saturating_add(least) => return None,
            Err(_) => {}
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
