//! Uploads in the making.
//!
//! The parts of an upload are written at their offsets into one file, so that completing moves no bytes. A part counts
//! once its `part-N` file with its ETag exists; a part that is sent again takes the place of the one before. An upload
//! belongs to one lease: whoever asks again for the same blob goes on with it, and it goes when the lease is over.
//!
//! **Invariant:** while an upload is checked and completed nobody writes into it: writers hold its gate for reading,
//! [`Uploads::close`] for writing.

use super::ahead::Ahead;
use super::files;
use crate::cache::CacheError;
use crate::cache::parts::spans;
use crate::cache::verify::Verdict;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Held by whoever begins one: it waits for the disk, and those who only look must not.
    beginning: Mutex<()>,
    /// Which upload a lease has begun for a digest.
    begun: Mutex<BTreeMap<(LeaseId, Digest), String>>,
    /// When abandoned uploads were last looked for.
    swept: Mutex<Millis>,
}

/// What is known of an upload besides its files: who writes.
#[derive(Default)]
struct Live {
    gate: Arc<RwLock<()>>,
    closing: CancellationToken,
    parts: Mutex<HashMap<u32, Arc<PartLock>>>,
    ahead: Arc<Ahead>,
    /// Whose turn it is to write: a file system lets one in at a time, and has the others burn a processor meanwhile.
    turn: Arc<Mutex<()>>,
    /// It was begun by this process: where no part was written there is nothing.
    fresh: bool,
}

#[derive(Default)]
struct PartLock {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Of the newest writer; `None` before the first.
    newest: Mutex<Option<CancellationToken>>,
}

/// `upload.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Upload {
    /// Whose it is. Uploads of before this was written down are nobody's.
    #[serde(default)]
    pub lease: Option<LeaseId>,
    pub blob: Blob,
    pub part_bytes: u64,
}

/// The right to write one part.
pub(super) struct PartWriter {
    /// Says that somebody newer wants to write the part, or that the upload is being closed.
    pub superseded: CancellationToken,
    /// Where the part begins.
    pub offset: u64,
    /// Nothing was ever written there.
    pub fresh: bool,
    number: u32,
    dir: PathBuf,
    upload: Upload,
    ahead: Arc<Ahead>,
    turn: Arc<Mutex<()>>,
    _part: OwnedMutexGuard<()>,
    _gate: OwnedRwLockReadGuard<()>,
}

