//! Whether stored bytes are those of their digest.

use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};

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

/// Decodes and hashes all of `stored`.
///
/// # Errors
/// What reading `stored` gives. Bytes that do not decode are a verdict, not an error.
pub(crate) fn verify(stored: impl Read, blob: &Blob) -> io::Result<Verdict> {
    let mut stored = Counted { from: stored, bytes: 0 };
    let plain = match blob.encoding {
        Encoding::Identity => hash(&mut stored, blob.size_bytes)?,
        Encoding::Zstd => match decode(&mut stored, blob)? {
            Ok(plain) => plain,
            Err(why) => return Ok(Verdict::Bad(why)),
        },
    };
    Ok(match plain {
        None => Verdict::Bad(format!("it has more than {} bytes", blob.size_bytes)),
        Some((_, length)) if length != blob.size_bytes => {
            Verdict::Bad(format!("it has {length} bytes instead of {}", blob.size_bytes))
        }
        Some(_) if stored.bytes != blob.stored_bytes => {
            Verdict::Bad(format!("{} bytes are stored instead of {}", stored.bytes, blob.stored_bytes))
        }
        Some((digest, _)) if digest != blob.digest => Verdict::Bad(format!("its digest is {digest}")),
        Some(_) => Verdict::Good,
    })
}

/// The plain size that the head of a stored zstd blob tells.
pub(crate) fn plain_size(head: &[u8]) -> Option<u64> {
    zstd::zstd_safe::get_frame_content_size(head).ok().flatten()
}

type Plain = Option<(Digest, u64)>;

fn decode(stored: &mut Counted<impl Read>, blob: &Blob) -> io::Result<Result<Plain, String>> {
    let mut head = Vec::new();
    stored.by_ref().take(FRAME_HEAD_BYTES).read_to_end(&mut head)?;
    match plain_size(&head) {
        Some(size) if size == blob.size_bytes => {}
        Some(size) => return Ok(Err(format!("its zstd frame tells {size} bytes instead of {}", blob.size_bytes))),
        // The size of a found blob is read from there.
        None => return Ok(Err("it is not one zstd frame that tells its content size".to_owned())),
    }
    let whole = io::Cursor::new(head).chain(stored);
    let decoded = zstd::stream::read::Decoder::new(whole).and_then(|mut plain| hash(&mut plain, blob.size_bytes));
    match decoded {
        Ok(plain) => Ok(Ok(plain)),
        // The decoder's own errors carry no number of the system.
        Err(error) if error.raw_os_error().is_none() => Ok(Err(format!("it does not decode: {error}"))),
        Err(error) => Err(error),
    }
}

/// The digest and the length; `None` above `limit`.
fn hash(plain: &mut impl Read, limit: u64) -> io::Result<Plain> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut length = 0;
    loop {
        match plain.read(&mut buffer) {
            Ok(0) => return Ok(Some((Digest::finish(hasher), length))),
            Ok(n) => {
                length += n as u64;
                if length > limit {
                    return Ok(None);
                }
                hasher.update(&buffer[..n]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

struct Counted<R> {
    from: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
