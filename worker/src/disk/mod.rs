//! The disks: how full they are, what of this worker's lies there, and what goes when they are too full.
//!
//! Reading order: [`space`] (how full, and what is too full), [`policy`] (what goes; pure), [`promises`] (what running jobs may still
//! take), [`account`] (what there is), [`evict`], [`room`] (for a job that comes), [`keeper`] (who does all that in time), [`reserve`].
//!
//! **Invariant:** what a running job uses is never removed; what is not this worker's is not even counted.

pub mod account;
pub mod evict;
pub mod keeper;
pub mod policy;
pub mod promises;
pub mod reserve;
pub mod room;
pub mod space;
pub mod uses;

pub use account::{Disks, Places};
pub use space::{DiskConfig, Mark, Space};

use crate::blocking::blocking;
use std::io;
use std::path::{Path, PathBuf};

/// A disk with less than this free counts as full: a script that failed there most likely failed for that.
pub const FULL_BELOW_BYTES: u64 = 16 * 1024 * 1024;

/// Something on this worker's disk failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct DiskError {
    /// What was tried: "write", "create", …
    pub doing: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl DiskError {
    /// For `map_err`.
    pub fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self { doing, path: path.to_owned(), source }
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        is_full(&self.source)
    }
}

/// Whether the error says that a disk or a quota is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a text that another program wrote says that a disk is full. The engine tells its errors no other way.
pub fn says_full(text: &str) -> bool {
    text.contains("no space left on device") || text.contains("No space left on device")
}

/// Bytes that can still be written to the file system of `path`.
///
/// # Errors
/// If the file system cannot be asked.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    Space::of(path).map(|space| space.free_bytes)
}

/// Removes a directory and everything below it; nothing there is fine.
///
/// # Errors
/// [`DiskError`] if something cannot be removed.
pub async fn remove_tree(path: &Path) -> Result<(), DiskError> {
    let tree = path.to_owned();
    match blocking(move || std::fs::remove_dir_all(tree)).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DiskError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_known_by_its_error() {
        let full = io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32);
        assert!(DiskError::at("write", Path::new("/x"))(full).is_full());
        assert!(!is_full(&io::Error::from_raw_os_error(nix::errno::Errno::EACCES as i32)));
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
    }
}