/// An upload that nobody can write to.
pub(super) struct Closed {
    dir: PathBuf,
    pub upload: Upload,
    ahead: Arc<Ahead>,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl Uploads {
    /// Opens the staging directory and sweeps what an earlier process left.
    pub(super) fn open(dir: PathBuf, now: Millis) -> Result<Self, CacheError> {
        files::create_dirs(&dir).map_err(CacheError::local("make the directory", &dir))?;
        let uploads = Self {
            dir,
            live: Mutex::default(),
            beginning: Mutex::default(),
            begun: Mutex::default(),
            swept: Mutex::new(now),
        };
        uploads.sweep(|is_file, age_millis| is_file || age_millis > ABANDONED_AFTER_MILLIS, now)?;
        uploads.find_begun()?;
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
                let id = entry.file_name().to_string_lossy().into_owned();
                self.forget(&id);
                self.begun().retain(|_, there| *there != id);
            }
        }
        Ok(())
    }

    /// A name for a file on its way to its place.
    pub(super) fn tmp(&self) -> Result<PathBuf, CacheError> {
        Ok(self.dir.join(format!("tmp-{}", files::random_name()?)))
    }

    /// Reads which uploads there are; those that make no sense go.
    fn find_begun(&self) -> Result<(), CacheError> {
        let failed = || CacheError::local("read", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            let id = entry.map_err(failed())?.file_name().to_string_lossy().into_owned();
            match self.read(&id) {
                Ok(Upload { lease: Some(lease), blob, .. }) => {
                    self.begun().insert((lease, blob.digest), id);
                }
                Ok(Upload { lease: None, .. }) | Err(_) => {
                    tracing::info!(upload = id, "removing an upload that nobody can go on with");
                    remove_dir(&self.dir.join(id))?;
                }
            }
        }
        Ok(())
    }

    fn begun(&self) -> MutexGuard<'_, BTreeMap<(LeaseId, Digest), String>> {
        // Every change is a single step; a panic elsewhere does not spoil it.
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an upload for a lease, if there is room for all of it, or finds the one that is there; returns its id. Blocking.
    pub(super) fn begin(
        &self,
        lease: LeaseId,
        upload: &Upload,
        has_room: impl FnOnce() -> Result<(), CacheError>,
    ) -> Result<String, CacheError> {
        // One at a time, so that a call that is repeated finds what its first try has begun.
        let _one = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (lease, upload.blob.digest);
        let there = self.begun().get(&key).cloned();
        if let Some(id) = there {
            match self.read(&id) {
                Ok(there) if there.blob == upload.blob && there.part_bytes == upload.part_bytes => return Ok(id),
                // The same bytes in another form: what was sent of them is of no use any more.
                _ => remove_dir(&self.dir.join(&id))?,
            }
        }
        has_room()?;
        let id = files::random_name()?;
        let dir = self.dir.join(&id);
        let failed = || CacheError::local("start the upload", &dir);
        fs::create_dir(&dir).map_err(failed())?;
        let data = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join("data"));
        data.and_then(|data| data.set_len(upload.blob.stored_bytes)).map_err(failed())?;
        // The last: without it there is no upload.
        let json = serde_json::to_vec(upload).map_err(|error| failed()(error.into()))?;
        fs::write(dir.join("upload.json"), json).map_err(failed())?;
        self.begun().insert(key, id.clone());
        let live = Arc::new(Live { fresh: true, ..Live::default() });
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), live);
        Ok(id)
    }

    /// The upload of that id, if it is the lease's and of that blob. Blocking.
    pub(super) fn of_lease(&self, id: &str, lease: LeaseId, blob: &Blob) -> Result<Upload, CacheError> {
        let upload = self.read(id)?;
        if upload.lease == Some(lease) && upload.blob == *blob {
            return Ok(upload);
        }
        Err(CacheError::UnknownUpload { id: id.to_owned() })
    }

    /// Leases with uploads.
    pub(super) fn leases(&self) -> Vec<LeaseId> {
        let mut leases: Vec<LeaseId> = self.begun().keys().map(|(lease, _)| *lease).collect();
        leases.dedup();
        leases
    }

    /// The uploads of a lease.
    pub(super) fn all_of(&self, lease: LeaseId) -> Vec<(Digest, String)> {
        let begun = self.begun();
        let of_lease = begun.iter().filter(|((owner, _), _)| *owner == lease);
        of_lease.map(|((_, digest), id)| (*digest, id.clone())).collect()
    }

    fn live(&self, id: &str) -> Arc<Live> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(live.entry(id.to_owned()).or_default())
    }

    fn forget(&self, id: &str) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// It is over: nobody finds it any more.
    fn end(&self, upload: &Upload, id: &str) {
        let mut begun = self.begun();
        if let Some(lease) = upload.lease
            && begun.get(&(lease, upload.blob.digest)).is_some_and(|there| there == id)
        {
            begun.remove(&(lease, upload.blob.digest));
        }
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
            newest.replace(superseded.clone())
        };
        let fresh = live.fresh && older.is_none();
        if let Some(older) = older {
            older.cancel();
        }
        let lock = Arc::clone(&part.lock).lock_owned().await;
        Ok(PartWriter {
            offset: u64::from(number.saturating_sub(1)) * upload.part_bytes,
            superseded,
            fresh,
            number,
            dir,
            upload,
            ahead: Arc::clone(&live.ahead),
            turn: Arc::clone(&live.turn),
            _part: lock,
            _gate: gate,
        })
    }

    /// Stops all writers of the lease's upload of `blob` and keeps new ones out.
    pub(super) async fn close(&self, id: &str, lease: LeaseId, blob: &Blob) -> Result<Closed, CacheError> {
        self.dir_of(id)?;
        let upload = self.read(id)?;
        if upload.lease != Some(lease) {
            return Err(CacheError::UnknownUpload { id: id.to_owned() });
        }
        if upload.blob != *blob {
            // Not even touched: it is somebody else's.
            let why = format!("upload {id} is of {}, not of {}", upload.blob.digest, blob.digest);
            return Err(CacheError::Invalid { why });
        }
        self.close_any(id).await
    }

    /// The same, whatever it is of.
    pub(super) async fn close_any(&self, id: &str) -> Result<Closed, CacheError> {
        let dir = self.dir_of(id)?;
        let live = self.live(id);
        live.closing.cancel();
        let gate = Arc::clone(&live.gate).write_owned().await;
        // Whoever comes after this closing finds a fresh one, or no upload at all.
        self.forget(id);
        let upload = self.read(id)?;
        Ok(Closed { upload, dir, ahead: Arc::clone(&live.ahead), _gate: gate })
    }

    /// It is not there any more.
    pub(super) fn lose(&self, lease: LeaseId, id: &str) {
        self.begun().retain(|(owner, _), there| *owner != lease || there != id);
    }

    /// Forgets the closed upload, and removes what is left of it. Blocking.
    pub(super) fn remove(&self, closed: Closed) -> Result<(), CacheError> {
        let id = closed.dir.file_name().unwrap_or_default().to_string_lossy();
        self.end(&closed.upload, &id);
        remove_dir(&closed.dir)
    }
}

