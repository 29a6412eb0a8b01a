//! The log's file.
//!
//! **Invariant:** bytes once written are never changed, so that what is sent again after a broken connection, or by the
//! next process, is the same. What is left out of a log that is too long is counted, and said in the log itself.

use super::catchup::{News, Taken};
use super::place::{Author, Counts, Place};
use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::runtime::Source;
use railyard_common::redact::Masks;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{Mutex, watch};

/// Of a log that is too long, so much of its end is kept: the error is usually there.
const TAIL_BYTES: u64 = 64 * 1024;

/// The end of a short log may not take more than one part in so many.
const TAIL_PART: u64 = 4;

/// Room for the line that tells what is left out.
const MARKER_MAX_BYTES: u64 = 128;

/// How far back the last lines are looked for.
const LAST_LINES_BYTES: u64 = 64 * 1024;

/// How much of what was taken last is compared when a stream is read again: far more than an engine keeps of a line that
/// it has not written down yet.
const RECENT_BYTES: u64 = 64 * 1024;

/// What the name of the small file beside the log ends with.
const PLACE_SUFFIX: &str = "place";

/// Longest of the last lines that is shown whole.
const LINE_SHOWN_CHARS: usize = 500;

/// How much is in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes.
    pub bytes: u64,
    /// Nothing will follow.
    pub closed: bool,
}

/// A log that is being written.
#[derive(Debug)]
pub struct JobLog {
    path: PathBuf,
    spool: Arc<Mutex<Spool>>,
    /// What notes must not show.
    masks: RwLock<Masks>,
    written: Arc<watch::Sender<Written>>,
}

#[derive(Debug)]
struct Spool {
    file: File,
    path: PathBuf,
    place: Place,
    place_file: File,
    /// What was taken of the container's output, what is left out included.
    taken: Counts,
    written: Arc<watch::Sender<Written>>,
    /// What is kept of the beginning.
    head_bytes: u64,
    /// What is kept of the end, if there is more.
    tail_bytes: u64,
    /// The last byte was the end of a line.
    at_line_start: bool,
    cut: Option<Cut>,
}

/// What does not fit any more.
#[derive(Debug, Default)]
struct Cut {
    left_out_bytes: u64,
    tail: VecDeque<u8>,
}

impl JobLog {
    /// Opens a log of at most `max_bytes`: head, tail and the line between them. One that an earlier process began is
    /// gone on with; of a log that was ended nothing can change any more.
    ///
    /// # Errors
    /// [`DiskError`], also if there is a log and nothing tells what is in it.
    pub async fn open(path: &Path, max_bytes: u64) -> Result<Self, DiskError> {
        let (at, written) = (path.to_owned(), Arc::new(watch::Sender::default()));
        let told = written.clone();
        let spool = blocking(move || Spool::open(&at, max_bytes, told)).await?;
        Ok(Self { path: path.to_owned(), spool: Arc::new(Mutex::new(spool)), masks: RwLock::default(), written })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells whenever there is more to read in the file.
    pub fn written(&self) -> watch::Receiver<Written> {
        self.written.subscribe()
    }

    /// Appends what the container wrote.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn write(&self, source: Source, bytes: &[u8]) -> Result<(), DiskError> {
        let bytes = bytes.to_vec();
        self.change(move |spool| spool.write(Author::Container(source), &bytes)).await
    }

