//! Records for those who look.

use super::lines::{Line, Lines};
use super::record::{self, Head, Record};
use super::{AuditError, files};
use railyard_common::time::Millis;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Bytes of lines that a follower takes at a time.
const MORE_MAX_BYTES: usize = 1024 * 1024;
/// Most bytes of lines that one look takes together.
const LOOK_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// None before this time.
    pub since: Option<Millis>,
    /// None at this time or later.
    pub until: Option<Millis>,
    /// `ROLE/NAME`, `NAME`, `nobody` or `controller`.
    pub by: Option<String>,
    /// The word of an act.
    pub what: Option<String>,
    /// How the target begins.
    pub target: Option<String>,
}

impl Filter {
    /// All but the times.
    fn matches(&self, record: &Record) -> bool {
        let by = |by: &String| *by == record.by || record.by.split_once('/').is_some_and(|(_, name)| name == by);
        self.by.as_ref().is_none_or(by)
            && self.what.as_ref().is_none_or(|what| *what == record.what)
            && self.target.as_ref().is_none_or(|target| record.target.starts_with(target))
    }
}

/// What stands in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A record. Whether its hash is right is another question.
    Record(Box<Record>),
    /// Something that cannot be read.
    Damaged {
        /// The file's name.
        file: String,
        /// The byte at which the line begins.
        offset: u64,
    },
}

/// The times of a filter as records have them: of one form and one zone, so that they are in the order of their texts.
#[derive(Clone, Debug)]
struct Times {
    since: Option<String>,
    until: Option<String>,
}

impl Times {
    fn are_before(&self, record: &Record) -> bool {
        self.since.as_ref().is_some_and(|since| record.at < *since)
    }

    fn include(&self, record: &Record) -> bool {
        !self.are_before(record) && self.until.as_ref().is_none_or(|until| record.at < *until)
    }
}

/// Reads on where it stopped.
#[derive(Clone)]
pub struct Follower {
    dir: PathBuf,
    filter: Filter,
    times: Times,
    /// The first record of the segment that is read, and where in it.
    segment: u64,
    offset: u64,
}

impl Follower {
    /// The newest records that match, at most `limit`, oldest first; and a follower that goes on behind them. Nothing behind
    /// `until`, the last record that is durable, is read.
    ///
    /// # Errors
    /// [`AuditError::Io`]
    pub fn begin(dir: &Path, filter: Filter, limit: usize, until: Head) -> Result<(VecDeque<Shown>, Self), AuditError> {
        let times = Times { since: filter.since.map(record::rfc3339), until: filter.until.map(record::rfc3339) };
        let mut follower = Self { dir: dir.to_owned(), filter, times, segment: 1, offset: 0 };
        let mut newest = Newest { limit, bytes: 0, lines: VecDeque::new() };
        let segments = files::segments(dir)?;
        for (back, &segment) in segments.iter().rev().enumerate() {
            let mut reader = Self { segment, offset: 0, ..follower.clone() };
            let mut here = Newest { limit: newest.room(), bytes: newest.bytes, lines: VecDeque::new() };
            let is_older_than_wanted = reader.read_segment(until, usize::MAX, &mut here)?;
            if back == 0 {
                (follower.segment, follower.offset) = (reader.segment, reader.offset);
            }
            newest.put_before(here);
            if newest.room() == 0 || is_older_than_wanted {
                break;
            }
        }
        Ok((newest.lines.into_iter().map(|(_, shown)| shown).collect(), follower))
    }

    /// What was written since, up to `until`, as much as fits into one answer: more may be there until nothing comes.
    ///
    /// # Errors
    /// [`AuditError::Io`]
    pub fn more(&mut self, until: Head) -> Result<VecDeque<Shown>, AuditError> {
        let mut newest = Newest { limit: usize::MAX, bytes: 0, lines: VecDeque::new() };
        loop {
            if files::segment(&self.dir, self.segment).exists() {
                self.read_segment(until, MORE_MAX_BYTES, &mut newest)?;
            }
            if newest.bytes >= MORE_MAX_BYTES {
                break;
            }
            let Some(next) = files::segments(&self.dir)?.into_iter().find(|&first| first > self.segment) else { break };
            if next > until.seq {
                break;
            }
            (self.segment, self.offset) = (next, 0);
        }
        Ok(newest.lines.into_iter().map(|(_, shown)| shown).collect())
    }

    /// Reads on in one segment. `true` if its first record is older than what is wanted, and so is everything before.
    fn read_segment(&mut self, until: Head, enough: usize, newest: &mut Newest) -> Result<bool, AuditError> {
        let path = files::segment(&self.dir, self.segment);
        let mut lines = Lines::open(&path, self.offset)?;
        let mut is_older = None;
        loop {
            let offset = lines.offset();
            let (bytes, shown) = match lines.next()? {
                Some(Line::Whole(text)) => match record::read(text) {
                    Ok(record) => (text.len(), Shown::Record(Box::new(record))),
                    Err(_) => (0, self.damaged(offset)),
                },
                Some(Line::TooLong) => (0, self.damaged(offset)),
                // It is being written, or a crash tore it.
                Some(Line::Torn(_)) | None => return Ok(is_older.unwrap_or(false)),
            };
            if let Shown::Record(record) = &shown {
                if record.seq > until.seq {
                    return Ok(is_older.unwrap_or(false));
                }
                is_older.get_or_insert_with(|| self.times.are_before(record));
            }
            self.offset = lines.offset();
            let is_wanted = match &shown {
                Shown::Record(record) => self.times.include(record) && self.filter.matches(record),
                Shown::Damaged { .. } => true,
            };
            if is_wanted {
                newest.push(bytes, shown);
            }
            if newest.bytes >= enough {
                return Ok(is_older.unwrap_or(false));
            }
        }
    }

    fn damaged(&self, offset: u64) -> Shown {
        let path = files::segment(&self.dir, self.segment);
        Shown::Damaged { file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(), offset }
    }
}

/// The newest lines, with a limit on their number and their bytes.
struct Newest {
    limit: usize,
    bytes: usize,
    lines: VecDeque<(usize, Shown)>,
}

impl Newest {
    fn room(&self) -> usize {
        if self.bytes >= LOOK_MAX_BYTES { 0 } else { self.limit - self.lines.len() }
    }

    fn push(&mut self, bytes: usize, shown: Shown) {
        self.lines.push_back((bytes, shown));
        self.bytes += bytes;
        while self.lines.len() > self.limit || (self.bytes > LOOK_MAX_BYTES && self.lines.len() > 1) {
            let oldest = self.lines.pop_front();
            self.bytes -= oldest.map_or(0, |(bytes, _)| bytes);
        }
    }

    fn put_before(&mut self, older: Self) {
        self.bytes = older.bytes;
        let newer = std::mem::replace(&mut self.lines, older.lines);
        self.lines.extend(newer);
    }
}
