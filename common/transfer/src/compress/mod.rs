//! Files, compressed: streamed, on all processors, within a bound of memory.
//!
//! **Invariant:** the bytes depend on the file, the codec and its level, and on nothing else: not on the number of
//! threads, nor on when they ran. A worker that was restarted compresses again and goes on with what it had sent.

mod blocks;
mod bzip2;
mod gzip;
mod sample;
mod source;
mod xz;
mod zstd;

pub use sample::pays;

use crate::error::TransferError;
use crate::hash::blocking;
use crate::memory::{Held, Memory};
use railyard_common::blob::{Blob, Encoding};
use railyard_common::compress::{Codec, Packing};
use railyard_common::digest::Digest;
use source::{Sink, Source, Stop};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::num::NonZero;
use std::path::Path;

/// What compresses files. Cheap to clone: the clones share the memory.
#[derive(Clone, Debug)]
pub struct Press {
    memory: Memory,
    /// The part of it that compressing may have. Whoever waits for it waits here, and not in front of a transfer.
    share: Memory,
    threads: usize,
}

/// What transfers keep, whatever is compressed: the streams of one file. A compression may take hours, and a transfer that does
/// not move for ten minutes is given up.
const TRANSFERS_KEEP_BYTES: u64 = 4 * crate::STREAM_BYTES;

/// What somebody may use who compresses with zstd on his own.
#[derive(Debug)]
pub struct Room {
    /// So many threads.
    pub threads: usize,
    /// Their memory.
    _held: (Held, Held),
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressed {
    /// The file as it was.
    pub plain: Sum,
    /// The file as it is now.
    pub packed: Sum,
    /// On how many threads.
    pub threads: usize,
}

/// What there is to say about bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Their SHA-256, if somebody wanted to know.
    pub digest: Option<Digest>,
    /// How many there are.
    pub bytes: u64,
}

/// Which digests are wanted; each is taken in the one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None.
    Nothing,
    /// That of the file as it is.
    Plain,
    /// That of the compressed file.
    Packed,
    /// Both.
    Both,
}

impl Press {
    /// Compresses within `memory`, on all processors as far as it goes.
    pub fn new(memory: Memory) -> Self {
        Self::with_threads(memory, std::thread::available_parallelism().map_or(1, NonZero::get))
    }

    /// The same on at most `threads` threads.
    pub fn with_threads(memory: Memory, threads: usize) -> Self {
        let share = Memory::new(memory.total_bytes().saturating_sub(TRANSFERS_KEEP_BYTES));
        Self { memory, share, threads: threads.max(1) }
    }

