//! Logs on disk: growing ones as they are, filed ones as zstd.

use super::{CHUNK_BYTES, Chunks};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

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
    let mut file = OpenOptions::new().create(first).truncate(false).write(true).open(path)?;
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
    let mut encoder = zstd::Encoder::new(File::create(to)?, ARCHIVE_LEVEL)?;
    encoder.include_checksum(true)?;
    io::copy(&mut source, &mut encoder)?;
    if taken > max {
        encoder.write_all(truncation_notice(taken, max).as_bytes())?;
    }
    encoder.finish()?.sync_all()
}

/// Sends a compressed log from `offset` on.
pub(super) fn unpack(path: &Path, offset: u64, tx: &Chunks) -> io::Result<()> {
    let mut decoder = zstd::Decoder::new(File::open(path)?)?;
    io::copy(&mut (&mut decoder).take(offset), &mut io::sink())?;
    let mut at = offset;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut decoder).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Ok(());
        }
        let read = chunk.len() as u64;
        if tx.blocking_send(Ok((at, chunk.into()))).is_err() {
            return Ok(());
        }
        at += read;
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
