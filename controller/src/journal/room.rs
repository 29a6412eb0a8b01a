//! Room on the journal's disk.
//!
//! A database that runs out of room in the middle of a write leaves it open what is on the disk. So the journal stops before
//! that, while the state is still known, and goes on when there is room again. A file of some megabytes is held in reserve: with
//! it a controller can start, to be looked at, on a disk that is full.

use super::JournalError;
use crate::private;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs;
use std::path::{Path, PathBuf};

/// With less free the journal takes nothing more: several times the largest round of events, for what others write meanwhile.
const STOP_BELOW_BYTES: u64 = 32 * 1024 * 1024;
/// With so much free it goes on: more than what stops it, so that it does not stop again at once.
const GO_ON_FROM_BYTES: u64 = 48 * 1024 * 1024;
/// With so much free there is room for a few events that may not wait: what sled writes for them, and then for itself, is less.
const LAST_BYTES: u64 = 8 * 1024 * 1024;
/// What sled writes to open itself is far less.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;

/// Watches the room on the disk of a journal.
pub(super) struct Room {
    dir: PathBuf,
    short: bool,
}

impl Room {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), short: false }
    }

    fn reserve(&self) -> PathBuf {
        self.dir.join("reserve")
    }

    /// Whether the next append has room.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`]
    pub(super) fn check(&mut self) -> Result<(), JournalError> {
        let free = free_bytes(&self.dir)?;
        let wanted = if self.short { GO_ON_FROM_BYTES } else { STOP_BELOW_BYTES };
        self.short = free < wanted;
        if self.short {
            return Err(JournalError::NoRoom { path: self.dir.clone(), free, wanted: GO_ON_FROM_BYTES });
        }
        self.keep_reserve();
        Ok(())
    }

    /// Whether a few events that may not wait have room.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`]
    pub(super) fn check_last(&self) -> Result<(), JournalError> {
        match free_bytes(&self.dir)? {
            free if free < LAST_BYTES => Err(JournalError::NoRoom { path: self.dir.clone(), free, wanted: LAST_BYTES }),
            _ => Ok(()),
        }
    }

    /// Makes the reserve if it is not there.
    fn keep_reserve(&self) {
        let path = self.reserve();
        if path.exists() {
            return;
        }
        let made = private::file().write(true).create_new(true).open(&path).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES as i64).map_err(std::io::Error::from)
        });
        if let Err(error) = made {
            // Not every file system can do it. It is a help, not a need.
            tracing::debug!(path = %path.display(), %error, "the journal has no reserve");
        }
    }

    /// Gives the reserve away; `false` if there was none.
    pub(super) fn give_reserve(&self) -> bool {
        fs::remove_file(self.reserve()).is_ok()
    }
}

fn free_bytes(dir: &Path) -> Result<u64, JournalError> {
    let stat = nix::sys::statvfs::statvfs(dir).map_err(|errno| JournalError::Io {
        what: "look for room in",
        path: dir.to_owned(),
        source: errno.into(),
    })?;
    Ok(stat.blocks_available() * stat.fragment_size())
}
