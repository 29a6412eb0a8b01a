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

/// A directory that nobody can look into, as when the file system that is mounted there has lost its server. Until this is
/// dropped. Needs root.
pub struct Unreadable(PathBuf);

impl Unreadable {
    pub fn at(dir: &Path) -> Self {
        // Whoever mounts it is to serve it, and ends.
        let mount = "exec 3<>/dev/fuse && \
                     mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 railyard-test \"$1\"";
        let mounted = Command::new("sh").args(["-c", mount, "sh"]).arg(dir).status();
        assert!(mounted.unwrap().success(), "this test needs root and /dev/fuse, to mount what cannot be read");
        Self(dir.to_owned())
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Files that cannot be removed, under whatever names. Until this is dropped. Needs root.
pub struct Immutable(Vec<PathBuf>);

impl Immutable {
    pub fn of(files: Vec<PathBuf>) -> Self {
        let done = Command::new("chattr").arg("+i").args(&files).status();
        assert!(
            done.unwrap().success(),
            "this test needs root, and temporary files on a file system that has `chattr +i`"
        );
        Self(files)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").args(&self.0).status();
    }
}
