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

/// Writes `data` at `at`, durably.
pub(super) fn append(path: &Path, at: u64, data: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    // A crash may have left bytes that were never acked; they come again.
    file.set_len(at)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(data)?;
    file.sync_data()
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
