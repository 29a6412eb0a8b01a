//! Whether the files still say what was written.
//!
//! Each record names the hash of the one before. So a record that was changed, removed, moved or put in breaks the chain at its
//! place. The last records can be cut off without breaking it; that is found by what is kept beside the chain: the file `head`,
//! and whatever head somebody noted elsewhere. Whoever can write the directory can write a whole new chain with a head that fits
//! it; only a head that was noted elsewhere tells that.

use super::lines::{Line, Lines};
use super::record::{self, BadLine, Hash, Head, Link};
use super::{Act, AuditError, files};
use std::fmt;
use std::path::Path;

/// Faults that are told one by one.
const FAULTS_MAX: usize = 100;

/// What to hold the chain against.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// A head that somebody noted: that record must be there, and be the same.
    pub expect: Option<Head>,
    /// What comes after this record is checked, and nothing before: the files before may be elsewhere, or known to be damaged.
    /// It must be there itself, or the next one, which follows on it.
    pub from: Option<Head>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Records that were checked.
    pub records: u64,
    /// Files that were read.
    pub segments: u64,
    /// The last record: worth noting elsewhere.
    pub head: Head,
    /// What is wrong; empty if nothing is.
    pub faults: Vec<Fault>,
    /// More that is wrong than is listed.
    pub more_faults: u64,
}

impl Verified {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file's name.
    pub file: String,
    /// From 1; 0 if it is the file as a whole.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

/// `FILE:LINE: WHAT`
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.what),
            line => write!(f, "{}:{line}: {}", self.file, self.what),
        }
    }
}

/// Reads all files of an audit and checks them. Of a running controller ask the controller: a line that is being written looks
/// like one that was cut.
///
/// # Errors
/// [`AuditError::Io`] if a file cannot be read. What is wrong with what they say is no error but the result.
pub fn verify(dir: &Path, wanted: &Wanted) -> Result<Verified, AuditError> {
    verify_until(dir, wanted, None)
}

/// The same up to one record, which must be there itself. What stands behind it is not looked at: it may be written just now.
pub(super) fn verify_until(dir: &Path, wanted: &Wanted, until: Option<Head>) -> Result<Verified, AuditError> {
    // Before the records: it never says more than they do.
    let noted = files::read_head(dir)?;
    let mut check = Check::new(wanted, until);
    check.noted = noted.as_ref().and_then(|noted| noted.as_ref().ok()).copied();
    match noted {
        // It is ahead while the controller writes.
        Some(Ok(head)) if until.is_some_and(|until| head.seq > until.seq) => {}
        Some(Ok(head)) => check.expect(head, NOTED),
        Some(Err(text)) => check.fault_in("head", format!("it names no record, but says `{}`", text.trim_end())),
        None => check.fault_in("head", "it is gone: whether records were cut off at the end cannot be told".to_owned()),
    }
    for (head, who) in [(wanted.expect, WANTED), (until, "the controller wrote last")] {
        head.into_iter().for_each(|head| check.expect(head, who));
    }
    let segments = files::segments(dir)?;
    let look_from = wanted.from.map(|from| wanted.expect.map_or(from.seq, |expect| expect.seq.min(from.seq)));
    for (index, &first) in segments.iter().enumerate() {
        // All of it lies before whatever is to be looked at.
        if segments.get(index + 1).is_some_and(|&next| look_from.is_some_and(|from| next <= from)) {
            continue;
        }
        check.segment(dir, first)?;
    }
    Ok(check.end())
}

/// Who says of a record that it must be there.
const NOTED: &str = "the file `head` names";
const WANTED: &str = "you expect";

/// The state of a check.
struct Check<'a> {
    wanted: &'a Wanted,
    until: Option<Head>,
    /// What the file `head` says.
    noted: Option<Head>,
    /// The last record before the place from which on it is to be checked.
    before: Head,
    /// The record at that place was seen, as it should be.
    from_is_seen: bool,
    expected: Vec<Expected>,
    /// The last record so far; its hash, if that is known.
    last: (u64, Option<Hash>),
    /// The last good one, for who notes it.
    head: Head,
    file: String,
    line: u64,
    records: u64,
    segments: u64,
    faults: Vec<Fault>,
    more_faults: u64,
}

