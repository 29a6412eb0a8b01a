//! The audit's files: segments, named by the number of their first record, and the head.

use super::{AuditError, Head};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Before and behind the number in a segment's name. The number has leading zeros: names sort as numbers do.
const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";

/// The name of the segment that every audit begins with.
pub(super) const FIRST_SEGMENT: &str = "audit-0000000000000001.jsonl";

/// Where the segment whose first record has this number lies.
pub(super) fn segment(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{first:016}{SUFFIX}"))
}

/// The numbers of the first records of all segments, in order.
pub(super) fn segments(dir: &Path) -> Result<Vec<u64>, AuditError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(AuditError::io("list", dir))? {
        let entry = entry.map_err(AuditError::io("list", dir))?;
        // Whoever opens anything else may wait for ever. What cannot be looked at is told when it is read.
        if fs::metadata(entry.path()).is_ok_and(|metadata| !metadata.is_file()) {
            continue;
        }
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok());
        // Another way to write the same number would be another file.
        found.extend(number.filter(|&first| segment(dir, first).file_name() == Some(&name)));
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes the directory, for the controller's user only.
pub(super) fn make_dir(dir: &Path) -> Result<(), AuditError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(AuditError::io("create", dir))
}

/// Opens a file to read and write; makes it if it is not there.
pub(super) fn open(path: &Path) -> Result<File, AuditError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map_err(AuditError::io("open", path))
}

/// What is in a directory is there after a power failure too.
pub(super) fn sync_dir(dir: &Path) -> Result<(), AuditError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(AuditError::io("sync", dir))
}

/// Where the head lies.
pub(super) fn head_path(dir: &Path) -> PathBuf {
    dir.join("head")
}

/// What the head says: `None` if there is none, `Err` with its text if it says nothing.
pub(super) fn read_head(dir: &Path) -> Result<Option<Result<Head, String>>, AuditError> {
    let path = head_path(dir);
    match fs::read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let head = text.strip_suffix('\n').and_then(|line| line.parse().ok());
            Ok(Some(head.ok_or_else(|| text.chars().take(100).collect())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuditError::io("read", &path)(error)),
    }
}

/// The head, open to be written over and over. It always has the same length, so that nothing of an older one stays.
pub(super) struct HeadFile {
    file: File,
    path: PathBuf,
}

impl HeadFile {
    pub(super) fn open(dir: &Path) -> Result<Self, AuditError> {
        let path = head_path(dir);
        Ok(Self { file: open(&path)?, path })
    }

    /// Writes it without a sync of its own: the records are durable before, so after a power failure it says less, never more.
    pub(super) fn set(&self, head: Head) -> Result<(), AuditError> {
        let line = format!("{:020}:{}\n", head.seq, head.hash);
        self.file.write_all_at(line.as_bytes(), 0).map_err(AuditError::io("write", &self.path))
    }

    /// Makes it durable.
    pub(super) fn sync(&self) -> Result<(), AuditError> {
        // A damaged one may have been longer.
        let line_bytes = 20 + 1 + 64 + 1;
        let synced = self.file.set_len(line_bytes).and_then(|()| self.file.sync_all());
        synced.map_err(AuditError::io("sync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_in_the_order_of_their_records() {
        let dir = tempfile::tempdir().unwrap();
        for first in [1_000_000, 1, 20, 3] {
            File::create(segment(dir.path(), first)).unwrap();
        }
        for other in ["audit-1.jsonl", "audit-0000000000000007.jsonl.gz", "head", "audit-x.jsonl"] {
            File::create(dir.path().join(other)).unwrap();
        }
        assert_eq!(segments(dir.path()).unwrap(), [1, 3, 20, 1_000_000]);
        assert_eq!(segment(dir.path(), 1).file_name().unwrap(), FIRST_SEGMENT);
    }
}
