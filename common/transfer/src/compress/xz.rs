//! xz: blocks of one length, packed by liblzma's own threads. The blocks tell their lengths, so that readers are parallel, too.

use super::bug;
use super::source::{Sink, Source};
use crate::hash::READ_BYTES;
use liblzma::stream::{Check, MtStreamBuilder};
use liblzma::write::XzEncoder;
use std::io::{self, Read as _, Write as _};

/// The dictionary of each level, as `xz(1)` has it, in KiB.
const DICTIONARY_KIB: [u64; 10] = [256, 1024, 2048, 4096, 4096, 8192, 8192, 16_384, 32_768, 65_536];

/// Smallest block: below, the packing suffers.
const BLOCK_MIN_BYTES: u64 = 1 << 20;

/// One dictionary: so two threads of the usual level fit into 256 MiB, with room for transfers. The tool takes three
/// dictionaries, for which one thread does.
pub(super) fn block_bytes(level: u8) -> u64 {
    let dictionary = DICTIONARY_KIB[usize::from(level).min(DICTIONARY_KIB.len() - 1)] << 10;
    dictionary.max(BLOCK_MIN_BYTES)
}

fn builder(level: u8, threads: usize) -> MtStreamBuilder {
    let mut builder = MtStreamBuilder::new();
    let threads = u32::try_from(threads).unwrap_or(1).max(1);
    builder.preset(u32::from(level)).block_size(block_bytes(level)).threads(threads).check(Check::Crc64);
    builder
}

/// What that many threads take, as the encoder itself says.
pub(super) fn memory_bytes(level: u8, threads: usize) -> u64 {
    builder(level, threads).memusage()
}

pub(super) fn pack(source: &mut Source, sink: Sink, level: u8, threads: usize) -> io::Result<Sink> {
    let stream = builder(level, threads).encoder().map_err(bug)?;
    let mut encoder = XzEncoder::new_stream(sink, stream);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match source.read(&mut buffer)? {
            0 => return encoder.finish(),
            n => encoder.write_all(&buffer[..n])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_levels_fit_the_usual_memory() {
        let share = crate::Memory::default().total_bytes() - crate::compress::TRANSFERS_KEEP_BYTES;
        let fits = |level, threads| memory_bytes(level, threads) <= share;
        assert!((0..=6).all(|level| fits(level, 2)), "two threads up to the default level");
        assert!(fits(7, 1) && !fits(8, 1), "as the manual has it");
    }
}
