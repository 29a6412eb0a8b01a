//! The digest of bytes that come one after the other, and of a file.
//!
//! Hashing is what takes longest of all that is done to a byte, and cannot be shared between processors: so whoever reads,
//! decodes or writes the bytes does so on another one.

use crate::crc32s::Crc32s;
use crate::error::TransferError;
use futures_util::future::MaybeDone;
use railyard_common::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Read};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use tokio::task::JoinHandle;

/// Big enough that the system call does not matter, small enough for the second-level cache.
pub(crate) const READ_BYTES: usize = 256 * 1024;

/// So many bytes are hashed where they are: a thread is not worth its start for them.
const ALONE_BYTES: u64 = 4 * 1024 * 1024;

/// What the hashing thread gets at once: to wake it, or whoever waits for it, takes as long as hashing some ten kilobytes.
const PIECE_BYTES: usize = 512 * 1024;

/// Pieces that wait for the hashing thread.
const PIECES: usize = 3;

/// The SHA-256 of bytes, hashed on a thread of its own when there are many of them.
pub struct Hasher {
    side: Side,
    bytes: u64,
    /// From so many bytes on there.
    alone_bytes: u64,
}

enum Side {
    Here(Sha256),
    There(There),
}

struct There {
    filling: Piece,
    pieces: SyncSender<Piece>,
    /// Pieces that were hashed.
    spare: Receiver<Piece>,
    thread: thread::JoinHandle<Sha256>,
}

/// Memory for [`PIECE_BYTES`], and how many of them there are.
struct Piece {
    memory: Vec<u8>,
    length: usize,
}

impl Piece {
    fn empty() -> Self {
        Self { memory: vec![0; PIECE_BYTES], length: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[..self.length]
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.length..]
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self { side: Side::Here(Sha256::new()), bytes: 0, alone_bytes: ALONE_BYTES }
    }
}

impl Hasher {
    /// For whoever does next to nothing else with the bytes: it needs no thread.
    pub fn in_place() -> Self {
        Self { alone_bytes: u64::MAX, ..Self::default() }
    }

