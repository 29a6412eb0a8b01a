//! What can go wrong with bytes on their way.

use railyard_common::digest::Digest;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A transfer failed. URLs are shown without their query: that is where the signature is.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A local file that should be sent or read is not there.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The local disk is full.
    #[error("the disk is full: cannot write {}; free some space and try again", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// Another local error.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// "read", "write", …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was hashed.
    #[error("{} changed while it was sent: expected {expected} bytes, found {found}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its length when it was hashed.
        expected: u64,
        /// Its length now, or where reading ended.
        found: u64,
    },
    /// The file has the length that it had when it was hashed, and other bytes.
    #[error("{} changed while it was sent: what is read now is not what was hashed", path.display())]
    Rewritten {
        /// The file.
        path: PathBuf,
    },
    /// The ticket does not fit the blob.
    #[error("the upload ticket is unusable: {why}")]
    BadTicket {
        /// What is wrong with it.
        why: String,
    },
    /// The signed URL is too old. Ask for a new one.
    #[error("the signed URL {url} has expired; ask the controller for a new one")]
    Expired {
        /// Without its query.
        url: String,
    },
    /// The cache does not allow it.
    #[error("the cache refused {url} (HTTP {status}): {why}")]
    Denied {
        /// Without its query.
        url: String,
        /// 401 or 403.
        status: u16,
        /// What it said.
        why: String,
    },
    /// The cache does not have it: the object, or the upload that a part belongs to.
    #[error("the cache has no {url} (HTTP {status})")]
    Gone {
        /// Without its query.
        url: String,
        /// 404 or 410.
        status: u16,
    },
    /// The cache's disk is full.
    #[error("the cache's disk is full (HTTP 507 from {url}); free some space on the controller or sweep old builds")]
    CacheFull {
        /// Without its query.
        url: String,
    },
    /// The cache got other bytes than were sent.
    #[error("{url}: bytes were damaged on their way: {why}")]
    Damaged {
        /// Without its query.
        url: String,
        /// What the cache said.
        why: String,
    },
    /// The answer ended before its announced end.
    #[error("{url}: the answer ended after {got} of {expected} bytes")]
    Truncated {
        /// Without its query.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// Another answer than success.
    #[error("{url} answered HTTP {status}: {why}")]
    Status {
        /// Without its query.
        url: String,
        /// The status.
        status: u16,
        /// The start of the body.
        why: String,
    },
    /// What was pulled has another digest than asked for.
    #[error("{url} gave {found} instead of {expected}; the file was removed")]
    WrongDigest {
        /// Without its query.
        url: String,
        /// Asked for.
        expected: Digest,
        /// Got.
        found: Digest,
    },
    /// What was pulled has another length than asked for, or is not in the encoding that was promised.
    #[error("{url} is damaged: {why}; the file was removed")]
    Corrupt {
        /// Without its query.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// No byte moved for too long.
    #[error("{url}: no byte moved for {} s", after.as_secs_f32())]
    Stalled {
        /// Without its query.
        url: String,
        /// The limit.
        after: Duration,
    },
    /// The connection failed.
    #[error("{url}: the connection failed")]
    Network {
        /// Without its query.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
}

/// Bytes could not be moved between a file and the cache.
#[derive(Debug, thiserror::Error)]
pub enum MoveError<E> {
    /// They did not get through.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// There are no URLs.
    #[error("the farm gives no URL of the cache")]
    Urls(E),
}

impl TransferError {
    /// A stable name, for metrics and outcomes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not-found",
            Self::DiskFull { .. } => "disk-full",
            Self::Io { .. } => "io",
            Self::Changed { .. } | Self::Rewritten { .. } => "changed",
            Self::BadTicket { .. } => "bad-ticket",
            Self::Expired { .. } => "expired",
            Self::Denied { .. } => "denied",
            Self::Gone { .. } => "gone",
            Self::CacheFull { .. } => "cache-full",
            Self::Damaged { .. } => "damaged",
            Self::Truncated { .. } => "truncated",
            Self::Status { .. } => "status",
            Self::WrongDigest { .. } => "wrong-digest",
            Self::Corrupt { .. } => "corrupt",
            Self::Stalled { .. } => "stalled",
            Self::Network { .. } => "network",
        }
    }

    /// How long an object is behind whose end bytes were asked for, if the service says so in its error as Amazon's does.
    pub(crate) fn object_bytes(&self) -> Option<u64> {
        let Self::Status { status: 416, why, .. } = self else { return None };
        why.split_once("<ActualObjectSize>")?.1.split_once('<')?.0.parse().ok()
    }

    /// Whether the same request may succeed a moment later. A full cache may: somebody frees some space, or a sweep does.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::Truncated { .. }
            | Self::Stalled { .. }
            | Self::Network { .. }
            | Self::CacheFull { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 409 | 425 | 429 | 500 | 502..=599),
            _ => false,
        }
    }

    /// Whether what came is not what was asked for, and will not become it.
    pub(crate) fn is_bad_content(&self) -> bool {
        matches!(self, Self::WrongDigest { .. } | Self::Corrupt { .. })
    }

    /// Whether bytes came out other than they went in.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Truncated { .. })
    }

    /// The error of a local operation, with the full disk and the missing file told apart.
    pub(crate) fn local(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            io::ErrorKind::NotFound => Self::NotFound { path },
            _ => Self::Io { what, path, source },
        }
    }
}

/// A URL without its query, where the signature is.
pub(crate) fn bare(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or(url).to_owned()
}

/// Longest part of an error body that is read and shown.
const BODY_SHOWN_BYTES: usize = 2048;

/// The error in an answer that is not a success.
pub(crate) async fn refused(url: String, mut response: reqwest::Response) -> TransferError {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while body.len() < BODY_SHOWN_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(BODY_SHOWN_BYTES);
    let why = String::from_utf8_lossy(&body).trim().to_owned();
    match status {
        // Both backends put the word into the message; S3 has no code of its own for it.
        401 | 403 if why.contains("expired") => TransferError::Expired { url },
        400 if why.contains("ExpiredToken") => TransferError::Expired { url },
        401 | 403 => TransferError::Denied { url, status, why },
        404 | 410 => TransferError::Gone { url, status },
        507 => TransferError::CacheFull { url },
        400 if why.contains("BadDigest") => TransferError::Damaged { url, why },
        _ => TransferError::Status { url, status, why },
    }
}
