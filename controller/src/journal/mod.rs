//! What has happened, durably: a snapshot and the events after it.
//!
//! **Invariant:** when [`Journal::append`] returns, its events survive a loss of power.

pub mod fuzz;
mod mark;
mod record;
mod room;
mod sled_journal;
mod sled_tail;
mod snapshot_file;
mod thread;

pub use sled_journal::SledJournal;
pub(crate) use sled_journal::is_in_use;
pub(crate) use thread::JournalThread;

use railyard_core::{Event, Farm, Snapshot};
use std::path::PathBuf;

/// Keeps events. One owner: the driver.
pub trait Journal: Send {
    /// Everything that was kept. Called once, before anything is appended, and again after a failed append: then it gives
    /// what was acknowledged before that, and of the failed append nothing.
    ///
    /// # Errors
    /// [`JournalError`]; the farm must not start then.
    fn load(&mut self) -> Result<Loaded, JournalError>;

    /// Keeps `events` after all earlier ones, all or none, durably.
    ///
    /// # Errors
    /// [`JournalError`]; nothing of `events` may be told to anybody.
    fn append(&mut self, events: &[Event]) -> Result<(), JournalError>;

    /// Whether the next append has room, as far as that can be seen without writing.
    ///
    /// # Errors
    /// [`JournalError`], for instance [`JournalError::NoRoom`].
    fn has_room(&mut self) -> Result<(), JournalError> {
        Ok(())
    }

    /// Whether there is room for one more append of a few events, although [`Journal::has_room`] refuses. Tried by a small
    /// durable write.
    ///
    /// # Errors
    /// [`JournalError`]; why there is none.
    fn has_last_room(&mut self) -> Result<(), JournalError> {
        self.ready()
    }

    /// After a refusal of [`Journal::has_room`] or a failed append: whether appends work again. Tried by a small durable write.
    ///
    /// # Errors
    /// [`JournalError`]; why they do not.
    fn ready(&mut self) -> Result<(), JournalError> {
        Ok(())
    }

    /// Whether the tail is long enough for a snapshot to pay.
    fn wants_snapshot(&self) -> bool;

    /// Replaces everything so far by `snapshot`.
    ///
    /// # Errors
    /// [`JournalError`]; what was kept before is still kept.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), JournalError>;

    /// Whether its calls wait for a disk. One that is only memory is called in place: without a thread in between, a
    /// simulation takes the same course each time.
    fn blocks(&self) -> bool {
        true
    }
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

/// The way out of a damaged journal.
const RESTORE: &str = "bring back a backup with `railyard controller restore --from FILE --data-dir DIR --force`, \
                       which moves the damaged data directory aside";

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
    #[error("record {record} of the journal {} is corrupt: {why}; {RESTORE}", path.display())]
    Corrupt {
        /// The database directory or the mark.
        path: PathBuf,
        /// Its number.
        record: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The snapshot is not what was written.
    #[error("the snapshot {} is corrupt: {why}{older}; {RESTORE}", path.display())]
    CorruptSnapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// Where the generation before it lies, if it does.
        older: String,
    },
    /// The database is damaged so that no record can be named.
    #[error("the journal database {} cannot be read: {why}; {RESTORE}", path.display())]
    Unreadable {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing is written any more, so that what is there stays known.
    #[error("the disk of {} has {} MiB free and {} MiB are needed", path.display(), free >> 20, wanted >> 20)]
    NoRoom {
        /// The journal's directory.
        path: PathBuf,
        /// Bytes.
        free: u64,
        /// Bytes.
        wanted: u64,
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

impl JournalError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::NoRoom { .. } => true,
            Self::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            _ => false,
        }
    }
}

/// A snapshot as the journal and backups keep it: a record.
pub(crate) fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    record::encode_large(snapshot)
}

/// What [`encode_snapshot`] made, here or in an earlier version. `path` is for messages.
pub(crate) fn decode_snapshot(bytes: &[u8], path: &std::path::Path) -> Result<Snapshot, JournalError> {
    snapshot_file::parse(bytes).map_err(|bad| match bad {
        record::BadRecord::TooNew(found) => {
            JournalError::TooNew { path: path.to_owned(), found, known: record::FORMAT }
        }
        record::BadRecord::Corrupt(why) => {
            JournalError::CorruptSnapshot { path: path.to_owned(), why, older: String::new() }
        }
    })
}
