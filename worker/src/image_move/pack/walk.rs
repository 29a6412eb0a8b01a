//! A tree in the order of its names, directories before what is in them.

use super::error::PackError;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::vec;

/// A file of the tree.
#[derive(Clone, Debug)]
pub struct Found {
    /// Below the tree's root, without a slash at either end; empty for the root itself.
    pub path: Vec<u8>,
    /// A short way to it while the walk is there, however deep it lies.
    pub at: PathBuf,
    /// What the kernel says of it, and not of what it links to.
    pub metadata: Metadata,
}

impl Found {
    /// The path, for people.
    pub fn shown(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }
}

/// What a walk comes by.
#[derive(Debug)]
pub enum Step {
    /// A file of whatever kind.
    At(Found),
    /// All of this directory was gone through.
    Left(Found),
}

/// Goes through a tree. Only the names of the directories on the way down are in memory.
pub struct Walk {
    levels: Vec<Level>,
}

/// A directory on the way down.
struct Level {
    found: Found,
    dir: File,
    names: vec::IntoIter<OsString>,
}

impl Walk {
    /// Begins below `root`; the root itself comes first.
    ///
    /// # Errors
    /// [`PackError::Disk`] if it is not there.
    pub fn new(root: &Path) -> Result<(Found, Self), PackError> {
        let metadata = fs::symlink_metadata(root).map_err(PackError::at("read", root))?;
        let found = Found { path: Vec::new(), at: root.to_owned(), metadata };
        let level = Level::open(found.clone())?;
        Ok((found, Self { levels: vec![level] }))
    }

    /// The next one. A directory is gone into after it was given; the root is not left.
    ///
    /// # Errors
    /// [`PackError::Disk`].
    pub fn next(&mut self) -> Result<Option<Step>, PackError> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        let Some(name) = level.names.next() else {
            let left = self.levels.pop().filter(|_| !self.levels.is_empty());
            return Ok(left.map(|level| Step::Left(level.found)));
        };
        let found = level.found(&name)?;
        if found.metadata.is_dir() {
            self.levels.push(Level::open(found.clone())?);
        }
        Ok(Some(Step::At(found)))
    }
}

impl Level {
    fn open(found: Found) -> Result<Self, PackError> {
        let read = || {
            let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
            let dir = File::options().read(true).custom_flags(flags).open(&found.at)?;
            let mut names = Vec::new();
            for entry in fs::read_dir(&found.at)? {
                names.push(entry?.file_name());
            }
            names.sort();
            Ok((dir, names.into_iter()))
        };
        let (dir, names) = read().map_err(PackError::at("read", &found.shown()))?;
        Ok(Self { found, dir, names })
    }

    fn found(&self, name: &OsString) -> Result<Found, PackError> {
        // By way of the open directory: the whole path can be longer than the kernel takes.
        let at = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd())).join(name);
        let mut path = self.found.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let metadata = fs::symlink_metadata(&at).map_err(PackError::at("read", Path::new(name)))?;
        Ok(Found { path, at, metadata })
    }
}
