//! Where pulled bytes land: chunks at their places in a file of the final size, followed by the digest, then renamed.
//!
//! **Invariant:** nobody writes into a file that has its final name, and no two pulls write the same file: whoever holds the
//! lock of the part that lies at its path is the only one who changes it, its notes and the destination.

use crate::chunks::{Chunk, Chunks};
use crate::error::TransferError;
use crate::follow::{Fault, Tap, follow};
use crate::hash::{Hasher, blocking, joined};
use crate::scratch::{self, Scratch};
use bytes::Bytes;
use railyard_common::blob::{Blob, Encoding};
use rustix::fs::FallocateFlags;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinHandle;

/// In which form a blob is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Its plain bytes.
    Plain,
    /// As the cache holds it: what is compressed stays so. Verified all the same.
    Stored,
}

/// A file that bytes are pulled into.
pub(crate) struct Landing {
    shared: Arc<Shared>,
    follower: JoinHandle<Result<(), Fault>>,
    /// Told how many bytes there are without a gap.
    marks: Sender<u64>,
    blob: Blob,
    dest: PathBuf,
    scratch: Scratch,
    /// The decoded bytes are wanted.
    decoded: bool,
    url: String,
    /// Some of the bytes are of an earlier pull.
    pub(crate) resumed: bool,
}

struct Shared {
    file: Arc<File>,
    chunks: Mutex<Chunks>,
    /// Whose turn it is to write: a file system lets one in at a time, and has the others burn a processor meanwhile.
    turn: Mutex<()>,
}

impl Landing {
    /// Opens the part of `dest` for `stored_bytes` stored bytes. What it holds of them already counts. `None` if another pull
    /// was waited for, and has left the very file.
    pub(crate) async fn open(
        blob: &Blob,
        stored_bytes: u64,
        dest: &Path,
        form: Form,
        tap: Option<Tap>,
        url: String,
    ) -> Result<Option<Self>, TransferError> {
        let decoded = blob.encoding == Encoding::Zstd && form == Form::Plain;
        // Whoever wants to hear the bytes must have them pass by, and what the cache has packed is not known by its digest.
        let may_be_there = tap.is_none() && (decoded || blob.encoding == Encoding::Identity);
        let (dest, scratch) = (dest.to_owned(), Scratch::beside(dest));
        let (wanted, to, beside) = (*blob, dest.clone(), scratch.clone());
        let opening = move || {
            let open = || {
                let (file, waited) = lock(&beside.part, &to)?;
                if waited && may_be_there && is_there(&to, &wanted) {
                    beside.remove();
                    return Ok(None);
                }
                let length = file.metadata()?.len();
                let mut chunks = Chunks::open(&beside.chunks, stored_bytes, &wanted.digest)?;
                if length != stored_bytes || !chunks.is_known() {
                    chunks.restart(|| resize(&file, length, stored_bytes))?;
                }
                let plain = decoded.then(|| empty(&beside.plain)).transpose()?;
                Ok(Some((Arc::new(file), chunks, plain)))
            };
            open().map_err(TransferError::local("write", &to))
        };
        let Some((file, chunks, plain)) = blocking(opening).await? else { return Ok(None) };
        let resumed = chunks.landed_bytes() > 0;
        let (marks, heard) = channel();
        // Heard by the follower as soon as it begins.
        let _ = marks.send(chunks.gapless_bytes());
        let (followed, followed_blob) = (Arc::clone(&file), *blob);
        let follower =
            tokio::task::spawn_blocking(move || follow(&followed, &followed_blob, stored_bytes, (plain, tap), &heard));
        let shared = Arc::new(Shared { file, chunks: Mutex::new(chunks), turn: Mutex::default() });
        Ok(Some(Self { shared, follower, marks, blob: *blob, dest, scratch, decoded, url, resumed }))
    }

    /// What has not landed.
    pub(crate) fn missing(&self) -> Vec<Chunk> {
        self.chunks().missing()
    }

    /// Bytes that have landed.
    pub(crate) fn landed_bytes(&self) -> u64 {
        self.chunks().landed_bytes()
    }

