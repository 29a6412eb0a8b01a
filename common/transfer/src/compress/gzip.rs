//! gzip: one member, as simple readers want it, of blocks that are packed side by side.
//!
//! Each block knows the 32 KiB before it and ends on a byte, so that the blocks together are one deflate stream. This is
//! what pigz does.

use super::blocks::{Block, Cut, Packed, pack_blocks};
use super::bug;
use super::source::{Sink, Source};
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use std::io::{self, Write as _};

/// Large enough that the few bytes at a block's end do not matter, small enough that a file of some MiB keeps all
/// processors busy.
pub(super) const BLOCK_BYTES: usize = 512 * 1024;

/// How far back deflate refers.
const WINDOW_BYTES: usize = 32 * 1024;

/// What deflate itself takes, with room.
const STATE_BYTES: u64 = 1024 * 1024;

/// What that many threads take.
pub(super) fn memory_bytes(threads: usize) -> u64 {
    let blocks = 2 * (BLOCK_BYTES + WINDOW_BYTES) as u64 * super::blocks::BLOCKS_PER_THREAD as u64;
    threads as u64 * (STATE_BYTES + blocks)
}

pub(super) fn pack(source: &mut Source, mut sink: Sink, level: u8, threads: usize) -> io::Result<Sink> {
    // No name and no time: the same file gives the same bytes. What is behind them: how hard it tried, and "Unix".
    let tried = match level {
        9 => 2,
        1 => 4,
        _ => 0,
    };
    sink.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, tried, 3])?;
    let mut crc = Crc::new();
    let cut = Cut { block_bytes: BLOCK_BYTES, before_bytes: WINDOW_BYTES, threads };
    // A deflate that is used again finds other matches than a fresh one: the bytes would depend on who packed what.
    let fresh = || Compress::new(Compression::new(u32::from(level)), false);
    let packer = || |block: &Block| pack_block(fresh(), block);
    pack_blocks(source, &mut sink, cut, packer, |of_block| crc.combine(&of_block))?;
    sink.write_all(&crc.sum().to_le_bytes())?;
    // The length modulo 2^32, as the format has it.
    sink.write_all(&source.seen().to_le_bytes()[..4])?;
    Ok(sink)
}

fn pack_block(mut deflate: Compress, block: &Block) -> io::Result<Packed<Crc>> {
    if !block.before().is_empty() {
        deflate.set_dictionary(block.before()).map_err(bug)?;
    }
    let mut more = Crc::new();
    more.update(block.bytes());
    let flush = if block.last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut bytes = Vec::with_capacity(block.bytes().len() / 2 + 1024);
    let mut done = 0;
    loop {
        let before = deflate.total_in();
        let status = deflate.compress_vec(&block.bytes()[done..], &mut bytes, flush).map_err(bug)?;
        done += usize::try_from(deflate.total_in() - before).unwrap_or(usize::MAX);
        // With room left over, everything that was to be flushed is out.
        let flushed = done == block.bytes().len() && bytes.len() < bytes.capacity();
        match status {
            Status::StreamEnd => break,
            Status::Ok | Status::BufError if flushed && !block.last => break,
            Status::Ok | Status::BufError => bytes.reserve(bytes.capacity() / 2),
        }
    }
    Ok(Packed { bytes, more })
}
