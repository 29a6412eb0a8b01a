//! One part of a file: its checksum, its bytes, and what the cache answers.

use crate::BUFFER_BYTES;
use crate::error::TransferError;
use crate::hash::blocking;
use crate::meter::Meter;
use crate::read::read_pieces;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http::HeaderMap;
use md5::{Digest as _, Md5};
use railyard_common::blob::{PartChecksum, PartSum};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whether a part's ETag says that other bytes were stored than those with this checksum. Services that encrypt with keys of
/// their own have ETags that say nothing, and tell so.
pub(crate) fn is_contradicted(sum: PartSum, etag: &str, answer: &HeaderMap) -> bool {
    let told = etag.trim_matches('"');
    let encryption = answer.get("x-amz-server-side-encryption").map(http::HeaderValue::as_bytes);
    let has_own_keys = encryption.is_some_and(|kind| kind.starts_with(b"aws:kms"))
        || answer.contains_key("x-amz-server-side-encryption-customer-algorithm");
    let ours = match sum {
        PartSum::ContentMd5(md5) => hex::encode(md5),
        PartSum::Crc32(crc32) => hex::encode(crc32.to_be_bytes()),
    };
    let is_sum = told.len() == ours.len() && told.bytes().all(|b| b.is_ascii_hexdigit());
    is_sum && !has_own_keys && !told.eq_ignore_ascii_case(&ours)
}

/// One part of a file.
#[derive(Clone)]
pub(crate) struct Part<'a> {
    pub file: Arc<File>,
    pub path: &'a Path,
    /// From 1.
    pub number: u32,
    pub offset: u64,
    pub length: u64,
    /// Its CRC-32 when the file was hashed.
    pub crc32: Option<u32>,
    /// Its checksum, if that is known before it is read and the cache wants this one.
    pub known: Option<PartSum>,
}

impl Part<'_> {
    /// Its checksum, as it is read now. One that is no CRC-32 says nothing about what was hashed: then that is compared here.
    pub(crate) async fn sum(&self, kind: PartChecksum) -> Result<PartSum, TransferError> {
        let (file, offset, length) = (Arc::clone(&self.file), self.offset, self.length);
        let is_compared = self.crc32.is_some();
        let sum = move || {
            let (mut crc32, mut md5) = (crc32fast::Hasher::new(), Md5::new());
            match kind {
                PartChecksum::ContentMd5 => {
                    see(&file, offset, length, |bytes| {
                        md5.update(bytes);
                        if is_compared {
                            crc32.update(bytes);
                        }
                    })?;
                    Ok((PartSum::ContentMd5(md5.finalize().into()), is_compared.then(|| crc32.finalize())))
                }
                PartChecksum::Crc32 => {
                    see(&file, offset, length, |bytes| crc32.update(bytes))?;
                    Ok((PartSum::Crc32(crc32.finalize()), None))
                }
            }
        };
        let (sum, crc32) = blocking(sum).await.map_err(|error: io::Error| self.unreadable(error))?;
        if crc32.is_some() && crc32 != self.crc32 {
            return Err(TransferError::Rewritten { path: self.path.to_owned() });
        }
        Ok(sum)
    }

    fn unreadable(&self, error: io::Error) -> TransferError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => TransferError::Changed {
                path: PathBuf::from(self.path),
                expected: self.offset + self.length,
                found: self.file.metadata().map_or(0, |metadata| metadata.len()),
            },
            _ => TransferError::local("read", self.path)(error),
        }
    }

    /// The bytes of the part. A byte counts as moved when the connection asks for the next ones.
    pub(crate) fn body(&self, sent: Meter, total: Meter) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        read_pieces(Arc::clone(&self.file), self.offset, self.length).inspect_ok(move |bytes| {
            sent.add(bytes.len() as u64);
            total.add(bytes.len() as u64);
        })
    }
}

/// Gives `length` bytes from `offset` on to `hash`.
fn see(file: &File, offset: u64, length: u64, mut hash: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; next_bytes(length)];
    let mut done = 0;
    while done < length {
        let n = next_bytes(length - done);
        file.read_exact_at(&mut buffer[..n], offset + done)?;
        hash(&buffer[..n]);
        done += n as u64;
    }
    Ok(())
}

/// How much of `left` to read at once.
fn next_bytes(left: u64) -> usize {
    usize::try_from(left).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_that_is_another_md5_tells_of_damage() {
        let sum = PartSum::ContentMd5(Md5::digest(b"bytes").into());
        let (good, bad) = (hex::encode(Md5::digest(b"bytes")), hex::encode(Md5::digest(b"bites")));
        let plain = HeaderMap::new();
        assert!(!is_contradicted(sum, &format!("\"{good}\""), &plain));
        assert!(is_contradicted(sum, &format!("\"{bad}\""), &plain));
        assert!(!is_contradicted(sum, "\"opaque\"", &plain));
        let kms = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-amz-server-side-encryption"),
            http::HeaderValue::from_static("aws:kms"),
        )]);
        assert!(!is_contradicted(sum, &bad, &kms));
        assert!(!is_contradicted(PartSum::Crc32(1), "\"00000001\"", &plain));
        assert!(is_contradicted(PartSum::Crc32(1), "\"00000002\"", &plain));
    }
}
