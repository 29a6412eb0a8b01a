//! bzip2: streams one behind the other, packed side by side, as pbzip2 writes them; its tool reads them as one file.

use super::blocks::{BLOCKS_PER_THREAD, Block, Cut, Packed, pack_blocks};
use super::source::{Sink, Source};
use bzip2::Compression;
use bzip2::write::BzEncoder;
use std::io::{self, Write as _};

/// Blocks of the format in each stream. More would save a few bytes and cost memory.
const BLOCKS: usize = 2;

/// Of each 100,000 bytes per level, bzip2 keeps these for itself. A stream that took them would get a tiny block more.
const SPARE_BYTES: usize = 20;

/// How much of a file goes into one stream.
pub(super) fn block_bytes(level: u8) -> usize {
    BLOCKS * (usize::from(level.max(1)) * 100_000 - SPARE_BYTES)
}

/// What that many threads take: bzip2 itself 400 KB and eight times a block, as `bzip2(1)` says.
pub(super) fn memory_bytes(level: u8, threads: usize) -> u64 {
    let state = 400_000 + 800_000 * u64::from(level);
    threads as u64 * (state + 2 * (BLOCKS_PER_THREAD * block_bytes(level)) as u64)
}

pub(super) fn pack(source: &mut Source, mut sink: Sink, level: u8, threads: usize) -> io::Result<Sink> {
    let cut = Cut { block_bytes: block_bytes(level), before_bytes: 0, threads };
    let packer = || {
        move |block: &Block| {
            let room = Vec::with_capacity(block.bytes().len() / 2);
            let mut encoder = BzEncoder::new(room, Compression::new(u32::from(level)));
            encoder.write_all(block.bytes())?;
            Ok(Packed { bytes: encoder.finish()?, more: () })
        }
    };
    pack_blocks(source, &mut sink, cut, packer, |()| {})?;
    Ok(sink)
}
