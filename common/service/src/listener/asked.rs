//! What one connection has asked, and whether it has said enough, or too much, to be kept.

use super::bucket::Bucket;
use super::limits::REFUSALS_MAX;
use crate::clock::runtime_now;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What one connection has asked so far.
pub(super) struct Asked {
    /// Requests that began.
    begun: AtomicU64,
    /// And that were answered, to the last byte.
    ended: AtomicU64,
    first: CancellationToken,
    /// It may be refused so many times.
    refusals: Mutex<Bucket>,
    /// It was refused too often.
    pub(super) cut: CancellationToken,
}

impl Asked {
    pub(super) fn new() -> Self {
        let refusals = Bucket::new(REFUSALS_MAX, 1, runtime_now());
        Self {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            first: CancellationToken::new(),
            refusals: Mutex::new(refusals),
            cut: CancellationToken::new(),
        }
    }

    pub(super) fn begin(self: &Arc<Self>) -> impl Drop + Send + Unpin + 'static + use<> {
        struct Counted(Arc<Asked>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.ended.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.begun.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first.cancel();
        }
        Counted(Arc::clone(self))
    }

    /// A request was refused. Whoever goes on regardless is not listened to any more.
    pub(super) fn refused(&self) {
        let taken = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).take(runtime_now());
        if taken.is_err() {
            self.cut.cancel();
        }
    }

    /// Ends when no first request came in time, or from a peer without a name no other one; otherwise never.
    pub(super) async fn too_quiet(&self, patience: Duration, is_nameless: bool) {
        if timeout(patience, self.first.cancelled()).await.is_err() {
            return;
        }
        if !is_nameless {
            std::future::pending::<()>().await;
        }
        let mut before = None;
        loop {
            let (begun, ended) = (self.begun.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
            if begun == ended && before == Some(begun) {
                return;
            }
            before = Some(begun);
            sleep(patience).await;
        }
    }
}
