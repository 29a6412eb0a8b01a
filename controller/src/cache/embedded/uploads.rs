//! Uploads in the making.
//!
//! The parts of an upload are written at their offsets into one file, so that completing moves no bytes. A part counts
//! once its `part-N` file with its MD5 exists; a part that is sent again takes the place of the one before.
//!
//! **Invariant:** while an upload is checked and completed nobody writes into it: writers hold its gate for reading,
//! [`Uploads::close`] for writing.

use super::files;
use crate::cache::CacheError;
use crate::cache::parts::spans;
use railyard_common::blob::Blob;
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio_util::sync::CancellationToken;

/// An upload that got no part for so long is abandoned: a day is far beyond the URLs' hour.
const ABANDONED_AFTER_MILLIS: u64 = 24 * 3600 * 1000;
/// How often abandoned uploads are looked for.
const SWEEP_EVERY_MILLIS: u64 = 3600 * 1000;

/// All uploads.
pub(super) struct Uploads {
    dir: PathBuf,
    live: Mutex<HashMap<String, Arc<Live>>>,
    /// When abandoned uploads were last looked for.
    swept: Mutex<Millis>,
}

/// What is known of an upload besides its files: who writes.
#[derive(Default)]
struct Live {
    gate: Arc<RwLock<()>>,
    closing: CancellationToken,
    parts: Mutex<HashMap<u32, Arc<PartLock>>>,
}

#[derive(Default)]
struct PartLock {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Of the newest writer.
    newest: Mutex<CancellationToken>,
}

/// `upload.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Upload {
    pub blob: Blob,
    pub part_bytes: u64,
}

/// The right to write one part.
pub(super) struct PartWriter {
    /// Says that somebody newer wants to write the part, or that the upload is being closed.
    pub superseded: CancellationToken,
    /// Where the part begins.
    pub offset: u64,
    data: PathBuf,
    marker: PathBuf,
    _part: OwnedMutexGuard<()>,
    _gate: OwnedRwLockReadGuard<()>,
}

/// An upload that nobody can write to.
pub(super) struct Closed {
    dir: PathBuf,
    pub upload: Upload,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl Uploads {
    /// Opens the staging directory and sweeps what an earlier process left.
    pub(super) fn open(dir: PathBuf, now: Millis) -> Result<Self, CacheError> {
        files::create_dirs(&dir).map_err(CacheError::local("make the directory", &dir))?;
        let uploads = Self { dir, live: Mutex::default(), swept: Mutex::new(now) };
        uploads.sweep(|is_file, age_millis| is_file || age_millis > ABANDONED_AFTER_MILLIS, now)?;
        Ok(uploads)
    }

    /// Removes uploads that nobody finished, once an hour. Blocking.
    pub(super) fn sweep_sometimes(&self, now: Millis) -> Result<(), CacheError> {
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            if now.since(*swept) < SWEEP_EVERY_MILLIS {
                return Ok(());
            }
            *swept = now;
        }
        // Files are on their way to their places: theirs are short lives, and the next start ends the others'.
        self.sweep(|is_file, age_millis| !is_file && age_millis > ABANDONED_AFTER_MILLIS, now)
    }

    fn sweep(&self, is_garbage: impl Fn(bool, u64) -> bool, now: Millis) -> Result<(), CacheError> {
        let failed = || CacheError::local("sweep", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            // What was completed meanwhile is no garbage.
            let Ok(metadata) = entry.metadata() else { continue };
            let modified = metadata.modified().map_err(failed())?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let modified = Millis(u64::try_from(modified.as_millis()).unwrap_or(u64::MAX));
            if !is_garbage(metadata.is_file(), now.since(modified)) {
                continue;
            }
            tracing::info!(path = %entry.path().display(), "removing an abandoned upload");
            if metadata.is_file() {
                fs::remove_file(entry.path()).map_err(failed())?;
            } else {
                remove_dir(&entry.path())?;
                self.forget(&entry.file_name().to_string_lossy());
            }
        }
        Ok(())
    }

    /// A name for a file on its way to its place.
    pub(super) fn tmp(&self) -> Result<PathBuf, CacheError> {
        Ok(self.dir.join(format!("tmp-{}", files::random_name()?)))
    }

