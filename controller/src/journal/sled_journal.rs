//! The embedded journal: snapshots as files, and the tail of events in sled, a fresh sled directory for each snapshot.
//!
//! ```text
//! snapshot-00000002   the state when generation 2 began
//! tail-00000002/      the records since then, in sled
//! mark-00000002       how many of them are acknowledged, at most one behind
//! reserve             room for a start on a full disk
//! ```
//!
//! sled holds on to freed space: so a tail only grows, and the whole directory goes with its generation. The generation before
//! the newest stays: its snapshot and its whole tail are the newest snapshot's state once more.
//!
//! What is acknowledged of the tail is kept in memory as well. After a failed append the state is read from there: the disk that
//! has just failed, or is full, is not asked.
//!
//! **Invariant:** `snapshot-N` and the whole records of `tail-N`, which are at least those that `mark-N` counts, are the state,
//! for the largest N.

use super::mark::{Acked, Follower, Found, Mark};
use super::record::{self, BadRecord};
use super::room::Room;
use super::sled_tail::{Opened, Tail, sync_dir};
use super::{Journal, JournalError, Loaded, sled_tail, snapshot_file};
use crate::private;
use railyard_core::{Event, Snapshot};
use std::fs;
use std::path::{Path, PathBuf};

/// A snapshot pays when replaying the tail would take longer than a start should: some tenths of a second.
const SNAPSHOT_AFTER_BYTES: u64 = 32 * 1024 * 1024;
/// And when the tail is this part of the last snapshot: a big farm would otherwise spend its time on writing out, again and
/// again, what has not changed.
const SNAPSHOT_PARTS: u64 = 4;

/// Generations that are kept besides the newest.
const OLDER_GENERATIONS: u64 = 1;

/// The journal of one controller, in a directory of its own.
pub struct SledJournal {
    dir: PathBuf,
    generation: u64,
    /// The length of the generation's snapshot, as JSON.
    snapshot_bytes: u64,
    kept: Kept,
    /// `None` after a failure: what sled has in memory and what is on the disk may differ then.
    tail: Option<(Tail, Follower)>,
    room: Room,
}

/// The acknowledged records of the tail.
#[derive(Default)]
struct Kept {
    records: Vec<Vec<u8>>,
    acked: Acked,
    /// The length of their JSON: reading that is what a start waits for.
    json_bytes: u64,
}

impl Kept {
    fn push(&mut self, record: Vec<u8>, json_bytes: u64) {
        self.acked = self.acked.and(&record);
        self.json_bytes += json_bytes;
        self.records.push(record);
    }
}

