//! Computed once, whoever asks and whoever goes away.

use super::*;
use crate::cache::{ByteStream, CacheConfig, EmbeddedConfig, Entry, Grant, Uploader, open};
use futures_util::StreamExt as _;
use railyard_common::blob::PartToSign;
use railyard_common::id::LeaseId;
use railyard_common::path::RelPath;
use railyard_service::clock::SystemClock;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

#[test]
fn what_is_written_is_read_and_nothing_else() {
    let stored = Stored { digest: Digest::of(b"x"), bytes: 7 };
    assert_eq!(read(write(stored).as_bytes()), Some(stored));
    for bad in ["", "sha256:00 7\n", "7\n", "x y z"] {
        assert_eq!(read(bad.as_bytes()), None, "{bad}");
    }
}

/// A cache whose reading of large objects is counted, and waits for a word.
struct Slow {
    cache: Arc<dyn Cache>,
    reads: AtomicUsize,
    begun: Notify,
    go: Semaphore,
}

#[async_trait::async_trait]
impl Cache for Slow {
    async fn find(&self, digest: &Digest) -> Result<Option<Blob>, CacheError> {
        self.cache.find(digest).await
    }
    async fn begin_upload(&self, by: Uploader, blob: &Blob) -> Result<Grant, CacheError> {
        self.cache.begin_upload(by, blob).await
    }
    async fn sign_parts(
        &self,
        lease: LeaseId,
        blob: &Blob,
        upload_id: &str,
        parts: &[PartToSign],
    ) -> Result<Vec<String>, CacheError> {
        self.cache.sign_parts(lease, blob, upload_id, parts).await
    }
    async fn complete_upload(
        &self,
        by: Uploader,
        blob: &Blob,
        upload_id: &str,
        etags: &[String],
    ) -> Result<(), CacheError> {
        self.cache.complete_upload(by, blob, upload_id, etags).await
    }
    async fn abort_upload(&self, lease: LeaseId, blob: &Blob, upload_id: &str) -> Result<(), CacheError> {
        self.cache.abort_upload(lease, blob, upload_id).await
    }
    async fn uploading(&self) -> Result<Vec<LeaseId>, CacheError> {
        self.cache.uploading().await
    }
    async fn end_uploads(&self, lease: LeaseId) -> Result<(), CacheError> {
        self.cache.end_uploads(lease).await
    }
    async fn sign_get(&self, path: &RelPath, ttl: Duration) -> Result<String, CacheError> {
        self.cache.sign_get(path, ttl).await
    }
    async fn get(&self, path: &RelPath) -> Result<Option<(Bytes, String)>, CacheError> {
        self.cache.get(path).await
    }
    async fn get_stream(&self, path: &RelPath) -> Result<Option<ByteStream>, CacheError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        let _word = self.go.acquire().await;
        Ok(self.cache.get_stream(path).await?.map(|stream| stream.boxed()))
    }
    async fn put(&self, path: &RelPath, bytes: Bytes, mode: PutMode) -> Result<String, CacheError> {
        self.cache.put(path, bytes, mode).await
    }
    async fn put_file(&self, path: &RelPath, file: &Path) -> Result<(), CacheError> {
        self.cache.put_file(path, file).await
    }
    async fn publish(&self, blob: &Blob, path: &RelPath) -> Result<(), CacheError> {
        self.cache.publish(blob, path).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, CacheError> {
        self.cache.list(prefix, after, limit).await
    }
    async fn delete(&self, path: &RelPath) -> Result<(), CacheError> {
        self.cache.delete(path).await
    }
    fn url(&self, path: &RelPath) -> String {
        self.cache.url(path)
    }
}

/// A cache with a blob that is stored as zstd, and what was stored.
async fn stage(dir: &Path) -> (Arc<Slow>, Blob, Stored) {
    let config = EmbeddedConfig { dir: dir.join("cache"), public_read: false, key_file: None };
    let cache = open(&CacheConfig::Embedded(config), "https://h/cache", Arc::new(SystemClock)).await.unwrap().cache;
    let plain = b"packed".repeat(1000);
    let bytes = zstd::bulk::compress(&plain, 1).unwrap();
    let stored = Stored { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
    let blob = Blob::plain(Digest::of(&plain), plain.len() as u64);
    let blob = Blob { encoding: Encoding::Zstd, stored_bytes: stored.bytes, ..blob };
    cache.put(&layout::blob(&blob), bytes.into(), PutMode::Create).await.unwrap();
    let slow = Slow { cache, reads: AtomicUsize::new(0), begun: Notify::new(), go: Semaphore::new(0) };
    (Arc::new(slow), blob, stored)
}

#[tokio::test]
async fn two_who_ask_at_once_compute_once() {
    let dir = tempfile::tempdir().unwrap();
    let (slow, blob, stored) = stage(dir.path()).await;
    let digests = Arc::new(StoredDigests::new(slow.clone()));
    let asking = futures_util::future::join_all((0..8).map(|_| digests.of(blob)));
    let going = async {
        slow.begun.notified().await;
        slow.go.add_permits(100);
    };
    let (found, ()) = tokio::join!(asking, going);
    assert!(found.into_iter().all(|one| one.unwrap() == stored));
    assert_eq!(slow.reads.load(Ordering::SeqCst), 1);
    // A process that starts now reads what lies beside the blob.
    let later = Arc::new(StoredDigests::new(slow.clone()));
    assert_eq!(later.of(blob).await.unwrap(), stored);
    assert_eq!(slow.reads.load(Ordering::SeqCst), 1);
    let blobs = [(blob.digest, blob)].into();
    assert_eq!(later.stored_as(stored.digest, &blobs).await.unwrap(), Some((blob, stored.bytes)));
    assert_eq!(later.stored_as(Digest::of(b"other"), &blobs).await.unwrap(), None);
    // The same plain bytes, packed anew: what lies beside them is of the old ones.
    let other = Blob { stored_bytes: 7, ..blob };
    assert_eq!(later.known(other).await.unwrap(), None);
}

#[tokio::test]
async fn who_goes_away_stops_nothing_half_way() {
    let dir = tempfile::tempdir().unwrap();
    let (slow, blob, stored) = stage(dir.path()).await;
    let digests = Arc::new(StoredDigests::new(slow.clone()));
    tokio::select! {
        biased;
        found = digests.of(blob) => panic!("nobody has given it the word: {found:?}"),
        () = slow.begun.notified() => {}
    }
    // The one who asked is gone; the next one waits for what it began.
    let asking = digests.of(blob);
    let going = async { slow.go.add_permits(1) };
    let (found, ()) = tokio::join!(asking, going);
    assert_eq!(found.unwrap(), stored);
    assert_eq!(slow.reads.load(Ordering::SeqCst), 1);
}