    /// Starts an upload; returns its id. Blocking.
    pub(super) fn begin(&self, upload: &Upload) -> Result<String, CacheError> {
        let id = files::random_name()?;
        let dir = self.dir.join(&id);
        let failed = || CacheError::local("start the upload", &dir);
        fs::create_dir(&dir).map_err(failed())?;
        let json = serde_json::to_vec(upload).map_err(|error| failed()(error.into()))?;
        fs::write(dir.join("upload.json"), json).map_err(failed())?;
        let data = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join("data"));
        data.map_err(failed())?;
        Ok(id)
    }

    fn live(&self, id: &str) -> Arc<Live> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(live.entry(id.to_owned()).or_default())
    }

    fn forget(&self, id: &str) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The directory of an upload, if the id is one.
    fn dir_of(&self, id: &str) -> Result<PathBuf, CacheError> {
        let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        if is_id { Ok(self.dir.join(id)) } else { Err(CacheError::UnknownUpload { id: id.to_owned() }) }
    }

    fn read(&self, id: &str) -> Result<Upload, CacheError> {
        let file = self.dir_of(id)?.join("upload.json");
        let unreadable = CacheError::local("read", &file);
        match fs::read(&file) {
            Ok(json) => serde_json::from_slice(&json).map_err(|error| unreadable(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(id);
                Err(CacheError::UnknownUpload { id: id.to_owned() })
            }
            Err(error) => Err(unreadable(error)),
        }
    }

    /// Takes the right to write part `number`; an older writer of it is told to stop, and waited for.
    pub(super) async fn write_part(&self, id: &str, number: u32) -> Result<PartWriter, CacheError> {
        let dir = self.dir_of(id)?;
        let live = self.live(id);
        let gate = Arc::clone(&live.gate).read_owned().await;
        // Read only now: the upload may have been completed while the gate was closed.
        let upload = self.read(id)?;
        if live.closing.is_cancelled() {
            return Err(CacheError::Incomplete { why: "it was being completed; send the part again".to_owned() });
        }
        let part = Arc::clone(live.parts.lock().unwrap_or_else(PoisonError::into_inner).entry(number).or_default());
        let superseded = live.closing.child_token();
        let older = {
            let mut newest = part.newest.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *newest, superseded.clone())
        };
        older.cancel();
        let lock = Arc::clone(&part.lock).lock_owned().await;
        Ok(PartWriter {
            offset: u64::from(number.saturating_sub(1)) * upload.part_bytes,
            superseded,
            data: dir.join("data"),
            marker: dir.join(format!("part-{number}")),
            _part: lock,
            _gate: gate,
        })
    }

    /// Stops all writers of the upload of `blob` and keeps new ones out.
    pub(super) async fn close(&self, id: &str, blob: &Blob) -> Result<Closed, CacheError> {
        let dir = self.dir_of(id)?;
        let upload = self.read(id)?;
        if upload.blob != *blob {
            // Not even touched: it is somebody else's.
            let why = format!("upload {id} is of {}, not of {}", upload.blob.digest, blob.digest);
            return Err(CacheError::Invalid { why });
        }
        let live = self.live(id);
        live.closing.cancel();
        let gate = Arc::clone(&live.gate).write_owned().await;
        // Whoever comes after this closing finds a fresh one, or no upload at all.
        self.forget(id);
        Ok(Closed { upload: self.read(id)?, dir, _gate: gate })
    }
}

impl PartWriter {
    /// Opens the file for a new version of the part; from here on the part counts as missing. Blocking.
    pub(super) fn open(&self) -> io::Result<File> {
        match fs::remove_file(&self.marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new().write(true).open(&self.data)
    }

    /// The part is written: it counts from now on. Blocking.
    pub(super) fn done(&self, md5: &[u8; 16]) -> io::Result<()> {
        let tmp = self.marker.with_extension("new");
        fs::write(&tmp, hex::encode(md5))?;
        fs::rename(tmp, &self.marker)
    }
}

impl Closed {
    /// The file with all parts in their places.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Whether every part is there and is the one that was reported. Blocking.
    pub(super) fn check(&self, etags: &[String]) -> Result<(), CacheError> {
        let incomplete = |why| Err(CacheError::Incomplete { why });
        let spans = spans(self.upload.blob.stored_bytes, self.upload.part_bytes);
        if spans.len() != etags.len() {
            return incomplete(format!("it has {} parts, {} were reported", spans.len(), etags.len()));
        }
        for (number, etag) in (1..).zip(etags) {
            let marker = self.dir.join(format!("part-{number}"));
            match fs::read_to_string(&marker) {
                Ok(md5) if md5 == etag.trim_matches('"') => {}
                Ok(md5) => return incomplete(format!("part {number} is {md5}, not {etag} as reported")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return incomplete(format!("part {number} is missing"));
                }
                Err(error) => return Err(CacheError::local("read", &marker)(error)),
            }
        }
        Ok(())
    }

    /// Removes what is left of the upload. Blocking.
    pub(super) fn remove(self) -> Result<(), CacheError> {
        remove_dir(&self.dir)
    }
}

fn remove_dir(dir: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::local("remove", dir)(error)),
        _ => Ok(()),
    }
}
