//! How many records of a tail have been acknowledged, kept beside sled.
//!
//! When sled finds a bad checksum in its own file it drops that place and everything after it without a word. A torn write
//! that nobody was told of looks the same to it as acknowledged records that a bad disk has eaten. The mark tells the two
//! apart: fewer records than it says are a loss, and more are those that were written while it was on its way.
//!
//! It follows the records, at most one behind: its sync runs while the next record is written ([`Follower`]), and is there a
//! moment after the last one. So what could be lost unseen is the last acknowledged record alone, if the power fails in the
//! very milliseconds after its sync and the disk spoils just that, though it said it was safe.
//!
//! The file has two slots of a page each, written in turn, so that a torn write spoils at most the one that is not needed.

use super::JournalError;
use crate::private;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Begins every slot.
const MAGIC: [u8; 8] = *b"RYMARK01";
/// A slot begins at a multiple of this: no disk tears a write of one page into another page.
const SLOT_BYTES: u64 = 4096;
/// Magic, generation, records, sum and the checksum of these.
const USED_BYTES: usize = 8 + 8 + 8 + 4 + 4;

/// What is acknowledged of a tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Acked {
    /// Records.
    pub(super) records: u64,
    /// A checksum over all of them, in order.
    pub(super) sum: u32,
}

impl Acked {
    /// One record more.
    pub(super) fn and(self, record: &[u8]) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.sum.to_le_bytes());
        hasher.update(record);
        Self { records: self.records + 1, sum: hasher.finalize() }
    }
}

/// An open mark.
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    generation: u64,
}

/// What was found in the place of a mark.
pub(super) enum Found {
    /// No file: an older version wrote the tail, or there is none yet.
    Nothing,
    /// A mark.
    Mark(Mark, Acked),
}

/// Where the mark of a generation lies.
pub(super) fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("mark-{generation:08}"))
}

impl Mark {
    /// Makes a mark; the directory's entry is left to the caller to sync.
    pub(super) fn create(dir: &Path, generation: u64, acked: Acked) -> Result<Self, JournalError> {
        let path = path(dir, generation);
        let file = private::file().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|source| JournalError::Io { what: "create", path: path.clone(), source })?;
        let mark = Self { path, file, generation };
        mark.reset(acked)?;
        Ok(mark)
    }

    /// Opens the mark of a generation, if there is one.
    pub(super) fn open(dir: &Path, generation: u64) -> Result<Found, JournalError> {
        let path = path(dir, generation);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => return Err(JournalError::Io { what: "open", path, source }),
        };
        let mark = Self { path, file, generation };
        let slots = [mark.read(0)?, mark.read(1)?];
        match slots.into_iter().flatten().max_by_key(|acked| acked.records) {
            Some(acked) => Ok(Found::Mark(mark, acked)),
            None => Err(JournalError::Corrupt {
                path: mark.path,
                record: 0,
                why: "neither of its two slots says how many records are acknowledged".to_owned(),
            }),
        }
    }

    fn read(&self, slot: u64) -> Result<Option<Acked>, JournalError> {
        let mut bytes = [0; USED_BYTES];
        match self.file.read_exact_at(&mut bytes, slot * SLOT_BYTES) {
            Ok(()) => Ok(decode(&bytes, self.generation)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(source) => Err(JournalError::Io { what: "read", path: self.path.clone(), source }),
        }
    }

    /// Writes that so much is acknowledged, durably.
    pub(super) fn set(&self, acked: Acked) -> Result<(), JournalError> {
        self.write(acked.records % 2, acked)?;
        self.sync()
    }

    /// Writes both slots: nothing that was written before counts any more.
    pub(super) fn reset(&self, acked: Acked) -> Result<(), JournalError> {
        self.write(0, acked)?;
        self.write(1, acked)?;
        self.sync()
    }

    fn write(&self, slot: u64, acked: Acked) -> Result<(), JournalError> {
        let mut page = [0; SLOT_BYTES as usize];
        page[..USED_BYTES].copy_from_slice(&encode(acked, self.generation));
        let written = self.file.write_all_at(&page, slot * SLOT_BYTES);
        written.map_err(|source| JournalError::Io { what: "write", path: self.path.clone(), source })
    }

    fn sync(&self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|source| JournalError::Io { what: "sync", path: self.path.clone(), source })
    }
}

