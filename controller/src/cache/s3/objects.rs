//! Objects of the bucket: what is there, and whether it is what it should be.

use super::readback::{READERS, read_blocking};
use super::{S3, key};
use crate::cache::verify::{self, FRAME_HEAD_BYTES, Verdict, verify};
use crate::cache::{ByteStream, CacheError};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::{Error, GetOptions, GetRange, GetResult, ObjectStore as _, ObjectStoreExt as _};
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_common::layout;
use railyard_common::path::RelPath;
use tokio::sync::Semaphore;

impl S3 {
    /// The blob, for whoever holds its lock.
    pub(super) async fn find_unlocked(&self, digest: &Digest) -> Result<Option<Blob>, CacheError> {
        let mut blob = Blob::plain(*digest, 0);
        let head = GetOptions { head: true, ..GetOptions::default() };
        if let Some(found) = self.open_object(&layout::blob(&blob), head).await? {
            return Ok(Some(Blob::plain(*digest, found.meta.size)));
        }
        blob.encoding = Encoding::Zstd;
        let path = layout::blob(&blob);
        let head = GetOptions { range: Some(GetRange::Bounded(0..FRAME_HEAD_BYTES)), ..GetOptions::default() };
        let Some(found) = self.open_object(&path, head).await? else { return Ok(None) };
        blob.stored_bytes = found.meta.size;
        let head = found.bytes().await.map_err(CacheError::store("read", &path))?;
        match verify::plain_size(&head) {
            Some(size) => Ok(Some(Blob { size_bytes: size, ..blob })),
            None => {
                let source = "it is damaged: no zstd frame with a content size; remove it".into();
                Err(CacheError::Store { what: format!("read {path}"), source })
            }
        }
    }

    /// What is at a path, if anything is.
    pub(super) async fn open_object(
        &self,
        path: &RelPath,
        options: GetOptions,
    ) -> Result<Option<GetResult>, CacheError> {
        match self.store.get_opts(&key(path)?, options).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(CacheError::store("read", path)(error)),
        }
    }

    /// Whether the completed object is the blob, as far as it is looked at.
    pub(super) async fn check(&self, blob: &Blob, path: &RelPath) -> Result<Verdict, CacheError> {
        let gone = || Verdict::Bad("it is gone".to_owned());
        let head = GetOptions { head: true, ..GetOptions::default() };
        let Some(found) = self.open_object(path, head).await? else { return Ok(gone()) };
        if found.meta.size != blob.stored_bytes {
            let why = format!("{} bytes are stored instead of {}", found.meta.size, blob.stored_bytes);
            return Ok(Verdict::Bad(why));
        }
        if blob.stored_bytes <= self.read_back_bytes {
            return self.read_whole(blob, path, &READERS).await;
        }
        if blob.encoding == Encoding::Zstd {
            let head = GetOptions { range: Some(GetRange::Bounded(0..FRAME_HEAD_BYTES)), ..GetOptions::default() };
            let Some(found) = self.open_object(path, head).await? else { return Ok(gone()) };
            let head = found.bytes().await.map_err(CacheError::store("read", path))?;
            if verify::plain_size(&head) != Some(blob.size_bytes) {
                return Ok(Verdict::Bad("its zstd frame does not tell the blob's size".to_owned()));
            }
        }
        Ok(Verdict::Good)
    }

    /// Whether all that is stored there is the blob.
    pub(super) async fn read_whole(
        &self,
        blob: &Blob,
        path: &RelPath,
        readers: &Semaphore,
    ) -> Result<Verdict, CacheError> {
        let Some(found) = self.open_object(path, GetOptions::default()).await? else {
            return Ok(Verdict::Bad("it is gone".to_owned()));
        };
        let (stream, blob) = (stream(found, path), *blob);
        let checked = read_blocking(readers, stream, move |stored| verify(stored, &blob)).await;
        checked.map_err(|source| CacheError::Io { what: format!("read {path} back"), source })
    }

    /// Removes what is at a path, if anything is.
    pub(super) async fn remove(&self, path: &RelPath) -> Result<(), CacheError> {
        match self.store.delete(&key(path)?).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(CacheError::store("remove", path)(error)),
        }
    }
}

/// Its bytes, as they come.
pub(super) fn stream(found: GetResult, path: &RelPath) -> ByteStream {
    let path = path.clone();
    found.into_stream().map_err(move |error| CacheError::store("read", &path)(error)).boxed()
}
