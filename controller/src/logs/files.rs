//! Logs on disk: growing ones as they are, filed ones as zstd.

use super::CHUNK_BYTES;
use crate::private;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;

/// zstd level of filed logs: text shrinks some twenty times at little cost.
const ARCHIVE_LEVEL: i32 = 3;

/// What a reader finds where bytes were left out.
pub(super) fn truncation_notice(taken: u64, max: u64) -> String {
    format!("\n[railyard: the log is longer than its limit of {max} bytes; {} bytes are left out here]\n", taken - max)
}

/// Writes `data` at `at`, durably. Only the first bytes make the file: were it gone later, a hole would stand for what was
/// acked.
pub(super) fn append(path: &Path, at: u64, data: &[u8]) -> io::Result<()> {
    let first = at == 0;
    let mut file = private::file().create(first).truncate(false).write(true).open(path)?;
    let len = file.metadata()?.len();
    if len < at {
        let why = format!("{} has {len} bytes and should have {at}; somebody has cut it", path.display());
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
    }
    // A crash may have left bytes that were never acked; they come again.
    file.set_len(at)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(data)?;
    file.sync_data()?;
    if first { sync_parent(path) } else { Ok(()) }
}

/// Makes durable what an earlier process wrote: it may have died before it did.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("the root has no parent"))?;
    File::open(parent)?.sync_all()
}

/// Compresses a log, with a note at its end if more than `max` bytes were `taken`.
pub(super) fn pack(from: &Path, to: &Path, taken: u64, max: u64) -> io::Result<()> {
    let mut source = File::open(from)?;
    let file = private::file().write(true).create(true).truncate(true).open(to)?;
    let mut encoder = zstd::Encoder::new(file, ARCHIVE_LEVEL)?;
    encoder.include_checksum(true)?;
    io::copy(&mut source, &mut encoder)?;
    if taken > max {
        encoder.write_all(truncation_notice(taken, max).as_bytes())?;
    }
    encoder.finish()?.sync_all()
}

/// A compressed log that is being read.
pub(super) struct Unpacking(zstd::Decoder<'static, BufReader<Arc<File>>>);

impl Unpacking {
    /// From `offset` on.
    pub(super) fn begin(packed: Arc<File>, offset: u64) -> io::Result<Self> {
        (&*packed).rewind()?;
        let mut decoder = zstd::Decoder::new(packed)?;
        io::copy(&mut (&mut decoder).take(offset), &mut io::sink())?;
        Ok(Self(decoder))
    }

    /// The next bytes; none at the end.
    pub(super) fn next(&mut self) -> io::Result<Bytes> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut self.0).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        Ok(chunk.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_lost_acked_bytes_is_not_filled_with_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j1.1.log");
        assert_eq!(append(&path, 4, b"more").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!path.exists());
        append(&path, 0, b"1234").unwrap();
        append(&path, 4, b"5678").unwrap();
        // What was never acked is written over.
        append(&path, 6, b"abc").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"123456abc");
        assert_eq!(append(&path, 10, b"x").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(std::fs::read(&path).unwrap(), b"123456abc");
    }
}
