//! The [`Cache`] of the bucket.

use super::begun::Note;
use super::objects::stream;
use super::untrusted::place_of;
use super::{S3, attributes, key, presign};
use crate::cache::parts::{self, spans};
use crate::cache::verify::Verdict;
use crate::cache::{
    Begun, ByteStream, Cache, CacheError, Entry, GET_MAX_BYTES, Grant, PART_URL_TTL, PutMode, URL_TTL_MAX, Uploader,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::Method;
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use object_store::{Error, GetOptions, ObjectStore as _, PutMultipartOptions, PutOptions, PutPayload, UpdateVersion};
use railyard_common::blob::{Blob, PartChecksum, PartToSign};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::layout;
use railyard_common::path::{RelPath, url_path};
use railyard_common::time::Millis;
use std::path::Path;
use std::time::Duration;

/// How parts are known to be whole.
const CHECKSUM: PartChecksum = PartChecksum::ContentMd5;
/// The "upload" of an empty blob: S3 has no multipart upload without parts.
const EMPTY_UPLOAD: &str = "empty";
/// The service's longest listing.
const PAGE_KEYS: usize = 1000;
/// Objects that are removed at the same time, where one request cannot remove many.
const PARALLEL_DELETES: usize = 16;

#[async_trait::async_trait]
impl Cache for S3 {
    async fn find(&self, digest: &Digest) -> Result<Option<Blob>, CacheError> {
        // Whoever completes the blob holds this until it was verified, or is in doubt.
        let _held = self.locks.hold(&digest.hex()).await;
        self.settle(digest).await?;
        self.find_unlocked(digest).await
    }

    async fn begin_upload(&self, by: Uploader, blob: &Blob) -> Result<Grant, CacheError> {
        let Uploader { lease, untrusted } = by;
        parts::check(blob)?;
        if let Some(present) = self.find(&blob.digest).await? {
            return Ok(Grant::Present(present));
        }
        let part_bytes = parts::part_bytes(blob.stored_bytes);
        let send = |upload_id| Grant::Send(Begun { upload_id, part_bytes, checksum: CHECKSUM });
        if blob.stored_bytes == 0 {
            return Ok(send(EMPTY_UPLOAD.to_owned()));
        }
        // One at a time, so that a call that is repeated finds what its first try has begun.
        let _held = self.locks.hold(&format!("{lease} {}", blob.digest)).await;
        match self.begun(lease, &blob.digest).await? {
            Some(note) if note.blob == *blob => return Ok(send(note.upload_id)),
            // The same bytes in another form: what was sent of them is of no use any more.
            Some(note) => self.abort_upload(lease, &note.blob, &note.upload_id).await?,
            None => {}
        }
        let path = place_of(lease, blob, untrusted)?;
        let options = PutMultipartOptions { attributes: attributes(&path, Some(&blob.digest)), ..Default::default() };
        let upload_id = self.store.create_multipart_opts(&key(&path)?, options).await;
        let upload_id = upload_id.map_err(CacheError::store("start the upload of", &path))?;
        self.note(lease, Note { upload_id: upload_id.clone(), blob: *blob, untrusted }).await?;
        Ok(send(upload_id))
    }

    async fn sign_parts(
        &self,
        lease: LeaseId,
        blob: &Blob,
        upload_id: &str,
        parts: &[PartToSign],
    ) -> Result<Vec<String>, CacheError> {
        let note = self.begun(lease, &blob.digest).await?;
        let Some(note) = note.filter(|note| note.upload_id == upload_id && note.blob == *blob) else {
            return Err(CacheError::UnknownUpload { id: upload_id.to_owned() });
        };
        let lengths = parts::lengths(blob, parts::part_bytes(blob.stored_bytes), CHECKSUM, parts)?;
        let path = place_of(lease, blob, note.untrusted)?;
        let key = key(&path)?;
        let failed = || CacheError::store("sign a URL for", &path);
        let keys = self.store.credentials().get_credential().await.map_err(failed())?;
        let mut urls = Vec::with_capacity(parts.len());
        for (part, length) in parts.iter().zip(lengths) {
            let query = [("partNumber", part.number.to_string()), ("uploadId", upload_id.to_owned())];
            let options = SignedUrlOptions::new().with_query(query);
            let url = self.store.signed_url_opts(Method::PUT, &key, PART_URL_TTL, &options).await;
            let url = url.map_err(failed())?;
            let bound = [("content-length", length.to_string()), part.sum.header()];
            let url = presign::sign_again("PUT", url.as_str(), &bound, &keys.secret_key);
            // The library's URLs have all that is looked for.
            urls.push(url.ok_or_else(|| CacheError::Store {
                what: format!("sign a URL for {path}"),
                source: "it was not presigned".into(),
            })?);
        }
        Ok(urls)
    }

    async fn complete_upload(
        &self,
        by: Uploader,
        blob: &Blob,
        upload_id: &str,
        etags: &[String],
    ) -> Result<(), CacheError> {
        // Of nothing there is nothing to read.
        if by.untrusted && upload_id != EMPTY_UPLOAD {
            return self.complete_untrusted(by.lease, blob, upload_id, etags).await;
        }
        let lease = by.lease;
        let _held = self.locks.hold(&blob.digest.hex()).await;
        let path = layout::blob(blob);
        let key = key(&path)?;
        let head = GetOptions { head: true, ..GetOptions::default() };
        // What an earlier try left is looked at first: then whatever is there was verified.
        self.settle(&blob.digest).await?;
        if self.open_object(&path, head).await?.is_some() {
            return self.abort_upload(lease, blob, upload_id).await;
        }
        let failed = || CacheError::store("complete the upload of", &path);
        if upload_id == EMPTY_UPLOAD && blob.stored_bytes == 0 {
            let options = PutOptions { attributes: attributes(&path, Some(&blob.digest)), ..Default::default() };
            self.doubt(blob).await?;
            self.store.put_opts(&key, PutPayload::new(), options).await.map_err(failed())?;
        } else {
            if self.begun(lease, &blob.digest).await?.is_none_or(|note| note.upload_id != upload_id) {
                return Err(CacheError::UnknownUpload { id: upload_id.to_owned() });
            }
            let parts = all_parts(blob, etags)?;
            self.doubt(blob).await?;
            match self.store.complete_multipart(&key, &upload_id.to_owned(), parts).await {
                Ok(_) => {}
                // Some services answer "denied" for an upload that is no more. It can be nothing else: the mark that was written
                // just now needs the same right.
                Err(Error::NotFound { .. } | Error::PermissionDenied { .. }) => {
                    // Nothing was completed, so there is nothing to doubt.
                    self.settle(&blob.digest).await?;
                    self.unnote(lease, &blob.digest).await?;
                    return Err(CacheError::UnknownUpload { id: upload_id.to_owned() });
                }
                // It may have been completed all the same: the doubt stays.
                Err(error) => return Err(failed()(error)),
            }
        }
        self.unnote(lease, &blob.digest).await?;
        // The object is there now, but nobody finds it before this has looked at it.
        match self.settle(&blob.digest).await? {
            Some(Verdict::Bad(why)) => Err(CacheError::Corrupt { digest: blob.digest, why }),
            Some(Verdict::Good) | None => Ok(()),
        }
    }

    async fn abort_upload(&self, lease: LeaseId, blob: &Blob, upload_id: &str) -> Result<(), CacheError> {
        if upload_id == EMPTY_UPLOAD {
            return Ok(());
        }
        // It is over already, or another lease's.
        let Some(note) = self.begun(lease, &blob.digest).await?.filter(|note| note.upload_id == upload_id) else {
            return Ok(());
        };
        let path = place_of(lease, blob, note.untrusted)?;
        match self.store.abort_multipart(&key(&path)?, &upload_id.to_owned()).await {
            // Some services answer "denied" for an upload that is no more.
            Ok(()) | Err(Error::NotFound { .. } | Error::PermissionDenied { .. }) => {}
            Err(error) => return Err(CacheError::store("abort the upload of", &path)(error)),
        }
        if note.untrusted {
            // It may have been completed, and not yet have come to its place.
            self.remove(&path).await?;
        }
        self.unnote(lease, &blob.digest).await
    }

    async fn uploading(&self) -> Result<Vec<LeaseId>, CacheError> {
        self.beginners().await
    }

    async fn end_uploads(&self, lease: LeaseId) -> Result<(), CacheError> {
        for note in self.all_begun(lease).await? {
            // Whoever completes it holds this: it is either complete then, or there is nothing to complete.
            let _held = self.locks.hold(&note.blob.digest.hex()).await;
            self.abort_upload(lease, &note.blob, &note.upload_id).await?;
        }
        Ok(())
    }

    async fn sign_get(&self, path: &RelPath, ttl: Duration) -> Result<String, CacheError> {
        let url = self.store.signed_url(Method::GET, &key(path)?, ttl.min(URL_TTL_MAX)).await;
        Ok(url.map_err(CacheError::store("sign a URL for", path))?.to_string())
    }

    async fn get(&self, path: &RelPath) -> Result<Option<(Bytes, String)>, CacheError> {
        let Some(found) = self.open_object(path, GetOptions::default()).await? else { return Ok(None) };
        if found.meta.size > GET_MAX_BYTES {
            let (what, bytes) = (path.to_string(), found.meta.size);
            return Err(CacheError::TooLarge { what, bytes, limit: GET_MAX_BYTES });
        }
        let etag = etag(found.meta.e_tag.clone(), path)?;
        let bytes = found.bytes().await.map_err(CacheError::store("read", path))?;
        Ok(Some((bytes, etag)))
    }

    async fn get_stream(&self, path: &RelPath) -> Result<Option<ByteStream>, CacheError> {
        let found = self.open_object(path, GetOptions::default()).await?;
        Ok(found.map(|found| stream(found, path)))
    }

    async fn put(&self, path: &RelPath, bytes: Bytes, mode: PutMode) -> Result<String, CacheError> {
        let _held = self.locks.hold(path.as_str()).await;
        let mode = match mode {
            PutMode::Overwrite => object_store::PutMode::Overwrite,
            PutMode::Create | PutMode::Match(None) => object_store::PutMode::Create,
            PutMode::Match(e_tag) => object_store::PutMode::Update(UpdateVersion { e_tag, version: None }),
        };
        let options = PutOptions { mode, attributes: attributes(path, None), ..Default::default() };
        match self.store.put_opts(&key(path)?, bytes.into(), options).await {
            Ok(done) => etag(done.e_tag, path),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Err(CacheError::Conflict { path: path.clone() })
            }
            Err(error) => Err(CacheError::store("write", path)(error)),
        }
    }

    async fn put_file(&self, path: &RelPath, file: &Path) -> Result<(), CacheError> {
        let _held = self.locks.hold(path.as_str()).await;
        self.send_file(path, file, None).await
    }

    async fn publish(&self, blob: &Blob, path: &RelPath) -> Result<(), CacheError> {
        if !layout::is_publishable(path) {
            let why = "the farm keeps this place for itself; publish elsewhere".to_owned();
            return Err(CacheError::BadPath { path: path.to_string(), why });
        }
        self.place(blob, path).await
    }

    /// By the service's call for many objects; what that does not say of each of them is asked one by one.
    async fn delete_all(&self, paths: &[RelPath]) -> Vec<Result<(), CacheError>> {
        let keys: Result<Vec<Key>, CacheError> = paths.iter().map(key).collect();
        if let Ok(keys) = keys {
            let keys = futures_util::stream::iter(keys.into_iter().map(Ok)).boxed();
            let done: Vec<Result<Key, Error>> = self.store.delete_stream(keys).collect().await;
            if done.len() == paths.len() {
                let told = |(path, done): (&RelPath, Result<Key, Error>)| match done {
                    Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(CacheError::store("remove", path)(error)),
                };
                return paths.iter().zip(done).map(told).collect();
            }
        }
        let deletes: Vec<_> = paths.iter().map(|path| self.delete(path)).collect();
        futures_util::stream::iter(deletes).buffered(PARALLEL_DELETES).collect().await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, CacheError> {
        let dir = prefix.trim_end_matches('/');
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let failed = |source: Error| CacheError::Store { what: format!("list {prefix}"), source: source.into() };
        let (mut entries, mut page_token) = (Vec::new(), None);
        while entries.len() < limit {
            let options = PaginatedListOptions {
                offset: after.map(str::to_owned),
                max_keys: Some((limit - entries.len()).min(PAGE_KEYS)),
                page_token,
                ..PaginatedListOptions::default()
            };
            let page = self.store.list_paginated(Some(&prefix), options).await.map_err(failed)?;
            // A key that is no path of the cache was not put there by it; and its own notes are nobody else's business.
            let is_note = |path: &RelPath| dir.is_empty() && path.as_str().starts_with("uploads/");
            entries.extend(page.result.objects.into_iter().filter_map(|object| {
                let path = object.location.as_ref().parse().ok().filter(|path| !is_note(path))?;
                let modified = Millis(u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0));
                Some(Entry { path, size: object.size, modified })
            }));
            page_token = page.page_token;
            if page_token.is_none() {
                break;
            }
        }
        Ok(entries)
    }

    async fn delete(&self, path: &RelPath) -> Result<(), CacheError> {
        let _held = self.locks.hold(path.as_str()).await;
        self.remove(path).await
    }

    fn url(&self, path: &RelPath) -> String {
        format!("{}/{}", self.public_url, url_path(path.as_str()))
    }
}

/// The parts of a whole blob, as they were reported.
pub(super) fn all_parts(blob: &Blob, etags: &[String]) -> Result<Vec<PartId>, CacheError> {
    let wanted = spans(blob.stored_bytes, parts::part_bytes(blob.stored_bytes)).len();
    if etags.len() != wanted {
        let why = format!("it has {wanted} parts, {} were reported", etags.len());
        return Err(CacheError::Incomplete { why });
    }
    Ok(etags.iter().map(|etag| PartId { content_id: etag.clone() }).collect())
}

/// Without ETags nothing can be written conditionally, so a service must give them.
fn etag(told: Option<String>, path: &RelPath) -> Result<String, CacheError> {
    told.ok_or_else(|| CacheError::Store { what: format!("use {path}"), source: "the service gave no ETag".into() })
}
