//! The digest of a file.

use crate::error::TransferError;
use railyard_common::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use tokio::task::JoinHandle;

/// Big enough that the system call does not matter, small enough for the second-level cache.
pub(crate) const READ_BYTES: usize = 256 * 1024;

/// The SHA-256 and the length of a file, read on a blocking thread.
///
/// # Errors
/// [`TransferError::NotFound`] or [`TransferError::Io`].
pub async fn hash_file(path: &Path) -> Result<(Digest, u64), TransferError> {
    let path = path.to_owned();
    blocking(move || {
        let hash = || {
            let mut file = File::open(&path)?;
            let mut hasher = Sha256::new();
            let length = read_all(&mut file, |bytes| hasher.update(bytes))?;
            Ok((Digest::finish(hasher), length))
        };
        hash().map_err(TransferError::local("read", &path))
    })
    .await
}

/// Gives every byte of `from` to `see`; returns how many there were.
pub(crate) fn read_all(from: &mut impl Read, mut see: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut length = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(length),
            Ok(n) => {
                see(&buffer[..n]);
                length += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Runs `work` on a blocking thread. A panic there goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work)).await
}

/// The result of blocking work. A panic in it goes on here.
pub(crate) async fn joined<T>(handle: JoinHandle<T>) -> T {
    match handle.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is only cancelled when the runtime goes down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}
