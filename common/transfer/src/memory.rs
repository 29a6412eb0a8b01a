//! Memory that is shared by everything that moves or packs bytes.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted: finer than any codec's own estimate.
const UNIT_BYTES: u64 = 64 * 1024;

/// What there is when nobody says otherwise: two threads of `xz -6`.
const DEFAULT_BYTES: u64 = 256 * 1024 * 1024;

/// A bound of memory. Cheap to clone: the clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    units: u32,
    free: Arc<Semaphore>,
}

/// Some of it, until it is dropped.
#[derive(Debug)]
pub struct Held {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(DEFAULT_BYTES)
    }
}

impl Memory {
    /// So much of it.
    pub fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).clamp(1, MAX_UNITS);
        Self { units, free: Arc::new(Semaphore::new(units as usize)) }
    }

    /// How much there is in all.
    pub fn total_bytes(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    /// Waits until so much is free, and takes it; all of it, if that is not enough. Who came first is served first.
    pub async fn take(&self, bytes: u64) -> Held {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units);
        // It is never closed.
        Held { _permit: self.free.clone().acquire_many_owned(units).await.ok() }
    }
}

/// 64 TiB, far below what a semaphore counts.
const MAX_UNITS: u32 = 1 << 28;

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn more_than_there_is_means_all_of_it() {
        let memory = Memory::new(1 << 20);
        let some = memory.take(1 << 19).await;
        assert!(memory.take(1 << 30).now_or_never().is_none(), "all of it is not free");
        drop(some);
        let all = memory.take(1 << 30).await;
        assert!(memory.take(1).now_or_never().is_none());
        drop(all);
        assert!(memory.take(1).now_or_never().is_some());
    }
}
