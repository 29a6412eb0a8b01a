//! A tar on its way from the thread that makes it to those that hash and compress it.

use super::error::PackError;
use super::frame::FrameFile;
use crate::disk::DiskError;
use crate::image_move::split::Packed;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use zstd::stream::write::Encoder;

/// What is passed on at a time: big enough that passing costs nothing, small enough for the second-level cache.
pub const PIECE_BYTES: usize = 512 * 1024;

/// Pieces that wait for the slower one of the two readers.
const PIECES: usize = 8;

/// A piece of the tar; the last one who has read it gives its memory back.
#[derive(Clone)]
struct Piece {
    memory: Arc<Vec<u8>>,
    length: usize,
    spare: Sender<Vec<u8>>,
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(memory) = Arc::get_mut(&mut self.memory) {
            // Nobody needs it when the tar is over.
            let _ = self.spare.send(std::mem::take(memory));
        }
    }
}

/// Where the tar is written to.
pub struct Pipe<'a> {
    /// The piece that is being filled. Its length is always a piece's; so much of it counts.
    filling: Vec<u8>,
    filled: usize,
    hash: SyncSender<Piece>,
    compress: SyncSender<Piece>,
    spare: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    stop: &'a AtomicBool,
}

impl Pipe<'_> {
    /// These bytes.
    ///
    /// # Errors
    /// [`PackError::Unwanted`] if nobody reads any more.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), PackError> {
        while !bytes.is_empty() {
            let (some, rest) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.filled));
            self.filling[self.filled..self.filled + some.len()].copy_from_slice(some);
            self.filled += some.len();
            bytes = rest;
            if self.filled == PIECE_BYTES {
                self.pass()?;
            }
        }
        Ok(())
    }

    /// So many zeros.
    ///
    /// # Errors
    /// [`PackError::Unwanted`].
    pub fn zeros(&mut self, count: u64) -> Result<(), PackError> {
        let mut left = count;
        while left > 0 {
            left -= self.fill(left, |room| {
                room.fill(0);
                Ok(room.len())
            })? as u64;
        }
        Ok(())
    }

    /// Has `read` fill some of the room, up to `most`. Gives how many bytes it says that it has filled.
    ///
    /// # Errors
    /// Those of `read`, or [`PackError::Unwanted`].
    pub fn fill(
        &mut self,
        most: u64,
        read: impl FnOnce(&mut [u8]) -> Result<usize, PackError>,
    ) -> Result<usize, PackError> {
        let room = &mut self.filling[self.filled..];
        let most = usize::try_from(most).map_or(room.len(), |most| most.min(room.len()));
        let filled = read(&mut room[..most])?;
        self.filled += filled;
        if self.filled == PIECE_BYTES {
            self.pass()?;
        }
        Ok(filled)
    }

    /// Passes on what there is.
    fn pass(&mut self) -> Result<(), PackError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(PackError::Unwanted);
        }
        let next = self.spare.1.try_recv().unwrap_or_else(|_| vec![0; PIECE_BYTES]);
        let memory = Arc::new(std::mem::replace(&mut self.filling, next));
        let piece = Piece { memory, length: std::mem::take(&mut self.filled), spare: self.spare.0.clone() };
        self.hash.send(piece.clone()).map_err(|_| PackError::Unwanted)?;
        self.compress.send(piece).map_err(|_| PackError::Unwanted)
    }
}

/// Has `write` make a tar, which is hashed and compressed into `file` meanwhile, each on threads of its own.
///
/// # Errors
/// [`PackError`]: of `write`, or of the disk. What is half written is removed.
pub fn packed(
    file: &Path,
    (level, threads): (i32, usize),
    stop: &AtomicBool,
    write: impl FnOnce(&mut Pipe<'_>) -> Result<(), PackError>,
) -> Result<Packed, PackError> {
    let (hash, to_hash) = sync_channel(PIECES);
    let (compress, to_compress) = sync_channel(PIECES);
    let mut pipe = Pipe { filling: vec![0; PIECE_BYTES], filled: 0, hash, compress, spare: channel(), stop };
    let result = std::thread::scope(|scope| {
        let hashing = scope.spawn(move || hashed(&to_hash));
        let compressing = scope.spawn(move || compressed(&to_compress, file, (level, threads)));
        let written = write(&mut pipe).and_then(|()| pipe.pass());
        // The readers end with the pipe.
        drop(pipe);
        let (digest, size_bytes) = joined(hashing);
        // A reader's error is why the writer could not go on.
        let stored_bytes = joined(compressing).map_err(DiskError::at("write", file))?;
        written?;
        let blob = Blob { digest, size_bytes, encoding: Encoding::Zstd, stored_bytes };
        Ok(Packed { blob, file: file.to_owned() })
    });
    // A device that somebody named is not ours to remove.
    if result.is_err() && file.is_file() {
        // If it cannot be removed, the first error is still the one to tell.
        let _ = std::fs::remove_file(file);
    }
    result
}

fn hashed(pieces: &Receiver<Piece>) -> (Digest, u64) {
    let mut hasher = Sha256::new();
    let mut size_bytes = 0;
    for piece in pieces {
        hasher.update(piece.bytes());
        size_bytes += piece.length as u64;
    }
    (Digest::finish(hasher), size_bytes)
}

fn compressed(pieces: &Receiver<Piece>, file: &Path, (level, threads): (i32, usize)) -> io::Result<u64> {
    let mut encoder = Encoder::new(FrameFile::new(File::create(file)?), level)?;
    // Never none: without its threads zstd cuts otherwise, and gives other bytes.
    encoder.multithread(u32::try_from(threads).unwrap_or(1).max(1))?;
    let mut size_bytes = 0;
    for piece in pieces {
        encoder.write_all(piece.bytes())?;
        size_bytes += piece.length as u64;
    }
    encoder.finish()?.finish(size_bytes)
}

/// The thread's result. A panic in it goes on here.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