    /// The same for what came out of the engine's log.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn write_news(&self, source: Source, news: News) -> Result<(), DiskError> {
        self.change(move |spool| spool.write_news(source, &news)).await
    }

    /// Appends a line of the worker's own: short, for people.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn note(&self, text: &str) -> Result<(), DiskError> {
        let text = self.masked(text);
        self.change(move |spool| spool.note(Author::Worker, &text)).await
    }

    /// Notes hide these from here on.
    pub fn hide(&self, masks: &Masks) {
        *self.masks.write().unwrap_or_else(PoisonError::into_inner) = masks.clone();
    }

    fn masked(&self, text: &str) -> String {
        self.masks.read().unwrap_or_else(PoisonError::into_inner).mask_text(text)
    }

    /// Ends the log with a last line. Returns its length.
    ///
    /// # Errors
    /// [`DiskError`]; the log is ended all the same.
    pub async fn close(&self, last: &str) -> Result<u64, DiskError> {
        let last = self.masked(last);
        self.change(move |spool| {
            let noted = spool.note(Author::End, &last);
            let written = noted.and(spool.write_tail());
            spool.written.send_modify(|written| written.closed = true);
            written.map(|()| spool.written.borrow().bytes)
        })
        .await
    }

    /// What is in the log of the container's output.
    ///
    /// # Errors
    /// [`DiskError`] if its end cannot be read.
    pub async fn taken(&self) -> Result<Taken, DiskError> {
        self.change(|spool| spool.taken()).await
    }

    /// The last lines, for the message of a failure. What is not UTF-8 is replaced.
    pub async fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes = self.change(|spool| spool.end().unwrap_or_default()).await;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(count)..].iter();
        last.map(|line| line.chars().take(LINE_SHOWN_CHARS).collect()).collect()
    }

    /// Does `work` where it may block, alone, and to its end: whoever waits here may be dropped half-way.
    async fn change<T: Send + 'static>(&self, work: impl FnOnce(&mut Spool) -> T + Send + 'static) -> T {
        let mut spool = self.spool.clone().lock_owned().await;
        blocking(move || work(&mut spool)).await
    }
}

impl Spool {
    fn open(path: &Path, max_bytes: u64, written: Arc<watch::Sender<Written>>) -> Result<Self, DiskError> {
        let tail_bytes = TAIL_BYTES.min(max_bytes / TAIL_PART);
        let head_bytes = max_bytes.saturating_sub(tail_bytes + MARKER_MAX_BYTES);
        let place_path = path.with_extension(PLACE_SUFFIX);
        let open = |path: &Path| {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
            file.map_err(DiskError::at("open", path))
        };
        let place_file = open(&place_path)?;
        let place = match path.try_exists() {
            Ok(false) => {
                let place = Place::start();
                place.write(&place_file).map_err(DiskError::at("write", &place_path))?;
                place
            }
            Ok(true) => Place::read(&place_file).map_err(DiskError::at("read", &place_path))?,
            Err(error) => return Err(DiskError::at("open", path)(error)),
        };
        let file = open(path)?;
        let bytes = file.metadata().map_err(DiskError::at("read", path))?.len();
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was");
        let taken = place.taken(bytes).ok_or_else(short).map_err(DiskError::at("read", path))?;
        let mut last = [b'\n'];
        if bytes > 0 {
            file.read_exact_at(&mut last, bytes - 1).map_err(DiskError::at("read", path))?;
        }
        written.send_replace(Written { bytes, closed: place.author == Author::End });
        let at_line_start = last == *b"\n";
        let path = path.to_owned();
        Ok(Self { file, path, place, place_file, taken, written, head_bytes, tail_bytes, at_line_start, cut: None })
    }

    fn note(&mut self, author: Author, text: &str) -> Result<(), DiskError> {
        let line_end = if self.at_line_start { "" } else { "\n" };
        self.write(author, format!("{line_end}==> railyard: {text}\n").as_bytes())
    }

    fn write_news(&mut self, source: Source, news: &News) -> Result<(), DiskError> {
        if let Some(at) = news.instead_at {
            self.taken.set(source, at);
            self.place.unlearn(source, at);
            self.place_here(self.place.author)?;
        }
        self.write(Author::Container(source), &news.bytes)
    }

