//! Heartbeats that were sent, and which of them the controller has acknowledged.

use railyard_common::id::LeaseId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Heartbeats without an answer that are remembered. The stream is given up long before that many are open.
const OPEN_MAX: usize = 1000;

/// The heartbeats of one stream.
#[derive(Debug, Default)]
pub(super) struct Heartbeats {
    sequence: u64,
    /// Sent, not acknowledged: when, and which leases they named.
    open: BTreeMap<u64, (Duration, Vec<LeaseId>)>,
    confirmed_at: Duration,
}

impl Heartbeats {
    /// A new stream: what was open on the old one is never acknowledged. Numbers go on rising, so that an ack can
    /// not be taken for that of another stream.
    pub(super) fn restart(&mut self, now: Duration) {
        self.open.clear();
        self.confirmed_at = now;
    }

    /// When the newest acknowledged heartbeat (or else the stream's `Hello`) was sent.
    pub(super) fn confirmed_at(&self) -> Duration {
        self.confirmed_at
    }

    pub(super) fn send(&mut self, now: Duration, leases: Vec<LeaseId>) -> u64 {
        self.sequence += 1;
        if self.open.len() >= OPEN_MAX {
            self.open.pop_first();
        }
        self.open.insert(self.sequence, (now, leases));
        self.sequence
    }

    /// When the heartbeat was sent and what it named, if it was open. Older ones are settled with it.
    pub(super) fn acknowledge(&mut self, sequence: u64) -> Option<(Duration, Vec<LeaseId>)> {
        let (sent_at, leases) = self.open.remove(&sequence)?;
        self.open = self.open.split_off(&sequence);
        self.confirmed_at = self.confirmed_at.max(sent_at);
        Some((sent_at, leases))
    }
}