/// A mark that is written on a thread of its own.
pub(super) struct Follower {
    /// `None` only while it is dropped.
    work: Option<mpsc::SyncSender<Acked>>,
    done: mpsc::Receiver<Result<(), JournalError>>,
    /// Marks that were sent there and of which nothing was heard: none or one.
    underway: bool,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Gives the mark its thread.
    pub(super) fn start(mark: Mark) -> Result<Self, JournalError> {
        let (work, orders) = mpsc::sync_channel::<Acked>(1);
        let (tell, done) = mpsc::sync_channel(1);
        let path = mark.path.clone();
        let follow = move || {
            for acked in orders {
                // Whoever waited is gone when the journal is closed.
                let _ = tell.send(mark.set(acked));
            }
        };
        let thread = std::thread::Builder::new().name("journal-mark".to_owned()).spawn(follow);
        let thread = thread.map_err(|source| JournalError::Io { what: "start the thread of", path, source })?;
        Ok(Self { work: Some(work), done, underway: false, thread: Some(thread) })
    }

    /// Has it written that so much is acknowledged, when what was to be written before is; a failure of that is told here.
    pub(super) fn follow(&mut self, acked: Acked) -> Result<(), JournalError> {
        self.settle()?;
        let work = self.work.as_ref().expect("it is not being dropped");
        work.send(acked).expect("the mark's thread does not panic");
        self.underway = true;
        Ok(())
    }

    /// Waits until what was to be written is durable.
    pub(super) fn settle(&mut self) -> Result<(), JournalError> {
        if !std::mem::take(&mut self.underway) {
            return Ok(());
        }
        self.done.recv().expect("the mark's thread does not panic")
    }
}

/// What was to be written is, when the journal is closed.
impl Drop for Follower {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn encode(acked: Acked, generation: u64) -> [u8; USED_BYTES] {
    let mut bytes = [0; USED_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    bytes[16..24].copy_from_slice(&acked.records.to_le_bytes());
    bytes[24..28].copy_from_slice(&acked.sum.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..28]);
    bytes[28..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; USED_BYTES], generation: u64) -> Option<Acked> {
    let number = |from: usize| Some(u64::from_le_bytes(bytes[from..from + 8].try_into().ok()?));
    let sum = |from: usize| Some(u32::from_le_bytes(bytes[from..from + 4].try_into().ok()?));
    let whole = sum(28)? == crc32fast::hash(&bytes[..28]) && bytes[..8] == MAGIC && number(8)? == generation;
    whole.then_some(Acked { records: number(16)?, sum: sum(24)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(dir: &Path) -> Option<Acked> {
        match Mark::open(dir, 3) {
            Ok(Found::Mark(_, acked)) => Some(acked),
            Ok(Found::Nothing) => panic!("the mark is there"),
            Err(_) => None,
        }
    }

    #[test]
    fn a_torn_or_flipped_slot_costs_at_most_the_last_step() {
        let dir = tempfile::tempdir().unwrap();
        let mark = Mark::create(dir.path(), 3, Acked::default()).unwrap();
        let (one, two) = (Acked::default().and(b"a"), Acked::default().and(b"a").and(b"b"));
        mark.set(one).unwrap();
        mark.set(two).unwrap();
        assert_eq!(found(dir.path()), Some(two));
        let whole = std::fs::read(&mark.path).unwrap();
        for at in (0..USED_BYTES).chain(SLOT_BYTES as usize..SLOT_BYTES as usize + USED_BYTES) {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            std::fs::write(&mark.path, bad).unwrap();
            assert_eq!(found(dir.path()), Some(if at < USED_BYTES { one } else { two }), "byte {at}");
        }
        std::fs::write(&mark.path, vec![0; whole.len()]).unwrap();
        assert_eq!(found(dir.path()), None);
    }
}
