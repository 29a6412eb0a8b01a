//! The object store: blobs that appear only when an upload is complete, and manifests.

use crate::queue::Ms;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::BuildId;
use railyard_core::Verdict;
use std::collections::{BTreeMap, BTreeSet};

/// The store.
#[derive(Default)]
pub struct Store {
    /// Complete blobs.
    blobs: BTreeSet<Digest>,
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
}

impl Store {
    /// Begins an upload, unless the blob is there.
    pub fn begin(&mut self, blob: &Blob) -> Option<u64> {
        if self.has(&blob.digest) {
            return None;
        }
        self.last_upload += 1;
        self.uploads.insert(self.last_upload, Upload { digest: blob.digest, sent: false });
        Some(self.last_upload)
    }

    /// The bytes of an upload are there. False if nobody knows it any more.
    pub fn send(&mut self, upload: u64) -> bool {
        let known = self.uploads.get_mut(&upload);
        known.map(|upload| upload.sent = true).is_some()
    }

    /// Makes an upload visible. Doing it again is fine.
    pub fn complete(&mut self, upload: u64, blob: &Blob) -> bool {
        match self.uploads.get(&upload) {
            Some(known) if known.sent && known.digest == blob.digest => {
                self.uploads.remove(&upload);
                self.blobs.insert(blob.digest);
                true
            }
            Some(_) => false,
            None => self.has(&blob.digest),
        }
    }

    /// Whether a blob is there.
    pub fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains(digest)
    }

    /// Uploads that are not complete.
    pub fn open_uploads(&self) -> usize {
        self.uploads.len()
    }
}
