//! Whether stored bytes are those of their digest.

use railyard_common::blob::{Blob, Encoding};
use railyard_transfer::Hasher;
use std::io::{self, Read, Write};
use zstd::stream::write::Decoder;

/// What a look at the bytes showed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// Not the bytes of the digest, and why.
    Bad(String),
}

/// Longest header of a zstd frame.
pub(crate) const FRAME_HEAD_BYTES: u64 = 18;

const READ_BYTES: usize = 256 * 1024;

/// Decodes and hashes stored bytes as they come.
pub(crate) struct Verifier {
    blob: Blob,
    stored_bytes: u64,
    /// The first bytes of a compressed blob, until its frame's header is there.
    head: Vec<u8>,
    sink: Sink,
}

enum Sink {
    Plain(Hashed),
    Zstd(Box<Decoder<'static, Hashed>>),
    Bad(String),
}

struct Hashed {
    hasher: Hasher,
    limit: u64,
}

/// What a blob's bytes cannot be longer than.
#[derive(Debug, thiserror::Error)]
#[error("it has more than {0} bytes")]
struct TooLong(u64);

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.hasher.bytes() + bytes.len() as u64 > self.limit {
            return Err(io::Error::other(TooLong(self.limit)));
        }
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Verifier {
    /// For the stored bytes of `blob`.
    pub(crate) fn new(blob: &Blob) -> io::Result<Self> {
        let hashed = |hasher| Hashed { hasher, limit: blob.size_bytes };
        let sink = match blob.encoding {
            Encoding::Identity => Sink::Plain(hashed(Hasher::in_place())),
            Encoding::Zstd => Sink::Zstd(Box::new(Decoder::new(hashed(Hasher::default()))?)),
        };
        Ok(Self { blob: *blob, stored_bytes: 0, head: Vec::new(), sink })
    }

    /// How many bytes it has seen.
    pub(crate) fn seen_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// The next bytes.
    pub(crate) fn see(&mut self, bytes: &[u8]) {
        self.stored_bytes += bytes.len() as u64;
        let seen = match &mut self.sink {
            Sink::Plain(hashed) => hashed.write_all(bytes),
            Sink::Zstd(decoder) => {
                if self.head.len() < FRAME_HEAD_BYTES as usize {
                    self.head.extend(bytes.iter().take(FRAME_HEAD_BYTES as usize - self.head.len()));
                }
                decoder.write_all(bytes)
            }
            Sink::Bad(_) => return,
        };
        if let Err(error) = seen {
            self.sink = Sink::Bad(self.why_not(&error));
        }
    }

    /// What all the bytes were.
    pub(crate) fn finish(mut self) -> Verdict {
        if self.blob.encoding == Encoding::Zstd
            && let Err(why) = self.check_head()
        {
            return Verdict::Bad(why);
        }
        let plain = match std::mem::replace(&mut self.sink, Sink::Bad(String::new())) {
            Sink::Plain(hashed) => hashed,
            Sink::Zstd(mut decoder) => match decoder.flush() {
                Ok(()) => decoder.into_inner(),
                Err(error) => return Verdict::Bad(self.why_not(&error)),
            },
            Sink::Bad(why) => return Verdict::Bad(why),
        };
        let (length, wanted) = (plain.hasher.bytes(), self.blob.size_bytes);
        if length != wanted {
            let decodes = if self.blob.encoding == Encoding::Zstd { "it does not decode to its end: " } else { "" };
            return Verdict::Bad(format!("{decodes}it has {length} bytes instead of {wanted}"));
        }
        if self.stored_bytes != self.blob.stored_bytes {
            return Verdict::Bad(format!(
                "{} bytes are stored instead of {}",
                self.stored_bytes, self.blob.stored_bytes
            ));
        }
        let digest = plain.hasher.finish();
        if digest == self.blob.digest { Verdict::Good } else { Verdict::Bad(format!("its digest is {digest}")) }
    }

    /// The size of a found blob is read from the head of its frame.
    fn check_head(&self) -> Result<(), String> {
        match plain_size(&self.head) {
            Some(size) if size == self.blob.size_bytes => Ok(()),
            Some(size) => Err(format!("its zstd frame tells {size} bytes instead of {}", self.blob.size_bytes)),
            None => Err("it is not one zstd frame that tells its content size".to_owned()),
        }
    }

    /// Nothing that is seen is written anywhere: every error is the bytes'.
    fn why_not(&self, error: &io::Error) -> String {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TooLong>()) {
            Some(too_long) => too_long.to_string(),
            None => format!("it does not decode: {error}"),
        }
    }
}

/// Decodes and hashes all of `stored`.
///
/// # Errors
/// What reading `stored` gives. Bytes that do not decode are a verdict, not an error.
pub(crate) fn verify(mut stored: impl Read, blob: &Blob) -> io::Result<Verdict> {
    let mut verifier = Verifier::new(blob)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match stored.read(&mut buffer) {
            Ok(0) => return Ok(verifier.finish()),
            Ok(n) => verifier.see(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if matches!(verifier.sink, Sink::Bad(_)) {
            return Ok(verifier.finish());
        }
    }
}

/// The plain size that the head of a stored zstd blob tells.
pub(crate) fn plain_size(head: &[u8]) -> Option<u64> {
    zstd::zstd_safe::get_frame_content_size(head).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::digest::Digest;

    fn zstd_blob(plain: &[u8]) -> (Vec<u8>, Blob) {
        let stored = zstd::bulk::compress(plain, 3).unwrap();
        let mut blob = Blob::plain(Digest::of(plain), plain.len() as u64);
        blob.encoding = Encoding::Zstd;
        blob.stored_bytes = stored.len() as u64;
        (stored, blob)
    }

    fn is_bad(stored: &[u8], blob: &Blob, word: &str) {
        match verify(stored, blob).unwrap() {
            Verdict::Bad(why) => assert!(why.contains(word), "{why}"),
            Verdict::Good => panic!("good, expected: {word}"),
        }
    }

    #[test]
    fn plain_bytes() {
        let blob = Blob::plain(Digest::of(b"abc"), 3);
        assert_eq!(verify(&b"abc"[..], &blob).unwrap(), Verdict::Good);
        is_bad(b"abd", &blob, "its digest is");
        is_bad(b"ab", &blob, "2 bytes instead of 3");
        is_bad(b"abcd", &blob, "more than 3");
    }

    #[test]
    fn compressed_bytes() {
        let plain = b"railyard ".repeat(10_000);
        let (stored, blob) = zstd_blob(&plain);
        assert_eq!(verify(&stored[..], &blob).unwrap(), Verdict::Good);
        is_bad(&stored[..stored.len() - 5], &blob, "does not decode");
        is_bad(&plain, &blob, "not one zstd frame");
        let (other, _) = zstd_blob(&b"switches ".repeat(10_000));
        is_bad(&other, &Blob { stored_bytes: other.len() as u64, ..blob }, "its digest is");
        let (bomb, _) = zstd_blob(&vec![0; 1 << 20]);
        is_bad(&bomb, &blob, "tells 1048576 bytes");
        let mut trailing = stored.clone();
        trailing.extend_from_slice(b"trailing");
        is_bad(&trailing, &blob, "decode");
    }
}