    /// Compresses `src` into `dst`. `progress` is told how many bytes of `src` are done. Waits while others use the memory; a
    /// codec that takes more than there is on a single thread has all of it to itself, but for what transfers keep. When the future is dropped, the
    /// work stops at the next block.
    ///
    /// # Errors
    /// [`TransferError::NotFound`], [`TransferError::DiskFull`], [`TransferError::Changed`] if the file grew or shrank
    /// meanwhile, or [`TransferError::Io`]. Nothing half written is left.
    pub async fn compress(
        &self,
        src: &Path,
        dst: &Path,
        packing: Packing,
        want: Want,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<Pressed, TransferError> {
        let length = tokio::fs::metadata(src).await.map_err(TransferError::local("read", src))?.len();
        let (threads, bytes) = self.share(packing, length);
        let room = self.take(threads, bytes).await;
        let (stop, _stops_when_dropped) = Stop::new();
        let (src, dst) = (src.to_owned(), dst.to_owned());
        blocking(move || {
            // Given back when the work is over, also if nobody waits for it any more.
            let _room = room;
            let input = File::open(&src).map_err(TransferError::local("read", &src))?;
            let output = File::create(&dst).map_err(TransferError::local("write", &dst))?;
            let is_file = output.metadata().is_ok_and(|metadata| metadata.is_file());
            let source = Source::new(input, matches!(want, Want::Plain | Want::Both), stop, Box::new(progress));
            let sink = Sink::new(output, matches!(want, Want::Packed | Want::Both));
            press((source, &src), (sink, &dst), packing, threads).inspect_err(|_| {
                // What is half written is of no use; a device that somebody named is not ours to remove.
                if is_file {
                    // If it cannot be removed, the first error is still the one to tell.
                    let _ = fs::remove_file(&dst);
                }
            })
        })
        .await
    }

    /// Waits until somebody else may compress something long with zstd, by whatever way, and says on how many threads. The memory
    /// is theirs until the result is dropped.
    pub async fn room_for_zstd(&self, level: u8) -> Room {
        let (threads, bytes) = self.share(Packing { codec: Codec::Zstd, level }, u64::MAX);
        self.take(threads, bytes).await
    }

    async fn take(&self, threads: usize, bytes: u64) -> Room {
        let turn = self.share.take(bytes).await;
        let held = self.memory.take(bytes.min(self.share.total_bytes())).await;
        Room { threads, _held: (turn, held) }
    }

    /// How many threads a file of that length gets, and how much memory they take.
    fn share(&self, packing: Packing, length: u64) -> (usize, u64) {
        let (block_bytes, memory_of): (u64, &dyn Fn(usize) -> u64) = match packing.codec {
            Codec::Zstd => (zstd::job_bytes(packing.level), &|threads| zstd::memory_bytes(packing.level, threads)),
            Codec::Xz => (xz::block_bytes(packing.level), &|threads| xz::memory_bytes(packing.level, threads)),
            Codec::Gzip => (gzip::BLOCK_BYTES as u64, &gzip::memory_bytes),
            Codec::Bzip2 => {
                (bzip2::block_bytes(packing.level) as u64, &|threads| bzip2::memory_bytes(packing.level, threads))
            }
        };
        let blocks = usize::try_from(length.div_ceil(block_bytes)).unwrap_or(usize::MAX);
        let most = self.threads.min(blocks).max(1);
        let fits = (2..=most).rev().find(|threads| memory_of(*threads) <= self.share.total_bytes());
        let threads = fits.unwrap_or(1);
        (threads, memory_of(threads))
    }
}

/// Compresses with all processors into one zstd frame that tells its content size, and hashes the plain bytes on the way.
///
/// # Errors
/// As [`Press::compress`].
pub async fn compress_zstd(src: &Path, dst: &Path, level: u8) -> Result<Blob, TransferError> {
    let press = Press::new(Memory::default());
    let packing = Packing { codec: Codec::Zstd, level };
    let pressed = press.compress(src, dst, packing, Want::Plain, |_| {}).await?;
    let Sum { digest, bytes } = pressed.plain;
    let digest = digest.unwrap_or_else(|| unreachable!("the digest was wanted"));
    Ok(Blob { digest, size_bytes: bytes, encoding: Encoding::Zstd, stored_bytes: pressed.packed.bytes })
}

fn press(
    (mut source, src): (Source, &Path),
    (sink, dst): (Sink, &Path),
    packing: Packing,
    threads: usize,
) -> Result<Pressed, TransferError> {
    let expected = source.open().map_err(TransferError::local("read", src))?;
    let packed = match packing.codec {
        Codec::Zstd => zstd::pack(&mut source, sink, packing.level, threads),
        Codec::Xz => xz::pack(&mut source, sink, packing.level, threads),
        Codec::Gzip => gzip::pack(&mut source, sink, packing.level, threads),
        Codec::Bzip2 => bzip2::pack(&mut source, sink, packing.level, threads),
    };
    // Whoever took only what was announced has not seen that there is more.
    let packed = packed.and_then(|sink| source.read(&mut [0]).map(|_| sink));
    // What went wrong with the file itself is behind whatever the codec says then.
    if let Some(error) = source.failed() {
        return Err(TransferError::local("read", src)(error));
    }
    if source.changed() {
        return Err(TransferError::Changed { path: src.to_owned(), expected, found: source.seen() });
    }
    let packed = packed.and_then(Sink::finish).map_err(TransferError::local("write", dst))?;
    Ok(Pressed { plain: source.finish(), packed, threads })
}

/// An error of a codec, which can only be a bug: the level was checked, and there is nothing else that it could refuse.
fn bug(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("the codec refused: {error}"))
}