impl PartWriter {
    /// Waits until no other part of the upload is being written. Blocking.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        // Nothing is half changed by a panic elsewhere.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose upload it is.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        self.upload.lease
    }

    /// Opens the file for a new version of the part; from here on the part counts as missing. Blocking.
    pub(super) fn open(&self) -> io::Result<File> {
        match fs::remove_file(marker(&self.dir, self.number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.ahead.rewritten(self.number);
        OpenOptions::new().write(true).open(self.dir.join("data"))
    }

    /// The part is written: it counts from now on. Blocking.
    pub(super) fn done(self, crc32: u32) -> io::Result<Written> {
        let marker = marker(&self.dir, self.number);
        let tmp = marker.with_extension("new");
        fs::write(&tmp, etag(crc32))?;
        fs::rename(tmp, &marker)?;
        Ok(Written { dir: self.dir, upload: self.upload, ahead: self.ahead, number: self.number })
    }
}

/// A part that was written, for those who look ahead.
pub(super) struct Written {
    dir: PathBuf,
    upload: Upload,
    ahead: Arc<Ahead>,
    number: u32,
}

impl Written {
    /// Looks at what can be looked at. Blocking.
    pub(super) fn look_ahead(&self) {
        self.ahead.go_on(&self.dir, &self.upload, self.number);
    }

    /// Has it go to the disk. Blocking.
    pub(super) fn flush(&self) {
        self.ahead.flush(&self.dir, self.upload.part_bytes);
    }
}

/// Whether a part counts.
pub(super) fn is_written(dir: &Path, number: u32) -> bool {
    marker(dir, number).exists()
}

/// Says that a part is written, and holds its ETag.
fn marker(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("part-{number}"))
}

/// The ETag of a part, without quotes.
pub(super) fn etag(crc32: u32) -> String {
    format!("{crc32:08x}")
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
            let marker = marker(&self.dir, number);
            match fs::read_to_string(&marker) {
                Ok(written) if written == etag.trim_matches('"') => {}
                Ok(written) => return incomplete(format!("part {number} is {written}, not {etag} as reported")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return incomplete(format!("part {number} is missing"));
                }
                Err(error) => return Err(CacheError::local("read", &marker)(error)),
            }
        }
        Ok(())
    }

    /// Whether the bytes are the blob's. Blocking.
    pub(super) fn verify(&self) -> Result<Verdict, CacheError> {
        let data = self.data();
        let reading = || CacheError::local("read", &data);
        let file = File::open(&data).map_err(reading())?;
        self.ahead.finish(&file, &self.upload.blob).map_err(reading())
    }
}

fn remove_dir(dir: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::local("remove", dir)(error)),
        _ => Ok(()),
    }
}