    /// How many bytes it has been given.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes. Waits while too many are to be hashed still.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        match &mut self.side {
            Side::Here(hasher) => {
                hasher.update(bytes);
                self.move_on();
            }
            Side::There(there) => there.update(bytes),
        }
    }

    /// Everything that can be read; `seen` sees it, too.
    pub(crate) fn update_from(&mut self, from: &mut impl Read, mut seen: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        while let Side::Here(_) = &self.side {
            let n = read_some(from, &mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            seen(&buffer[..n]);
            self.update(&buffer[..n]);
        }
        if let Side::There(there) = &mut self.side {
            self.bytes += there.update_from(from, seen)?;
        }
        Ok(())
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Digest {
        Digest::finish(match self.side {
            Side::Here(hasher) => hasher,
            Side::There(there) => there.finish(),
        })
    }

    /// To a thread, when there are enough bytes for one. Where there can be no more threads it stays.
    fn move_on(&mut self) {
        if let Side::Here(hasher) = &self.side
            && self.bytes >= self.alone_bytes
            && let Ok(there) = There::begin(hasher.clone())
        {
            self.side = Side::There(there);
        }
    }
}

impl There {
    fn begin(mut hasher: Sha256) -> io::Result<Self> {
        let (pieces, wanted) = sync_channel::<Piece>(PIECES);
        let (give_back, spare) = channel();
        let hash = move || {
            for mut piece in wanted {
                hasher.update(piece.bytes());
                piece.length = 0;
                // Nobody needs it when all has been read.
                let _ = give_back.send(piece);
            }
            hasher
        };
        let thread = thread::Builder::new().name("hash".to_owned()).spawn(hash)?;
        Ok(Self { filling: Piece::empty(), pieces, spare, thread })
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.filling.room();
            let (some, rest) = bytes.split_at(bytes.len().min(room.len()));
            room[..some.len()].copy_from_slice(some);
            bytes = rest;
            self.fill(some.len());
        }
    }

    fn update_from(&mut self, from: &mut impl Read, mut seen: impl FnMut(&[u8])) -> io::Result<u64> {
        let mut bytes = 0;
        loop {
            let room = self.filling.room();
            let n = read_some(from, room)?;
            if n == 0 {
                return Ok(bytes);
            }
            seen(&room[..n]);
            bytes += n as u64;
            self.fill(n);
        }
    }

    /// So many more bytes are in the piece; a full one is passed on.
    fn fill(&mut self, bytes: usize) {
        self.filling.length += bytes;
        if self.filling.length == PIECE_BYTES {
            let next = self.spare.try_recv().unwrap_or_else(|_| Piece::empty());
            // It ends early only in a panic, which goes on where the digest is taken.
            let _ = self.pieces.send(std::mem::replace(&mut self.filling, next));
        }
    }

    fn finish(self) -> Sha256 {
        let _ = self.pieces.send(self.filling);
        drop(self.pieces);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn read_some(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// What reading a file once has told.
#[derive(Clone, Debug)]
pub struct Hashed {
    /// Of all its bytes.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// For whoever sends it.
    pub crc32s: Crc32s,
}

/// Reads a file on a blocking thread.
///
/// # Errors
/// [`TransferError::NotFound`] or [`TransferError::Io`].
pub async fn hash_file(path: &Path) -> Result<Hashed, TransferError> {
    let path = path.to_owned();
    blocking(move || {
        let hash = || {
            let (mut hasher, mut crc32s) = (Hasher::default(), Crc32s::default());
            hasher.update_from(&mut File::open(&path)?, |bytes| crc32s.update(bytes))?;
            let bytes = hasher.bytes();
            Ok(Hashed { digest: hasher.finish(), bytes, crc32s })
        };
        hash().map_err(TransferError::local("read", &path))
    })
    .await
}

/// Hashes a file while `work` goes on, which reads the same file for another reason.
///
/// # Errors
/// As [`hash_file`].
pub async fn hash_beside<W: Future>(path: &Path, mut work: Pin<&mut MaybeDone<W>>) -> Result<Hashed, TransferError> {
    let mut hashing = pin!(hash_file(path));
    poll_fn(|context| {
        // Its result stays with it.
        let _ = work.as_mut().poll(context);
        hashing.as_mut().poll(context)
    })
    .await
}

/// Runs `work` on a blocking thread. A panic there goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work)).await
}

/// The result of blocking work. A panic in it goes on here.
pub(crate) async fn joined<T>(handle: JoinHandle<T>) -> T {
    match handle.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is only cancelled when the runtime goes down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn here_and_there_are_the_same_digest(
            kib in 0_usize..12_000, odd in 0_usize..2000, steps in prop::collection::vec(1_usize..700_000, 1..9),
        ) {
            let bytes: Vec<u8> = (0..kib * 1024 + odd).map(|n| (n * 31 / 7) as u8).collect();
            let (mut hasher, mut at, mut steps) = (Hasher::default(), 0, steps.iter().cycle());
            while at < bytes.len() {
                let end = bytes.len().min(at + steps.next().copied().unwrap_or(1));
                hasher.update(&bytes[at..end]);
                at = end;
            }
            prop_assert_eq!(hasher.bytes(), bytes.len() as u64);
            prop_assert_eq!(hasher.finish(), Digest::of(&bytes));
            let mut in_place = Hasher::in_place();
            in_place.update(&bytes);
            prop_assert_eq!(in_place.finish(), Digest::of(&bytes));
            let mut read = Hasher::default();
            let mut seen = 0;
            read.update_from(&mut &bytes[..], |bytes| seen += bytes.len()).unwrap();
            prop_assert_eq!(seen, bytes.len());
            prop_assert_eq!(read.bytes(), bytes.len() as u64);
            prop_assert_eq!(read.finish(), Digest::of(&bytes));
        }
    }
}
