//! What has happened, durably: a snapshot and the events after it.
//!
//! **Invariant:** when [`Journal::append`] returns, its events survive a loss of power.

mod record;
mod sled_tail;
mod snapshot_file;
mod thread;

pub use sled_tail::SledJournal;
pub(crate) use thread::JournalThread;

use railyard_core::{Event, Farm, Snapshot};
use std::path::PathBuf;

/// Keeps events. One owner: the driver.
pub trait Journal: Send {
    /// Everything that was kept. Called once, before anything is appended, and again after a failed append.
    ///
    /// # Errors
    /// [`JournalError`]; the farm must not start then.
    fn load(&mut self) -> Result<Loaded, JournalError>;

    /// Keeps `events` after all earlier ones, all or none, durably.
    ///
    /// # Errors
    /// [`JournalError`]; nothing of `events` may be told to anybody.
    fn append(&mut self, events: &[Event]) -> Result<(), JournalError>;

    /// Whether the tail is long enough for a snapshot to pay.
    fn wants_snapshot(&self) -> bool;

    /// Replaces everything so far by `snapshot`.
    ///
    /// # Errors
    /// [`JournalError`]; what was kept before is still kept.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), JournalError>;
}

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The newest snapshot.
    pub snapshot: Option<Snapshot>,
    /// The events after it.
    pub events: Vec<Event>,
}

impl Loaded {
    /// The farm's state: the snapshot with the events applied.
    pub fn farm(self) -> Farm {
        let mut farm = self.snapshot.map(Farm::restore).unwrap_or_default();
        for event in &self.events {
            farm.apply(event);
        }
        farm
    }
}

/// The journal cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
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
    /// The embedded database refused.
    #[error("the journal database {} failed", path.display())]
    Database {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: sled::Error,
    },
    /// Another process has it open.
    #[error("another controller uses the journal {}; stop it, or give this one another data directory", path.display())]
    Locked {
        /// The database directory.
        path: PathBuf,
    },
    /// A record is not what was written.
    #[error("record {record} of the journal {} is corrupt: {why}; restore the data directory from a backup, or move this one aside to start empty", path.display())]
    Corrupt {
        /// The database directory or the snapshot file.
        path: PathBuf,
        /// Its number.
        record: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a newer version of this software.
    #[error("{} was written by a newer version (format {found}, this one reads up to {known}); upgrade the controller", path.display())]
    TooNew {
        /// The database directory or the snapshot file.
        path: PathBuf,
        /// Its format.
        found: u8,
        /// The newest that this version reads.
        known: u8,
    },
}
