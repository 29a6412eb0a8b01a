//! zstd: one frame that tells its content size, cut into jobs by zstd's own threads.

use super::bug;
use super::source::{Sink, Source};
use crate::hash::READ_BYTES;
use std::io::{self, Read as _, Write as _};
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, get_error_name};

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

pub(super) fn pack(source: &mut Source, mut sink: Sink, level: u8, threads: usize) -> io::Result<Sink> {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(i32::from(level))).map_err(refused)?;
    context.set_parameter(CParameter::ChecksumFlag(true)).map_err(refused)?;
    // Never none: without its threads zstd cuts otherwise, and gives other bytes.
    let threads = u32::try_from(threads).unwrap_or(1).max(1);
    context.set_parameter(CParameter::NbWorkers(threads)).map_err(refused)?;
    context.set_pledged_src_size(Some(source.expected())).map_err(refused)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut packed = Vec::with_capacity(CCtx::out_size());
    loop {
        let n = source.read(&mut buffer)?;
        // The end is told with the last bytes. If it came behind them, and they filled a job, it would be a matter of luck
        // whether that job is the last one or another follows that is empty: three bytes more or less.
        let is_end = n == 0 || source.seen() == source.expected();
        let directive = if is_end { ZSTD_EndDirective::ZSTD_e_end } else { ZSTD_EndDirective::ZSTD_e_continue };
        let mut input = InBuffer::around(&buffer[..n]);
        loop {
            packed.clear();
            let left = context.compress_stream2(&mut OutBuffer::around(&mut packed), &mut input, directive);
            let left = left.map_err(refused)?;
            sink.write_all(&packed)?;
            let is_taken = if is_end { left == 0 } else { input.pos() == n };
            if is_taken {
                break;
            }
        }
        if is_end {
            return Ok(sink);
        }
    }
}

fn refused(code: usize) -> io::Error {
    bug(get_error_name(code))
}
