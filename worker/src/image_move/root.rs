//! Tarballs: how they are packed, and what is in them when they are not.

use railyard_common::blob::Encoding;
use railyard_common::digest::Digest;
use railyard_transfer::Hasher;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::Path;

/// Read at a time while hashing.
const READ_BYTES: usize = 1024 * 1024;

/// Length of a tar header.
const HEADER_BYTES: usize = 512;

/// Where its checksum is.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// How a tarball is packed, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl From<Encoding> for Packing {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Identity => Self::Plain,
            Encoding::Zstd => Self::Zstd,
        }
    }
}

impl Packing {
    /// Longest of the magic numbers.
    pub const MAGIC_BYTES: usize = 4;

    /// By the first [`Packing::MAGIC_BYTES`].
    pub fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one to be skipped, as parallel packers write them first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// The plain bytes of `packed`.
    pub fn open<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(BufReader::with_capacity(READ_BYTES, packed)),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, packed))),
            Self::Zstd => Box::new(zstd::Decoder::new(packed)?),
        })
    }
}

/// What a tarball is when it is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// How it is packed.
    pub packing: Packing,
    /// Of the plain tar: its diff id as a layer.
    pub digest: Digest,
    /// Length of the plain tar.
    pub size_bytes: u64,
}

/// Reads a tarball once, without keeping what is in it.
///
/// # Errors
/// If it cannot be read, unpacked, or is not a tar at all.
pub fn measure(path: &Path) -> io::Result<Measured> {
    let mut file = File::open(path)?;
    let mut magic = Vec::new();
    file.by_ref().take(Packing::MAGIC_BYTES as u64).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let packing = Packing::of(&magic);
    let mut plain = packing.open(file)?;
    let mut buffer = vec![0; READ_BYTES];
    plain.read_exact(&mut buffer[..HEADER_BYTES]).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => no_tar(),
        _ => error,
    })?;
    if !is_header(&buffer[..HEADER_BYTES]) {
        return Err(no_tar());
    }
    let mut hasher = Hasher::default();
    let mut n = HEADER_BYTES;
    while n > 0 {
        hasher.update(&buffer[..n]);
        n = plain.read(&mut buffer)?;
    }
    let size_bytes = hasher.bytes();
    Ok(Measured { packing, digest: hasher.finish(), size_bytes })
}

fn no_tar() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not a tar archive (plain, gzip or zstd)")
}

/// Every kind of tar begins with a block that has a checksum of itself, counted with spaces in its own place.
fn is_header(block: &[u8]) -> bool {
    let sum: u64 =
        block.iter().enumerate().map(|(n, byte)| if CHECKSUM.contains(&n) { 0x20 } else { u64::from(*byte) }).sum();
    let field = String::from_utf8_lossy(&block[CHECKSUM]);
    u64::from_str_radix(field.trim_matches(['\0', ' ']), 8).is_ok_and(|told| told == sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_same_tar_is_the_same_however_it_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        tar.append_data(&mut header, "etc/os-release", &b"x=1"[..]).unwrap();
        let plain = tar.into_inner().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let packed = [
            (Packing::Plain, plain.clone()),
            (Packing::Gzip, gzip.finish().unwrap()),
            (Packing::Zstd, zstd::encode_all(&plain[..], 1).unwrap()),
            // As pzstd does: a frame to be skipped, with the length of the next one.
            (
                Packing::Zstd,
                [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &zstd::encode_all(&plain[..], 1).unwrap()]
                    .concat(),
            ),
        ];
        for (packing, bytes) in packed {
            let path = dir.path().join("root");
            std::fs::write(&path, bytes).unwrap();
            let want = Measured { packing, digest: Digest::of(&plain), size_bytes: plain.len() as u64 };
            assert_eq!(measure(&path).unwrap(), want);
        }
    }

    #[test]
    fn what_is_not_a_tar_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        for bytes in [vec![], vec![b'x'; 1000], vec![0x1f, 0x8b, 9, 9, 9]] {
            std::fs::write(&path, bytes).unwrap();
            assert!(measure(&path).is_err());
        }
    }
}
