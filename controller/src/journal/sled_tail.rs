//! The embedded journal: snapshots as files, and the tail of events in sled, a fresh sled directory for each snapshot.
//!
//! sled 0.34 flushes with `sync_file_range`, which does not reach the disk's own cache or the file's metadata
//! (spacejam/sled#1452), so an acked write could die with the power. Every append therefore syncs sled's own log file as well,
//! and any file that sled put beside it for a large value. sled also holds on to freed space: so nothing is ever removed from
//! a tail, and the whole directory goes when the next snapshot stands.
//!
//! **Invariant:** `snapshot-N` and `tail-N` together are the state; whatever has a smaller number is a leftover.

use super::record::{self, BadRecord};
use super::{Journal, JournalError, Loaded, snapshot_file};
use railyard_core::{Event, Snapshot};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Looks at a lock before it counts as another controller's, and the wait in between: 5 s in all. sled's own threads hold
/// a database for some milliseconds after it was dropped, and a reopen right then would fail.
const LOCK_LOOKS: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A snapshot pays when replaying the tail would take longer than a start should: some tenths of a second.
const SNAPSHOT_AFTER_BYTES: u64 = 32 * 1024 * 1024;

/// The journal of one controller, in a directory of its own.
pub struct SledJournal {
    dir: PathBuf,
    generation: u64,
    tail: Option<Tail>,
}

/// An open sled directory.
struct Tail {
    path: PathBuf,
    db: sled::Db,
    /// sled's log file, opened a second time only to sync it.
    log_file: File,
    /// Files for large values that have been synced.
    synced_values: BTreeSet<OsString>,
    next_record: u64,
    bytes: u64,
}

impl SledJournal {
    /// Opens the journal in `dir`, or makes a new one there.
    ///
    /// # Errors
    /// [`JournalError`], for instance when another controller has it open.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        fs::create_dir_all(dir).map_err(|source| JournalError::Io { what: "create", path: dir.to_owned(), source })?;
        let generation = snapshot_file::newest(dir)?;
        let mut journal = Self { dir: dir.to_owned(), generation, tail: None };
        journal.tail()?;
        Ok(journal)
    }

    fn tail_path(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("tail-{generation:08}"))
    }

    /// The tail of this generation, opened if it is not open.
    fn tail(&mut self) -> Result<&mut Tail, JournalError> {
        let tail = match self.tail.take() {
            Some(open) => open,
            None => {
                let opened = Tail::open(self.tail_path(self.generation))?;
                sync_dir(&self.dir)?;
                opened
            }
        };
        Ok(self.tail.insert(tail))
    }

    fn remove_older_than(&self, generation: u64) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().into_string().unwrap_or_default();
            let number = name.strip_prefix("tail-").or_else(|| name.strip_prefix("snapshot-"));
            let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) else { continue };
            if number < generation {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                if let Err(error) = removed {
                    tracing::warn!(path = %path.display(), %error, "an old part of the journal stays behind");
                }
            }
        }
    }
}

impl Journal for SledJournal {
    fn load(&mut self) -> Result<Loaded, JournalError> {
        let generation = self.generation;
        let snapshot = (generation > 0).then(|| snapshot_file::read(&self.dir, generation)).transpose()?;
        let events = self.tail()?.load()?;
        self.remove_older_than(generation);
        Ok(Loaded { snapshot, events })
    }

    fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        if self.tail.is_none() {
            // An earlier failure closed it; only a load knows where it ends.
            self.load()?;
        }
        let appended = self.tail()?.append(events);
        if appended.is_err() {
            // What is in memory and what is on disk may differ now: the next one reads it from disk.
            self.tail = None;
        }
        appended
    }

    fn wants_snapshot(&self) -> bool {
        self.tail.as_ref().is_some_and(|tail| tail.bytes > SNAPSHOT_AFTER_BYTES)
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), JournalError> {
        let next = self.generation + 1;
        snapshot_file::write(&self.dir, next, snapshot).inspect_err(|_| {
            // If it is there though it could not be synced, the next start must not take it for the newest.
            let path = snapshot_file::path(&self.dir, next);
            let removed = fs::remove_file(&path).map_or_else(gone_is_fine, |()| Ok(()));
            let removed = removed.and_then(|()| File::open(&self.dir)?.sync_all());
            if let Err(error) = removed {
                tracing::error!(path = %path.display(), %error, "a failed snapshot stays behind; remove it before the next start");
            }
        })?;
        self.generation = next;
        self.tail = None;
        self.tail()?;
        self.remove_older_than(self.generation);
        Ok(())
    }
}

/// Waits while somebody holds sled's lock on its log file; `false` if it is held still. sled itself tries only once.
fn is_free(log: &Path) -> bool {
    let Ok(file) = File::open(log) else { return true };
    for _ in 0..LOCK_LOOKS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            // Held by us for this moment only: dropping the file gives it back.
            Ok(()) | Err(TryLockError::Error(_)) => return true,
        }
    }
    false
}

impl Tail {
    fn open(path: PathBuf) -> Result<Self, JournalError> {
        let database = |source| JournalError::Database { path: path.clone(), source };
        if !is_free(&path.join("db")) {
            return Err(JournalError::Locked { path });
        }
        let db = sled::Config::new()
            .path(&path)
            .flush_every_ms(None)
            .mode(sled::Mode::HighThroughput)
            .open()
            .map_err(database)?;
        let log_path = path.join("db");
        let log_file = File::open(&log_path).map_err(|source| JournalError::Io {
            what: "open",
            path: log_path.clone(),
            source,
        })?;
        sync_tree(&path)?;
        Ok(Self { path, db, log_file, synced_values: BTreeSet::new(), next_record: 0, bytes: 0 })
    }

    fn corrupt(&self, record: u64, why: String) -> JournalError {
        JournalError::Corrupt { path: self.path.clone(), record, why }
    }

    fn load(&mut self) -> Result<Vec<Event>, JournalError> {
        let mut events = Vec::new();
        (self.next_record, self.bytes) = (0, 0);
        for entry in self.db.iter() {
            let (key, value) = entry.map_err(|source| JournalError::Database { path: self.path.clone(), source })?;
            let number = <[u8; 8]>::try_from(&*key).map(u64::from_be_bytes);
            let number =
                number.map_err(|_| self.corrupt(self.next_record, format!("its key {key:?} is not a number")))?;
            if number != self.next_record {
                return Err(self.corrupt(self.next_record, format!("it is missing; the next one there is {number}")));
            }
            let batch: Vec<Event> = record::decode(&value).map_err(|bad| match bad {
                BadRecord::TooNew(found) => {
                    JournalError::TooNew { path: self.path.clone(), found, known: record::FORMAT }
                }
                BadRecord::Corrupt(why) => self.corrupt(number, why),
            })?;
            events.extend(batch);
            self.next_record += 1;
            self.bytes += value.len() as u64;
        }
        Ok(events)
    }

    fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        let value = record::encode(&events);
        let bytes = value.len() as u64;
        let database = |source| JournalError::Database { path: self.path.clone(), source };
        self.db.insert(self.next_record.to_be_bytes(), value).map_err(database)?;
        self.db.flush().map_err(database)?;
        self.sync()?;
        self.next_record += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// What sled's own flush leaves out.
    fn sync(&mut self) -> Result<(), JournalError> {
        let values = self.path.join("blobs");
        let mut new = Vec::new();
        for entry in entries(&values)? {
            let name = entry.file_name();
            if !self.synced_values.contains(&name) {
                sync_file(&entry.path())?;
                new.push(name);
            }
        }
        if !new.is_empty() {
            sync_dir(&values)?;
            self.synced_values.extend(new);
        }
        self.log_file.sync_data().map_err(|source| JournalError::Io {
            what: "sync",
            path: self.path.join("db"),
            source,
        })
    }
}

