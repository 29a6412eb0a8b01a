//! The claims of [`railyard_core::sweep::Claims`], shared by those who claim and the one who sweeps.

use crate::driver::{CommandError, Handle};
use railyard_common::digest::Digest;
use railyard_common::id::{LeaseId, WorkerName};
use railyard_core::{Command, sweep};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Claims(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<sweep::Claims>,
    /// A batch of deletes has ended.
    deleted: Notify,
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
            if !self.state().must_wait(&blobs) {
                return Ok(());
            }
            deleted.await;
        }
    }

    /// A sweep is about to look at the farm.
    pub(super) fn look(&self) {
        self.state().look();
    }

    /// Those of the blobs that may be deleted are, from here on.
    pub(super) fn delete(&self, blobs: impl Iterator<Item = Digest>) -> Deleting {
        let blobs = self.state().delete(blobs);
        Deleting { claims: self.clone(), blobs }
    }

    fn state(&self) -> MutexGuard<'_, sweep::Claims> {
        // Every change is a single step; a panic elsewhere does not spoil it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deleting {
    /// Whether a blob is among them.
    pub(super) fn has(&self, blob: &Digest) -> bool {
        self.claims.state().is_deleting(blob)
    }
}

impl Drop for Deleting {
    fn drop(&mut self) {
        self.claims.state().deleted(&self.blobs);
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
        claims.state().begin(blobs);
        Self { claims, blobs }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.claims.state().end(self.blobs);
    }
}
