//! The files as their owner has them open: found in order at the start, and appended to.

use super::AuditError;
use super::files::{self, HeadFile};
use super::lines::{Line, Lines};
use super::record::{self, Head};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Room that is held for records to come: thousands of them. What was allowed can be recorded though the disk is full by then.
const RESERVE_BYTES: u64 = 1024 * 1024;
/// With less of it left, more is taken.
const RESERVE_LOW_BYTES: u64 = RESERVE_BYTES / 2;

/// The open log.
pub(super) struct Log {
    dir: PathBuf,
    segment: Segment,
    head: Head,
    head_file: HeadFile,
    segment_max: u64,
}

/// The segment that is written.
struct Segment {
    path: PathBuf,
    file: File,
    /// What is durable.
    len: u64,
    /// Up to where room is held.
    reserved: u64,
    /// A write failed: behind `len` may be anything.
    dirty: bool,
}

/// What was found at the start, for the first record to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// So many bytes of a torn last line were cut off.
    pub(super) torn_bytes: u64,
    /// What is wrong with the chain.
    pub(super) broken: Option<String>,
}

impl Log {
    /// Opens the log in `dir`, or begins one. A segment gets at most so long, unless what is written at once is longer.
    pub(super) fn open(dir: &Path, segment_max: u64) -> Result<(Self, Found), AuditError> {
        files::make_dir(dir)?;
        let (segments, noted) = (files::segments(dir)?, files::read_head(dir)?);
        let tail = Tail::find(dir, &segments, noted.as_ref().and_then(|head| head.as_ref().ok()).copied())?;
        let mut found = Found { torn_bytes: tail.torn_bytes, broken: tail.broken.clone() };
        let mut head = tail.head;
        match noted {
            None if head == Head::START => {}
            None => found.broken = found.broken.or(Some("the file `head` is gone".to_owned())),
            Some(Err(text)) => found.broken = found.broken.or(Some(format!("the file `head` says `{text}`"))),
            Some(Ok(noted)) if noted.seq > head.seq => {
                let why = format!("records {} to {} were cut off at the end", head.seq + 1, noted.seq);
                found.broken = found.broken.or(Some(why));
                head = noted;
            }
            Some(Ok(noted)) if !tail.knows(noted) => {
                let why = format!("record {} is not the one that the file `head` names", noted.seq);
                found.broken = found.broken.or(Some(why));
            }
            Some(Ok(_)) => {}
        }
        let head_file = HeadFile::open(dir)?;
        let segment = match (segments.last(), &found.broken) {
            (Some(&last), None) => Segment::go_on(files::segment(dir, last), tail.whole_bytes)?,
            (last, _) => {
                head.seq = head.seq.max(last.copied().unwrap_or_default());
                // The head first: a log without one is a log whose head was removed.
                head_file.set(head)?;
                head_file.sync()?;
                files::sync_dir(dir)?;
                Segment::begin(dir, head.seq + 1)?
            }
        };
        let mut log = Self { dir: dir.to_owned(), segment, head, head_file, segment_max };
        log.head_file.set(log.head)?;
        // A controller starts on a full disk too, to be looked at.
        if let Err(error) = log.reserve() {
            tracing::error!(error = railyard_service::error_chain(&error), "the audit has no room");
        }
        Ok((log, found))
    }

    /// The last record.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Appends lines that end in the record `head`, durably.
    pub(super) fn append(&mut self, lines: &[u8], head: Head) -> Result<(), AuditError> {
        let is_long = self.segment.len > 0 && self.segment.len + lines.len() as u64 > self.segment_max;
        if is_long {
            self.head_file.sync()?;
            let next = Segment::begin(&self.dir, self.head.seq + 1)?;
            std::mem::replace(&mut self.segment, next).finish();
        }
        self.segment.append(lines)?;
        self.head = head;
        if let Err(error) = self.head_file.set(head) {
            // The record is there. A head that says less than it could is no wrong one.
            tracing::error!(error = railyard_service::error_chain(&error), "the audit's head stays behind");
        }
        Ok(())
    }

    /// Holds room for records to come.
    pub(super) fn reserve(&mut self) -> Result<(), AuditError> {
        self.segment.reserve()
    }

    /// Gives back what is held, and makes the head durable.
    pub(super) fn close(self) -> Result<(), AuditError> {
        self.head_file.sync()?;
        self.segment.finish();
        Ok(())
    }
}

impl Segment {
    /// A new one, whose name is durable.
    fn begin(dir: &Path, first: u64) -> Result<Self, AuditError> {
        let path = files::segment(dir, first);
        let file = files::open(&path)?;
        // One of a rotation that failed half way may be there, with nothing in it that was acknowledged.
        file.set_len(0).map_err(AuditError::io("empty", &path))?;
        files::sync_dir(dir)?;
        Ok(Self { path, file, len: 0, reserved: 0, dirty: false })
    }

