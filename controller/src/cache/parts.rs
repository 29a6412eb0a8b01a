//! How a blob is cut into parts.

use crate::cache::CacheError;
use railyard_common::blob::{Blob, Encoding, PartChecksum, PartToSign};

const MIB: u64 = 1024 * 1024;

/// Smallest part: well above the 5 MiB that S3 asks for, small enough to be sent again without pain.
const PART_MIN_BYTES: u64 = 16 * MIB;
/// Up to this size parts grow so that there are at most [`PARTS_WANTED`].
const PART_WANTED_BYTES: u64 = 512 * MIB;
/// Keeps the list of ETags in a report far below the limit of one message.
const PARTS_WANTED: u64 = 1_000;
/// What S3 allows.
const PARTS_MAX: u64 = 10_000;
/// What S3 allows: 5 TiB.
pub(crate) const OBJECT_MAX_BYTES: u64 = 5 * 1024 * 1024 * MIB;

/// The length of every part but the last.
pub(crate) fn part_bytes(stored_bytes: u64) -> u64 {
    let wanted = stored_bytes.div_ceil(PARTS_WANTED).clamp(PART_MIN_BYTES, PART_WANTED_BYTES);
    wanted.max(stored_bytes.div_ceil(PARTS_MAX)).next_multiple_of(MIB)
}

/// The length of every part but the last of a copy within the service, `wanted` if that gives no more parts than may be.
pub(crate) fn copy_part_bytes(bytes: u64, wanted: u64) -> u64 {
    wanted.max(bytes.div_ceil(PARTS_MAX))
}

/// The offset and the length of each part.
pub(crate) fn spans(stored_bytes: u64, part_bytes: u64) -> impl ExactSizeIterator<Item = (u64, u64)> {
    // At most PARTS_MAX, so that it fits any integer.
    let count = usize::try_from(stored_bytes.div_ceil(part_bytes)).unwrap_or(usize::MAX);
    (0..count).map(move |n| {
        let offset = n as u64 * part_bytes;
        (offset, part_bytes.min(stored_bytes - offset))
    })
}

/// The length of each of these parts.
///
/// # Errors
/// [`CacheError::Invalid`] for a part that the blob does not have, and for a checksum of another kind than `wanted`.
pub(crate) fn lengths(
    blob: &Blob,
    part_bytes: u64,
    wanted: PartChecksum,
    parts: &[PartToSign],
) -> Result<Vec<u64>, CacheError> {
    let count = blob.stored_bytes.div_ceil(part_bytes);
    let length = |part: &PartToSign| {
        let before = u64::from(part.number).checked_sub(1).filter(|before| *before < count);
        let why = match before {
            None => format!("the upload has parts 1 to {count}, and no part {}", part.number),
            Some(_) if part.sum.kind() != wanted => {
                let (name, _) = part.sum.header();
                format!(
                    "part {} comes with {name}, and this cache takes another checksum, as it has answered",
                    part.number
                )
            }
            Some(before) => return Ok(part_bytes.min(blob.stored_bytes - before * part_bytes)),
        };
        Err(CacheError::Invalid { why })
    };
    parts.iter().map(length).collect()
}

/// Whether the numbers of a blob fit together and the store can hold it.
pub(crate) fn check(blob: &Blob) -> Result<(), CacheError> {
    if blob.encoding == Encoding::Identity && blob.size_bytes != blob.stored_bytes {
        let why = format!(
            "blob {} is stored as it is, but with {} bytes instead of {}",
            blob.digest, blob.stored_bytes, blob.size_bytes
        );
        return Err(CacheError::Invalid { why });
    }
    if blob.encoding == Encoding::Zstd && blob.stored_bytes == 0 {
        let why = format!("blob {} is compressed to nothing; even an empty zstd frame has bytes", blob.digest);
        return Err(CacheError::Invalid { why });
    }
    if blob.stored_bytes > OBJECT_MAX_BYTES {
        let what = format!("blob {}", blob.digest);
        return Err(CacheError::TooLarge { what, bytes: blob.stored_bytes, limit: OBJECT_MAX_BYTES });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_within_what_s3_allows() {
        for (stored, want) in [(0, 16), (1, 16), (17 * MIB, 16), (100_000 * MIB, 100), (1_000_000 * MIB, 512)] {
            assert_eq!(part_bytes(stored), want * MIB, "{stored}");
        }
        for stored in [1, 16 * MIB, 16 * MIB + 1, 600_000 * MIB, OBJECT_MAX_BYTES] {
            let part = part_bytes(stored);
            let spans: Vec<_> = spans(stored, part).collect();
            assert!(spans.len() as u64 <= PARTS_MAX && part <= 5 * 1024 * MIB, "{stored}");
            assert_eq!(spans.iter().map(|(_, length)| length).sum::<u64>(), stored);
            assert!(spans.iter().all(|(_, length)| (1..=part).contains(length)));
        }
    }
}
