//! Whether compressing a file for the farm's own use pays.

use crate::error::TransferError;
use crate::hash::blocking;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Smaller files are not worth it: what they could save is less than what a request costs.
const FILE_MIN_BYTES: u64 = 256 * 1024;

/// Places of a file that are looked at. A disk image begins with a compressible head whatever its file systems hold; so
/// one place says nothing, and sixteen cost 30 ms on a disk that has to seek.
const PLACES: u64 = 16;

/// Bytes of each place: enough for zstd's fastest level to find what repeats.
const PLACE_BYTES: u64 = 128 * 1024;

/// The most that a sample may keep of its size, in percent. Packing costs a processor about as long as sending the same bytes on
/// a network of 5 Gbit/s does; to save less than a tenth of that is not worth the work on both ends.
const KEEPS_MAX_PERCENT: u64 = 90;

/// Whether a sample of the file says that compressing it pays.
///
/// # Errors
/// [`TransferError::NotFound`] or [`TransferError::Io`].
pub async fn pays(path: &Path) -> Result<bool, TransferError> {
    let path = path.to_owned();
    blocking(move || sample(&path).map_err(TransferError::local("read", &path))).await
}

fn sample(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length < FILE_MIN_BYTES {
        return Ok(false);
    }
    let mut buffer = vec![0; PLACE_BYTES as usize];
    let (mut plain, mut packed) = (0, 0);
    for offset in places(length) {
        let n = read_at(&file, &mut buffer, offset)?;
        plain += n as u64;
        packed += zstd::bulk::compress(&buffer[..n], 1)?.len() as u64;
    }
    Ok(packed * 100 <= plain * KEEPS_MAX_PERCENT)
}

/// Where to look: evenly over the file, its first and last bytes included; all of a small one.
fn places(length: u64) -> impl Iterator<Item = u64> {
    let count = length.div_ceil(PLACE_BYTES).min(PLACES);
    let last = length.saturating_sub(PLACE_BYTES);
    // In an order that 128 bits keep exact for any length.
    (0..count).map(move |n| (u128::from(last) * u128::from(n) / u128::from((count - 1).max(1))) as u64)
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_spread_over_the_whole_file() {
        for length in [FILE_MIN_BYTES, FILE_MIN_BYTES + 1, 5 << 20, 3 << 30, u64::MAX / 2] {
            let places: Vec<u64> = places(length).collect();
            assert_eq!((places[0], places[places.len() - 1]), (0, length - PLACE_BYTES), "{length}");
            assert!(places.is_sorted() && places.len() as u64 <= PLACES);
        }
    }
}
