//! The cache: objects by path.

use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_common::time::Millis;
use railyard_core::sweep::Listed;
use std::collections::BTreeMap;

/// An object.
pub(super) struct Object {
    pub bytes: Vec<u8>,
    /// Of a published file: what its content is.
    pub digest: Option<Digest>,
    pub modified: Millis,
}

/// All of them.
pub(super) struct Store {
    pub objects: BTreeMap<RelPath, Object>,
}

impl Store {
    /// As a first sweep leaves it: with the marks at the ends.
    pub(super) fn new(now: Millis) -> Self {
        let mut store = Self { objects: BTreeMap::new() };
        for directory in layout::SWEPT {
            store.put(layout::end_mark(directory), b"end".to_vec(), None, now);
        }
        store
    }

    pub(super) fn put(&mut self, path: RelPath, bytes: Vec<u8>, digest: Option<Digest>, modified: Millis) {
        self.objects.insert(path, Object { bytes, digest, modified });
    }

    /// Makes a blob visible, if it is not.
    pub(super) fn complete(&mut self, blob: &Blob, now: Millis) {
        let path = layout::blob(blob);
        if !self.objects.contains_key(&path) {
            self.put(path, vec![0; blob.stored_bytes as usize], Some(blob.digest), now);
        }
    }

    pub(super) fn has(&self, blob: &Blob) -> bool {
        self.objects.contains_key(&layout::blob(blob))
    }

    pub(super) fn list(&self, prefix: &str, after: Option<&RelPath>, limit: usize) -> Vec<Listed> {
        let dir = format!("{prefix}/");
        let later = |path: &RelPath| after.is_none_or(|after| path > after);
        let below = self.objects.iter().filter(|(path, _)| path.as_str().starts_with(&dir) && later(path));
        let listed = |(path, object): (&RelPath, &Object)| Listed {
            path: path.clone(),
            bytes: object.bytes.len() as u64,
            modified: object.modified,
        };
        below.take(limit).map(listed).collect()
    }
}
