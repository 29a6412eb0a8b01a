//! The two engines, the base that both have, and the containers that write on top of it.

use crate::machine;
use anyhow::Context as _;
use railyard_tests::engine::Engine;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use tempfile::TempDir;

const MIB: usize = 1024 * 1024;

/// Words of the content, and how many of a hundred are none: what compresses about 2.5 times, for zstd as for gzip.
const WORDS: usize = 600;
const NOISE_PERCENT: u64 = 20;
const WORD_BYTES: std::ops::Range<usize> = 8..24;

/// What is written, in MiB.
#[derive(Clone, Copy)]
pub struct Sizes {
    base: usize,
    big: usize,
    small: usize,
}

impl Sizes {
    /// What the bars are for.
    pub const FULL: Self = Self { base: 200, big: 1024, small: 10 };
    /// To see that it works.
    pub const QUICK: Self = Self { base: 20, big: 64, small: 2 };

    pub fn big_shown(self) -> String {
        format!("{} MiB", self.big)
    }

    pub fn small_shown(self) -> String {
        format!("{} MiB", self.small)
    }
}

/// Two engines with one base.
pub struct Scene {
    /// Where images are made.
    pub first: Engine,
    /// Where they are wanted.
    pub second: Engine,
    /// The base's name on both.
    pub base: String,
    pub sizes: Sizes,
    pub dir: TempDir,
}

impl Scene {
    pub fn new(sizes: Sizes) -> anyhow::Result<Self> {
        let dir = machine::workspace()?;
        let (first, second) = (Engine::shared(), Engine::private());
        let base = format!("railyard-bench-{}:base", railyard_tests::unique());
        let root = dir.path().join("root.tar");
        write_root(&root, sizes.base * MIB)?;
        for engine in [&first, &second] {
            let made = engine.docker(&["import", "--change", "ENV PATH=/bin", &root.display().to_string(), &base]);
            anyhow::ensure!(made.status.success(), "docker import: {}", String::from_utf8_lossy(&made.stderr));
        }
        fs::remove_file(&root)?;
        Ok(Self { first, second, base, sizes, dir })
    }

    /// The script that writes the big layer: files of 1 MiB, each another piece of what the base has.
    pub fn big_script(&self) -> String {
        self.script("big", self.sizes.big, 37)
    }

    /// The one that writes the small layer on top of it.
    pub fn small_script(&self) -> String {
        self.script("small", self.sizes.small, 41)
    }

    fn script(&self, name: &str, count: usize, step: usize) -> String {
        let pieces = (self.sizes.base - 1) * 16;
        format!(
            "mkdir /{name}; n=0; while test $n -lt {count}; do \
             dd if=/data of=/{name}/$n bs=65536 skip=$((n * {step} % {pieces})) count=16 2>/dev/null; n=$((n + 1)); done"
        )
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.first.docker(&["image", "rm", "--force", &self.base]);
    }
}

/// busybox, and the data.
fn write_root(path: &Path, data_bytes: usize) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(File::create(path)?);
    let busybox = fs::read("/bin/busybox").context("install the package busybox-static")?;
    for (name, mode, bytes) in [("bin/busybox", 0o755, busybox), ("data", 0o644, content(data_bytes))] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, &bytes[..])?;
    }
    for applet in ["sh", "dd", "mkdir", "test", "true"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    Ok(tar.into_inner()?.flush()?)
}

/// Words in no order, and now and then something that is none. Always the same.
fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut noise = |length: usize| -> Vec<u8> { (0..length).map(|_| (next() >> 32) as u8).collect() };
    let words: Vec<Vec<u8>> = (0..WORDS).map(|n| noise(WORD_BYTES.start + n % WORD_BYTES.len())).collect();
    let mut bytes = Vec::with_capacity(length + WORD_BYTES.end);
    while bytes.len() < length {
        let dice = noise(8);
        let dice = dice.iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        if dice % 100 < NOISE_PERCENT {
            bytes.extend(noise(WORD_BYTES.end));
        } else {
            bytes.extend(&words[(dice >> 20) as usize % WORDS]);
        }
    }
    bytes.truncate(length);
    bytes
}
