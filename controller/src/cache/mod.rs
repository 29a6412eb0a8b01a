//! The build cache: blobs by digest, build manifests, logs and published paths under one root.
//!
//! Two backends behind one trait. Workers send and fetch bytes by signed URLs and do not know which backend answers;
//! the store's keys stay in this process.
//!
//! **Invariant:** a blob is found only when it is complete and was verified; what an untrusted build sent was read to its end for
//! that. A published path never changes its bytes.

mod blocking;
pub mod config;
pub mod embedded;
mod error;
pub(crate) mod locks;
mod parts;
pub mod s3;
pub(crate) mod verify;

pub use config::{CacheConfig, EmbeddedConfig, S3Config};
pub use error::CacheError;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use railyard_common::blob::{Blob, PartChecksum, PartToSign};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::path::RelPath;
use railyard_common::time::Millis;
use railyard_service::clock::Clock;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest that a signed URL is good.
pub const URL_TTL_MAX: Duration = Duration::from_secs(3600);

/// How long the URL of a part is good. Whoever is slower asks for another one.
pub const PART_URL_TTL: Duration = URL_TTL_MAX;

/// Largest object that [`Cache::get`] reads into memory: manifests and indexes are far smaller.
pub const GET_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Who uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uploader {
    /// Whose the upload is.
    pub lease: LeaseId,
    /// Of an untrusted build: nothing that it sends has a blob's name before all of it was read here.
    pub untrusted: bool,
}

impl Uploader {
    /// A lease of a build that is trusted.
    pub fn trusted(lease: LeaseId) -> Self {
        Self { lease, untrusted: false }
    }

    /// A lease of one that is not.
    pub fn untrusted(lease: LeaseId) -> Self {
        Self { lease, untrusted: true }
    }
}

/// The answer to the wish to upload a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The cache has it, perhaps in another encoding than asked for. Nothing is to be sent.
    Present(Blob),
    /// Send the stored bytes in parts.
    Send(Begun),
}

/// An upload, begun now or before. It belongs to one lease, and ends with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Names the upload in [`Cache::sign_parts`] and [`Cache::complete_upload`].
    pub upload_id: String,
    /// Length of every part but the last. Each goes by `PUT` to its signed URL.
    pub part_bytes: u64,
    /// The checksum that a part must come with.
    pub checksum: PartChecksum,
}

/// When a write is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Only if there is nothing yet.
    Create,
    /// Always.
    Overwrite,
    /// Only over the object with this ETag, or with `None`, only if there is nothing yet.
    Match(Option<String>),
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below the cache root.
    pub path: RelPath,
    /// Length in bytes as stored.
    pub size: u64,
    /// When it was written.
    pub modified: Millis,
}

/// Bytes as they arrive.
pub type ByteStream = BoxStream<'static, Result<Bytes, CacheError>>;

/// Who knows which leases live: the farm.
#[async_trait::async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Whether a worker holds it now.
    async fn is_live(&self, lease: LeaseId) -> bool;
}

