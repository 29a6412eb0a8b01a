//! Why a container's own directory did not become a layer.

use crate::disk::DiskError;
use std::path::{Path, PathBuf};

/// Why a container's own directory did not become a layer.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Only the engine itself can make sense of it.
    #[error("{} has {what}, of which only the engine makes a layer", path.display())]
    Foreign {
        /// Below the container's root.
        path: PathBuf,
        /// What is foreign there.
        what: String,
    },
    /// No layer can have it.
    #[error("/{} cannot be in an image: {why}", path.display())]
    Unfit {
        /// Below the container's root.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Something changed it while it was read.
    #[error("{} changed while it was packed", path.display())]
    Changed {
        /// Below the container's root.
        path: PathBuf,
    },
    /// Nobody waits for it any more.
    #[error("nobody wants the layer any more")]
    Unwanted,
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl PackError {
    /// For `map_err`.
    pub(super) fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + use<'a> {
        move |error| Self::Disk(DiskError::at(doing, path)(error))
    }
}
