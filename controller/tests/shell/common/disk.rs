//! A disk that fills up.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own, mounted while this lives. Needs root.
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    pub fn mounted(mib: u64) -> Self {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        let size = format!("size={mib}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "railyard-test"]).arg(disk.path()).status();
        assert!(mounted.unwrap().success(), "this test needs root, to mount a small file system");
        disk
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes what is free, but for so many bytes.
    pub fn fill(&self, but_bytes: u64) {
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        let chunk = vec![7; 64 * 1024];
        // The last chunk fits in part.
        while filler.write_all(&chunk).is_ok() {}
        while filler.write_all(&[7]).is_ok() {}
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.saturating_sub(but_bytes)).unwrap();
    }

    /// Makes room again.
    pub fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a controller may still be stopping on it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
