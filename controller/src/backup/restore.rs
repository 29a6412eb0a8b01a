//! A farm comes back from its backup.

use super::{About, Backup, BackupError, file, is_running};
use crate::journal::{Journal as _, SledJournal};
use railyard_common::time::Millis;
use railyard_core::Event;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What a restore puts in its place, the journal last: with it the farm is back.
const PARTS: [&str; 4] = ["pki", "secrets", "client.toml", "journal"];
/// While this is in the data directory no controller starts.
const STAGING: &str = "restoring";

/// A farm that is back.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The backup.
    pub about: About,
    /// Where the parts of the data directory are that were there before, if some were.
    pub moved_aside: Option<PathBuf>,
}

/// Nothing, unless a restore into the directory was cut off.
///
/// # Errors
/// [`BackupError::Unfinished`]
pub fn check_finished(data_dir: &Path) -> Result<(), BackupError> {
    if data_dir.join(STAGING).exists() {
        return Err(BackupError::Unfinished { path: data_dir.to_owned() });
    }
    Ok(())
}

/// Restores a backup into a data directory. The backup is verified before anything is touched. With `force` the journal and the
/// keys that are there are moved aside; cache and logs stay where they are.
///
/// # Errors
/// [`BackupError`]
pub fn restore(from: &Path, data_dir: &Path, force: bool, now: Millis) -> Result<Restored, BackupError> {
    let backup = file::read(from)?;
    if is_running(data_dir) {
        return Err(BackupError::Running { path: data_dir.to_owned() });
    }
    fs::create_dir_all(data_dir).map_err(BackupError::io("create", data_dir))?;
    if !force && !is_empty(data_dir)? {
        return Err(BackupError::NotEmpty { path: data_dir.to_owned() });
    }
    let staging = data_dir.join(STAGING);
    let moved_aside = move_aside(data_dir, now)?;
    fs::create_dir(&staging).map_err(BackupError::io("create", &staging))?;
    lay_out(&backup, &staging, now)?;
    for part in PARTS {
        let (from, to) = (staging.join(part), data_dir.join(part));
        if from.exists() {
            fs::rename(&from, &to).map_err(BackupError::io("rename", &from))?;
        }
        sync(data_dir)?;
    }
    fs::remove_dir(&staging).map_err(BackupError::io("remove", &staging))?;
    sync(data_dir)?;
    Ok(Restored { about: backup.about, moved_aside })
}

fn is_empty(dir: &Path) -> Result<bool, BackupError> {
    let mut entries = fs::read_dir(dir).map_err(BackupError::io("list", dir))?;
    // A file system of its own has that from the start.
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found")))
}

/// Moves what a restore replaces into `before-restore-TIME`, and what a restore that was cut off has left.
fn move_aside(data_dir: &Path, now: Millis) -> Result<Option<PathBuf>, BackupError> {
    let there: Vec<&str> = PARTS.into_iter().chain([STAGING]).filter(|part| data_dir.join(part).exists()).collect();
    if there.is_empty() {
        return Ok(None);
    }
    let aside = data_dir.join(format!("before-restore-{}", now.0 / 1000));
    fs::create_dir(&aside).map_err(BackupError::io("create", &aside))?;
    for part in there {
        let from = data_dir.join(part);
        fs::rename(&from, aside.join(part)).map_err(BackupError::io("move aside", &from))?;
    }
    sync(&aside)?;
    sync(data_dir)?;
    Ok(Some(aside))
}

fn lay_out(backup: &Backup, dir: &Path, now: Millis) -> Result<(), BackupError> {
    for (path, (mode, data)) in &backup.files {
        let to = dir.join(path);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(BackupError::io("create", parent))?;
        }
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(*mode).open(&to)?;
            file.write_all(data)?;
            file.sync_all()
        };
        write().map_err(BackupError::io("write", &to))?;
    }
    let mut journal = SledJournal::open(&dir.join("journal"))?;
    journal.load()?;
    journal.install(&backup.snapshot)?;
    // Whatever was given out after the backup may still run somewhere: its numbers are never given again.
    journal.append(&[Event::ControllerRestored { at: now }])?;
    for sub in [dir.join("pki"), dir.join("secrets"), dir.to_owned()] {
        if sub.is_dir() {
            sync(&sub)?;
        }
    }
    Ok(())
}

fn sync(dir: &Path) -> Result<(), BackupError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(BackupError::io("sync", dir))
}