/// A record that must be there.
struct Expected {
    head: Head,
    who: &'static str,
    is_seen: bool,
}

impl<'a> Check<'a> {
    fn new(wanted: &'a Wanted, until: Option<Head>) -> Self {
        let from = wanted.from.unwrap_or(Head::START);
        Self {
            wanted,
            until,
            noted: None,
            before: Head::START,
            from_is_seen: from == Head::START,
            expected: Vec::new(),
            last: (from.seq, Some(from.hash)),
            head: from,
            file: files::FIRST_SEGMENT.to_owned(),
            line: 0,
            records: 0,
            segments: 0,
            faults: Vec::new(),
            more_faults: 0,
        }
    }

    fn expect(&mut self, head: Head, who: &'static str) {
        // The files before may be elsewhere; but who expects a record there wants it to be there.
        let is_before = who != WANTED && self.wanted.from.is_some_and(|from| head.seq < from.seq);
        let is_seen = head == Head::START || is_before;
        self.expected.push(Expected { head, who, is_seen });
    }

    fn fault(&mut self, what: String) {
        let fault = Fault { file: self.file.clone(), line: self.line, what };
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }

    fn fault_in(&mut self, file: &str, what: String) {
        self.faults.push(Fault { file: file.to_owned(), line: 0, what });
    }

    fn segment(&mut self, dir: &Path, first: u64) -> Result<(), AuditError> {
        let path = files::segment(dir, first);
        self.file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (self.line, self.segments) = (0, self.segments + 1);
        let mut lines = Lines::open(&path, 0)?;
        while let Some(line) = lines.next()? {
            self.line += 1;
            match line {
                Line::Whole(text) => {
                    let checked = record::check(text);
                    let seq = match &checked {
                        Ok(link) => Some(link.head.seq),
                        Err(BadLine::Changed(head)) => Some(head.seq),
                        Err(BadLine::NoRecord(_)) => None,
                    };
                    if seq.zip(self.until).is_some_and(|(seq, until)| seq > until.seq) {
                        return Ok(());
                    }
                    self.take(first, text, checked);
                }
                Line::TooLong => self.no_record("it is too long"),
                Line::Torn(_) if self.is_past_end() => return Ok(()),
                Line::Torn(_) => self.fault("the line has no end: something was cut off here".to_owned()),
            }
        }
        Ok(())
    }

    /// Everything that is to be looked at was seen.
    fn is_past_end(&self) -> bool {
        self.until.is_some_and(|until| self.last.0 >= until.seq)
    }

    fn take(&mut self, first: u64, text: &[u8], checked: Result<Link, BadLine>) {
        let from = self.wanted.from.unwrap_or(Head::START);
        match checked {
            Ok(link) if link.head.seq < from.seq => {
                self.before = link.head;
                self.see(link.head);
            }
            Ok(link) if link.head == from => {
                self.from_is_seen = true;
                self.see(link.head);
            }
            Ok(link) if link.head.seq == from.seq => {
                self.fault(format!("record {} is not the one from which on you want the check", from.seq));
            }
            Ok(link) => {
                if self.line == 1 && link.head.seq != first {
                    self.fault(format!("the file begins with record {}, and its name says {first}", link.head.seq));
                }
                self.follow(&link);
                self.see(link.head);
                self.look_for_break(text, link.head.seq);
            }
            Err(BadLine::Changed(head)) if head.seq <= from.seq => {}
            Err(BadLine::Changed(head)) => {
                self.fault(format!(
                    "record {} was changed: what it says and its hash do not belong together",
                    head.seq
                ));
                self.records += 1;
                // If only its content was changed, the next one still follows on it.
                self.last = (head.seq, Some(head.hash));
            }
            Err(BadLine::NoRecord(why)) => self.no_record(&why),
        }
    }

