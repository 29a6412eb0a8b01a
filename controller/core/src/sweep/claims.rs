//! Keeps a blob from being deleted while somebody is told that the cache has it.
//!
//! What leases count on is in the farm's state, and a sweep looks there first. What is claimed after that look is noted here: whoever
//! claims writes it down before anything else, then waits for deletes of the same blob that are on their way, and only then
//! asks the cache. The sweep writes down what it is about to delete, and leaves out what was claimed since it looked.
//!
//! **Invariant:** a blob is never both being deleted and claimed since the last look.

use railyard_common::digest::Digest;
use railyard_common::planted::{self, Bug};
use std::collections::{BTreeMap, BTreeSet};

/// What was claimed since the last look, and what is being deleted. Lost with the process: the farm's state has every claim.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// Each with how many of its claims are not durable yet.
    fresh: BTreeMap<Digest, usize>,
    deleting: BTreeSet<Digest>,
}

impl Claims {
    /// Somebody is about to claim these: nothing that was not begun before deletes them from here on.
    pub fn begin(&mut self, blobs: &[Digest]) {
        for blob in blobs {
            *self.fresh.entry(*blob).or_default() += 1;
        }
    }

    /// That is durable, or was refused.
    pub fn end(&mut self, blobs: &[Digest]) {
        for blob in blobs {
            if let Some(pending) = self.fresh.get_mut(blob) {
                *pending = pending.saturating_sub(1);
            }
        }
    }

    /// Whether one of these is being deleted: whoever has claimed it waits until it is gone.
    pub fn must_wait(&self, blobs: &[Digest]) -> bool {
        blobs.iter().any(|blob| self.deleting.contains(blob)) && !planted::is(Bug::ClaimForgotten)
    }

    /// A sweep is about to look at the farm: what is durable by now it sees there.
    pub fn look(&mut self) {
        self.fresh.retain(|_, pending| *pending > 0);
    }

    /// Those that may be deleted, for nobody has claimed them since the look; they are being deleted from here on.
    pub fn delete(&mut self, blobs: impl Iterator<Item = Digest>) -> Vec<Digest> {
        let blobs: Vec<Digest> =
            blobs.filter(|blob| !self.fresh.contains_key(blob) || planted::is(Bug::ClaimForgotten)).collect();
        self.deleting.extend(&blobs);
        blobs
    }

    /// Whether a blob is being deleted.
    pub fn is_deleting(&self, blob: &Digest) -> bool {
        self.deleting.contains(blob)
    }

    /// They are gone, or stay after all.
    pub fn deleted(&mut self, blobs: &[Digest]) {
        blobs.iter().for_each(|blob| _ = self.deleting.remove(blob));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_claimed_since_the_look_is_not_deleted() {
        let mut claims = Claims::default();
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        claims.begin(&[a]);
        claims.end(&[a]);
        claims.begin(&[b]);
        claims.look();
        assert_eq!(claims.delete([a, b, c].into_iter()), [a, c], "what is durable the look has seen");
        assert!(claims.must_wait(&[b, c]) && !claims.must_wait(&[b]));
        claims.deleted(&[a, c]);
        claims.end(&[b]);
        assert!(claims.delete(std::iter::once(b)).is_empty(), "and it stays so until the next look");
        claims.look();
        assert_eq!(claims.delete(std::iter::once(b)), [b]);
    }
}
