//! Bytes that moved, and the deadline for the next one.

use crate::Progress;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A count of bytes, shared between those who move them and those who watch.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<AtomicU64>);

impl Meter {
    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn take_back(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs `work` until it ends, or until `meter` stood still for `limit`: then `None`.
pub(crate) async fn while_moving<T>(work: impl Future<Output = T>, meter: &Meter, limit: Duration) -> Option<T> {
    let mut work = pin!(work);
    loop {
        let before = meter.read();
        match tokio::time::timeout(limit, &mut work).await {
            Ok(done) => return Some(done),
            Err(_) if meter.read() == before => return None,
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
