//! What stands in the way of a build's end, for good or for now.

use crate::cache::CacheError;
use railyard_service::error_chain;
use std::io::ErrorKind;

/// Why a build cannot be written out.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another try would meet the same: the build ends with this error. A retry of the build writes it out again.
    ForGood(String),
    /// The cache may get over it.
    ForNow(CacheError),
    /// The controller is stopping.
    Stopping,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ForGood(why) => f.write_str(why),
            Self::ForNow(error) => f.write_str(&error_chain(error)),
            Self::Stopping => f.write_str("the controller is stopping"),
        }
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        if lasts(&error) { Self::ForGood(error_chain(&error)) } else { Self::ForNow(error) }
    }
}

/// Whether the error lies in what was asked, not in the state of disks, networks and servers.
fn lasts(error: &CacheError) -> bool {
    match error {
        CacheError::Conflict { .. }
        | CacheError::BadPath { .. }
        | CacheError::NoBlob { .. }
        | CacheError::TooLarge { .. }
        | CacheError::Invalid { .. }
        | CacheError::Corrupt { .. } => true,
        // A file stands where a directory is needed, or the other way round.
        CacheError::Io { source, .. } => matches!(
            source.kind(),
            ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
                | ErrorKind::AlreadyExists
                | ErrorKind::DirectoryNotEmpty
                | ErrorKind::InvalidFilename
        ),
        CacheError::UnknownUpload { .. }
        | CacheError::Incomplete { .. }
        | CacheError::DiskFull { .. }
        | CacheError::Store { .. }
        | CacheError::Config { .. } => false,
    }
}