    /// One that is there, of which so much is whole.
    fn go_on(path: PathBuf, len: u64) -> Result<Self, AuditError> {
        let file = files::open(&path)?;
        // Cuts off what is torn; and what is left of what a crash kept from becoming durable becomes it now.
        file.set_len(len).and_then(|()| file.sync_all()).map_err(AuditError::io("repair", &path))?;
        Ok(Self { path, file, len, reserved: 0, dirty: false })
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), AuditError> {
        if self.dirty {
            self.file.set_len(self.len).map_err(AuditError::io("repair", &self.path))?;
            self.reserved = 0;
            self.dirty = false;
        }
        let written = self.file.write_all_at(lines, self.len).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // After a failed sync nobody knows what is on the disk: it is written again.
            self.dirty = true;
            return Err(AuditError::io("write", &self.path)(error));
        }
        self.len += lines.len() as u64;
        Ok(())
    }

    fn reserve(&mut self) -> Result<(), AuditError> {
        if self.reserved >= self.len + RESERVE_LOW_BYTES {
            return Ok(());
        }
        let (from, bytes) = (self.len as i64, RESERVE_BYTES as i64);
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, bytes) {
            // Not every file system can do it. It is a help, not a need.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                self.reserved = self.len + RESERVE_BYTES;
                Ok(())
            }
            Err(errno) => Err(AuditError::io("hold room for", &self.path)(errno.into())),
        }
    }

    /// Gives back the room that is held behind the last record.
    fn finish(self) {
        if let Err(error) = self.file.set_len(self.len) {
            tracing::debug!(path = %self.path.display(), %error, "the audit's file keeps room that it does not need");
        }
    }
}

/// The end of the log as it lies on the disk.
struct Tail {
    /// The last good record, or what stands for it.
    head: Head,
    /// Bytes of the last segment that are whole lines of one chain.
    whole_bytes: u64,
    torn_bytes: u64,
    broken: Option<String>,
    /// The place that was asked for, as the log has it. `None`: the record is in an earlier segment.
    noted: Option<Head>,
}

impl Tail {
    /// Reads the last segment, and of those before it as many as are needed to find a record.
    fn find(dir: &Path, segments: &[u64], noted: Option<Head>) -> Result<Self, AuditError> {
        let nothing = Self { head: Head::START, whole_bytes: 0, torn_bytes: 0, broken: None, noted: None };
        let Some((&last, earlier)) = segments.split_last() else { return Ok(nothing) };
        let mut tail = Self::read(dir, last, noted)?;
        if tail.head == Head::START && last > 1 {
            // It was begun, and has no record yet.
            let before = Self::find(dir, earlier, noted)?;
            let torn =
                Some("the last segment but one ends in a torn line".to_owned()).filter(|_| before.torn_bytes > 0);
            tail.broken = tail.broken.or(before.broken).or(torn);
            (tail.head, tail.noted) = (before.head, before.noted);
            if tail.head.seq + 1 != last && tail.broken.is_none() {
                tail.broken = Some(format!("records {} to {} are missing", tail.head.seq + 1, last - 1));
            }
        }
        Ok(tail)
    }

    fn read(dir: &Path, first: u64, noted: Option<Head>) -> Result<Self, AuditError> {
        let path = files::segment(dir, first);
        let mut lines = Lines::open(&path, 0)?;
        let mut tail = Self { head: Head::START, whole_bytes: 0, torn_bytes: 0, broken: None, noted: None };
        let mut number = 0;
        while let Some(line) = lines.next()? {
            number += 1;
            match line {
                Line::Whole(text) => tail.take(&path, number, first, text, noted),
                Line::TooLong => tail.note_broken(&path, number, "it is too long"),
                Line::Torn(bytes) => {
                    tail.torn_bytes = bytes;
                    break;
                }
            }
            if tail.broken.is_none() {
                tail.whole_bytes = lines.offset();
            }
        }
        Ok(tail)
    }

    /// Looks at one line. After a bad one the chain goes on with the next good one, so that the last good one is found.
    fn take(&mut self, path: &Path, number: u64, first: u64, text: &[u8], noted: Option<Head>) {
        match record::check(text) {
            Ok(link) => {
                let follows = match self.head {
                    Head::START => link.head.seq == first,
                    last => link.head.seq == last.seq + 1 && link.prev == last.hash,
                };
                if !follows {
                    self.note_broken(path, number, "it does not follow on the record before");
                }
                self.head = link.head;
                if noted.is_some_and(|noted| noted.seq == link.head.seq) {
                    self.noted = Some(link.head);
                }
            }
            Err(_) => self.note_broken(path, number, "it is not the record that was written"),
        }
    }

    fn note_broken(&mut self, path: &Path, number: u64, why: &str) {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        self.broken.get_or_insert_with(|| format!("{file}:{number}: {why}"));
    }

    /// Whether the log has that record, as far as was looked.
    fn knows(&self, noted: Head) -> bool {
        noted == Head::START || self.noted.is_none_or(|found| found == noted)
    }
}
