//! What a step takes of the disk, counted while it writes.
//!
//! Blocks and not lengths: images are mostly holes. A file with several names counts once, and so does one that has lost its
//! last name and is still open: who writes into such files would be seen by nobody else. What the kernel keeps in memory counts as memory.

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::collections::HashSet;
use std::fs::{self, File, Metadata, ReadDir};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The unit of a file's blocks, whatever its file system's own.
const BLOCK_BYTES: u64 = 512;
/// What a file takes at least of a step's share: file systems have room for so many files and no more, however small they are.
const INODE_BYTES: u64 = 4096;

/// How deep directories are gone into. Each level holds two open files.
const LEVELS_MAX: usize = 100;

/// Where a step's container writes, besides its work directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writable {
    /// Directories and files of the host, but for volumes.
    pub paths: Vec<PathBuf>,
    /// Volumes.
    pub volumes: Vec<PathBuf>,
    /// The engine's name for the container: its processes have that in their control groups.
    pub container: String,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In files of its own.
    pub bytes: u64,
    /// In files that have lost their names.
    pub nameless_bytes: u64,
    /// There is more: directories that are too deep, or cannot be read.
    pub is_partial: bool,
}

impl Usage {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.nameless_bytes)
    }
}

/// Counts what is there, at most until it is more than `enough_bytes`.
pub fn count(work: &Path, writable: &Writable, enough_bytes: u64) -> Usage {
    let mut counter = Counter { usage: Usage::default(), seen: HashSet::new(), enough_bytes, least_bytes: INODE_BYTES };
    writable.paths.iter().chain(&writable.volumes).for_each(|path| counter.tree(path));
    counter.tree(work);
    if !counter.is_enough() && !writable.container.is_empty() {
        counter.nameless(&writable.container);
    }
    counter.usage
}

/// Counts what is there, but for files that are `known` by device and number: somebody else counts them.
pub fn count_below(paths: &[PathBuf], known: &HashSet<(u64, u64)>) -> u64 {
    let mut counter = Counter { usage: Usage::default(), seen: known.clone(), enough_bytes: u64::MAX, least_bytes: 0 };
    paths.iter().for_each(|path| counter.tree(path));
    counter.usage.total_bytes()
}

struct Counter {
    usage: Usage,
    /// Devices and numbers of files with several names, or none.
    seen: HashSet<(u64, u64)>,
    enough_bytes: u64,
    /// Of each file.
    least_bytes: u64,
}

/// A directory on the way down. `entries` go by way of the open file: nobody can put a link in their place.
struct Level {
    file: File,
    entries: ReadDir,
}

impl Level {
    fn open(path: &Path) -> std::io::Result<Self> {
        let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let entries = fs::read_dir(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok(Self { file, entries })
    }
}

impl Counter {
    fn is_enough(&self) -> bool {
        self.usage.total_bytes() > self.enough_bytes
    }

    fn tree(&mut self, path: &Path) {
        let Ok(metadata) = fs::symlink_metadata(path) else { return };
        self.add(&metadata);
        if metadata.is_dir() {
            self.walk(path);
        }
    }

    fn add(&mut self, metadata: &Metadata) {
        let is_first = metadata.is_dir() || metadata.nlink() == 1 || self.seen.insert((metadata.dev(), metadata.ino()));
        if is_first {
            let bytes = metadata.blocks().saturating_mul(BLOCK_BYTES).max(self.least_bytes);
            self.usage.bytes = self.usage.bytes.saturating_add(bytes);
        }
    }

    /// What goes away meanwhile is not there.
    fn walk(&mut self, root: &Path) {
        let Ok(level) = Level::open(root) else {
            self.usage.is_partial = true;
            return;
        };
        let mut levels = vec![level];
        while let Some(level) = levels.last_mut() {
            if self.is_enough() {
                return;
            }
            let Some(Ok(entry)) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let Ok(metadata) = entry.metadata() else { continue };
            self.add(&metadata);
            if !metadata.is_dir() {
                continue;
            }
            let path = format!("/proc/self/fd/{}", level.file.as_raw_fd());
            if levels.len() == LEVELS_MAX {
                self.usage.is_partial = true;
                continue;
            }
            match Level::open(&Path::new(&path).join(entry.file_name())) {
                Ok(level) => levels.push(level),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(_) => self.usage.is_partial = true,
            }
        }
    }

    /// Files that the container's processes hold open and that no directory has any more.
    fn nameless(&mut self, container: &str) {
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = process.path();
            let is_its = fs::read_to_string(path.join("cgroup")).is_ok_and(|groups| groups.contains(container));
            for open in fs::read_dir(path.join("fd")).into_iter().flatten().flatten().filter(|_| is_its) {
                let Ok(metadata) = fs::metadata(open.path()) else { continue };
                let is_nameless = metadata.is_file() && metadata.nlink() == 0;
                if !is_nameless || statfs(&open.path()).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC) {
                    continue;
                }
                if self.seen.insert((metadata.dev(), metadata.ino())) {
                    self.usage.nameless_bytes += metadata.blocks().saturating_mul(BLOCK_BYTES);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const MIB: usize = 1 << 20;

    fn write(path: &Path, mib: usize) {
        let mut file = File::create(path).unwrap();
        file.write_all(&vec![1; mib * MIB]).unwrap();
        file.sync_all().unwrap();
    }

    fn mib(usage: Usage) -> u64 {
        // Directories take some blocks as well.
        usage.total_bytes() / MIB as u64
    }

    #[test]
    fn blocks_count_once_and_holes_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (work, root) = (dir.path().join("work"), dir.path().join("root"));
        fs::create_dir_all(work.join("a/b")).unwrap();
        fs::create_dir_all(&root).unwrap();
        let writable = Writable { paths: vec![root.clone()], ..Writable::default() };
        let counted = || count(&work, &writable, u64::MAX);
        write(&work.join("a/b/file"), 3);
        fs::hard_link(work.join("a/b/file"), work.join("again")).unwrap();
        File::create(work.join("holes")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/", work.join("link")).unwrap();
        assert_eq!((mib(counted()), counted().is_partial), (3, false));
        write(&root.join("more"), 2);
        assert_eq!(mib(counted()), 5);
        let metadata = fs::metadata(work.join("again")).unwrap();
        let known = HashSet::from([(metadata.dev(), metadata.ino())]);
        let [without, with] = [&known, &HashSet::new()].map(|known| count_below(&[work.clone(), root.clone()], known));
        assert_eq!([without, with].map(|bytes| bytes / MIB as u64), [2, 5], "others count what is theirs");
        assert!(count(&work, &writable, MIB as u64).total_bytes() < 5 * MIB as u64, "no more is counted than it takes");
        fs::remove_dir_all(&work).unwrap();
        assert_eq!(mib(counted()), 2);
    }

    #[test]
    fn files_without_a_byte_count_too() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..1_000 {
            File::create(dir.path().join(n.to_string())).unwrap();
        }
        assert!(count(dir.path(), &Writable::default(), u64::MAX).bytes >= 1_000 * INODE_BYTES);
        assert!(
            count_below(&[dir.path().to_owned()], &HashSet::new()) < 1_000 * INODE_BYTES,
            "on the disk they take less"
        );
    }

    #[test]
    fn what_lies_too_deep_is_said_to_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = dir.path().to_owned();
        (0..LEVELS_MAX + 5).for_each(|_| at.push("d"));
        fs::create_dir_all(&at).unwrap();
        assert!(count(dir.path(), &Writable::default(), u64::MAX).is_partial);
    }
}