impl SledJournal {
    /// Opens the journal in `dir`, or makes a new one there.
    ///
    /// # Errors
    /// [`JournalError`], for instance when another controller has it open, or when acknowledged records are damaged.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        private::make_dir(dir).map_err(|source| JournalError::Io { what: "create", path: dir.to_owned(), source })?;
        let generation = snapshot_file::newest(dir)?;
        let (kept, room) = (Kept::default(), Room::new(dir));
        let snapshot_bytes = snapshot_file::json_bytes(dir, generation);
        let mut journal = Self { dir: dir.to_owned(), generation, snapshot_bytes, kept, tail: None, room };
        journal.check_generations()?;
        match journal.start() {
            Err(error) if error.is_full() && journal.room.give_reserve() => {
                tracing::warn!(%error, "the disk is full; the journal's reserve is given away to open it");
                journal.start()?;
            }
            started => started?,
        }
        Ok(journal)
    }

    /// A tail without its snapshot would be taken for a leftover, and an older state for the newest.
    fn check_generations(&self) -> Result<(), JournalError> {
        let newest = numbers(&self.dir)?.into_iter().max().unwrap_or(0);
        if newest > self.generation {
            let path = snapshot_file::path(&self.dir, newest);
            let why = "it is missing, though its tail is there".to_owned();
            return Err(self.bad_snapshot(path, newest, why));
        }
        Ok(())
    }

    fn bad_snapshot(&self, path: PathBuf, generation: u64, why: String) -> JournalError {
        let older = generation.checked_sub(1).filter(|older| self.tail_path(*older).exists());
        let older = older.map_or_else(String::new, |older| {
            let tail = self.tail_path(older);
            format!("; the generation before it is still in {}, without what came after", tail.display())
        });
        JournalError::CorruptSnapshot { path, why, older }
    }

    fn tail_path(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("tail-{generation:08}"))
    }

    /// Opens the tail for the first time: every acknowledged record must be there, and what was written behind them without being
    /// acknowledged is taken if it is whole.
    fn start(&mut self) -> Result<(), JournalError> {
        let path = self.tail_path(self.generation);
        let (mark, acked) = match Mark::open(&self.dir, self.generation)? {
            Found::Mark(mark, acked) => (Some(mark), Some(acked)),
            // The mark comes first: were the power to fail here, an empty tail would be taken for one without a mark.
            Found::Nothing if !path.exists() => {
                let mark = Mark::create(&self.dir, self.generation, Acked::default())?;
                sync_dir(&self.dir)?;
                (Some(mark), Some(Acked::default()))
            }
            Found::Nothing => (None, None),
        };
        let opened = Tail::open(&path)?;
        let kept = match examine(&path, &opened, acked) {
            Ok(kept) => kept,
            Err(error) => {
                opened.undo();
                return Err(error);
            }
        };
        let Opened { mut tail, records, after_gap, before } = opened;
        let found = records.len() as u64;
        let known = acked.map_or(found, |acked| acked.records);
        if kept.acked.records < found || after_gap.is_some() {
            tracing::warn!(
                journal = %path.display(),
                record = kept.acked.records,
                "the journal's last record was never finished or acknowledged; it is cut off"
            );
            tail.cut(kept.acked.records)?;
        } else if before.was_cut() {
            tracing::warn!(
                journal = %path.display(),
                records = found,
                "the journal ended in a torn write that was never acknowledged; it is cut off, every acknowledged record is there"
            );
        }
        let mark = match mark {
            Some(mark) => mark,
            // An older version's tail: from here on it is counted.
            None => Mark::create(&self.dir, self.generation, kept.acked)?,
        };
        if known != kept.acked.records {
            mark.reset(kept.acked)?;
        }
        sync_dir(&self.dir)?;
        (self.kept, self.tail) = (kept, Some((tail, Follower::start(mark)?)));
        Ok(())
    }

    /// The open tail. After a failure it is opened anew, and whatever of the failed append reached the disk is taken away.
    fn tail(&mut self) -> Result<&mut (Tail, Follower), JournalError> {
        let open = match self.tail.take() {
            Some(open) => open,
            None => self.reopen()?,
        };
        Ok(self.tail.insert(open))
    }

    fn reopen(&self) -> Result<(Tail, Follower), JournalError> {
        let path = self.tail_path(self.generation);
        let acked = self.kept.acked;
        // Before sled: a tail is never there without its mark.
        let mark = match Mark::open(&self.dir, self.generation)? {
            Found::Mark(mark, _) => mark,
            Found::Nothing => Mark::create(&self.dir, self.generation, acked)?,
        };
        // Nothing but this is acknowledged, whatever the failed append has left there.
        mark.reset(acked)?;
        sync_dir(&self.dir)?;
        let opened = Tail::open(&path)?;
        let pairs = opened.records.iter().zip(&self.kept.records);
        let common = pairs.take_while(|(found, kept)| found == kept).count() as u64;
        if common < acked.records {
            opened.undo();
            return Err(missing(&path, common, acked.records));
        }
        let Opened { mut tail, records, after_gap, .. } = opened;
        if records.len() as u64 > acked.records || after_gap.is_some() {
            tail.cut(acked.records)?;
        }
        sync_dir(&self.dir)?;
        Ok((tail, Follower::start(mark)?))
    }

    fn remove_older_than(&self, generation: u64) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            if number_of(&path).is_some_and(|number| number < generation) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                if let Err(error) = removed {
                    tracing::warn!(path = %path.display(), %error, "an old part of the journal stays behind");
                }
            }
        }
    }

    fn append_record(&mut self, record: &[u8]) -> Result<(), JournalError> {
        let acked = self.kept.acked;
        let (tail, mark) = self.tail()?;
        tail.put(acked.records, record)?;
        mark.follow(acked.and(record))
    }

    /// Whether a small durable write works; what fails is opened anew.
    fn settle(&mut self) -> Result<(), JournalError> {
        let acked = self.kept.acked;
        let tried = self.tail().and_then(|(_, mark)| {
            mark.follow(acked)?;
            mark.settle()
        });
        if tried.is_err() {
            self.tail = None;
        }
        tried
    }
}

/// Whether a controller has the journal in `dir` open now.
pub(crate) fn is_in_use(dir: &Path) -> bool {
    let Ok(newest) = snapshot_file::newest(dir) else { return false };
    sled_tail::is_locked(&dir.join(format!("tail-{newest:08}")))
}

/// The generation that a part of the journal belongs to.
fn number_of(path: &Path) -> Option<u64> {
    let (part, number) = path.file_name()?.to_str()?.split_once('-')?;
    ["snapshot", "tail", "mark"].contains(&part).then(|| number.parse().ok())?
}

fn numbers(dir: &Path) -> Result<Vec<u64>, JournalError> {
    let list = || fs::read_dir(dir)?.map(|entry| Ok(number_of(&entry?.path()))).collect::<std::io::Result<Vec<_>>>();
    let numbers = list().map_err(|source| JournalError::Io { what: "list", path: dir.to_owned(), source })?;
    Ok(numbers.into_iter().flatten().collect())
}

