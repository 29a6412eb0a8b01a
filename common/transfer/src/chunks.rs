//! Which chunks of a file have landed, for a process that goes on with it.
//!
//! One small text file beside the bytes: the length that they will have and the blob's digest, then a line for each chunk. A
//! chunk is noted after its bytes were written. Nothing is flushed: should a machine die, and the note outlive the bytes, the
//! digest tells.

use crate::scratch;
use railyard_common::digest::Digest;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

/// What one request asks for: long enough that the request does not matter, short enough that little is lost with a
/// connection.
pub(crate) const CHUNK_BYTES: u64 = 16 * 1024 * 1024;

/// The chunks of one file.
#[derive(Debug)]
pub(crate) struct Chunks {
    stored_bytes: u64,
    /// What the notes begin with.
    head: String,
    /// Whether they did.
    known: bool,
    landed: Vec<bool>,
    /// All chunks before this one have landed.
    prefix: usize,
    file: File,
}

impl Chunks {
    /// What is known in file `path` of `stored_bytes` bytes of the blob that are on their way.
    pub(crate) fn open(path: &Path, stored_bytes: u64, digest: &Digest) -> io::Result<Self> {
        let count = usize::try_from(stored_bytes.div_ceil(CHUNK_BYTES)).map_err(io::Error::other)?;
        let head = format!("{stored_bytes} {digest}\n");
        let mut file = scratch::open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8(bytes).unwrap_or_default();
        let mut landed = vec![false; count];
        let noted = text.strip_prefix(&head);
        // The last line counts only with its end.
        let whole = noted.and_then(|noted| noted.rsplit_once('\n')).map_or("", |(whole, _)| whole);
        for number in whole.lines().filter_map(|line| line.parse::<usize>().ok()) {
            if let Some(landed) = landed.get_mut(number) {
                *landed = true;
            }
        }
        if noted.is_some() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        let mut chunks = Self { stored_bytes, known: noted.is_some(), head, landed, prefix: 0, file };
        chunks.advance();
        Ok(chunks)
    }

    /// Whether there were notes of these very bytes.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// Begins anew. The bytes are emptied in between: at no time are there notes of what is not there.
    pub(crate) fn restart(&mut self, empty: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        empty()?;
        self.file.write_all(self.head.as_bytes())?;
        self.landed.fill(false);
        self.prefix = 0;
        Ok(())
    }

    /// Offset and length of each chunk that is missing.
    pub(crate) fn missing(&self) -> Vec<Chunk> {
        let missing = self.landed.iter().enumerate().filter(|(_, landed)| !**landed);
        missing.map(|(number, _)| self.chunk(number)).collect()
    }

    fn chunk(&self, number: usize) -> Chunk {
        let offset = number as u64 * CHUNK_BYTES;
        Chunk { number, offset, length: CHUNK_BYTES.min(self.stored_bytes - offset) }
    }

    /// Bytes that have landed.
    pub(crate) fn landed_bytes(&self) -> u64 {
        self.stored_bytes - self.missing().iter().map(|chunk| chunk.length).sum::<u64>()
    }

    /// A chunk has landed. Returns how many bytes there are now without a gap.
    pub(crate) fn land(&mut self, number: usize) -> io::Result<u64> {
        self.file.write_all(format!("{number}\n").as_bytes())?;
        if let Some(landed) = self.landed.get_mut(number) {
            *landed = true;
        }
        self.advance();
        Ok(self.gapless_bytes())
    }

    /// How many bytes there are without a gap.
    pub(crate) fn gapless_bytes(&self) -> u64 {
        self.stored_bytes.min(self.prefix as u64 * CHUNK_BYTES)
    }

    fn advance(&mut self) {
        while self.landed.get(self.prefix) == Some(&true) {
            self.prefix += 1;
        }
    }
}

/// A piece of the stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub number: usize,
    pub offset: u64,
    pub length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn goes_on_with_a_file_of_the_same_length_and_drops_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunks");
        let length = 3 * CHUNK_BYTES + 5;
        let digest = Digest::of(b"x");
        let mut chunks = Chunks::open(&path, length, &digest).unwrap();
        assert!(!chunks.is_known());
        chunks.restart(|| Ok(())).unwrap();
        assert_eq!(chunks.missing().len(), 4);
        assert_eq!(chunks.land(1).unwrap(), 0);
        assert_eq!(chunks.land(0).unwrap(), 2 * CHUNK_BYTES);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"2").unwrap();
        let mut chunks = Chunks::open(&path, length, &digest).unwrap();
        assert_eq!(chunks.landed_bytes(), 2 * CHUNK_BYTES, "the torn line does not count");
        assert_eq!(chunks.missing()[1], Chunk { number: 3, offset: 3 * CHUNK_BYTES, length: 5 });
        chunks.land(3).unwrap();
        assert_eq!(chunks.land(2).unwrap(), length);
        assert!(Chunks::open(&path, length, &digest).unwrap().missing().is_empty());
        assert_eq!(Chunks::open(&path, length + 1, &digest).unwrap().missing().len(), 4, "another file");
        let mut other = Chunks::open(&path, length, &Digest::of(b"y")).unwrap();
        assert!(!other.is_known() && other.missing().len() == 4, "another blob");
        other.restart(|| Ok(())).unwrap();
        assert!(!Chunks::open(&path, length, &digest).unwrap().is_known());
    }
}
