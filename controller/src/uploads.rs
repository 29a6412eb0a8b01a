//! Ends the uploads of leases that are over: nobody goes on with them, and what was sent of them takes room.

use crate::cache::Cache;
use crate::driver::Handle;
use railyard_common::backoff::Backoff;
use railyard_common::id::LeaseId;
use railyard_service::{error_chain, task};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long the cache gets before the next try.
const RETRY: Backoff = Backoff { base_millis: 500, max_millis: 30_000 };

/// Ended leases that are taken up together.
const BATCH_MAX: usize = 1_024;

/// Ends uploads of leases that `ended` tells of, and of those that ended while no controller ran, until `shutdown`.
pub fn start(
    farm: Handle,
    cache: Arc<dyn Cache>,
    ended: mpsc::UnboundedReceiver<LeaseId>,
    shutdown: CancellationToken,
) -> JoinHandle<()> {
    task::spawn("upload sweeping", async move {
        // What is left is found at the next start.
        let _ = shutdown.run_until_cancelled(sweep(farm, cache, ended)).await;
    })
}

async fn sweep(farm: Handle, cache: Arc<dyn Cache>, mut ended: mpsc::UnboundedReceiver<LeaseId>) {
    let mut waiting = BTreeSet::new();
    let mut looked_back = false;
    let mut batch = Vec::new();
    let mut tries = 0u32;
    loop {
        let mut failed = false;
        if !looked_back {
            match left_over(&farm, &*cache).await {
                Some(left) => {
                    waiting.extend(left);
                    looked_back = true;
                }
                None => failed = true,
            }
        }
        for lease in std::mem::take(&mut waiting) {
            if let Err(error) = cache.end_uploads(lease).await {
                tracing::warn!(%lease, error = error_chain(&error), "its uploads cannot be removed; it is tried again");
                waiting.insert(lease);
                failed = true;
            }
        }
        tries = if failed { tries.saturating_add(1) } else { 0 };
        let pause = async {
            match tries {
                0 => std::future::pending().await,
                tries => tokio::time::sleep(Duration::from_millis(RETRY.delay_millis(tries))).await,
            }
        };
        tokio::select! {
            biased;
            taken = ended.recv_many(&mut batch, BATCH_MAX) => match taken {
                // The driver is gone, and with it the controller.
                0 => return std::future::pending().await,
                _ => waiting.extend(batch.drain(..)),
            },
            () = pause => {}
        }
    }
}

/// Ends whatever uploads there are of leases that are over, as far as the cache can.
pub(crate) async fn end_left_over(farm: &Handle, cache: &dyn Cache) {
    for lease in left_over(farm, cache).await.unwrap_or_default() {
        if let Err(error) = cache.end_uploads(lease).await {
            tracing::warn!(%lease, error = error_chain(&error), "its uploads cannot be removed; the next sweep tries again");
        }
    }
}

/// Leases that have uploads and are over; `None` if nobody can say now.
async fn left_over(farm: &Handle, cache: &dyn Cache) -> Option<Vec<LeaseId>> {
    // First who has some, then who lives: a lease that begins in between is not taken for one that is over.
    let uploading = match cache.uploading().await {
        Ok(uploading) => uploading,
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "cannot tell which uploads there are; it is tried again");
            return None;
        }
    };
    let over = move |farm: &railyard_core::Farm, _: &_| {
        uploading.into_iter().filter(|lease| farm.holder(*lease).is_none()).collect::<Vec<_>>()
    };
    farm.read(over).await.ok()
}
