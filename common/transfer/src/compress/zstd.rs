//! zstd: one frame that tells its content size, cut into jobs by zstd's own threads.

use super::bug;
use super::source::{Sink, Source};
use crate::hash::READ_BYTES;
use std::io::{self, Read as _, Write as _};
use zstd::stream::write::Encoder;

/// Of the levels up to this one: the logarithm of a thread's job, and the MiB that it takes, both as zstd 1.5 has them
/// for large files (a job is four windows; memory was measured). A zstd that differs a little does no harm.
const LEVELS: [(u8, u32, u64); 7] =
    [(1, 21, 8), (2, 22, 14), (8, 23, 32), (11, 24, 80), (15, 24, 130), (16, 24, 95), (19, 25, 190)];

fn row(level: u8) -> (u8, u32, u64) {
    LEVELS.into_iter().find(|(most, ..)| level <= *most).unwrap_or(LEVELS[LEVELS.len() - 1])
}

/// How much of a file one thread takes at a time.
pub(super) fn job_bytes(level: u8) -> u64 {
    1 << row(level).1
}

/// What that many threads take.
pub(super) fn memory_bytes(level: u8, threads: usize) -> u64 {
    // One job more is being filled.
    ((threads as u64 * row(level).2) << 20) + job_bytes(level)
}

pub(super) fn pack(source: &mut Source, sink: Sink, level: u8, threads: usize) -> io::Result<Sink> {
    let mut encoder = Encoder::new(sink, i32::from(level)).map_err(bug)?;
    encoder.set_pledged_src_size(Some(source.expected())).map_err(bug)?;
    encoder.include_checksum(true).map_err(bug)?;
    // Never none: without its threads zstd cuts otherwise, and gives other bytes.
    encoder.multithread(u32::try_from(threads).unwrap_or(1).max(1)).map_err(bug)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match source.read(&mut buffer)? {
            0 => return encoder.finish(),
            n => encoder.write_all(&buffer[..n])?,
        }
    }
}
