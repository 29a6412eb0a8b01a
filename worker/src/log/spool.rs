//! The log's file.
//!
//! **Invariant:** bytes once written are never changed, so that what is sent again after a broken connection is the
//! same. What is left out of a log that is too long is counted, and said in the log itself.

use crate::disk::DiskError;
use std::collections::VecDeque;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::{Mutex, watch};

/// Of a log that is too long, so much of its end is kept: the error is usually there.
const TAIL_BYTES: usize = 64 * 1024;

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
    max_bytes: u64,
    spool: Mutex<Spool>,
    written: watch::Sender<Written>,
}

#[derive(Debug)]
struct Spool {
    file: File,
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
    /// Begins a log of at most `max_bytes` in a new file.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn create(path: &Path, max_bytes: u64) -> Result<Self, DiskError> {
        let file = File::create(path).await.map_err(DiskError::at("create", path))?;
        let spool = Mutex::new(Spool { file, at_line_start: true, cut: None });
        Ok(Self { path: path.to_owned(), max_bytes, spool, written: watch::Sender::default() })
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
        let mut spool = self.spool.lock().await;
        let room = self.max_bytes.saturating_sub(self.written.borrow().bytes);
        let fits = if spool.cut.is_some() { 0 } else { usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()) };
        let (kept, rest) = bytes.split_at(fits);
        self.append(&mut spool, kept).await?;
        if !rest.is_empty() {
            spool.cut.get_or_insert_default().push(rest);
        }
        Ok(())
    }

    /// Appends a line of the worker's own: short, for people.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn note(&self, text: &str) -> Result<(), DiskError> {
        let line_end = if self.spool.lock().await.at_line_start { "" } else { "\n" };
        self.write(format!("{line_end}==> railyard: {text}\n").as_bytes()).await
    }

    /// Ends the log. Returns its length.
    ///
    /// # Errors
    /// [`DiskError`]; the log is ended all the same.
    pub async fn close(&self) -> Result<u64, DiskError> {
        let mut spool = self.spool.lock().await;
        let written = match spool.cut.take() {
            Some(cut) => {
                let (tail, left_out) = (Vec::from(cut.tail), cut.left_out_bytes);
                let text = format!("\n==> railyard: the log is too long; {left_out} bytes are left out here\n");
                match self.append(&mut spool, text.as_bytes()).await {
                    Ok(()) => self.append(&mut spool, &tail).await,
                    error => error,
                }
            }
            None => Ok(()),
        };
        self.written.send_modify(|written| written.closed = true);
        written.map(|()| self.written.borrow().bytes)
    }

    /// The last lines, for the message of a failure. What is not UTF-8 is replaced.
    pub async fn last_lines(&self, count: usize) -> Vec<String> {
        let spool = self.spool.lock().await;
        let length = self.written.borrow().bytes;
        let bytes = match &spool.cut {
            Some(cut) => cut.tail.iter().copied().collect(),
            None => read_end(&self.path, length).await.unwrap_or_default(),
        };
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(count)..].iter();
        last.map(|line| line.chars().take(LINE_SHOWN_CHARS).collect()).collect()
    }

    async fn append(&self, spool: &mut Spool, bytes: &[u8]) -> Result<(), DiskError> {
        let Some(last) = bytes.last() else { return Ok(()) };
        // Flushed, because a tokio file buffers, and readers are told that the bytes are there.
        let written = match spool.file.write_all(bytes).await {
            Ok(()) => spool.file.flush().await,
            error => error,
        };
        if let Err(error) = written {
            // What was half written must not stand between what is there and what comes later. If that fails too, the
            // log ends here: nothing is read beyond what was told.
            let end = self.written.borrow().bytes;
            let _ = spool.file.set_len(end).await;
            let _ = spool.file.seek(SeekFrom::Start(end)).await;
            return Err(DiskError::at("write", &self.path)(error));
        }
        spool.at_line_start = *last == b'\n';
        self.written.send_modify(|written| written.bytes += bytes.len() as u64);
        Ok(())
    }
}

impl Cut {
    fn push(&mut self, bytes: &[u8]) {
        self.tail.extend(bytes);
        let spare = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..spare);
        self.left_out_bytes += spare as u64;
    }
}

async fn read_end(path: &Path, length: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path).await?;
    let from = length.saturating_sub(LAST_LINES_BYTES);
    file.seek(SeekFrom::Start(from)).await?;
    let mut bytes = Vec::new();
    file.take(length - from).read_to_end(&mut bytes).await?;
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
        let (_dir, log) = log(10).await;
        log.write(b"0123456789abc").await.unwrap();
        log.write(&vec![b'x'; TAIL_BYTES]).await.unwrap();
        log.write(b"\nlast").await.unwrap();
        assert_eq!(log.last_lines(1).await, ["last"]);
        log.close().await.unwrap();
        let text = std::fs::read_to_string(log.path()).unwrap();
        let head = "0123456789\n==> railyard: the log is too long; 8 bytes are left out here\nxxx";
        assert!(text.starts_with(head) && text.ends_with("xxx\nlast"), "{}", &text[..100]);
        assert!(log.written().borrow().closed);
    }
}
