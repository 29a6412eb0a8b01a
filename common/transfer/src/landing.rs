//! Where pulled bytes land: chunks at their places in a file of the final size, followed by the digest, then renamed.
//!
//! ```text
//! DEST.part     the stored bytes, as far as they came
//! DEST.chunks   which of them
//! DEST.plain    decoded, where the plain bytes of a compressed blob are wanted
//! ```

use crate::chunks::{Chunk, Chunks};
use crate::error::TransferError;
use crate::follow::{Fault, Tap, follow};
use crate::hash::{blocking, joined};
use bytes::Bytes;
use railyard_common::blob::{Blob, Encoding};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
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
    paths: Paths,
    url: String,
    /// Some of the bytes are of an earlier pull.
    pub(crate) resumed: bool,
}

struct Shared {
    file: Arc<File>,
    chunks: Mutex<Chunks>,
}

struct Paths {
    dest: PathBuf,
    part: PathBuf,
    chunks: PathBuf,
    /// Where decoded bytes go.
    plain: Option<PathBuf>,
}

impl Landing {
    /// Opens `DEST.part` for `stored_bytes` stored bytes. What it holds of them already counts.
    pub(crate) async fn open(
        blob: &Blob,
        stored_bytes: u64,
        dest: &Path,
        form: Form,
        tap: Option<Tap>,
        url: String,
    ) -> Result<Self, TransferError> {
        let decoded = blob.encoding == Encoding::Zstd && form == Form::Plain;
        let beside = |ending: &str| {
            let mut path = dest.as_os_str().to_owned();
            path.push(ending);
            PathBuf::from(path)
        };
        let paths = Paths {
            dest: dest.to_owned(),
            part: beside(".part"),
            chunks: beside(".chunks"),
            plain: decoded.then(|| beside(".plain")),
        };
        let (part, noted, plain) = (paths.part.clone(), paths.chunks.clone(), paths.plain.clone());
        let opening = move || {
            let open = || {
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part)?;
                // A pull that was dropped may still be writing its last bytes; it lets go when its threads end.
                file.lock()?;
                let length = file.metadata()?.len();
                if length != stored_bytes {
                    // Not what the notes are about.
                    remove(&noted)?;
                    if length > 0 {
                        // Never of a new file: ext4 takes that for a file that is being replaced, and has whoever closes it wait
                        // for the disk (`auto_da_alloc` in ext4(5)).
                        file.set_len(0)?;
                    }
                    file.set_len(stored_bytes)?;
                }
                let plain = plain.map(File::create).transpose()?;
                Ok((Arc::new(file), Chunks::open(&noted, stored_bytes)?, plain))
            };
            open().map_err(TransferError::local("write", &part))
        };
        let (file, chunks, plain) = blocking(opening).await?;
        let resumed = chunks.landed_bytes() > 0;
        let (marks, heard) = channel();
        // Heard by the follower as soon as it begins.
        let _ = marks.send(chunks.gapless_bytes());
        let (followed, followed_blob) = (Arc::clone(&file), *blob);
        let follower =
            tokio::task::spawn_blocking(move || follow(&followed, &followed_blob, stored_bytes, (plain, tap), &heard));
        let shared = Arc::new(Shared { file, chunks: Mutex::new(chunks) });
        Ok(Self { shared, follower, marks, blob: *blob, paths, url, resumed })
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
        TransferError::local("write", &self.paths.part)
    }

    /// Whether there is no sense in going on: bytes that came are no good.
    pub(crate) fn is_spoilt(&self) -> bool {
        self.follower.is_finished()
    }

    /// Checks what landed and gives it its name.
    pub(crate) async fn finish(self) -> Result<(), TransferError> {
        let Self { shared, follower, marks, blob, paths, url, .. } = self;
        drop(marks);
        let checked = joined(follower).await;
        // Names are changed here and not on the other thread, so that a pull that is dropped changes none afterwards: by
        // then the next one may be writing a file of the same name. The file stays open, and locked, until it is done.
        let error = match checked {
            Ok(()) => {
                let whole = paths.plain.as_ref().unwrap_or(&paths.part);
                fs::rename(whole, &paths.dest).map_err(TransferError::local("write", &paths.dest))?;
                paths.remove();
                drop(shared);
                return Ok(());
            }
            Err(Fault::Local(error)) => return Err(TransferError::local("write", &paths.part)(error)),
            Err(Fault::Content(why)) => TransferError::Corrupt { url, why },
            Err(Fault::Digest(found)) => TransferError::WrongDigest { url, expected: blob.digest, found },
        };
        paths.remove();
        Err(error)
    }

    /// Ends a pull that failed: waits until nobody reads any more. What landed stays for the next one, if it is worth anything.
    pub(crate) async fn leave(self, is_worthless: bool) {
        let Self { follower, marks, paths, shared, .. } = self;
        drop(marks);
        // Its verdict does not matter: the pull has failed already.
        let _ = joined(follower).await;
        if is_worthless {
            paths.remove();
        }
        drop(shared);
    }

    fn chunks(&self) -> std::sync::MutexGuard<'_, Chunks> {
        // Every change is a single step; a panic elsewhere does not spoil it.
        self.shared.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Paths {
    /// Removes whatever has not become the destination. What cannot be removed is told by whoever is in its way next.
    fn remove(&self) {
        for path in [Some(&self.part), Some(&self.chunks), self.plain.as_ref()].into_iter().flatten() {
            let _ = remove(path);
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
            file.write_all_at(&bytes[start..at], offset + start as u64)?;
            start = end;
        }
        at = end;
    }
    file.write_all_at(&bytes[start..], offset + start as u64)
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first byte tells mostly; the fold over the rest is done many at a time.
    bytes.first() == Some(&0) && bytes.chunks(256).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

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
