//! CRC-32s of a file, taken while it is read for another reason, so that whoever sends its parts need not read them twice.

use crc32fast::Hasher;
use std::fmt;

/// Parts begin and end at multiples of this, or at the end of the file.
const STEP_BYTES: u64 = 1024 * 1024;

/// The CRC-32 of each MiB of a file, and of what is left at its end.
#[derive(Clone, Default)]
pub struct Crc32s {
    whole: Vec<u32>,
    /// Of what comes after them.
    rest: Hasher,
    rest_bytes: u64,
}

impl Crc32s {
    /// The next bytes of the file.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(STEP_BYTES - self.rest_bytes).unwrap_or(usize::MAX);
            let (some, left) = bytes.split_at(bytes.len().min(room));
            self.rest.update(some);
            self.rest_bytes += some.len() as u64;
            bytes = left;
            if self.rest_bytes == STEP_BYTES {
                self.whole.push(std::mem::take(&mut self.rest).finalize());
                self.rest_bytes = 0;
            }
        }
    }

    /// The CRC-32 of a part, unless it begins or ends where none was taken.
    pub(crate) fn of(&self, offset: u64, length: u64) -> Option<u32> {
        let (end, whole_bytes) = (offset.checked_add(length)?, self.whole.len() as u64 * STEP_BYTES);
        let to_the_end = end == whole_bytes + self.rest_bytes;
        if !offset.is_multiple_of(STEP_BYTES) || !(end.is_multiple_of(STEP_BYTES) || to_the_end) || end < offset {
            return None;
        }
        let steps = usize::try_from(offset / STEP_BYTES).ok()?..usize::try_from(end / STEP_BYTES).ok()?;
        let mut sum = Hasher::new();
        for crc32 in self.whole.get(steps)? {
            sum.combine(&Hasher::new_with_initial_len(*crc32, STEP_BYTES));
        }
        if !end.is_multiple_of(STEP_BYTES) {
            sum.combine(&self.rest);
        }
        Some(sum.finalize())
    }
}

impl fmt::Debug for Crc32s {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crc32s of {} MiB and {} bytes", self.whole.len(), self.rest_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_sums_of_their_bytes_or_none() {
        const MIB: usize = 1024 * 1024;
        let bytes: Vec<u8> = (0..5 * MIB + 777).map(|n| (n * 31 / 7) as u8).collect();
        let mut crc32s = Crc32s::default();
        bytes.chunks(300_001).for_each(|some| crc32s.update(some));
        let parts =
            [(0, 2 * MIB), (2 * MIB, 3 * MIB), (4 * MIB, MIB + 777), (5 * MIB, 777), (0, bytes.len()), (MIB, 0)];
        for (offset, length) in parts {
            let want = crc32fast::hash(&bytes[offset..offset + length]);
            assert_eq!(crc32s.of(offset as u64, length as u64), Some(want), "{offset}+{length}");
        }
        for (offset, length) in [(1, MIB), (0, MIB + 1), (0, 6 * MIB), (6 * MIB, 0), (5 * MIB, 776), (0, usize::MAX)] {
            assert_eq!(crc32s.of(offset as u64, length as u64), None, "{offset}+{length}");
        }
        let mut even = Crc32s::default();
        even.update(&bytes[..2 * MIB]);
        assert_eq!(even.of(0, 2 * MIB as u64), Some(crc32fast::hash(&bytes[..2 * MIB])));
        assert_eq!(even.of(0, 3 * MIB as u64), None);
    }
}
