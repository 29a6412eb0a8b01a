//! Whether a step takes more of the disk than it reserves.
//!
//! An engine can limit a container's own root on few file systems only, and the work directory on none. So it is counted
//! ([`crate::usage`]) while the step runs. Counting goes through all of its files, so it is done seldom: within a small share of a
//! processor's time. What is free on the disk is asked often, for that costs nothing; as soon as it has fallen by as much as the
//! step had left, or below the reserve, it is counted at once. Whoever fills a disk fast is found within a second.

use crate::blocking::blocking;
use crate::usage::{self, Usage, Writable};
use crate::workshop::Workshop;
use bytesize::ByteSize;
use railyard_common::id::LeaseId;
use railyard_common::order::Order;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it is asked what is free.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Counts are no closer than this, unless the disk calls for one.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// So much longer than a count is the time without one: a twentieth of a processor goes into it …
const REST: u32 = 20;

/// … and a fifth when the disk calls for it.
const REST_IN_NEED: u32 = 4;

/// Waits until the container takes more of the disk than its step reserves, and says so. For ever, if it never does.
pub(super) async fn over(shop: &Workshop, order: &Order, name: &str, work: &Path) -> String {
    let limit_bytes = order.run.resources.disk_bytes;
    if limit_bytes == 0 || !shop.config.enforce_disk {
        return std::future::pending().await;
    }
    let writable = loop {
        match shop.runtime.writable(name).await {
            Ok(Some(writable)) => break writable,
            Ok(None) => std::future::pending().await,
            Err(error) => {
                tracing::debug!(container = name, %error, "the engine does not say where a container writes; asking again");
                tokio::time::sleep(COUNT_EVERY).await;
            }
        }
    };
    let (last, free_then) = (Usage::default(), Vec::new());
    let (lease, counted_at, took) = (order.lease, None, Duration::ZERO);
    let watch = DiskWatch { shop, lease, work, writable, limit_bytes, last, free_then, counted_at, took };
    watch.over().await
}

/// Watches one container.
struct DiskWatch<'a> {
    shop: &'a Workshop,
    lease: LeaseId,
    work: &'a Path,
    writable: Writable,
    limit_bytes: u64,
    last: Usage,
    /// What was free then, on each of the disks.
    free_then: Vec<u64>,
    counted_at: Option<Duration>,
    took: Duration,
}

impl DiskWatch<'_> {
    /// Waits until the step is over its limit, and says so.
    async fn over(mut self) -> String {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let free = self.free();
            // The host's own share of the disk.
            let is_short = free.iter().any(|free| *free < self.shop.config.capacity.disk_reserve.as_u64());
            if !self.is_due(&free, is_short) {
                continue;
            }
            self.count(free).await;
            if self.last.total_bytes() > self.limit_bytes {
                return self.message();
            }
            if self.last.is_partial && is_short {
                return format!(
                    "the worker's disk is nearly full, and the step has directories too deep to be counted; it reserves {}",
                    ByteSize::b(self.limit_bytes).display().iec()
                );
            }
        }
    }

    fn is_due(&self, free: &[u64], is_short: bool) -> bool {
        let Some(counted_at) = self.counted_at else { return true };
        let since = self.shop.clock.monotonic().saturating_sub(counted_at);
        let left = self.limit_bytes.saturating_sub(self.last.total_bytes());
        let fell = free.iter().zip(&self.free_then).any(|(now, then)| then.saturating_sub(*now) >= left);
        match is_short || fell {
            true => since >= LOOK_EVERY.max(self.took * REST_IN_NEED),
            false => since >= COUNT_EVERY.max(self.took * REST),
        }
    }

    async fn count(&mut self, free: Vec<u64>) {
        let (work, writable, enough) = (self.work.to_owned(), self.writable.clone(), self.limit_bytes);
        let began = self.shop.clock.monotonic();
        self.last = blocking(move || usage::count(&work, &writable, enough)).await;
        self.shop.disks.promises.used(self.lease, self.last.total_bytes());
        let ended = self.shop.clock.monotonic();
        (self.free_then, self.counted_at, self.took) = (free, Some(ended), ended.saturating_sub(began));
    }

    /// What is free where it writes.
    fn free(&self) -> Vec<u64> {
        let paths = self.writable.paths.iter().map(PathBuf::as_path).take(1).chain([self.work]);
        paths.filter_map(|path| self.shop.free_bytes(path).ok()).collect()
    }

    fn message(&self) -> String {
        let human = |bytes: u64| ByteSize::b(bytes).display().iec();
        let nameless = match self.last.nameless_bytes {
            0 => String::new(),
            bytes => format!(" ({} of it in files that were removed and are still open)", human(bytes)),
        };
        format!(
            "it took at least {}{nameless} of the disk, more than the {} that it reserves ({} bytes, limit {} bytes); raise `disk` if it needs more",
            human(self.last.total_bytes()),
            human(self.limit_bytes),
            self.last.total_bytes(),
            self.limit_bytes,
        )
    }
}
