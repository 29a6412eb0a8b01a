//! Looks at an upload's bytes while more of them come: hashes the parts from the first on, as far as there is no gap, and has
//! them written to the disk. What is left to do when the last part is there is little.
//!
//! **Invariant:** a part that was written again after it had been looked at spoils what was seen; then everything is looked at
//! once more in the end.

use super::uploads::{Upload, is_written};
use crate::cache::parts::spans;
use crate::cache::verify::{Verdict, Verifier};
use railyard_common::blob::Blob;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

/// Read at once.
const READ_BYTES: usize = 256 * 1024;
/// Parts that are flushed together: the disk is kept busy, and the flush at the end has little to wait for.
const FLUSH_BYTES: u64 = 64 * 1024 * 1024;

/// How far an upload was looked at.
#[derive(Default)]
pub(super) struct Ahead {
    /// Held by whoever looks.
    verifier: Mutex<Option<Verifier>>,
    /// The last part whose bytes were read, or are about to be.
    looked_at: AtomicU32,
    spoilt: AtomicBool,
    written_bytes: AtomicU64,
    /// Held by whoever flushes.
    flushed_bytes: Mutex<u64>,
}

impl Ahead {
    /// A part is about to be written, and its marker is gone.
    pub(super) fn rewritten(&self, number: u32) {
        if number <= self.looked_at.load(Ordering::SeqCst) {
            self.spoilt.store(true, Ordering::SeqCst);
        }
    }

    /// A part was written: looks at what can be looked at now, unless somebody does already. Errors show at the end, when the
    /// same bytes are read again. Blocking.
    pub(super) fn go_on(&self, dir: &Path, upload: &Upload, number: u32) {
        let Ok(file) = File::open(dir.join("data")) else { return };
        let mut held = match self.verifier.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            // Whoever looks now finds this part when it comes to it, or the next one does.
            Err(TryLockError::WouldBlock) => return,
        };
        if number <= self.looked_at.load(Ordering::SeqCst) || self.spoilt.load(Ordering::SeqCst) {
            return;
        }
        let mut verifier = match held.take() {
            Some(verifier) => verifier,
            None => match Verifier::new(&upload.blob) {
                Ok(verifier) => verifier,
                Err(_) => return,
            },
        };
        for (number, (offset, length)) in (1..).zip(spans(upload.blob.stored_bytes, upload.part_bytes)) {
            if offset < verifier.seen_bytes() {
                continue;
            }
            // First said, then looked whether it is there: who writes it again removes it first and then sees this.
            self.looked_at.store(number, Ordering::SeqCst);
            if !is_written(dir, number) {
                self.looked_at.store(number - 1, Ordering::SeqCst);
                break;
            }
            if read(&file, &mut verifier, offset + length).is_err() {
                self.spoilt.store(true, Ordering::SeqCst);
                return;
            }
        }
        *held = Some(verifier);
    }

    /// Has what was written go to the disk while more comes, one at a time. Blocking.
    pub(super) fn flush(&self, dir: &Path, bytes: u64) {
        let written = self.written_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let Ok(mut flushed) = self.flushed_bytes.try_lock() else { return };
        if written >= flushed.saturating_add(FLUSH_BYTES)
            && let Ok(file) = File::open(dir.join("data"))
        {
            *flushed = written;
            // The flush at the end tells of a disk that fails.
            let _ = file.sync_data();
        }
    }

    /// Looks at the rest. Nobody may write any more.
    pub(super) fn finish(&self, file: &File, blob: &Blob) -> io::Result<Verdict> {
        let seen = self.verifier.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut verifier = match seen {
            Some(verifier) if !self.spoilt.load(Ordering::SeqCst) => verifier,
            _ => Verifier::new(blob)?,
        };
        read(file, &mut verifier, blob.stored_bytes)?;
        Ok(verifier.finish())
    }
}

/// Shows the verifier the file's bytes up to `end`.
fn read(file: &File, verifier: &mut Verifier, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    while verifier.seen_bytes() < end {
        let left = end - verifier.seen_bytes();
        let n = usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
        file.read_exact_at(&mut buffer[..n], verifier.seen_bytes())?;
        verifier.see(&buffer[..n]);
    }
    Ok(())
}
