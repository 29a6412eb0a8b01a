//! Published paths: copies that the service makes of blobs.

use super::copy::Copied;
use super::objects::stream;
use super::readback::{READERS, read_blocking};
use super::{DIGEST, S3, attributes, key};
use crate::cache::{Cache as _, CacheError, parts};
use object_store::path::Path as Key;
use object_store::{Attribute, GetOptions, ObjectStore as _, PutMultipartOptions, PutOptions, WriteMultipart};
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_common::layout;
use railyard_common::path::RelPath;
use std::io;
use std::path::Path;
use tokio::io::AsyncReadExt as _;

/// Parts of a file that this process sends at the same time.
const PARALLEL_PARTS: usize = 4;

impl S3 {
    /// Makes the blob appear at a path where the same blob may be already, and nothing else.
    pub(super) async fn place(&self, blob: &Blob, path: &RelPath) -> Result<(), CacheError> {
        let Some(found) = self.find(&blob.digest).await? else {
            return Err(CacheError::NoBlob { digest: blob.digest });
        };
        let _held = self.locks.hold(path.as_str()).await;
        if let Some(done) = self.is_published(&blob.digest, path).await? {
            return done;
        }
        match found.encoding {
            Encoding::Identity => {
                match self.copy(&layout::blob(&found), path, found.stored_bytes, &found.digest).await? {
                    Copied::Done => Ok(()),
                    Copied::Exists => match self.is_published(&blob.digest, path).await? {
                        Some(done) => done,
                        // Two writes at the very same time may both fail. That is no conflict: another try places it.
                        None => {
                            let source = "the service did not end the copy, and nothing is there".into();
                            Err(CacheError::Store { what: format!("copy to {path}"), source })
                        }
                    },
                }
            }
            Encoding::Zstd => self.publish_decoded(&found, path).await,
        }
    }

    /// `None` if nothing is there; else whether it has the digest.
    async fn is_published(
        &self,
        digest: &Digest,
        path: &RelPath,
    ) -> Result<Option<Result<(), CacheError>>, CacheError> {
        let head = GetOptions { head: true, ..GetOptions::default() };
        let Some(found) = self.open_object(path, head).await? else { return Ok(None) };
        let told = found.attributes.get(&Attribute::Metadata(DIGEST.into()));
        let same = told.is_some_and(|told| told.as_ref() == digest.to_string());
        Ok(Some(if same { Ok(()) } else { Err(CacheError::Conflict { path: path.clone() }) }))
    }

    /// The rare case that a blob was stored compressed and is wanted as it is: by way of this machine.
    async fn publish_decoded(&self, blob: &Blob, path: &RelPath) -> Result<(), CacheError> {
        let from = layout::blob(blob);
        let Some(found) = self.open_object(&from, GetOptions::default()).await? else {
            return Err(CacheError::NoBlob { digest: blob.digest });
        };
        let decoded = read_blocking(&READERS, stream(found, &from), |stored| {
            let mut file = tempfile::NamedTempFile::new()?;
            zstd::stream::copy_decode(stored, &mut file)?;
            io::Result::Ok(file)
        })
        .await;
        let file = decoded.map_err(CacheError::local("decode", from.as_str().as_ref()))?;
        self.send_file(path, file.path(), Some(&blob.digest)).await
    }

    /// Writes a file, in parts if it is long.
    pub(super) async fn send_file(
        &self,
        path: &RelPath,
        file: &Path,
        digest: Option<&Digest>,
    ) -> Result<(), CacheError> {
        let reading = || CacheError::local("read", file);
        let writing = || CacheError::store("write", path);
        let key: Key = key(path)?;
        let mut from = tokio::fs::File::open(file).await.map_err(reading())?;
        let size = from.metadata().await.map_err(reading())?.len();
        let part_bytes = usize::try_from(parts::part_bytes(size)).unwrap_or(usize::MAX);
        if size <= part_bytes as u64 {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).await.map_err(reading())?;
            let options = PutOptions { attributes: attributes(path, digest), ..Default::default() };
            self.store.put_opts(&key, bytes.into(), options).await.map_err(writing())?;
            return Ok(());
        }
        let options = PutMultipartOptions { attributes: attributes(path, digest), ..Default::default() };
        let upload = self.store.put_multipart_opts(&key, options).await.map_err(writing())?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, part_bytes);
        let mut buffer = vec![0; 1024 * 1024];
        loop {
            writer.wait_for_capacity(PARALLEL_PARTS).await.map_err(writing())?;
            match from.read(&mut buffer).await {
                Ok(0) => break,
                Ok(n) => writer.write(&buffer[..n]),
                Err(error) => {
                    // The read error is the one to tell; the bucket's lifecycle rule removes what is left.
                    let _ = writer.abort().await;
                    return Err(reading()(error));
                }
            }
        }
        writer.finish().await.map(|_| ()).map_err(writing())
    }
}
