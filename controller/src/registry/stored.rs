//! The digests of blobs as they are stored: what a registry names them by.
//!
//! The farm names a blob by its plain bytes. A layer that is stored as zstd has another name for a registry's clients. It
//! is computed when somebody asks for it first, and kept beside the blob.

use crate::cache::locks::Locks;
use crate::cache::verify::{Verdict, Verifier};
use crate::cache::{Cache, CacheError, PutMode};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_common::layout;
use railyard_service::task;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// What is kept in memory; more than the layers of a thousand images, at a hundred bytes each.
const KNOWN_MAX: usize = 16_384;

/// Blobs that are hashed at a time: each takes a processor and all that the store gives.
const HASHES_AT_A_TIME: usize = 2;

/// A blob's bytes as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub digest: Digest,
    pub bytes: u64,
}

/// What is known of them.
pub(super) struct StoredDigests {
    cache: Arc<dyn Cache>,
    known: Mutex<Known>,
    computing: Locks,
    hashing: Semaphore,
}

#[derive(Default)]
struct Known {
    /// By plain digest and stored length: the same bytes may be packed anew in another way.
    stored: BTreeMap<(Digest, u64), Stored>,
    /// Plain digests by stored ones.
    plain: BTreeMap<Digest, Digest>,
}

impl StoredDigests {
    pub(super) fn new(cache: Arc<dyn Cache>) -> Self {
        let (known, computing) = (Mutex::default(), Locks::default());
        Self { cache, known, computing, hashing: Semaphore::new(HASHES_AT_A_TIME) }
    }

    /// The blob as the cache holds it now.
    pub(super) async fn held(&self, blob: Blob) -> Result<Blob, CacheError> {
        let found = self.cache.find(&blob.digest).await?;
        found.ok_or(CacheError::NoBlob { digest: blob.digest })
    }

    /// Its digest, computed if it must be. Whoever else wants the same waits for it. It goes on when nobody waits any
    /// more: the next one who asks has it then.
    pub(super) async fn of(self: &Arc<Self>, blob: Blob) -> Result<Stored, CacheError> {
        if let Some(known) = self.known(blob).await? {
            return Ok(known);
        }
        let this = self.clone();
        let computed = task::spawn("stored digest", async move { this.compute(blob).await }).await;
        computed.unwrap_or_else(|_| Err(CacheError::NoBlob { digest: blob.digest }))
    }

    /// Its digest, if it was computed before.
    pub(super) async fn known(&self, blob: Blob) -> Result<Option<Stored>, CacheError> {
        if blob.encoding == Encoding::Identity {
            return Ok(Some(Stored { digest: blob.digest, bytes: blob.size_bytes }));
        }
        if let Some(known) = self.remembered(blob) {
            return Ok(Some(known));
        }
        let kept = self.cache.get(&layout::stored_digest(&blob)).await?;
        let kept = kept.and_then(|(text, _)| read(&text)).filter(|kept| kept.bytes == blob.stored_bytes);
        if let Some(kept) = kept {
            self.remember(blob, kept);
        }
        Ok(kept)
    }

    /// The one of `blobs` (by plain digest) that is stored as `digest`, and its stored length.
    pub(super) async fn stored_as(
        &self,
        digest: Digest,
        blobs: &BTreeMap<Digest, Blob>,
    ) -> Result<Option<(Blob, u64)>, CacheError> {
        let plain = self.known.lock().unwrap_or_else(PoisonError::into_inner).plain.get(&digest).copied();
        let likely = plain.or(Some(digest)).and_then(|plain| blobs.get(&plain));
        // After a restart only what lies beside the blobs tells.
        for blob in likely.into_iter().chain(blobs.values()) {
            if let Some(stored) = self.known(*blob).await?
                && stored.digest == digest
            {
                return Ok(Some((*blob, stored.bytes)));
            }
        }
        Ok(None)
    }

    /// Whether all of them were computed before.
    pub(super) async fn know(&self, blobs: &[Blob]) -> Result<bool, CacheError> {
        for blob in blobs {
            if self.known(*blob).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn compute(&self, blob: Blob) -> Result<Stored, CacheError> {
        let _one = self.computing.hold(&blob.digest.hex()).await;
        // Somebody may have been faster.
        if let Some(known) = self.known(blob).await? {
            return Ok(known);
        }
        // Never closed.
        let _turn = self.hashing.acquire().await;
        let missing = || CacheError::NoBlob { digest: blob.digest };
        let mut stream = self.cache.get_stream(&layout::blob(&blob)).await?.ok_or_else(missing)?;
        // It may have been lost since its builds were made, and packed anew.
        let verifier =
            Verifier::new(&self.held(blob).await?).map_err(CacheError::local("unpack", blob.digest.hex().as_ref()))?;
        let (mut seen, mut bytes) = ((Sha256::new(), verifier), 0);
        while let Some(chunk) = stream.try_next().await? {
            bytes += chunk.len() as u64;
            seen = task::blocking(move || {
                let (mut hasher, mut verifier) = seen;
                hasher.update(&chunk);
                verifier.see(&chunk);
                (hasher, verifier)
            })
            .await;
        }
        let (hasher, verifier) = seen;
        // What gets a name here is believed by whoever knows the name.
        if let Verdict::Bad(why) = task::blocking(move || verifier.finish()).await {
            tracing::error!(digest = %blob.digest, why, "a blob of the cache is damaged, and is not given to anybody by the registry");
            return Err(missing());
        }
        let stored = Stored { digest: Digest::finish(hasher), bytes };
        self.cache.put(&layout::stored_digest(&blob), Bytes::from(write(stored)), PutMode::Overwrite).await?;
        self.remember(blob, stored);
        Ok(stored)
    }

    fn remembered(&self, blob: Blob) -> Option<Stored> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.stored.get(&(blob.digest, blob.stored_bytes)).copied()
    }

    fn remember(&self, blob: Blob, stored: Stored) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.stored.len() >= KNOWN_MAX {
            // What is asked for again is read again.
            *known = Known::default();
        }
        known.stored.insert((blob.digest, blob.stored_bytes), stored);
        known.plain.insert(stored.digest, blob.digest);
    }
}

/// What lies beside the blob: the digest and the length, on one line.
fn write(stored: Stored) -> String {
    format!("{} {}\n", stored.digest, stored.bytes)
}

fn read(text: &[u8]) -> Option<Stored> {
    let (digest, bytes) = std::str::from_utf8(text).ok()?.trim_end().split_once(' ')?;
    Some(Stored { digest: digest.parse().ok()?, bytes: bytes.parse().ok()? })
}

#[cfg(test)]
mod tests;