    /// What is no record may stand before the place from which on it is to be checked; if it stands behind, a record is missing.
    fn is_before_from(&self) -> bool {
        self.wanted.from.is_some_and(|from| self.last.0 == from.seq && self.records == 0)
    }

    fn no_record(&mut self, why: &str) {
        if self.is_before_from() {
            return;
        }
        self.fault(format!("record {} is not there, but something that is no record: {why}", self.last.0 + 1));
        self.last = (self.last.0 + 1, None);
    }

    /// Whether the record follows on the last one.
    fn follow(&mut self, link: &Link) {
        let ((last, hash), seq) = (self.last, link.head.seq);
        if seq > last + 1 {
            let missing = if seq == last + 2 {
                format!("record {} is", last + 1)
            } else {
                format!("records {} to {} are", last + 1, seq - 1)
            };
            self.fault(format!("{missing} missing before record {seq}"));
        } else if seq <= last {
            self.fault(format!("record {seq} stands behind record {last}: it was put in or moved"));
        } else if hash.is_some_and(|hash| hash != link.prev) {
            self.fault(format!("record {seq} does not follow on record {last}: one of the two was replaced"));
        }
        self.records += 1;
        self.last = (seq, Some(link.head.hash));
        self.head = link.head;
    }

    /// Holds a record against what is expected.
    fn see(&mut self, head: Head) {
        let mut wrong = Vec::new();
        for expected in self.expected.iter_mut().filter(|expected| expected.head.seq == head.seq) {
            expected.is_seen = true;
            if expected.head.hash != head.hash {
                wrong.push(format!("record {} is not the one that {}", head.seq, expected.who));
            }
        }
        wrong.into_iter().for_each(|what| self.fault(what));
    }

    /// The controller says itself where it found the chain broken. It could not be seen otherwise when what is broken is gone.
    fn look_for_break(&mut self, text: &[u8], seq: u64) {
        let may_be = |word: &[u8]| text.windows(word.len()).any(|part| part == word);
        if !may_be(Act::Break.as_str().as_bytes()) {
            return;
        }
        if let Ok(record) = record::read(text)
            && record.what == Act::Break.as_str()
        {
            self.fault(format!(
                "record {seq}: the controller found the audit damaged at {}: {}",
                record.at, record.reason
            ));
        }
    }

    /// Whether the place from which on it is to be checked was there.
    fn look_for_from(&mut self) {
        let from = self.wanted.from.unwrap_or(Head::START);
        if self.from_is_seen {
            return;
        }
        // Whatever came behind was held against it, and told if it does not follow.
        if self.records == 0 && self.last.0 == from.seq {
            self.fault(format!(
                "record {}, from which on you want the check, is not there, and none behind it: the last one is {}",
                from.seq, self.before.seq
            ));
            (self.last, self.head) = ((self.before.seq, Some(self.before.hash)), self.before);
        }
        if let Some(noted) = self.noted.filter(|noted| noted.seq < from.seq) {
            let what = format!("it names record {}, and you want the check from record {} on", noted.seq, from.seq);
            self.fault_in("head", what);
        }
    }

    fn end(mut self) -> Verified {
        self.line += 1;
        self.look_for_from();
        let from = self.wanted.from.map_or(0, |from| from.seq);
        for Expected { head, who, .. } in std::mem::take(&mut self.expected).into_iter().filter(|one| !one.is_seen) {
            let last = self.last.0;
            // One in the middle that is missing was told of at its place.
            if head.seq > last {
                let are = if head.seq == last + 1 {
                    format!("record {} was", head.seq)
                } else {
                    format!("records {} to {} were", last + 1, head.seq)
                };
                self.fault(format!("{are} cut off at the end: the last one is {last}, and {who} {}", head.seq));
            } else if who == WANTED && head.seq <= from {
                self.fault(format!("record {}, which you expect, is not there", head.seq));
            }
        }
        let Self { records, segments, head, faults, more_faults, .. } = self;
        Verified { records, segments, head, faults, more_faults }
    }
}
