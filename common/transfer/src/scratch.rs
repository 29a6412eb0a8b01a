//! The files that a pull writes before its destination appears.
//!
//! ```text
//! .railyard-NAME-HASH.part     the stored bytes, as far as they came
//! .railyard-NAME-HASH.chunks   which of them
//! .railyard-NAME-HASH.plain    decoded, where the plain bytes of a compressed blob are wanted
//! ```
//!
//! **Invariant:** they lie in the destination's directory, under names that no artifact has
//! ([`RelPath::is_reserved`](railyard_common::path::RelPath::is_reserved)) and that are short, whatever the destination's is.

use railyard_common::digest::Digest;
use railyard_common::path::RESERVED_PREFIX;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// So much of the destination's name is in theirs: a worker's blobs are known by it, and a person sees what it is.
const NAME_SHOWN_BYTES: usize = 80;

/// Hex digits of the destination's name that tell it from those that begin like it.
const HASH_DIGITS: usize = 16;

/// The files beside one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// The stored bytes, as far as they came. Whoever holds its lock may change the others and the destination.
    pub part: PathBuf,
    /// Which of them.
    pub chunks: PathBuf,
    /// Decoded bytes.
    pub plain: PathBuf,
}

impl Scratch {
    /// Those of `dest`.
    pub fn beside(dest: &Path) -> Self {
        let name = dest.file_name().unwrap_or_default();
        let text = name.to_string_lossy();
        let shown = &text[..text.floor_char_boundary(NAME_SHOWN_BYTES)];
        let stem = format!("{RESERVED_PREFIX}{shown}-{}", hash(name.as_bytes()));
        let path = |ending: &str| dest.with_file_name(format!("{stem}.{ending}"));
        Self { part: path("part"), chunks: path("chunks"), plain: path("plain") }
    }

    /// The name of the file that a file called `name` is scratch of, if that is short enough to be told.
    pub fn dest_of(name: &str) -> Option<&str> {
        let (stem, ending) = name.strip_prefix(RESERVED_PREFIX)?.rsplit_once('.')?;
        let (dest, hashed) = stem.rsplit_once('-')?;
        (matches!(ending, "part" | "chunks" | "plain") && hashed == hash(dest.as_bytes())).then_some(dest)
    }

    /// All of them, what must go last at the end.
    pub fn all(&self) -> [&Path; 3] {
        [&self.chunks, &self.plain, &self.part]
    }

    /// Removes whatever has not become the destination; by whoever holds the lock. What cannot be removed is told by whoever
    /// is in its way next.
    pub(crate) fn remove(&self) {
        for path in self.all() {
            let _ = fs::remove_file(path);
        }
    }
}

fn hash(name: &[u8]) -> String {
    let mut digits = Digest::of(name).hex();
    digits.truncate(HASH_DIGITS);
    digits
}

/// Opens a scratch file, or makes it. Never what a link of that name leads to: the name is ours, so a link goes.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        fs::remove_file(path)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.custom_flags(nix::libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_known_by_the_name_unless_that_is_long() {
        for name in ["x", "x.part", "a-b.c", "-", &"x".repeat(NAME_SHOWN_BYTES)] {
            for path in Scratch::beside(&Path::new("d").join(name)).all() {
                assert_eq!(path.parent(), Some(Path::new("d")));
                assert_eq!(Scratch::dest_of(path.file_name().unwrap().to_str().unwrap()), Some(name));
            }
        }
        let long = "ü".repeat(NAME_SHOWN_BYTES);
        let part = Scratch::beside(Path::new(&long)).part;
        let name = part.to_str().unwrap();
        assert!(name.len() < 120 && Scratch::dest_of(name).is_none(), "{name}");
        assert_ne!(part, Scratch::beside(Path::new(&format!("{long}x"))).part);
        for other in ["x.part", ".railyard-x.part", ".railyard-x-0123456789abcdef.part", ".railyard-.part"] {
            assert_eq!(Scratch::dest_of(other), None, "{other}");
        }
    }
}