    fn write(&mut self, author: Author, bytes: &[u8]) -> Result<(), DiskError> {
        if self.written.borrow().closed {
            return Ok(());
        }
        self.settle(author, bytes)?;
        let room = self.head_bytes.saturating_sub(self.written.borrow().bytes);
        let fits = if self.cut.is_some() { 0 } else { usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()) };
        let (kept, rest) = bytes.split_at(fits);
        self.append(kept)?;
        if let Some(last) = rest.last() {
            self.cut.get_or_insert_default().push(rest, self.tail_bytes);
            self.at_line_start = *last == b'\n';
        }
        if let Author::Container(source) = author {
            self.taken.add(source, bytes.len() as u64);
        }
        Ok(())
    }

    /// Writes down whose bytes come now, before they come. Of a log that is cut the file does not grow until its end: the
    /// next process reads on where the file ends, and leaves out again what does not fit.
    fn settle(&mut self, author: Author, bytes: &[u8]) -> Result<(), DiskError> {
        let news = match author {
            Author::Container(source) => self.place.learn(source, bytes),
            Author::Worker | Author::End => false,
        };
        match (author == self.place.author, news) {
            (true, false) => Ok(()),
            (true, true) => self.write_place(),
            (false, _) => self.place_here(author),
        }
    }

    fn place_here(&mut self, author: Author) -> Result<(), DiskError> {
        if self.cut.is_some() && author != Author::End {
            return Ok(());
        }
        (self.place.author, self.place.before) = (author, self.taken);
        self.place.offset = self.written.borrow().bytes;
        self.write_place()
    }

    fn write_place(&self) -> Result<(), DiskError> {
        let path = self.path.with_extension(PLACE_SUFFIX);
        self.place.write(&self.place_file).map_err(DiskError::at("write", &path))
    }

    fn write_tail(&mut self) -> Result<(), DiskError> {
        let Some(cut) = self.cut.take() else { return Ok(()) };
        if cut.left_out_bytes > 0 {
            let left_out = cut.left_out_bytes;
            let text = format!("\n==> railyard: the log is too long; {left_out} bytes are left out here\n");
            self.append(text.as_bytes())?;
        }
        self.append(&Vec::from(cut.tail))
    }

    /// Always at the end of what was told. What a failed write left behind it is cut off, and would be written over.
    fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let Some(last) = bytes.last() else { return Ok(()) };
        let end = self.written.borrow().bytes;
        if let Err(error) = self.file.write_all_at(bytes, end) {
            // Shortening needs no room. Should it fail all the same, the next write goes over it.
            let _ = self.file.set_len(end);
            return Err(DiskError::at("write", &self.path)(error));
        }
        self.at_line_start = *last == b'\n';
        self.written.send_modify(|written| written.bytes += bytes.len() as u64);
        Ok(())
    }

    fn taken(&self) -> Result<Taken, DiskError> {
        let recent = match self.place.author {
            Author::Container(source) if self.cut.is_none() => {
                let end = self.written.borrow().bytes;
                let from = self.place.offset.max(end.saturating_sub(RECENT_BYTES));
                let mut bytes = vec![0; usize::try_from(end - from).unwrap_or_default()];
                self.file.read_exact_at(&mut bytes, from).map_err(DiskError::at("read", &self.path))?;
                Some((source, bytes))
            }
            _ => None,
        };
        Ok(Taken { counts: self.taken, heads: self.place.heads.clone(), recent })
    }

    fn end(&self) -> io::Result<Vec<u8>> {
        let mut bytes = read_end(&self.path, self.written.borrow().bytes)?;
        if let Some(cut) = &self.cut {
            // Until something is left out, the end follows what is in the file.
            if cut.left_out_bytes > 0 {
                bytes.clear();
            }
            bytes.extend(&cut.tail);
        }
        Ok(bytes)
    }
}

impl Cut {
    fn push(&mut self, bytes: &[u8], keep: u64) {
        self.tail.extend(bytes);
        let spare = self.tail.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        self.tail.drain(..spare);
        self.left_out_bytes += spare as u64;
    }
}

fn read_end(path: &Path, length: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let from = length.saturating_sub(LAST_LINES_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(length - from).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
