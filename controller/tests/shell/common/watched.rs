//! A cache in which something happens at one of the calls.

use async_trait::async_trait;
use bytes::Bytes;
use railyard_common::blob::{Blob, PartToSign};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::path::RelPath;
use railyard_controller::cache::{ByteStream, Cache, CacheError, Entry, Grant, PutMode, Uploader};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// What happens to whoever calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call never returns: whoever waits for it is gone.
    Gone {
        /// Whether it was carried out before.
        carried_out: bool,
    },
    /// The call fails; the next one will do.
    Error {
        /// Whether it was carried out all the same.
        carried_out: bool,
    },
}

/// A fault at the call of this number.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    pub at: usize,
    pub fault: Fault,
}

/// The cache.
pub struct Watched {
    cache: Arc<dyn Cache>,
    calls: AtomicUsize,
    strike: Option<Strike>,
    struck: Notify,
    taken: Option<(RelPath, Blob)>,
}

impl Watched {
    /// Nothing happens.
    pub fn calm(cache: Arc<dyn Cache>) -> Self {
        Self { cache, calls: AtomicUsize::new(0), strike: None, struck: Notify::new(), taken: None }
    }

    /// This happens, once.
    pub fn struck(self, strike: Strike) -> Self {
        Self { strike: Some(strike), ..self }
    }

    /// Whoever publishes at `path` finds these bytes there, which were not there a moment before.
    pub fn taken(self, path: RelPath, blob: Blob) -> Self {
        Self { taken: Some((path, blob)), ..self }
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Waits until it has happened.
    pub async fn is_struck(&self) {
        self.struck.notified().await;
    }

    async fn call<T>(&self, what: impl Future<Output = Result<T, CacheError>>) -> Result<T, CacheError> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let Some(Strike { fault, .. }) = self.strike.filter(|strike| strike.at == number) else { return what.await };
        if let Fault::Gone { carried_out: true } | Fault::Error { carried_out: true } = fault {
            // What it comes to is told to nobody.
            drop(what.await);
        }
        self.struck.notify_one();
        match fault {
            Fault::Gone { .. } => std::future::pending().await,
            Fault::Error { .. } => {
                Err(CacheError::Store { what: "do this".to_owned(), source: "the store has a bad moment".into() })
            }
        }
    }
}

#[async_trait]
impl Cache for Watched {
    async fn find(&self, digest: &Digest) -> Result<Option<Blob>, CacheError> {
        self.call(self.cache.find(digest)).await
    }
    async fn begin_upload(&self, by: Uploader, blob: &Blob) -> Result<Grant, CacheError> {
        self.call(self.cache.begin_upload(by, blob)).await
    }
    async fn sign_parts(
        &self,
        lease: LeaseId,
        blob: &Blob,
        upload_id: &str,
        parts: &[PartToSign],
    ) -> Result<Vec<String>, CacheError> {
        self.call(self.cache.sign_parts(lease, blob, upload_id, parts)).await
    }
    async fn complete_upload(
        &self,
        by: Uploader,
        blob: &Blob,
        upload_id: &str,
        etags: &[String],
    ) -> Result<(), CacheError> {
        self.call(self.cache.complete_upload(by, blob, upload_id, etags)).await
    }
    async fn abort_upload(&self, lease: LeaseId, blob: &Blob, upload_id: &str) -> Result<(), CacheError> {
        self.call(self.cache.abort_upload(lease, blob, upload_id)).await
    }
    async fn uploading(&self) -> Result<Vec<LeaseId>, CacheError> {
        self.call(self.cache.uploading()).await
    }
    async fn end_uploads(&self, lease: LeaseId) -> Result<(), CacheError> {
        self.call(self.cache.end_uploads(lease)).await
    }
    async fn sign_get(&self, path: &RelPath, ttl: Duration) -> Result<String, CacheError> {
        self.call(self.cache.sign_get(path, ttl)).await
    }
    async fn get(&self, path: &RelPath) -> Result<Option<(Bytes, String)>, CacheError> {
        self.call(self.cache.get(path)).await
    }
    async fn get_stream(&self, path: &RelPath) -> Result<Option<ByteStream>, CacheError> {
        self.call(self.cache.get_stream(path)).await
    }
    async fn put(&self, path: &RelPath, bytes: Bytes, mode: PutMode) -> Result<String, CacheError> {
        self.call(self.cache.put(path, bytes, mode)).await
    }
    async fn put_file(&self, path: &RelPath, file: &Path) -> Result<(), CacheError> {
        self.call(self.cache.put_file(path, file)).await
    }
    async fn publish(&self, blob: &Blob, path: &RelPath) -> Result<(), CacheError> {
        self.call(async {
            if let Some((taken, other)) = self.taken.as_ref().filter(|(taken, _)| taken == path) {
                // It may be there by now.
                drop(self.cache.publish(other, taken).await);
            }
            self.cache.publish(blob, path).await
        })
        .await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, CacheError> {
        self.call(self.cache.list(prefix, after, limit)).await
    }
    async fn delete(&self, path: &RelPath) -> Result<(), CacheError> {
        self.call(self.cache.delete(path)).await
    }
    fn url(&self, path: &RelPath) -> String {
        self.cache.url(path)
    }
}
