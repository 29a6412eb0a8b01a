//! Keeps a blob from being deleted while somebody is told that the cache has it.
//!
//! What leases count on is in the farm's state, and a sweep looks there first. What is claimed after that look is noted here: whoever
//! claims writes it down before anything else, then waits for deletes of the same blob that are on their way, and only then
//! asks the cache. The sweep writes down what it is about to delete, and leaves out what was claimed since it looked.
//!
//! **Invariant:** between the moment at which a caller of [`Claims::claim`] has its answer and the end of its lease, no sweep that
//! looked before begins to delete any of its blobs.

use crate::driver::{CommandError, Handle};
use railyard_common::digest::Digest;
use railyard_common::id::{LeaseId, WorkerName};
use railyard_core::Command;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Shared by those who claim and the one who sweeps.
#[derive(Clone, Default)]
pub struct Claims(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A batch of deletes has ended.
    deleted: Notify,
}

#[derive(Default)]
struct State {
    /// Claimed since the last look, each with how many of its claims are not durable yet.
    fresh: HashMap<Digest, usize>,
    /// On their way.
    deleting: HashSet<Digest>,
}

/// Blobs that are being deleted, until this is dropped.
pub(super) struct Deleting {
    claims: Claims,
    blobs: Vec<Digest>,
}

impl Claims {
    /// A lease counts on blobs from now on: returns when that is durable, and no delete of them is on its way.
    ///
    /// # Errors
    /// As [`Handle::decide`]; above all for a lease that has ended.
    pub async fn claim(
        &self,
        farm: &Handle,
        lease: LeaseId,
        worker: &WorkerName,
        blobs: Vec<Digest>,
    ) -> Result<(), CommandError> {
        let pending = Pending::new(self, &blobs);
        farm.decide(Command::Claim { lease, worker: worker.clone(), blobs: blobs.clone() }).await?;
        drop(pending);
        loop {
            // Listens before it looks: a batch that ends in between is heard.
            let deleted = self.0.deleted.notified();
            if !blobs.iter().any(|blob| self.state().deleting.contains(blob)) {
                return Ok(());
            }
            deleted.await;
        }
    }

    /// A sweep is about to look at the farm: what is claimed from here on it may not see there.
    pub(super) fn look(&self) {
        // What is not durable yet may come into the state after the look.
        self.state().fresh.retain(|_, pending| *pending > 0);
    }

    /// Which of these may be deleted: those that nobody has claimed since the look.
    pub(super) fn delete(&self, blobs: impl Iterator<Item = Digest>) -> Deleting {
        let mut state = self.state();
        let blobs: Vec<Digest> = blobs.filter(|blob| !state.fresh.contains_key(blob)).collect();
        state.deleting.extend(&blobs);
        drop(state);
        Deleting { claims: self.clone(), blobs }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single step; a panic elsewhere does not spoil it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deleting {
    /// Whether a blob is among them.
    pub(super) fn has(&self, blob: &Digest) -> bool {
        self.claims.state().deleting.contains(blob)
    }
}

impl Drop for Deleting {
    fn drop(&mut self) {
        let mut state = self.claims.state();
        for blob in &self.blobs {
            state.deleting.remove(blob);
        }
        drop(state);
        self.claims.0.deleted.notify_waiters();
    }
}

/// A claim that is not durable yet.
struct Pending<'a> {
    claims: &'a Claims,
    blobs: &'a [Digest],
}

impl<'a> Pending<'a> {
    fn new(claims: &'a Claims, blobs: &'a [Digest]) -> Self {
        let mut state = claims.state();
        for blob in blobs {
            *state.fresh.entry(*blob).or_default() += 1;
        }
        Self { claims, blobs }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut state = self.claims.state();
        for blob in self.blobs {
            if let Some(pending) = state.fresh.get_mut(blob) {
                *pending = pending.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_claimed_since_the_look_is_not_deleted() {
        let claims = Claims::default();
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        let before = [a];
        drop(Pending::new(&claims, &before));
        let under_way = [b];
        let pending = Pending::new(&claims, &under_way);
        claims.look();
        let deleting = claims.delete([a, b, c].into_iter());
        assert_eq!([a, b, c].map(|blob| deleting.has(&blob)), [true, false, true], "only what is not durable yet");
        drop(deleting);
        drop(pending);
        assert!(!claims.delete([b].into_iter()).has(&b), "and it stays so until the next look");
        claims.look();
        assert!(claims.delete([b].into_iter()).has(&b));
        assert!(claims.state().deleting.is_empty());
    }
}
