//! Some megabytes that are held in reserve, so that a disk without a byte can still be cleaned: records have to be written for that,
//! by this worker and by the engine.

use super::Space;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Less than what makes a disk full ([`super::FULL_BELOW_BYTES`]): a disk that only has this reserve back is still full for everybody
/// who asks.
const RESERVE_BYTES: u64 = 8 * 1024 * 1024;

/// On a small disk it is no more than such a part.
const PART: u64 = 64;

/// With so many times as much free it is made again; so that it is not given and made in turns.
const ROOM: u64 = 4;

/// The reserve on the disk of one directory.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Below `dir`. Does nothing yet.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("reserve") }
    }

    /// Makes it if it is not there and there is room for it.
    pub fn keep(&self, space: Space) {
        let bytes = RESERVE_BYTES.min(space.total_bytes / PART);
        if bytes == 0 || space.free_bytes < bytes * ROOM || self.is_there() {
            return;
        }
        if let Err(error) = self.make(bytes) {
            // Not every file system can do it. It is a help, not a need.
            tracing::debug!(path = %self.path.display(), %error, "there is no reserve on the disk");
            self.give();
        }
    }

    fn make(&self, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(&self.path)?;
        let length = i64::try_from(bytes).map_err(io::Error::other)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, length)?)
    }

    /// Whether it is there to be given.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Gives it away; `false` if there was none.
    pub fn give(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn it_takes_room_is_given_and_made_again_when_there_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path());
        let total_bytes = 100 << 30;
        reserve.keep(Space { total_bytes, free_bytes: RESERVE_BYTES * ROOM - 1 });
        assert!(!reserve.give(), "a disk that is nearly full needs what it has");
        reserve.keep(Space { total_bytes, free_bytes: RESERVE_BYTES * ROOM });
        let blocks = fs::metadata(dir.path().join("reserve")).unwrap().blocks();
        assert!(blocks * 512 >= RESERVE_BYTES, "{blocks} blocks are no reserve");
        assert!(reserve.is_there() && reserve.give() && !reserve.give());
        reserve.keep(Space { total_bytes: 64 << 20, free_bytes: 64 << 20 });
        assert_eq!(fs::metadata(dir.path().join("reserve")).unwrap().len(), 1 << 20, "on a small disk a small one");
    }
}
