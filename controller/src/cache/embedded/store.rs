//! The [`Cache`] of the local directory.

use super::signing::{PartRight, Right};
use super::uploads::{Closed, Upload, Uploads};
use super::{Embedded, UPLOADS, files};
use crate::cache::blocking::blocking;
use crate::cache::parts;
use crate::cache::verify::{self, FRAME_HEAD_BYTES, Verdict, verify};
use crate::cache::{
    Begun, ByteStream, Cache, CacheError, Entry, GET_MAX_BYTES, Grant, Leases, PART_URL_TTL, PutMode, URL_TTL_MAX,
    Uploader,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use railyard_common::blob::{Blob, Encoding, PartChecksum, PartSum, PartToSign};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::layout;
use railyard_common::path::{RelPath, url_path};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a stream reads at once.
const CHUNK_BYTES: usize = 256 * 1024;

#[async_trait::async_trait]
impl Cache for Embedded {
    async fn find(&self, digest: &Digest) -> Result<Option<Blob>, CacheError> {
        let plain = self.file(&layout::blob(&stored(*digest, Encoding::Identity, 0, 0)));
        let packed = self.file(&layout::blob(&stored(*digest, Encoding::Zstd, 0, 0)));
        let digest = *digest;
        blocking(move || find(digest, &plain, &packed)).await
    }

    async fn begin_upload(&self, by: Uploader, blob: &Blob) -> Result<Grant, CacheError> {
        let lease = by.lease;
        parts::check(blob)?;
        if let Some(present) = self.find(&blob.digest).await? {
            return Ok(Grant::Present(present));
        }
        let part_bytes = parts::part_bytes(blob.stored_bytes);
        let upload = Upload { lease: Some(lease), blob: *blob, part_bytes };
        let now = self.clock.now();
        let (uploads, root) = (Arc::clone(&self.uploads), self.root.clone());
        let begin = move || {
            uploads.sweep_sometimes(now)?;
            uploads.begin(lease, &upload, || has_room(&root, &upload.blob))
        };
        let upload_id = blocking(begin).await?;
        Ok(Grant::Send(Begun { upload_id, part_bytes, checksum: PartChecksum::Crc32 }))
    }

    async fn sign_parts(
        &self,
        lease: LeaseId,
        blob: &Blob,
        upload_id: &str,
        parts: &[PartToSign],
    ) -> Result<Vec<String>, CacheError> {
        let (uploads, id, wanted) = (Arc::clone(&self.uploads), upload_id.to_owned(), *blob);
        let upload = blocking(move || uploads.of_lease(&id, lease, &wanted)).await?;
        let lengths = parts::lengths(blob, upload.part_bytes, PartChecksum::Crc32, parts)?;
        let now = self.clock.now();
        let sign = |(part, length): (&PartToSign, u64)| {
            let PartSum::Crc32(crc32) = part.sum else { return None };
            let right = Right::Part(PartRight { upload_id, number: part.number, length, crc32 });
            Some(format!("{}/{UPLOADS}/{upload_id}?{}", self.base_url, self.key.query(right, now, PART_URL_TTL)))
        };
        Ok(parts.iter().zip(lengths).filter_map(sign).collect())
    }

    /// Reads all of it, whoever sent it.
    async fn complete_upload(
        &self,
        by: Uploader,
        blob: &Blob,
        upload_id: &str,
        etags: &[String],
    ) -> Result<(), CacheError> {
        let path = layout::blob(blob);
        let dest = self.file(&path);
        let _held = self.locks.hold(path.as_str()).await;
        let there = dest.clone();
        if blocking(move || open_if_there(&there)).await?.is_some() {
            return self.abort_upload(by.lease, blob, upload_id).await;
        }
        let closed = self.uploads.close(upload_id, by.lease, blob).await?;
        let (uploads, blob, etags) = (Arc::clone(&self.uploads), *blob, etags.to_vec());
        blocking(move || complete(&uploads, closed, &blob, &etags, &dest)).await
    }

    async fn abort_upload(&self, lease: LeaseId, blob: &Blob, upload_id: &str) -> Result<(), CacheError> {
        let uploads = Arc::clone(&self.uploads);
        match self.uploads.close(upload_id, lease, blob).await {
            Ok(closed) => blocking(move || uploads.remove(closed)).await,
            Err(CacheError::UnknownUpload { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn uploading(&self) -> Result<Vec<LeaseId>, CacheError> {
        Ok(self.uploads.leases())
    }

    async fn end_uploads(&self, lease: LeaseId) -> Result<(), CacheError> {
        for (_, id) in self.uploads.all_of(lease) {
            let uploads = Arc::clone(&self.uploads);
            match self.uploads.close_any(&id).await {
                Ok(closed) => blocking(move || uploads.remove(closed)).await?,
                Err(CacheError::UnknownUpload { .. }) => self.uploads.lose(lease, &id),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn sign_get(&self, path: &RelPath, ttl: Duration) -> Result<String, CacheError> {
        Ok(self.read_url(path, ttl, None))
    }

    async fn sign_get_for(&self, lease: LeaseId, path: &RelPath, ttl: Duration) -> Result<String, CacheError> {
        Ok(self.read_url(path, ttl, Some(lease)))
    }

    fn ask_leases(&self, leases: Arc<dyn Leases>) {
        // There is one farm; the first is it.
        let _ = self.leases.set(leases);
    }

    async fn get(&self, path: &RelPath) -> Result<Option<(Bytes, String)>, CacheError> {
        let (file, path) = (self.file(path), path.clone());
        blocking(move || read_small(&file, &path)).await
    }

    async fn get_stream(&self, path: &RelPath) -> Result<Option<ByteStream>, CacheError> {
        let file = self.file(path);
        let opening = file.clone();
        let opened = blocking(move || open_if_there(&opening)).await?;
        Ok(opened.map(|opened| chunks(opened).map_err(move |error| CacheError::local("read", &file)(error)).boxed()))
    }

    async fn put(&self, path: &RelPath, bytes: Bytes, mode: PutMode) -> Result<String, CacheError> {
        let (tmp, dest) = self.way_to(path)?;
        let _held = self.locks.hold(path.as_str()).await;
        let path = path.clone();
        blocking(move || {
            check_mode(&dest, &path, &mode)?;
            install(&tmp, &dest, &mut &bytes[..])?;
            Ok(etag_of(&bytes))
        })
        .await
    }

    async fn put_file(&self, path: &RelPath, file: &Path) -> Result<(), CacheError> {
        let (tmp, dest) = self.way_to(path)?;
        let _held = self.locks.hold(path.as_str()).await;
        let file = file.to_owned();
        blocking(move || {
            let mut from = File::open(&file).map_err(CacheError::local("read", &file))?;
            install(&tmp, &dest, &mut from)
        })
        .await
    }

    async fn publish(&self, blob: &Blob, path: &RelPath) -> Result<(), CacheError> {
        if !layout::is_publishable(path) {
            let why = "the farm keeps this place for itself; publish elsewhere".to_owned();
            return Err(CacheError::BadPath { path: path.to_string(), why });
        }
        let (tmp, dest) = self.way_to(path)?;
        let _held = self.locks.hold(path.as_str()).await;
        let Some(found) = self.find(&blob.digest).await? else {
            return Err(CacheError::NoBlob { digest: blob.digest });
        };
        let (source, path) = (self.file(&layout::blob(&found)), path.clone());
        blocking(move || publish(&found, &source, &tmp, &dest, &path)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, CacheError> {
        let prefix = prefix.trim_end_matches('/').to_owned();
        if !prefix.is_empty() && prefix.parse::<RelPath>().is_err() {
            return Err(CacheError::BadPath { path: prefix, why: "it is not a directory of the cache".to_owned() });
        }
        let (root, after) = (self.root.clone(), after.map(str::to_owned));
        blocking(move || super::walk::list(&root, &prefix, after.as_deref(), limit)).await
    }

    async fn delete(&self, path: &RelPath) -> Result<(), CacheError> {
        let (root, file) = (self.root.clone(), self.file(path));
        let _held = self.locks.hold(path.as_str()).await;
        blocking(move || {
            match fs::remove_file(&file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                done => done.map_err(CacheError::local("remove", &file))?,
            }
            if let Some(dir) = file.parent() {
                files::prune(&root, dir);
            }
            Ok(())
        })
        .await
    }

    fn url(&self, path: &RelPath) -> String {
        format!("{}/{}", self.base_url, url_path(path.as_str()))
    }
}

impl Embedded {
    fn read_url(&self, path: &RelPath, ttl: Duration, lease: Option<LeaseId>) -> String {
        let right = Right::Read { method: "GET", path: path.as_str(), lease };
        format!("{}?{}", self.url(path), self.key.query(right, self.clock.now(), ttl.min(URL_TTL_MAX)))
    }

    /// A temporary file and the place that it is meant for.
    fn way_to(&self, path: &RelPath) -> Result<(PathBuf, PathBuf), CacheError> {
        if Self::is_staging(path) {
            let why = "uploads/ holds what is not complete; write elsewhere".to_owned();
            return Err(CacheError::BadPath { path: path.to_string(), why });
        }
        Ok((self.uploads.tmp()?, self.file(path)))
    }
}

fn stored(digest: Digest, encoding: Encoding, size_bytes: u64, stored_bytes: u64) -> Blob {
    Blob { digest, size_bytes, encoding, stored_bytes }
}

fn find(digest: Digest, plain: &Path, packed: &Path) -> Result<Option<Blob>, CacheError> {
    if let Some(file) = open_if_there(plain)? {
        let size = file.metadata().map_err(CacheError::local("read", plain))?.len();
        return Ok(Some(Blob::plain(digest, size)));
    }
    let Some(file) = open_if_there(packed)? else { return Ok(None) };
    let reading = || CacheError::local("read", packed);
    let mut head = Vec::new();
    (&file).take(FRAME_HEAD_BYTES).read_to_end(&mut head).map_err(reading())?;
    let stored_bytes = file.metadata().map_err(reading())?.len();
    match verify::plain_size(&head) {
        Some(size) => Ok(Some(stored(digest, Encoding::Zstd, size, stored_bytes))),
        None => Err(reading()(io::Error::other("it is damaged: no zstd frame with a content size; remove it"))),
    }
}

/// A file's bytes.
fn chunks(file: File) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(file, |file| async move {
        let (file, chunk) = blocking(move || {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read = (&file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
            (file, read.map(|_| chunk))
        })
        .await;
        let chunk = chunk?;
        Ok((!chunk.is_empty()).then(|| (chunk.into(), file)))
    })
}

fn open_if_there(file: &Path) -> Result<Option<File>, CacheError> {
    match File::open(file) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(CacheError::local("read", file)(error)),
    }
}

/// Whether the disk could take the blob now. It may be full when the bytes come; then the parts are refused.
fn has_room(root: &Path, blob: &Blob) -> Result<(), CacheError> {
    let stat = nix::sys::statvfs::statvfs(root).map_err(|errno| CacheError::local("look at", root)(errno.into()))?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if blob.stored_bytes > free {
        let what = format!("take {} bytes of {}, {free} are free", blob.stored_bytes, blob.digest);
        return Err(CacheError::DiskFull { what });
    }
    Ok(())
}

/// Checks an upload and moves it into its place. A corrupt one is removed.
fn complete(uploads: &Uploads, closed: Closed, blob: &Blob, etags: &[String], dest: &Path) -> Result<(), CacheError> {
    closed.check(etags)?;
    if let Verdict::Bad(why) = closed.verify()? {
        uploads.remove(closed)?;
        return Err(CacheError::Corrupt { digest: blob.digest, why });
    }
    let data = closed.data();
    let flush = || File::open(&data)?.sync_all();
    flush().map_err(CacheError::local("flush", &data))?;
    files::place(dest, || fs::rename(&data, dest)).map_err(CacheError::local("write", dest))?;
    uploads.remove(closed)
}

fn read_small(file: &Path, path: &RelPath) -> Result<Option<(Bytes, String)>, CacheError> {
    let Some(opened) = open_if_there(file)? else { return Ok(None) };
    let mut bytes = Vec::new();
    match opened.take(GET_MAX_BYTES + 1).read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(None),
        Err(error) => return Err(CacheError::local("read", file)(error)),
    }
    if bytes.len() as u64 > GET_MAX_BYTES {
        let bytes = fs::metadata(file).map_or(GET_MAX_BYTES + 1, |metadata| metadata.len());
        return Err(CacheError::TooLarge { what: path.to_string(), bytes, limit: GET_MAX_BYTES });
    }
    let etag = etag_of(&bytes);
    Ok(Some((bytes.into(), etag)))
}

/// Named by its content: the same bytes again are not a change that anyone must see.
fn etag_of(bytes: &[u8]) -> String {
    format!("\"{}\"", Digest::of(bytes).hex())
}

fn check_mode(dest: &Path, path: &RelPath, mode: &PutMode) -> Result<(), CacheError> {
    if dest.is_dir() {
        return Err(CacheError::BadPath { path: path.to_string(), why: "a directory lies there".to_owned() });
    }
    let allowed = match mode {
        PutMode::Overwrite => true,
        PutMode::Create | PutMode::Match(None) => open_if_there(dest)?.is_none(),
        PutMode::Match(Some(wanted)) => read_small(dest, path)?.is_some_and(|(_, etag)| etag == *wanted),
    };
    if allowed { Ok(()) } else { Err(CacheError::Conflict { path: path.clone() }) }
}

/// Writes `from` to `dest` by way of `tmp`.
fn install(tmp: &Path, dest: &Path, from: &mut impl Read) -> Result<(), CacheError> {
    let writing = || CacheError::local("write", dest);
    files::write_tmp(tmp, from).map_err(writing())?;
    files::place(dest, || fs::rename(tmp, dest)).map_err(|error| {
        // The first error is the one to tell; leftovers are swept at the next start.
        let _ = fs::remove_file(tmp);
        writing()(error)
    })
}

fn publish(found: &Blob, source: &Path, tmp: &Path, dest: &Path, path: &RelPath) -> Result<(), CacheError> {
    use io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory};
    place(found, source, tmp, dest, path).map_err(|error| match error {
        CacheError::Io { source, .. } if matches!(source.kind(), AlreadyExists | IsADirectory | NotADirectory) => {
            let why = "something else lies there, or a file where a directory is needed";
            CacheError::BadPath { path: path.to_string(), why: why.to_owned() }
        }
        other => other,
    })
}

fn place(found: &Blob, source: &Path, tmp: &Path, dest: &Path, path: &RelPath) -> Result<(), CacheError> {
    if let Some(there) = open_if_there(dest)? {
        return match is_same(found, source, dest, &there)? {
            true => Ok(()),
            false => Err(CacheError::Conflict { path: path.clone() }),
        };
    }
    let opened = || File::open(source).map_err(CacheError::local("read", source));
    match found.encoding {
        Encoding::Identity => match files::place(dest, || fs::hard_link(source, dest)) {
            Ok(()) => Ok(()),
            // The two lie on different file systems, or the blob has all the links that it can have.
            Err(error) if matches!(error.kind(), io::ErrorKind::CrossesDevices | io::ErrorKind::TooManyLinks) => {
                install(tmp, dest, &mut opened()?)
            }
            Err(error) => Err(CacheError::local("write", dest)(error)),
        },
        Encoding::Zstd => {
            let mut plain = zstd::stream::read::Decoder::new(opened()?).map_err(CacheError::local("decode", source))?;
            install(tmp, dest, &mut plain)
        }
    }
}

/// Whether what is published already has the bytes of `found`.
fn is_same(found: &Blob, source: &Path, dest: &Path, there: &File) -> Result<bool, CacheError> {
    let metadata = there.metadata().map_err(CacheError::local("read", dest))?;
    let source = fs::metadata(source).map_err(CacheError::local("read", source))?;
    if (metadata.dev(), metadata.ino()) == (source.dev(), source.ino()) {
        return Ok(true);
    }
    let plain = Blob::plain(found.digest, found.size_bytes);
    Ok(metadata.is_file() && verify(there, &plain).map_err(CacheError::local("read", dest))? == Verdict::Good)
}