fn missing(path: &Path, found: u64, acked: u64) -> JournalError {
    let why = format!("{acked} records were acknowledged and only the first {found} are there as they were written");
    JournalError::Corrupt { path: path.to_owned(), record: found, why }
}

/// The records to go on with. All that are acknowledged must be as they were written.
fn examine(path: &Path, opened: &Opened, acked: Option<Acked>) -> Result<Kept, JournalError> {
    let corrupt = |record, why| JournalError::Corrupt { path: path.to_owned(), record, why };
    let found = opened.records.len() as u64;
    let known = match acked {
        Some(acked) => acked.records,
        // No mark: an older version counted nothing, and a gap is all that can be seen.
        None => match opened.after_gap {
            Some(next) => return Err(corrupt(found, format!("it is missing; the next one there is {next}"))),
            None => found,
        },
    };
    if found < known {
        return Err(missing(path, found, known));
    }
    let mut kept = Kept::default();
    for (number, value) in (0..).zip(&opened.records) {
        // Only that it is whole: it is parsed once, by a load.
        let whole = match record::check(value) {
            Ok(whole) => whole,
            Err(BadRecord::TooNew(found)) => {
                return Err(JournalError::TooNew { path: path.to_owned(), found, known: record::FORMAT });
            }
            // A record is written when the one before it is acknowledged, whatever the mark says.
            Err(BadRecord::Corrupt(why)) if number < known || number + 1 < found => return Err(corrupt(number, why)),
            // It was never acknowledged.
            Err(BadRecord::Corrupt(_)) => break,
        };
        if acked.is_none() && whole.format() >= record::FIRST_WITH_MARK {
            return Err(corrupt(number, "the mark that counts the records is missing".to_owned()));
        }
        kept.push(value.clone(), whole.json_bytes());
        if acked.is_some_and(|acked| acked.records == number + 1 && acked != kept.acked) {
            return Err(corrupt(
                number,
                "it is not the record that was acknowledged, or one before it is not".to_owned(),
            ));
        }
    }
    Ok(kept)
}

impl Journal for SledJournal {
    fn load(&mut self) -> Result<Loaded, JournalError> {
        let generation = self.generation;
        let snapshot = (generation > 0).then(|| snapshot_file::read(&self.dir, generation)).transpose();
        let snapshot = snapshot.map_err(|error| match error {
            JournalError::Corrupt { path, record, why } => self.bad_snapshot(path, record, why),
            other => other,
        })?;
        let mut events = Vec::new();
        for (number, value) in (0..).zip(&self.kept.records) {
            let path = || self.tail_path(generation);
            let batch: Vec<Event> = record::decode(value).map_err(|bad| match bad {
                BadRecord::Corrupt(why) => JournalError::Corrupt { path: path(), record: number, why },
                BadRecord::TooNew(found) => JournalError::TooNew { path: path(), found, known: record::FORMAT },
            })?;
            events.extend(batch);
        }
        self.remove_older_than(generation.saturating_sub(OLDER_GENERATIONS));
        Ok(Loaded { snapshot, events })
    }

    fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        let (record, json_bytes) = record::encode(&events);
        match self.append_record(&record) {
            Ok(()) => {
                self.kept.push(record, json_bytes);
                Ok(())
            }
            Err(error) => {
                self.tail = None;
                Err(error)
            }
        }
    }

    fn ready(&mut self) -> Result<(), JournalError> {
        self.room.check()?;
        self.settle()
    }

    fn has_last_room(&mut self) -> Result<(), JournalError> {
        self.room.check_last()?;
        self.settle()
    }

    fn has_room(&mut self) -> Result<(), JournalError> {
        self.room.check()
    }

    fn wants_snapshot(&self) -> bool {
        self.kept.json_bytes > SNAPSHOT_AFTER_BYTES.max(self.snapshot_bytes / SNAPSHOT_PARTS)
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), JournalError> {
        let next = self.generation + 1;
        let written = snapshot_file::write(&self.dir, next, snapshot).and_then(|()| {
            // What cannot be read back does not replace anything.
            snapshot_file::verify(&self.dir, next)
        });
        written.inspect_err(|_| {
            // If it is there though it could not be synced, the next start must not take it for the newest.
            let path = snapshot_file::path(&self.dir, next);
            if let Err(error) = snapshot_file::remove(&self.dir, next) {
                tracing::error!(path = %path.display(), %error, "a failed snapshot stays behind; remove it before the next start");
            }
        })?;
        self.generation = next;
        self.snapshot_bytes = snapshot_file::json_bytes(&self.dir, next);
        (self.kept, self.tail) = (Kept::default(), None);
        self.tail()?;
        self.remove_older_than(next.saturating_sub(OLDER_GENERATIONS));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
