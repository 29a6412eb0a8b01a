//! Who wrote the bytes of a log's file, and so how much of a container's output is in it.
//!
//! A small file beside the log says: from this offset on, every byte is of this author; and so much of each stream came
//! before. It is written before the first byte of another author is, and never for a byte more of the same. The length
//! of the log's file tells the rest.
//!
//! **Invariant:** whenever the process dies, between two writes or half-way through one, the two files together tell
//! exactly how much of each stream is in the log. (Both live in the kernel's cache then; a machine that dies takes the
//! containers along, and nothing is resumed.)

use crate::runtime::Source;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The first bytes of the file: what it is, and its version.
const MAGIC: &[u8; 7] = b"RYLOG1\n";

/// Bytes of a stream's beginning that are kept, to recognise the stream again.
pub(super) const HEAD_BYTES: usize = 31;

/// Magic and author, an offset, two counts, two heads with their lengths.
const PLACE_BYTES: usize = 32 + 2 * (HEAD_BYTES + 1);

/// Who writes into a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    /// The worker: a note.
    Worker,
    /// The container.
    Container(Source),
    /// The worker, for the last time: nothing comes behind this.
    End,
}

impl Author {
    fn code(self) -> u8 {
        match self {
            Self::Worker => 0,
            Self::Container(Source::Stdout) => 1,
            Self::Container(Source::Stderr) => 2,
            Self::End => 3,
        }
    }

    fn of(code: u8) -> Option<Self> {
        let all = [Self::Worker, Self::Container(Source::Stdout), Self::Container(Source::Stderr), Self::End];
        all.into_iter().find(|author| author.code() == code)
    }
}

/// How much of each stream was taken, as the engine's log counts: what it has lost of it does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    stdout: u64,
    stderr: u64,
}

impl Counts {
    /// Of one stream.
    pub fn of(&self, source: Source) -> u64 {
        match source {
            Source::Stdout => self.stdout,
            Source::Stderr => self.stderr,
        }
    }

    /// More of one stream.
    pub fn add(&mut self, source: Source, bytes: u64) {
        match source {
            Source::Stdout => self.stdout += bytes,
            Source::Stderr => self.stderr += bytes,
        }
    }

    /// So much of one stream.
    pub fn set(&mut self, source: Source, bytes: u64) {
        match source {
            Source::Stdout => self.stdout = bytes,
            Source::Stderr => self.stderr = bytes,
        }
    }
}

/// How a stream begins: at most [`HEAD_BYTES`].
pub(super) type Head = Vec<u8>;

/// What the small file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Who wrote what is behind `offset`.
    pub(super) author: Author,
    /// Into the log's file.
    pub(super) offset: u64,
    /// What was taken of each stream before that.
    pub(super) before: Counts,
    /// How each stream begins: standard output, standard error.
    pub(super) heads: [Head; 2],
}

impl Place {
    /// Nothing is written yet.
    pub(super) fn start() -> Self {
        Self { author: Author::Worker, offset: 0, before: Counts::default(), heads: [Vec::new(), Vec::new()] }
    }

    /// What was taken of each stream, if the log's file has `length` bytes; `None` if the two files do not fit together.
    pub(super) fn taken(&self, length: u64) -> Option<Counts> {
        let behind = length.checked_sub(self.offset)?;
        let mut counts = self.before;
        if let Author::Container(source) = self.author {
            // A damaged file may say anything.
            counts.set(source, counts.of(source).checked_add(behind)?);
        }
        Some(counts)
    }

    /// Takes in how a stream begins, as far as that is not known. `true` if it was news.
    pub(super) fn learn(&mut self, source: Source, bytes: &[u8]) -> bool {
        let head = &mut self.heads[index(source)];
        let news = bytes.len().min(HEAD_BYTES - head.len());
        head.extend(&bytes[..news]);
        news > 0
    }

    /// The engine's log goes on in another way from `at`.
    pub(super) fn unlearn(&mut self, source: Source, at: u64) {
        self.heads[index(source)].truncate(usize::try_from(at).unwrap_or(usize::MAX));
    }

    /// In one write: a process that is killed leaves the old or the new.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(PLACE_BYTES);
        bytes.extend(MAGIC);
        bytes.push(self.author.code());
        for number in [self.offset, self.before.stdout, self.before.stderr] {
            bytes.extend(number.to_le_bytes());
        }
        for head in &self.heads {
            bytes.push(head.len() as u8);
            bytes.extend(head);
            bytes.resize(bytes.len() + HEAD_BYTES - head.len(), 0);
        }
        file.write_all_at(&bytes, 0)
    }

    /// # Errors
    /// If it cannot be read, or is something else.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; PLACE_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
        let head = |at: usize| {
            let length = usize::from(bytes[at]).min(HEAD_BYTES);
            bytes[at + 1..at + 1 + length].to_vec()
        };
        match Author::of(bytes[MAGIC.len()]) {
            Some(author) if bytes.starts_with(MAGIC) => Ok(Self {
                author,
                offset: number(8),
                before: Counts { stdout: number(16), stderr: number(24) },
                heads: [head(32), head(32 + HEAD_BYTES + 1)],
            }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not the place file of a log of this version")),
        }
    }
}

pub(super) fn index(source: Source) -> usize {
    match source {
        Source::Stdout => 0,
        Source::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else_is() {
        let file = tempfile::tempfile().unwrap();
        assert!(Place::read(&file).is_err());
        let mut place = Place::start();
        place.author = Author::Container(Source::Stderr);
        (place.offset, place.before) = (700, Counts { stdout: 3, stderr: 4 });
        assert!(place.learn(Source::Stdout, b"first line\n") && place.learn(Source::Stdout, &[b'x'; 100]));
        assert!(!place.learn(Source::Stdout, b"more"), "its beginning is known");
        place.write(&file).unwrap();
        assert_eq!(Place::read(&file).unwrap(), place);
        assert_eq!(
            place.taken(710).map(|counts| (counts.of(Source::Stdout), counts.of(Source::Stderr))),
            Some((3, 14))
        );
        assert_eq!(place.taken(699), None);
        assert_eq!(place.taken(u64::MAX), Some(Counts { stdout: 3, stderr: 4 + (u64::MAX - 700) }));
        place.before.stderr = u64::MAX;
        assert_eq!(place.taken(701), None, "a damaged file");
        file.write_all_at(b"X", 0).unwrap();
        assert!(Place::read(&file).is_err());
    }
}
