//! What the jobs that are here may still take of the disk.

use railyard_common::id::LeaseId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The leases that this worker holds, and what they reserve of the disk.
#[derive(Debug, Default)]
pub struct Promises {
    held: Mutex<BTreeMap<LeaseId, Promise>>,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    reserved_bytes: u64,
    /// As far as it has been counted.
    used_bytes: u64,
}

impl Promises {
    /// A lease is held from now on: before anything of it is on the disk.
    pub fn begin(&self, lease: LeaseId, reserved_bytes: u64) {
        self.held().insert(lease, Promise { reserved_bytes, used_bytes: 0 });
    }

    /// So much has it taken.
    pub fn used(&self, lease: LeaseId, bytes: u64) {
        if let Some(promise) = self.held().get_mut(&lease) {
            promise.used_bytes = bytes;
        }
    }

    /// It is over, and nothing of it is left.
    pub fn end(&self, lease: LeaseId) {
        self.held().remove(&lease);
    }

    /// All that are held.
    pub fn leases(&self) -> BTreeSet<LeaseId> {
        self.held().keys().copied().collect()
    }

    /// What all of them, but for `except`, may still take.
    pub fn outstanding_bytes(&self, except: Option<LeaseId>) -> u64 {
        let held = self.held();
        let others = held.iter().filter(|(lease, _)| Some(**lease) != except);
        let left = others.map(|(_, promise)| promise.reserved_bytes.saturating_sub(promise.used_bytes));
        left.fold(0, u64::saturating_add)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Promise>> {
        // Every change is a single step; a panic elsewhere does not spoil it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_has_taken_it_does_not_take_again() {
        let (one, two) = ("j1.1".parse().unwrap(), "j2.1".parse().unwrap());
        let promises = Promises::default();
        promises.begin(one, 40);
        promises.begin(two, 10);
        promises.used(one, 15);
        assert_eq!([None, Some(one), Some(two)].map(|except| promises.outstanding_bytes(except)), [35, 10, 25]);
        promises.used(one, 50);
        assert_eq!(promises.outstanding_bytes(None), 10, "who takes too much has nothing more to come");
        promises.end(one);
        promises.used(one, 3);
        assert_eq!((promises.outstanding_bytes(None), promises.leases()), (10, [two].into()));
    }
}