/// The build cache.
#[async_trait::async_trait]
pub trait Cache: Send + Sync + 'static {
    /// The blob with this digest, in whichever encoding it is held.
    async fn find(&self, digest: &Digest) -> Result<Option<Blob>, CacheError>;

    /// Begins an upload for a lease, or finds the one that it has begun for the same blob; unless the blob is there.
    ///
    /// # Errors
    /// [`CacheError::Invalid`] for sizes that do not fit together, [`CacheError::TooLarge`], [`CacheError::DiskFull`].
    async fn begin_upload(&self, by: Uploader, blob: &Blob) -> Result<Grant, CacheError>;

    /// URLs for parts of an upload of the lease, in their order, each good for [`PART_URL_TTL`] and for bytes with that checksum.
    ///
    /// # Errors
    /// [`CacheError::UnknownUpload`], also for another lease's; [`CacheError::Invalid`] for parts that it does not have, and for
    /// checksums of another kind than [`Begun::checksum`].
    async fn sign_parts(
        &self,
        lease: LeaseId,
        blob: &Blob,
        upload_id: &str,
        parts: &[PartToSign],
    ) -> Result<Vec<String>, CacheError>;

    /// Checks what was uploaded and makes it visible. Completing again, or after somebody else did, is fine.
    ///
    /// # Errors
    /// [`CacheError::Corrupt`] if the bytes are not those of the digest (the upload is removed then),
    /// [`CacheError::Incomplete`] if parts are missing (the upload stays), [`CacheError::UnknownUpload`], also for another lease's.
    async fn complete_upload(
        &self,
        by: Uploader,
        blob: &Blob,
        upload_id: &str,
        etags: &[String],
    ) -> Result<(), CacheError>;

    /// Forgets an upload and its parts. An unknown one is fine.
    async fn abort_upload(&self, lease: LeaseId, blob: &Blob, upload_id: &str) -> Result<(), CacheError>;

    /// Leases that have uploads which were neither completed nor aborted.
    async fn uploading(&self) -> Result<Vec<LeaseId>, CacheError>;

    /// Forgets all uploads of a lease that is over. From here on nothing can be sent for it.
    async fn end_uploads(&self, lease: LeaseId) -> Result<(), CacheError>;

    /// A URL by which anybody can fetch `path` until `ttl`, at most [`URL_TTL_MAX`], is over.
    async fn sign_get(&self, path: &RelPath, ttl: Duration) -> Result<String, CacheError>;

    /// The same for the worker that holds a lease. Where the cache asks the farm, the URL dies with the lease; a store that asks
    /// nobody takes it until its time is over.
    async fn sign_get_for(&self, lease: LeaseId, path: &RelPath, ttl: Duration) -> Result<String, CacheError> {
        let _ = lease;
        self.sign_get(path, ttl).await
    }

    /// Says who knows which leases live. Before that, and for a cache that cannot ask, every lease counts as live.
    fn ask_leases(&self, leases: Arc<dyn Leases>) {
        drop(leases);
    }

    /// A small object and its ETag.
    ///
    /// # Errors
    /// [`CacheError::TooLarge`] above [`GET_MAX_BYTES`].
    async fn get(&self, path: &RelPath) -> Result<Option<(Bytes, String)>, CacheError>;

    /// An object of any size.
    async fn get_stream(&self, path: &RelPath) -> Result<Option<ByteStream>, CacheError>;

    /// Writes a small object; returns its ETag.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] if `mode` does not allow it.
    async fn put(&self, path: &RelPath, bytes: Bytes, mode: PutMode) -> Result<String, CacheError>;

    /// Writes a local file of any size, replacing what is there.
    async fn put_file(&self, path: &RelPath, file: &Path) -> Result<(), CacheError>;

    /// Makes a blob's plain bytes readable at `path`, without sending them again. Publishing the same digest again is fine.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] if other bytes are there, [`CacheError::NoBlob`], [`CacheError::BadPath`] for a path
    /// that the farm keeps for itself.
    async fn publish(&self, blob: &Blob, path: &RelPath) -> Result<(), CacheError>;

    /// Objects in the directory `prefix` and below (all for an empty one), ordered by path, those after `after`,
    /// at most `limit`.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, CacheError>;

    /// Removes an object. One that is not there is fine.
    async fn delete(&self, path: &RelPath) -> Result<(), CacheError>;

    /// Removes objects, each on its own: an answer for each, in their order.
    async fn delete_all(&self, paths: &[RelPath]) -> Vec<Result<(), CacheError>> {
        let mut done = Vec::with_capacity(paths.len());
        for path in paths {
            done.push(self.delete(path).await);
        }
        done
    }

    /// For people: where a path can be fetched, if the cache lets them.
    fn url(&self, path: &RelPath) -> String;
}

/// A cache that is ready.
pub struct Opened {
    /// The cache.
    pub cache: Arc<dyn Cache>,
    /// What the embedded cache wants served on the TLS port; absolute routes below the base URL's path. None for S3.
    pub router: Option<axum::Router>,
}

/// Opens the configured cache.
///
/// `base_url` is where the embedded cache's router will be reached, for instance `https://host:7411/cache`.
///
/// # Errors
/// [`CacheError::Config`] for settings that cannot work, [`CacheError::Io`] for a directory that cannot be used.
pub async fn open(config: &CacheConfig, base_url: &str, clock: Arc<dyn Clock>) -> Result<Opened, CacheError> {
    match config {
        CacheConfig::Embedded(config) => {
            let cache = embedded::Embedded::open(config, base_url, clock).await?;
            let router = embedded::router(Arc::clone(&cache));
            Ok(Opened { cache, router: Some(router) })
        }
        CacheConfig::S3(config) => Ok(Opened { cache: Arc::new(s3::S3::open(config).await?), router: None }),
    }
}

/// The body of a 304. It has no length either: that would be the one of the 200 (RFC 9110, 8.6), and of an empty body the
/// router tells whoever asks with `HEAD` that it is 0.
pub(crate) fn no_body() -> Body {
    Body::from_stream(futures_util::stream::empty::<std::io::Result<Bytes>>())
}
