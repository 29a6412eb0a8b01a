//! Blobs whose object may be in the bucket before it was verified.
//!
//! The service shows an object as soon as its upload is completed; only then can it be read back. Between the two the
//! blob is in doubt. A mark in the bucket says so before the upload is completed, so that neither a failed check nor a
//! crash makes a blob out of bytes that nobody looked at.
//!
//! ```text
//! uploads/unverified/HEX    the blob as it was promised, JSON
//! ```

use super::{S3, key};
use crate::cache::verify::Verdict;
use crate::cache::{Cache as _, CacheError};
use object_store::ObjectStoreExt as _;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::layout;
use railyard_common::path::RelPath;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Where the marks lie: below a place that the farm keeps for itself.
const MARKS: &str = "uploads/unverified";
/// Marks that are listed at once.
const PAGE: usize = 1000;

/// What the marks say. Read once: this process is the only writer.
#[derive(Default)]
pub(super) struct Doubts(OnceCell<Mutex<HashMap<Digest, Blob>>>);

fn mark(digest: &Digest) -> Result<RelPath, CacheError> {
    let text = format!("{MARKS}/{}", digest.hex());
    text.parse().map_err(|_| CacheError::BadPath { path: text, why: "it is no path".to_owned() })
}

impl S3 {
    /// From here on the blob is in doubt, and stays so until [`S3::settle`].
    pub(super) async fn doubt(&self, blob: &Blob) -> Result<(), CacheError> {
        let doubts = self.doubts().await?;
        let path = mark(&blob.digest)?;
        let failed = || CacheError::store("write", &path);
        let json = serde_json::to_vec(blob)
            .map_err(|error| failed()(object_store::Error::Generic { store: "S3", source: error.into() }))?;
        self.store.put(&key(&path)?, json.into()).await.map_err(failed())?;
        doubts.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest, *blob);
        Ok(())
    }

    /// Ends a doubt: bytes that are not the blob's are removed. `None` if there was no doubt. Needs the digest's lock.
    pub(super) async fn settle(&self, digest: &Digest) -> Result<Option<Verdict>, CacheError> {
        let doubts = self.doubts().await?;
        let doubted = doubts.lock().unwrap_or_else(PoisonError::into_inner).get(digest).copied();
        let Some(blob) = doubted else { return Ok(None) };
        let path = layout::blob(&blob);
        let verdict = self.check(&blob, &path).await?;
        if let Verdict::Bad(why) = &verdict {
            tracing::warn!(digest = %blob.digest, why, "an upload is not the blob that was promised; removing it");
            self.remove(&path).await?;
        }
        self.remove(&mark(digest)?).await?;
        doubts.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        Ok(Some(verdict))
    }

    async fn doubts(&self) -> Result<&Mutex<HashMap<Digest, Blob>>, CacheError> {
        self.doubts.0.get_or_try_init(|| self.read_marks()).await
    }

    async fn read_marks(&self) -> Result<Mutex<HashMap<Digest, Blob>>, CacheError> {
        let mut doubts = HashMap::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.list(MARKS, after.as_deref(), PAGE).await?;
            for entry in &page {
                let Some((bytes, _)) = self.get(&entry.path).await? else { continue };
                let blob: Blob = serde_json::from_slice(&bytes).map_err(|error| CacheError::Store {
                    what: format!("read {}", entry.path),
                    source: format!("it is damaged ({error}); remove it and the blob of that digest").into(),
                })?;
                doubts.insert(blob.digest, blob);
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.path.to_string()),
                _ => return Ok(Mutex::new(doubts)),
            }
        }
    }
}
