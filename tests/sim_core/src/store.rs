//! The object store: blobs that appear only when an upload is complete, and manifests.

use crate::queue::Ms;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::BuildId;
use railyard_core::Verdict;
use std::collections::{BTreeMap, BTreeSet};

/// Blobs that nothing refers to are kept so long after somebody last cared.
pub const GRACE: Ms = 120_000;

/// The store.
#[derive(Default)]
pub struct Store {
    /// Complete blobs, and when somebody last cared.
    blobs: BTreeMap<Digest, Ms>,
    uploads: BTreeMap<u64, Upload>,
    last_upload: u64,
    /// What was written for builds that ended.
    pub manifests: BTreeMap<BuildId, Verdict>,
    /// It refuses everything until then.
    pub down_until: Ms,
    /// It is slow until then.
    pub slow_until: Ms,
}

struct Upload {
    digest: Digest,
    sent: bool,
    begun: Ms,
}

impl Store {
    /// Begins an upload, unless the blob is there: then it is kept for a while more, because somebody counts on it.
    pub fn begin(&mut self, now: Ms, blob: &Blob) -> Option<u64> {
        if self.find(now, &blob.digest) {
            return None;
        }
        self.last_upload += 1;
        self.uploads.insert(self.last_upload, Upload { digest: blob.digest, sent: false, begun: now });
        Some(self.last_upload)
    }

    /// The bytes of an upload are there. False if nobody knows it any more.
    pub fn send(&mut self, upload: u64) -> bool {
        let known = self.uploads.get_mut(&upload);
        known.map(|upload| upload.sent = true).is_some()
    }

    /// Makes an upload visible. Doing it again is fine.
    pub fn complete(&mut self, now: Ms, upload: u64, blob: &Blob) -> bool {
        match self.uploads.get(&upload) {
            Some(known) if known.sent && known.digest == blob.digest => {
                self.uploads.remove(&upload);
                self.blobs.insert(blob.digest, now);
                true
            }
            Some(_) => false,
            None => self.find(now, &blob.digest),
        }
    }

    /// Whether a blob is there, for somebody who counts on it from now on.
    pub fn find(&mut self, now: Ms, digest: &Digest) -> bool {
        self.blobs.get_mut(digest).map(|cared| *cared = now).is_some()
    }

    /// Whether a blob is there, for somebody who only looks.
    pub fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// What nobody cared for since `before`, but for `marked`. Uploads that were not completed go at once.
    pub fn unmarked(&mut self, before: Ms, marked: &BTreeSet<Digest>) -> Vec<Digest> {
        self.uploads.retain(|_, upload| upload.begun >= before);
        let old = self.blobs.iter().filter(|(digest, cared)| **cared < before && !marked.contains(*digest));
        old.map(|(digest, _)| *digest).collect()
    }

    /// Deletes a blob if still nobody has cared for it since `before`.
    pub fn delete(&mut self, before: Ms, digest: &Digest) -> bool {
        let old = self.blobs.get(digest).is_some_and(|cared| *cared < before);
        old && self.blobs.remove(digest).is_some()
    }

    /// Uploads that are not complete.
    pub fn open_uploads(&self) -> usize {
        self.uploads.len()
    }
}
