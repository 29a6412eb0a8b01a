//! The bytes of a file, without reading its holes.

use super::error::PackError;
use super::pipe::Pipe;
use super::walk::Found;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;

/// What the kernel counts a file's room in.
const ROOM_BYTES: u64 = 512;

/// A run of bytes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    from: u64,
    to: u64,
}

/// Writes as many bytes as the file's metadata promise.
///
/// # Errors
/// [`PackError::Changed`] if it has fewer; [`PackError::Disk`]; [`PackError::Unwanted`].
pub fn write(found: &Found, pipe: &mut Pipe<'_>) -> Result<(), PackError> {
    let size = found.metadata.len();
    let shown = found.shown();
    let mut file = File::open(&found.at).map_err(PackError::at("read", &shown))?;
    // Whoever has as much room as bytes has no holes worth a question.
    if found.metadata.blocks().saturating_mul(ROOM_BYTES) >= size {
        return copy(&mut file, size, found, pipe);
    }
    let mut at = 0;
    while at < size {
        let run = next_run(&file, at, size).map_err(PackError::at("read", &shown))?;
        pipe.zeros(run.from - at)?;
        file.seek(SeekFrom::Start(run.from)).map_err(PackError::at("read", &shown))?;
        copy(&mut file, run.to - run.from, found, pipe)?;
        at = run.to;
    }
    Ok(())
}

/// The next run of data at or behind `at`; empty and at the end if there is none.
fn next_run(file: &File, at: u64, size: u64) -> io::Result<Run> {
    let seek = |at: u64, whence| match lseek(file, i64::try_from(at).map_err(io::Error::other)?, whence) {
        Ok(found) => u64::try_from(found).map_err(io::Error::other),
        // Behind the last data.
        Err(Errno::ENXIO) => Ok(size),
        // A file system that does not know: all of it is data.
        Err(Errno::EINVAL) => Ok(if matches!(whence, Whence::SeekData) { at } else { size }),
        Err(error) => Err(error.into()),
    };
    let from = seek(at, Whence::SeekData)?.min(size);
    let to = if from == size { size } else { seek(from, Whence::SeekHole)?.min(size) };
    Ok(Run { from, to })
}

fn copy(file: &mut File, count: u64, found: &Found, pipe: &mut Pipe<'_>) -> Result<(), PackError> {
    let mut left = count;
    while left > 0 {
        match pipe.fill(left, |room| file.read(room).map_err(|error| PackError::at("read", &found.shown())(error)))? {
            0 => return Err(PackError::Changed { path: found.shown() }),
            n => left -= n as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn holes_are_stepped_over() {
        const MIB: u64 = 1024 * 1024;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"data", 4 * MIB).unwrap();
        file.set_len(9 * MIB).unwrap();
        let first = next_run(&file, 0, 9 * MIB).unwrap();
        assert!(first.from == 4 * MIB && first.to < 5 * MIB, "{first:?}");
        assert_eq!(next_run(&file, first.to, 9 * MIB).unwrap(), Run { from: 9 * MIB, to: 9 * MIB });
        assert_eq!(next_run(&file, 0, 2 * MIB).unwrap(), Run { from: 2 * MIB, to: 2 * MIB });
    }
}
