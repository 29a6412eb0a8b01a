//! The files that are moved.

use anyhow::Context as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// What a file is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// It does not compress.
    Noise,
    /// It compresses about 2.5 times.
    Text,
}

impl Input {
    pub const ALL: [Self; 2] = [Self::Noise, Self::Text];

    pub fn name(self) -> &'static str {
        match self {
            Self::Noise => "incompressible",
            Self::Text => "compresses 2.5x",
        }
    }
}

/// The files of one run.
pub struct Files {
    dir: PathBuf,
    pub bytes: u64,
}

impl Files {
    /// Makes them below `dir`.
    pub fn make(dir: &Path, bytes: u64) -> anyhow::Result<Self> {
        let files = Self { dir: dir.join("files"), bytes };
        std::fs::create_dir_all(&files.dir)?;
        for input in Input::ALL {
            files.write(&files.of(input), input, 1)?;
        }
        Ok(files)
    }

    /// One more, of other bytes.
    pub fn another(&self, seed: u64) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(format!("noise-{seed}"));
        if !path.exists() {
            self.write(&path, Input::Noise, seed)?;
        }
        Ok(path)
    }

    pub fn of(&self, input: Input) -> PathBuf {
        self.dir.join(match input {
            Input::Noise => "noise-1",
            Input::Text => "text",
        })
    }

    fn write(&self, path: &Path, input: Input, seed: u64) -> anyhow::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut left = self.bytes;
        let mut block = vec![0; 64 * 1024];
        while left > 0 {
            match input {
                Input::Noise => noise.fill(&mut block),
                Input::Text => noise.half(&mut block),
            }
            let n = usize::try_from(left)?.min(block.len());
            out.write_all(&block[..n])?;
            left -= n as u64;
        }
        out.into_inner().context("cannot write a file")?.sync_all()?;
        Ok(())
    }
}

/// Xorshift.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
    }

    /// Pieces of noise between pieces that were there before, as programs and file systems have them.
    fn half(&mut self, block: &mut [u8]) {
        let mut at = 0;
        while at + 64 <= block.len() {
            if at >= 4096 && self.next() % 5 < 3 {
                let from = (self.next() as usize % (at - 64)) & !7;
                block.copy_within(from..from + 64, at);
            } else {
                self.fill(&mut block[at..at + 64]);
            }
            at += 64;
        }
    }
}
