//! Bytes of a file, for whoever sends them.

use crate::hash::joined;
use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinHandle;

/// What is read at once: big enough that the calls do not matter, small enough that it is sent out of the second-level cache.
const PIECE_BYTES: usize = 256 * 1024;

/// `length` bytes of `file` from `offset` on, in pieces.
///
/// What the system has in memory is read on the spot: to ask a thread for it would take longer than to copy it. From the first
/// piece on that the disk is waited for, a blocking thread reads, one piece ahead of whoever takes them.
///
/// # Errors
/// The read's; [`io::ErrorKind::UnexpectedEof`] if the file is shorter.
pub fn read_pieces(
    file: Arc<File>,
    offset: u64,
    length: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let reading = Reading { file, offset, end: offset.saturating_add(length), memory: Arc::default(), ahead: None };
    stream::try_unfold(reading, |mut reading| async move {
        let bytes = reading.next().await?;
        Ok((!bytes.is_empty()).then_some((bytes, reading)))
    })
}

struct Reading {
    file: Arc<File>,
    offset: u64,
    end: u64,
    memory: Arc<Memory>,
    /// A piece that a thread reads.
    ahead: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Reading {
    /// The next piece; an empty one at the end.
    async fn next(&mut self) -> io::Result<Bytes> {
        let bytes = match self.ahead.take() {
            Some(ahead) => joined(ahead).await?,
            None if self.offset == self.end => return Ok(Bytes::new()),
            None => match self.read_now() {
                Some(bytes) => {
                    self.offset += bytes.len() as u64;
                    return Ok(bytes);
                }
                None => joined(self.read_elsewhere()).await?,
            },
        };
        self.offset += bytes.len() as u64;
        self.ahead = (self.offset < self.end).then(|| self.read_elsewhere());
        Ok(bytes)
    }

    fn wanted(&self) -> usize {
        usize::try_from(self.end - self.offset).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES))
    }

    /// What can be read without waiting; `None` if nothing can, for whatever reason: the thread will tell.
    fn read_now(&self) -> Option<Bytes> {
        let mut memory = Memory::take(&self.memory, self.wanted());
        loop {
            let mut into = [IoSliceMut::new(memory.room())];
            match rustix::io::preadv2(&self.file, &mut into, self.offset, ReadWriteFlags::NOWAIT) {
                Ok(0) => return None,
                Ok(read) => {
                    memory.length = read;
                    return Some(Bytes::from_owner(memory));
                }
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn read_elsewhere(&self) -> JoinHandle<io::Result<Bytes>> {
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        let mut memory = Memory::take(&self.memory, self.wanted());
        tokio::task::spawn_blocking(move || {
            file.read_exact_at(memory.room(), offset)?;
            Ok(Bytes::from_owner(memory))
        })
    }
}

/// Pieces of memory that were sent, to be used again: fresh memory costs more than what is copied into it.
#[derive(Default)]
struct Memory(Mutex<Vec<Vec<u8>>>);

/// A piece in use.
struct Lent {
    bytes: Vec<u8>,
    length: usize,
    of: Arc<Memory>,
}

impl Memory {
    fn take(this: &Arc<Self>, length: usize) -> Lent {
        let spare = this.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // The last piece is the only one that is shorter.
        let bytes = spare.filter(|spare| spare.len() >= length).unwrap_or_else(|| vec![0; length]);
        Lent { bytes, length, of: Arc::clone(this) }
    }
}

impl Lent {
    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.of.0.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt as _;
    use rustix::fs::Advice;

    async fn all(file: &Arc<File>, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let pieces: Vec<Bytes> = read_pieces(Arc::clone(file), offset, length).try_collect().await?;
        Ok(pieces.concat())
    }

    #[tokio::test]
    async fn whatever_is_in_memory_the_bytes_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..5 * PIECE_BYTES + 77).map(|n| (n / 3 * 7) as u8).collect();
        let path = dir.path().join("file");
        std::fs::write(&path, &bytes).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        for dropped in [0..0, 0..bytes.len(), 2 * PIECE_BYTES + 5..3 * PIECE_BYTES] {
            for (offset, length) in [(0, bytes.len()), (9, PIECE_BYTES * 4), (PIECE_BYTES, 1), (3, 0)] {
                file.sync_all().unwrap();
                let length_dropped = std::num::NonZeroU64::new(dropped.len() as u64);
                if length_dropped.is_some() {
                    rustix::fs::fadvise(&file, dropped.start as u64, length_dropped, Advice::DontNeed).unwrap();
                }
                let got = all(&file, offset as u64, length as u64).await.unwrap();
                assert!(got == bytes[offset..offset + length], "{offset} {length} {dropped:?}");
            }
        }
        let error = all(&file, 0, bytes.len() as u64 + 1).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn memory_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1; 9 * PIECE_BYTES + 1]).unwrap();
        let mut pieces =
            std::pin::pin!(read_pieces(Arc::new(File::open(&path).unwrap()), 0, 9 * PIECE_BYTES as u64 + 1));
        let mut places = std::collections::BTreeSet::new();
        while let Some(piece) = pieces.try_next().await.unwrap() {
            places.insert(piece.as_ptr());
        }
        assert!(places.len() <= 2, "{}", places.len());
    }
}
