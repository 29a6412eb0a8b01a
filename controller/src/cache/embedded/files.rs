//! File operations that last: what they wrote survives a power cut once they return.

use crate::cache::CacheError;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Makes the cache's directory and gives its canonical path.
pub(super) fn create_root(dir: &Path) -> Result<PathBuf, CacheError> {
    let making = || CacheError::local("make the directory", dir);
    // The directory itself is private: the cache decides who reads.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(making())?;
    dir.canonicalize().map_err(making())
}

/// Makes `dir` and its missing parents, each flushed into its own parent.
pub(super) fn create_dirs(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => sync_parent(dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = dir.parent().ok_or(error)?;
            create_dirs(parent)?;
            match fs::create_dir(dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                done => done.and_then(|()| sync_parent(dir)),
            }
        }
        Err(error) => Err(error),
    }
}

/// Flushes the directory that holds `path`.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("the root has no parent"))?;
    File::open(parent)?.sync_all()
}

/// How often a directory is made again when [`prune`] of another path took it away meanwhile.
const PLACE_ATTEMPTS: u32 = 8;

/// Makes the directories of `dest`, runs `place` (a rename or a link) and flushes the directory.
pub(super) fn place(dest: &Path, place: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let parent = dest.parent().ok_or_else(|| io::Error::other("the root cannot be written"))?;
    let mut attempt = 1;
    loop {
        create_dirs(parent)?;
        match place().and_then(|()| sync_parent(dest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < PLACE_ATTEMPTS => attempt += 1,
            done => return done,
        }
    }
}

/// Writes all of `from` into the new file `tmp`, flushed.
pub(super) fn write_tmp(tmp: &Path, from: &mut impl Read) -> io::Result<()> {
    let mut write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(tmp)?;
        io::copy(from, &mut file)?;
        file.flush()?;
        file.sync_all()
    };
    write().inspect_err(|_| {
        // The first error is the one to tell; leftovers are swept at the next start.
        let _ = fs::remove_file(tmp);
    })
}

/// Removes the empty directories from `dir` upwards, up to `root`.
pub(super) fn prune(root: &Path, mut dir: &Path) {
    while dir != root && dir.starts_with(root) && fs::remove_dir(dir).is_ok() {
        match dir.parent() {
            Some(parent) => dir = parent,
            None => return,
        }
    }
}

/// A number that nobody guesses, for the names of uploads and temporary files.
pub(super) fn random_name() -> Result<String, CacheError> {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(hex::encode(bytes)),
        Err(error) => Err(CacheError::Io { what: "draw a random number".to_owned(), source: io::Error::other(error) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let dest = root.path().join("a/b/c");
        place(&dest, || fs::write(&dest, "x")).unwrap();
        prune(root.path(), dest.parent().unwrap());
        assert!(dest.exists());
        fs::remove_file(&dest).unwrap();
        prune(root.path(), dest.parent().unwrap());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let root = tempfile::tempdir().unwrap();
        let tmp = root.path().join("tmp");
        assert!(write_tmp(&tmp, &mut Broken).is_err());
        assert!(!tmp.exists());
    }
}
