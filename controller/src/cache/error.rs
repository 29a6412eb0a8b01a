//! What the cache can answer instead of doing as told.

use railyard_common::digest::Digest;
use railyard_common::path::RelPath;
use std::io;
use std::path::Path;

/// A cache operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No such upload: it was completed, aborted, or never begun.
    #[error("there is no upload {id}; ask for a new one")]
    UnknownUpload {
        /// As given.
        id: String,
    },
    /// Parts are missing or differ from what was reported.
    #[error("the upload is not complete: {why}")]
    Incomplete {
        /// Which part, and how.
        why: String,
    },
    /// The uploaded bytes are not those of the digest.
    #[error("the upload of {digest} is corrupt and was removed: {why}")]
    Corrupt {
        /// What it should have been.
        digest: Digest,
        /// What is wrong.
        why: String,
    },
    /// A conditional write found something else, or a published path has other bytes.
    #[error("{path} has other content already")]
    Conflict {
        /// The path.
        path: RelPath,
    },
    /// A blob that is needed is not there.
    #[error("the cache has no blob {digest}")]
    NoBlob {
        /// Its digest.
        digest: Digest,
    },
    /// The path cannot be used for this.
    #[error("{path} cannot be used: {why}")]
    BadPath {
        /// The path.
        path: String,
        /// Why not.
        why: String,
    },
    /// The request does not make sense.
    #[error("invalid request: {why}")]
    Invalid {
        /// What is wrong.
        why: String,
    },
    /// Above a limit.
    #[error("{what} has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// The thing.
        what: String,
        /// Its length.
        bytes: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// The cache's disk is full.
    #[error("the cache's disk is full: cannot {what}; free some space or sweep old builds")]
    DiskFull {
        /// What was tried.
        what: String,
    },
    /// A local file operation failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The object store failed.
    #[error("cannot {what}")]
    Store {
        /// What was tried, with the path.
        what: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The settings cannot work.
    #[error("the cache cannot be opened: {why}")]
    Config {
        /// What is wrong, and what to do.
        why: String,
    },
}

impl CacheError {
    /// A stable name, for metrics and outcomes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownUpload { .. } => "unknown-upload",
            Self::Incomplete { .. } => "incomplete",
            Self::Corrupt { .. } => "corrupt",
            Self::Conflict { .. } => "conflict",
            Self::NoBlob { .. } => "no-blob",
            Self::BadPath { .. } => "bad-path",
            Self::Invalid { .. } => "invalid",
            Self::TooLarge { .. } => "too-large",
            Self::DiskFull { .. } => "disk-full",
            Self::Io { .. } => "io",
            Self::Store { .. } => "store",
            Self::Config { .. } => "config",
        }
    }

    /// The error of a local operation, with the full disk told apart.
    pub(crate) fn local(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{what} {}", path.display());
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { what },
            _ => Self::Io { what, source },
        }
    }

    /// The error of an object store.
    pub(crate) fn store(what: &str, path: &RelPath) -> impl FnOnce(object_store::Error) -> Self {
        let what = format!("{what} {path}");
        move |source| Self::Store { what, source: source.into() }
    }
}
