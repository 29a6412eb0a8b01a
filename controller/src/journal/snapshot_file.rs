//! Snapshots as checksummed files, made visible by an atomic rename.

use super::record::{self, BadRecord};
use super::{JournalError, sled_tail::sync_dir};
use crate::private;
use railyard_core::{Snapshot, SnapshotJobs, SnapshotRest};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Where the snapshot of a generation lies.
pub(super) fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("snapshot-{generation:08}"))
}

/// The length of the snapshot of a generation as JSON; 0 if there is none.
pub(super) fn json_bytes(dir: &Path, generation: u64) -> u64 {
    let measured = || {
        let mut file = File::open(path(dir, generation))?;
        let mut head = [0; record::HEAD_BYTES];
        file.read_exact(&mut head)?;
        Ok::<_, std::io::Error>(record::json_bytes(&head, file.metadata()?.len()))
    };
    // Only how soon the next one pays depends on it; whether this one is whole is seen by whoever reads it.
    measured().unwrap_or_default()
}

/// Writes a snapshot durably; it is there whole, or not at all.
pub(super) fn write(dir: &Path, generation: u64, snapshot: &Snapshot) -> Result<(), JournalError> {
    let (target, staging) = (path(dir, generation), dir.join("snapshot.new"));
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| JournalError::Io { what, path, source }
    };
    let created = private::file().write(true).create(true).truncate(true).open(&staging);
    let mut file = created.map_err(io("create", &staging))?;
    file.write_all(&record::encode_large(snapshot)).map_err(io("write", &staging))?;
    file.sync_all().map_err(io("sync", &staging))?;
    fs::rename(&staging, &target).map_err(io("rename", &staging))?;
    sync_dir(dir)
}

/// Reads a snapshot that was just written: not what it says, but that it can be read.
pub(super) fn verify(dir: &Path, generation: u64) -> Result<(), JournalError> {
    let path = path(dir, generation);
    let bytes = fs::read(&path).map_err(|source| JournalError::Io { what: "read", path: path.clone(), source })?;
    record::check(&bytes).map(drop).map_err(|bad| bad_snapshot(path, generation, bad))
}

/// Takes a snapshot away, durably, if it is there.
pub(super) fn remove(dir: &Path, generation: u64) -> Result<(), JournalError> {
    let path = path(dir, generation);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(JournalError::Io { what: "remove", path, source });
        }
        _ => {}
    }
    sync_dir(dir)
}

fn bad_snapshot(path: PathBuf, generation: u64, bad: BadRecord) -> JournalError {
    match bad {
        BadRecord::TooNew(found) => JournalError::TooNew { path, found, known: record::FORMAT },
        BadRecord::Corrupt(why) => JournalError::Corrupt { path, record: generation, why },
    }
}

/// Reads the snapshot of a generation.
pub(super) fn read(dir: &Path, generation: u64) -> Result<Snapshot, JournalError> {
    let path = path(dir, generation);
    let bytes = fs::read(&path).map_err(|source| JournalError::Io { what: "read", path: path.clone(), source })?;
    parse(&bytes).map_err(|bad| bad_snapshot(path, generation, bad))
}

/// What the record of a snapshot says, jobs and all the rest on a thread each: that is most of a start.
pub(super) fn parse(record: &[u8]) -> Result<Snapshot, BadRecord> {
    let json = record::check(record)?.json()?;
    let (rest, jobs) = std::thread::scope(|scope| {
        let jobs = scope.spawn(|| record::parse::<SnapshotJobs>(&json));
        (record::parse::<SnapshotRest>(&json), jobs.join())
    });
    let jobs = jobs.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Ok(Snapshot::join(rest?, jobs?))
}

/// The newest generation that has a snapshot; 0 if none has.
pub(super) fn newest(dir: &Path) -> Result<u64, JournalError> {
    let entries =
        fs::read_dir(dir).map_err(|source| JournalError::Io { what: "list", path: dir.to_owned(), source })?;
    let mut newest = 0;
    for entry in entries {
        // An entry that cannot be read may be the newest: better not to start than to start from an old one.
        let entry = entry.map_err(|source| JournalError::Io { what: "list", path: dir.to_owned(), source })?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("snapshot-")?.parse().ok());
        newest = newest.max(number.unwrap_or(0));
    }
    Ok(newest)
}