/// What is in a directory; nothing, if it has not been made.
fn entries(path: &Path) -> Result<Vec<fs::DirEntry>, JournalError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries.collect(),
        Err(error) => gone_is_fine(error).map(|()| Vec::new()),
    };
    entries.map_err(|source| JournalError::Io { what: "list", path: path.to_owned(), source })
}

fn gone_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn sync_file(path: &Path) -> Result<(), JournalError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|source| JournalError::Io { what: "sync", path: path.to_owned(), source })
}

pub(super) fn sync_dir(path: &Path) -> Result<(), JournalError> {
    sync_file(path)
}

/// Syncs every file and directory below `path`, and `path` itself: a database that has just been made.
fn sync_tree(path: &Path) -> Result<(), JournalError> {
    for entry in entries(path)? {
        if entry.path().is_dir() {
            sync_tree(&entry.path())?;
        } else {
            sync_file(&entry.path())?;
        }
    }
    sync_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::time::Millis;
    use railyard_core::Farm;

    fn started(at: u64) -> Event {
        Event::ControllerStarted { at: Millis(at) }
    }

    fn times(events: &[Event]) -> Vec<u64> {
        let time = |event: &Event| match event {
            Event::ControllerStarted { at } => at.0,
            other => panic!("{other:?} was never written"),
        };
        events.iter().map(time).collect()
    }

    #[test]
    fn gives_back_what_it_was_given_also_after_snapshots() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = SledJournal::open(dir.path()).unwrap();
        assert!(journal.load().unwrap().events.is_empty());
        journal.append(&[started(1), started(2)]).unwrap();
        journal.append(&[started(3)]).unwrap();
        drop(journal);
        let mut journal = SledJournal::open(dir.path()).unwrap();
        assert_eq!(times(&journal.load().unwrap().events), [1, 2, 3]);
        journal.install(&Farm::default().snapshot()).unwrap();
        journal.append(&[started(4)]).unwrap();
        drop(journal);
        let mut journal = SledJournal::open(dir.path()).unwrap();
        let loaded = journal.load().unwrap();
        assert!(loaded.snapshot.is_some());
        assert_eq!(times(&loaded.events), [4]);
        let names: BTreeSet<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["snapshot-00000001", "tail-00000001"]);
    }

    #[test]
    fn a_missing_or_altered_record_stops_the_start_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = SledJournal::open(dir.path()).unwrap();
        for at in 0..4 {
            journal.append(&[started(at)]).unwrap();
        }
        let tail = journal.tail.as_ref().unwrap();
        let second = tail.db.remove(1u64.to_be_bytes()).unwrap().unwrap();
        let message = journal.load().unwrap_err().to_string();
        assert!(message.contains("record 1") && message.contains("restore"), "{message}");
        let mut altered = second.to_vec();
        *altered.last_mut().unwrap() ^= 1;
        journal.tail.as_ref().unwrap().db.insert(1u64.to_be_bytes(), altered).unwrap();
        let message = journal.load().unwrap_err().to_string();
        assert!(message.contains("record 1") && message.contains("checksum"), "{message}");
    }

    #[test]
    fn a_large_record_comes_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = SledJournal::open(dir.path()).unwrap();
        let many: Vec<Event> = (0..60_000).map(started).collect();
        journal.append(&many).unwrap();
        journal.append(&[started(7)]).unwrap();
        drop(journal);
        let mut journal = SledJournal::open(dir.path()).unwrap();
        assert_eq!(journal.load().unwrap().events.len(), 60_001);
    }

    #[test]
    fn a_second_controller_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SledJournal::open(dir.path()).unwrap();
        assert!(matches!(SledJournal::open(dir.path()), Err(JournalError::Locked { .. })));
    }
}