    /// Begins to write bytes to their place. `fresh`: nothing was ever written there, so that zeros need not be.
    pub(crate) fn write(&self, bytes: Vec<Bytes>, mut offset: u64, fresh: bool) -> JoinHandle<io::Result<()>> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            // Nothing is half changed by a panic elsewhere.
            let _turn = shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
            for bytes in bytes {
                if fresh {
                    write_sparse(&shared.file, &bytes, offset)?;
                } else {
                    shared.file.write_all_at(&bytes, offset)?;
                }
                offset += bytes.len() as u64;
            }
            Ok(())
        })
    }

    /// All bytes of a chunk were written.
    pub(crate) fn land(&self, chunk: Chunk) -> Result<(), TransferError> {
        let gapless = self.chunks().land(chunk.number).map_err(self.local())?;
        // A follower that has ended has found something wrong, which the end of the landing tells.
        let _ = self.marks.send(gapless);
        Ok(())
    }

    /// The error of a write.
    pub(crate) fn local(&self) -> impl FnOnce(io::Error) -> TransferError {
        TransferError::local("write", &self.dest)
    }

    /// Whether there is no sense in going on: bytes that came are no good.
    pub(crate) fn is_spoilt(&self) -> bool {
        self.follower.is_finished()
    }

    /// Checks what landed and gives it its name.
    pub(crate) async fn finish(self) -> Result<(), TransferError> {
        let Self { shared, follower, marks, blob, dest, scratch, decoded, url, .. } = self;
        drop(marks);
        let checked = joined(follower).await;
        // Names are changed here and not on the other thread, so that a pull that is dropped changes none afterwards: by
        // then the next one may be writing a file of the same name. The file stays open, and locked, until it is done.
        let ended = match checked {
            Ok(()) => {
                // Once the part has lost its name another pull may make the next one: its notes must not be ours.
                let _ = fs::remove_file(&scratch.chunks);
                let whole = if decoded { &scratch.plain } else { &scratch.part };
                fs::rename(whole, &dest).map_err(TransferError::local("write", &dest))
            }
            Err(Fault::Local(error)) => return Err(TransferError::local("write", &dest)(error)),
            Err(Fault::Content(why)) => Err(TransferError::Corrupt { url, why }),
            Err(Fault::Digest(found)) => Err(TransferError::WrongDigest { url, expected: blob.digest, found }),
        };
        if decoded || ended.is_err() {
            scratch.remove();
        }
        drop(shared);
        ended
    }

    /// Ends a pull that failed: waits until nobody reads any more. What landed stays for the next one, if it is worth anything.
    pub(crate) async fn leave(self, is_worthless: bool) {
        let Self { follower, marks, scratch, shared, .. } = self;
        drop(marks);
        // Its verdict does not matter: the pull has failed already.
        let _ = joined(follower).await;
        if is_worthless {
            scratch.remove();
        }
        drop(shared);
    }

    fn chunks(&self) -> std::sync::MutexGuard<'_, Chunks> {
        // Every change is a single step; a panic elsewhere does not spoil it.
        self.shared.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of `dest`, locked, and whether another pull was waited for. One that was dropped may still be writing its last
/// bytes, and one of another process all of them; both let go when their threads end.
fn lock(part: &Path, dest: &Path) -> io::Result<(File, bool)> {
    let mut waited = false;
    loop {
        let file = scratch::open(part)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waited = true;
                tracing::warn!(path = %dest.display(), "somebody else is fetching into this file; waiting for them to end");
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever had it may have made it the destination, or removed it: then it is not the part any more.
        let locked = file.metadata()?;
        match fs::symlink_metadata(part) {
            Ok(here) if (here.dev(), here.ino()) == (locked.dev(), locked.ino()) => return Ok((file, waited)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => waited = true,
        }
    }
}

/// Whether the very file lies there. What cannot be read is none.
fn is_there(dest: &Path, blob: &Blob) -> bool {
    let hash = || {
        let mut file = File::open(dest)?;
        if file.metadata()?.len() != blob.size_bytes {
            return Ok(false);
        }
        let mut hasher = Hasher::default();
        hasher.update_from(&mut file, |_| {})?;
        Ok::<_, io::Error>(hasher.finish() == blob.digest)
    };
    hash().unwrap_or(false)
}

/// Gives the file its length, with nothing in it.
fn resize(file: &File, length: u64, wanted: u64) -> io::Result<()> {
    if length > 0 {
        // Never of a new file: ext4 takes that for a file that is being replaced, and has whoever closes it wait for the disk
        // (`auto_da_alloc` in ext4(5)).
        file.set_len(0)?;
    }
    // Nor to what it is already, which counts as the same there.
    if wanted > 0 { file.set_len(wanted) } else { Ok(()) }
}

/// A scratch file with nothing in it.
fn empty(path: &Path) -> io::Result<File> {
    let file = scratch::open(path)?;
    resize(&file, file.metadata()?.len(), 0)?;
    Ok(file)
}

/// What a file system keeps at least: a hole of less is none.
const HOLE_BYTES: usize = 4096;

/// Writes bytes into a new file, but leaves out its zeros: a sparse file stays one. The file's length must be set by whoever
/// knows it.
///
/// # Errors
/// The write's.
pub fn write_sparse(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + HOLE_BYTES);
        if is_zero(&bytes[at..end]) {
            write_new(file, &bytes[start..at], offset + start as u64)?;
            start = end;
        }
        at = end;
    }
    write_new(file, &bytes[start..], offset + start as u64)
}

/// So many bytes are worth a call that has the file system find room for all of them at once.
const RESERVED_BYTES: usize = 64 * 1024;

/// Writes bytes where there was nothing.
fn write_new(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    if bytes.len() >= RESERVED_BYTES {
        // Finding room page by page takes longer than copying the pages. File systems that cannot do this do without, and what
        // a disk has no room for is told by the write.
        let _ = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, bytes.len() as u64);
    }
    file.write_all_at(bytes, offset)
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first byte tells mostly; the fold over the rest is done many at a time.
    bytes.first() == Some(&0) && bytes.chunks(256).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 1 << 20];
        bytes[5000] = 1;
        bytes[700_000..700_100].fill(7);
        let path = dir.path().join("sparse");
        let file = File::create(&path).unwrap();
        for (n, piece) in bytes.chunks(100_003).enumerate() {
            write_sparse(&file, piece, n as u64 * 100_003).unwrap();
        }
        file.set_len(bytes.len() as u64).unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
        assert!(file.metadata().unwrap().blocks() * 512 < 200_000);
    }
}
