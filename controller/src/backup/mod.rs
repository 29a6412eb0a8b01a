//! Backups of a controller: one file with the farm's state and its keys.
//!
//! ```text
//! take ─► from a running controller by rpc, else from its journal   ─► Backup ─► write: one file, 0600, at once or not at all
//! restore: read, verify ─► DATA/restoring ─► journal, pki, secrets, client.toml in their places, the old ones aside
//! ```
//!
//! The state travels by rpc; keys do not: they are read from the data directory, by whoever may read it.
//!
//! **Invariant:** a restore touches nothing before the whole backup is verified, and deletes nothing.

mod file;
mod restore;
mod take;

pub use file::{About, Backup, read, write};
pub use restore::{Restored, check_finished, restore};
pub use take::{fetch, is_running, offline};

use crate::journal::JournalError;
use std::path::PathBuf;

/// A backup cannot be made, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a backup, or not what was written.
    #[error("{} is not a whole backup: {why}; take another one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a newer version of this software.
    #[error("{} was written by a newer version (format {found}, this one reads up to {known}); use that one's railyard", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that this version reads.
        known: u32,
    },
    /// There is no farm in the directory.
    #[error("{} is not the data of a controller: it has no {missing}", path.display())]
    NoFarm {
        /// The data directory.
        path: PathBuf,
        /// What should be there.
        missing: &'static str,
    },
    /// Something is there already.
    #[error("{} is not empty; with --force its journal and keys are moved aside, into a directory in it", path.display())]
    NotEmpty {
        /// The data directory.
        path: PathBuf,
    },
    /// A controller is running there.
    #[error("a controller runs on {}; stop it first", path.display())]
    Running {
        /// The data directory.
        path: PathBuf,
    },
    /// A restore was cut off.
    #[error("a restore into {} was not finished; run `railyard controller restore` again, with --force", path.display())]
    Unfinished {
        /// The data directory.
        path: PathBuf,
    },
    /// The controller does not give its state.
    #[error("the running controller does not give its state")]
    Refused(#[source] Box<tonic::Status>),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl BackupError {
    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
