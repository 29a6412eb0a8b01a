//! Files as zstd blobs.

use crate::error::TransferError;
use crate::hash::{blocking, read_all};
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::Write as _;
use std::num::NonZero;
use std::path::Path;
use zstd::stream::write::Encoder;

/// Compresses `src` into `dst` with all cores, and hashes the plain bytes on the way.
///
/// The result is one zstd frame that tells its content size: the cache reads a blob's plain size from there.
///
/// # Errors
/// [`TransferError::NotFound`], [`TransferError::DiskFull`], [`TransferError::Changed`] if the file grew or shrank
/// meanwhile, or [`TransferError::Io`]. Nothing half written is left.
pub async fn compress_zstd(src: &Path, dst: &Path, level: i32) -> Result<Blob, TransferError> {
    let (src, dst) = (src.to_owned(), dst.to_owned());
    blocking(move || {
        let input = File::open(&src).map_err(TransferError::local("read", &src))?;
        let output = File::create(&dst).map_err(TransferError::local("write", &dst))?;
        let is_file = output.metadata().is_ok_and(|metadata| metadata.is_file());
        compress((input, &src), (output, &dst), level).inspect_err(|_| {
            // What is half written is of no use; a device that somebody named is not ours to remove.
            if is_file {
                // If it cannot be removed, the first error is still the one to tell.
                let _ = fs::remove_file(&dst);
            }
        })
    })
    .await
}

fn compress((mut input, src): (File, &Path), (output, dst): (File, &Path), level: i32) -> Result<Blob, TransferError> {
    let expected = input.metadata().map_err(TransferError::local("read", src))?.len();
    let writing = || TransferError::local("write", dst);
    let mut encoder = Encoder::new(output, level).map_err(writing())?;
    encoder.set_pledged_src_size(Some(expected)).map_err(writing())?;
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    encoder.multithread(u32::try_from(threads).unwrap_or(1)).map_err(writing())?;

    let mut hasher = Sha256::new();
    let mut failed = None;
    let mut seen = 0;
    let found = read_all(&mut input, |bytes| {
        hasher.update(bytes);
        seen += bytes.len() as u64;
        // zstd refuses more than was pledged with an error of its own; a changed file is told below.
        if failed.is_none() && seen <= expected {
            failed = encoder.write_all(bytes).err();
        }
    })
    .map_err(TransferError::local("read", src))?;
    if let Some(error) = failed {
        return Err(writing()(error));
    }
    if found != expected {
        return Err(TransferError::Changed { path: src.to_owned(), expected, found });
    }
    let output = encoder.finish().map_err(writing())?;
    let stored_bytes = output.metadata().map_err(writing())?.len();
    Ok(Blob { digest: Digest::finish(hasher), size_bytes: found, encoding: Encoding::Zstd, stored_bytes })
}
