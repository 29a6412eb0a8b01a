//! The log's file.
//!
//! **Invariant:** bytes once written are never changed, so that what is sent again after a broken connection is the
//! same. What is left out of a log that is too long is counted, and said in the log itself.

use crate::blocking::blocking;
use crate::disk::DiskError;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Mutex, watch};

/// Of a log that is too long, so much of its end is kept: the error is usually there.
const TAIL_BYTES: u64 = 64 * 1024;

/// The end of a short log may not take more than one part in so many.
const TAIL_PART: u64 = 4;

/// Room for the line that tells what is left out.
const MARKER_MAX_BYTES: u64 = 128;

/// How far back the last lines are looked for.
const LAST_LINES_BYTES: u64 = 64 * 1024;

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
    written: Arc<watch::Sender<Written>>,
}

#[derive(Debug)]
struct Spool {
    file: File,
    path: PathBuf,
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
    /// Begins a log of at most `max_bytes` in a new file: head, tail and the line between them.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn create(path: &Path, max_bytes: u64) -> Result<Self, DiskError> {
        let (path, written) = (path.to_owned(), Arc::new(watch::Sender::default()));
        let tail_bytes = TAIL_BYTES.min(max_bytes / TAIL_PART);
        let head_bytes = max_bytes.saturating_sub(tail_bytes + MARKER_MAX_BYTES);
        let (at, told) = (path.clone(), written.clone());
        let spool = blocking(move || {
            let file = File::create(&at).map_err(DiskError::at("create", &at))?;
            Ok(Spool { file, path: at, written: told, head_bytes, tail_bytes, at_line_start: true, cut: None })
        });
        Ok(Self { path, spool: Arc::new(Mutex::new(spool.await?)), written })
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
    pub async fn write(&self, bytes: &[u8]) -> Result<(), DiskError> {
        let bytes = bytes.to_vec();
        self.change(move |spool| spool.write(&bytes)).await
    }

    /// Appends a line of the worker's own: short, for people.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn note(&self, text: &str) -> Result<(), DiskError> {
        let line = format!("==> railyard: {text}\n");
        self.change(move |spool| {
            let line = if spool.at_line_start { line } else { format!("\n{line}") };
            spool.write(line.as_bytes())
        })
        .await
    }

    /// Ends the log. Returns its length.
    ///
    /// # Errors
    /// [`DiskError`]; the log is ended all the same.
    pub async fn close(&self) -> Result<u64, DiskError> {
        self.change(|spool| {
            let written = spool.write_tail();
            spool.written.send_modify(|written| written.closed = true);
            written.map(|()| spool.written.borrow().bytes)
        })
        .await
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
    fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let room = self.head_bytes.saturating_sub(self.written.borrow().bytes);
        let fits = if self.cut.is_some() { 0 } else { usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()) };
        let (kept, rest) = bytes.split_at(fits);
        self.append(kept)?;
        if let Some(last) = rest.last() {
            self.cut.get_or_insert_default().push(rest, self.tail_bytes);
            self.at_line_start = *last == b'\n';
        }
        Ok(())
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

    /// Always at the end of what was told, so that what a failed write left behind it is written over and never read.
    fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let Some(last) = bytes.last() else { return Ok(()) };
        let end = self.written.borrow().bytes;
        self.file.write_all_at(bytes, end).map_err(DiskError::at("write", &self.path))?;
        self.at_line_start = *last == b'\n';
        self.written.send_modify(|written| written.bytes += bytes.len() as u64);
        Ok(())
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
mod tests {
    use super::*;

    async fn log(max_bytes: u64) -> (tempfile::TempDir, JobLog) {
        let dir = tempfile::tempdir().unwrap();
        let log = JobLog::create(&dir.path().join("log"), max_bytes).await.unwrap();
        (dir, log)
    }

    #[tokio::test]
    async fn notes_stand_on_lines_of_their_own() {
        let (_dir, log) = log(1000).await;
        log.note("fetching").await.unwrap();
        log.write(b"no line end").await.unwrap();
        log.note("done").await.unwrap();
        assert_eq!(log.close().await.unwrap(), log.written().borrow().bytes);
        let text = std::fs::read_to_string(log.path()).unwrap();
        assert_eq!(text, "==> railyard: fetching\nno line end\n==> railyard: done\n");
        assert_eq!(log.last_lines(2).await, ["no line end", "==> railyard: done"]);
    }

    #[tokio::test]
    async fn of_a_long_log_head_and_tail_are_kept_and_the_gap_is_told() {
        let (_dir, log) = log(1000).await;
        log.write(&[b'h'; 600]).await.unwrap();
        log.write(&[b'x'; 5000]).await.unwrap();
        log.write(b"\nlast").await.unwrap();
        assert_eq!(log.last_lines(1).await, ["last"]);
        let length = log.close().await.unwrap();
        assert!(length <= 1000, "{length} bytes: the controller takes no more than the limit");
        let text = std::fs::read_to_string(log.path()).unwrap();
        assert_eq!(text.len() as u64, length);
        let left_out = 600 + 5000 + 5 - (1000 - 128);
        let gap = format!("x\n==> railyard: the log is too long; {left_out} bytes are left out here\nx");
        assert!(text.starts_with("hhh") && text.contains(&gap) && text.ends_with("xxx\nlast"), "{text}");
        assert!(log.written().borrow().closed);
    }

    #[tokio::test]
    async fn a_log_that_just_fits_is_whole() {
        let (_dir, log) = log(1000).await;
        let lines: String = (0..109).map(|n| format!("line {n:02}\n")).collect();
        let fits = &lines[..1000 - 128];
        for line in fits.split_inclusive('\n') {
            log.write(line.as_bytes()).await.unwrap();
        }
        let whole: Vec<&str> = fits.lines().collect();
        assert_eq!(log.last_lines(1000).await, whole);
        log.close().await.unwrap();
        assert_eq!(std::fs::read_to_string(log.path()).unwrap(), fits);
    }

    #[tokio::test]
    async fn what_a_failed_write_left_is_written_over() {
        let (_dir, log) = log(1000).await;
        log.write(b"first\n").await.unwrap();
        // As a disk that was full half-way leaves it.
        log.change(|spool| spool.file.write_all_at(b"half a li", 6)).await.unwrap();
        log.write(b"next\n").await.unwrap();
        let length = log.close().await.unwrap();
        let bytes = std::fs::read(log.path()).unwrap();
        assert_eq!(&bytes[..usize::try_from(length).unwrap()], b"first\nnext\n");
    }
}
