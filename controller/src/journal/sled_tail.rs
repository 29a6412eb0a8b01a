//! A tail of records in a sled directory of its own.
//!
//! sled 0.34 flushes with `sync_file_range`, which does not reach the disk's own cache or the file's metadata
//! (spacejam/sled#1452), so an acked write could die with the power. Every append therefore syncs sled's own log file as well,
//! and any file that sled put beside it for a large value.
//!
//! sled recovers by itself: at a bad checksum it drops that place and what comes after it, and overwrites the rest of its
//! segment. Some damage makes it panic. So its log file is read before it is opened, and put back as it was when the tail turns
//! out to be damaged; a panic becomes an error; and how many records there must be is known from the mark beside it.

use super::JournalError;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Looks at a lock before it counts as another controller's, and the wait in between: 5 s in all. sled's own threads hold
/// a database for some milliseconds after it was dropped, and a reopen right then would fail.
const LOCK_LOOKS: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// An open sled directory.
pub(super) struct Tail {
    path: PathBuf,
    db: sled::Db,
    /// sled's log file, opened a second time only to sync it.
    log_file: File,
    /// Files for large values that have been synced.
    synced_values: BTreeSet<OsString>,
}

/// What a sled directory held when it was opened.
pub(super) struct Opened {
    pub(super) tail: Tail,
    /// The records from number 0 on, as far as there is no gap.
    pub(super) records: Vec<Vec<u8>>,
    /// The first number after a gap.
    pub(super) after_gap: Option<u64>,
    /// sled's log file as it was before.
    pub(super) before: Before,
}

impl Opened {
    /// Closes the database and leaves its file as it was found.
    pub(super) fn undo(self) {
        drop(self.tail);
        self.before.put_back();
    }
}

/// sled's log file before sled had it.
pub(super) struct Before {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Before {
    fn read(path: PathBuf) -> Result<Self, JournalError> {
        match fs::read(&path) {
            Ok(bytes) => Ok(Self { path, bytes }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { path, bytes: Vec::new() }),
            Err(source) => Err(JournalError::Io { what: "read", path, source }),
        }
    }

    /// Whether sled has cut something off its end that somebody wrote.
    pub(super) fn was_cut(&self) -> bool {
        let Ok(now) = fs::read(&self.path) else { return false };
        // What sled fills a segment up with is one byte, again and again; it means nothing.
        let filled = |bytes: &[u8]| bytes.windows(2).all(|pair| pair[0] == pair[1]);
        let common = self.bytes.iter().zip(&now).take_while(|(before, after)| before == after).count();
        self.bytes.get(common..).is_some_and(|rest| !filled(rest))
    }

    /// Writes it back: whoever is to look into the damage finds it as it was, and so does the next start.
    ///
    /// The database must have been dropped; sled still writes for a moment after that.
    pub(super) fn put_back(&self) {
        is_free(&self.path);
        let put = || {
            let file = OpenOptions::new().write(true).open(&self.path)?;
            file.write_all_at(&self.bytes, 0)?;
            file.set_len(self.bytes.len() as u64)?;
            file.sync_all()
        };
        if !self.bytes.is_empty()
            && let Err(error) = put()
        {
            tracing::warn!(path = %self.path.display(), %error, "the damaged journal file is not as it was found");
        }
    }
}

/// Runs what sled may panic in; its message goes to stderr by the way.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, JournalError>) -> Result<T, JournalError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(JournalError::Unreadable { path: path.to_owned(), why: format!("sled gave up: {words}") })
    })
}

/// Waits while somebody holds sled's lock on its log file; `false` if it is held still. sled itself tries only once.
pub(super) fn is_free(log: &Path) -> bool {
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

/// Whether somebody holds the directory's lock at this moment.
pub(super) fn is_locked(path: &Path) -> bool {
    File::open(path.join("db")).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

impl Tail {
    /// Opens the directory, or makes it, and reads it.
    pub(super) fn open(path: &Path) -> Result<Opened, JournalError> {
        let log_path = path.join("db");
        if !is_free(&log_path) {
            return Err(JournalError::Locked { path: path.to_owned() });
        }
        let before = Before::read(log_path.clone())?;
        let opened = guarded(path, || {
            let (tail, (records, after_gap)) = Self::open_db(path, &log_path).and_then(|tail| {
                let read = tail.read()?;
                Ok((tail, read))
            })?;
            Ok((tail, records, after_gap))
        });
        match opened {
            Ok((tail, records, after_gap)) => Ok(Opened { tail, records, after_gap, before }),
            Err(error) => {
                if matches!(error, JournalError::Unreadable { .. }) {
                    before.put_back();
                }
                Err(error)
            }
        }
    }

    fn open_db(path: &Path, log_path: &Path) -> Result<Self, JournalError> {
        let db = sled::Config::new().path(path).flush_every_ms(None).mode(sled::Mode::HighThroughput).open();
        let db = db.map_err(|error| database(path, error))?;
        let log_file = File::open(log_path);
        let log_file =
            log_file.map_err(|source| JournalError::Io { what: "open", path: log_path.to_owned(), source })?;
        sync_tree(path)?;
        Ok(Self { path: path.to_owned(), db, log_file, synced_values: BTreeSet::new() })
    }

    fn read(&self) -> Result<(Vec<Vec<u8>>, Option<u64>), JournalError> {
        let mut records = Vec::new();
        for entry in self.db.iter() {
            let (key, value) = entry.map_err(|error| database(&self.path, error))?;
            let number = <[u8; 8]>::try_from(&*key).map(u64::from_be_bytes);
            let number = number.map_err(|_| JournalError::Corrupt {
                path: self.path.clone(),
                record: records.len() as u64,
                why: format!("its key {key:?} is not a number"),
            })?;
            if number != records.len() as u64 {
                return Ok((records, Some(number)));
            }
            records.push(value.to_vec());
        }
        Ok((records, None))
    }

    /// Keeps a record under its number, durably.
    pub(super) fn put(&mut self, number: u64, record: &[u8]) -> Result<(), JournalError> {
        let path = self.path.clone();
        guarded(&path, || {
            self.db.insert(number.to_be_bytes(), record).map_err(|error| database(&path, error))?;
            self.flush()
        })
    }

    /// Takes away every record from `number` on, durably.
    pub(super) fn cut(&mut self, number: u64) -> Result<(), JournalError> {
        let path = self.path.clone();
        guarded(&path, || {
            for key in self.db.range(number.to_be_bytes()..).keys() {
                let key = key.map_err(|error| database(&path, error))?;
                self.db.remove(key).map_err(|error| database(&path, error))?;
            }
            self.flush()
        })
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        self.db.flush().map_err(|error| database(&self.path, error))?;
        self.sync()
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

fn database(path: &Path, error: sled::Error) -> JournalError {
    match error {
        sled::Error::Io(source) => JournalError::Io { what: "use the database", path: path.to_owned(), source },
        sled::Error::Corruption { .. } | sled::Error::Unsupported(_) => {
            JournalError::Unreadable { path: path.to_owned(), why: error.to_string() }
        }
        source => JournalError::Database { path: path.to_owned(), source },
    }
}

/// What is in a directory; nothing, if it has not been made.
fn entries(path: &Path) -> Result<Vec<fs::DirEntry>, JournalError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    entries.map_err(|source| JournalError::Io { what: "list", path: path.to_owned(), source })
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
