//! When live leases expire: soft state beside the farm, fed by heartbeats.
//!
//! After a start every live lease gets a full fresh TTL, so nothing of this needs to be journaled.

use railyard_common::id::LeaseId;
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// The deadlines of live leases. Times are the controller's own monotonic milliseconds; no clock is shared with a worker.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    by_lease: BTreeMap<LeaseId, (Millis, u64)>,
    by_deadline: BTreeSet<(Millis, LeaseId)>,
}

impl Leases {
    /// A lease begins, or begins anew after a restart.
    pub fn begin(&mut self, lease: LeaseId, now: Millis, ttl_millis: u64) {
        self.end(lease);
        let early = if planted::is(Bug::ExpiryEarly) { ttl_millis / 4 } else { 0 };
        let deadline = now.plus(ttl_millis - early);
        self.by_lease.insert(lease, (deadline, ttl_millis));
        self.by_deadline.insert((deadline, lease));
    }

    /// A heartbeat came. Returns whether the lease is live.
    pub fn renew(&mut self, lease: LeaseId, now: Millis) -> bool {
        let Some((_, ttl_millis)) = self.by_lease.get(&lease).copied() else { return false };
        self.begin(lease, now, ttl_millis);
        true
    }

    /// A lease is over.
    pub fn end(&mut self, lease: LeaseId) {
        if let Some((deadline, _)) = self.by_lease.remove(&lease) {
            self.by_deadline.remove(&(deadline, lease));
        }
    }

    /// Leases whose deadline has passed; they stay until [`Leases::end`].
    pub fn expired(&self, now: Millis) -> Vec<LeaseId> {
        self.by_deadline.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, lease)| *lease).collect()
    }

    /// The next deadline.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::id::JobId;

    #[test]
    fn a_heartbeat_moves_the_deadline_and_an_end_removes_it() {
        let lease = LeaseId { job: JobId(1), attempt: 1 };
        let mut leases = Leases::default();
        leases.begin(lease, Millis(0), 100);
        assert!(leases.expired(Millis(99)).is_empty());
        assert_eq!(leases.expired(Millis(100)), [lease]);
        assert!(leases.renew(lease, Millis(60)));
        assert_eq!(leases.next_deadline(), Some(Millis(160)));
        leases.end(lease);
        assert!(!leases.renew(lease, Millis(70)));
        assert_eq!(leases.next_deadline(), None);
    }
}
