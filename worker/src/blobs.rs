//! Blobs on this worker's disk, shared by the jobs that want them.
//!
//! **Invariant:** a file under its final name is complete and was verified; a blob that somebody holds is not removed.

mod stock;

pub use stock::Stock;

use crate::disk::DiskError;
use crate::disk::policy::{self, Need, Part, Reach, Thing};
use crate::disk::uses::Uses;
use crate::keyed::Keyed;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_transfer::{Form, Scratch};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;

/// Names the boot of the host's kernel in which the files were written.
const BOOT_FILE: &str = "host-boot";

/// What is behind the name of a blob that is kept as the cache stores it.
const PACKED: &str = "zst";

/// Where the kernel tells its boot.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The blobs of one directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    max_bytes: AtomicU64,
    uses: Arc<Uses>,
    shelf: Mutex<Shelf>,
    fetching: Keyed<Key>,
}

/// A blob in one of its forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    digest: Digest,
    encoding: Encoding,
}

impl Key {
    /// Whether it is kept as the cache stores it.
    fn is_packed(&self) -> bool {
        self.encoding != Encoding::Identity
    }

    fn name(&self) -> String {
        match self.encoding {
            Encoding::Identity => self.digest.hex(),
            Encoding::Zstd => format!("{}.{PACKED}", self.digest.hex()),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let (hex, encoding) = match name.split_once('.') {
            None => (name, Encoding::Identity),
            Some((hex, PACKED)) => (hex, Encoding::Zstd),
            Some(_) => return None,
        };
        Some(Self { digest: Digest::from_hex(hex).ok()?, encoding })
    }
}

#[derive(Debug, Default)]
struct Shelf {
    entries: BTreeMap<Key, Entry>,
    /// What is being fetched, and belongs to its fetch.
    coming: BTreeSet<Key>,
}

#[derive(Debug)]
struct Entry {
    size_bytes: u64,
    holders: usize,
    /// See [`Uses`]; 0: nobody is likely to want it again.
    used_at: u64,
    state: State,
}

impl Entry {
    fn thing(&self, key: Key) -> Thing<Key> {
        let part = Part::File(key.digest, key.is_packed());
        let need = if self.holders == 0 { Need::Nobody } else { Need::Job };
        Thing { key, parts: [(part, self.size_bytes)].into(), used_at: self.used_at, need }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    /// A fetch was broken off; the next one goes on with it.
    Unfinished,
}

/// A blob that is there and stays while this is held.
#[derive(Debug)]
pub struct Held {
    shared: Arc<Shared>,
    key: Key,
    path: PathBuf,
}

impl Held {
    /// Its bytes. Not to be written to: others read them too.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How they are packed.
    pub fn encoding(&self) -> Encoding {
        self.key.encoding
    }

    /// Gives it up, and says that nobody is likely to want it again soon.
    pub fn discard(self) {
        self.shared.shelf().entries.entry(self.key).and_modify(|entry| entry.used_at = 0);
        note_use(&self.path, 0);
    }
}

/// What became of a wish for a blob.
#[derive(Debug)]
pub enum Claim {
    /// It is here.
    Here(Held),
    /// It must be fetched.
    Fetch(Fetch),
}

/// The right to fetch a blob; whoever wants the same one waits until this is dropped. What a fetch that failed has
/// written is kept for the next one, as long as there is room for it.
#[derive(Debug)]
pub struct Fetch {
    blobs: Blobs,
    key: Key,
    path: PathBuf,
    _one: OwnedMutexGuard<()>,
}

impl Fetch {
    /// Where the complete, verified file must appear.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In which form.
    pub fn form(&self) -> Form {
        match self.key.encoding {
            Encoding::Identity => Form::Plain,
            Encoding::Zstd => Form::Stored,
        }
    }

    /// It has appeared.
    ///
    /// # Errors
    /// [`DiskError`] if it has not.
    pub fn done(self) -> Result<Held, DiskError> {
        let size_bytes = fs::metadata(&self.path).map_err(DiskError::at("read", &self.path))?.len();
        Ok(self.blobs.add(self.key, size_bytes))
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let size_bytes = unfinished_bytes(&self.path);
        let shared = &self.blobs.shared;
        let mut shelf = shared.shelf();
        shelf.coming.remove(&self.key);
        // Nothing is there if the fetch went well, or never began.
        if size_bytes > 0 && !shelf.entries.contains_key(&self.key) {
            let used_at = shared.uses.next();
            shelf.entries.insert(self.key, Entry { size_bytes, holders: 0, used_at, state: State::Unfinished });
            shared.trim(&mut shelf);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shelf = self.shared.shelf();
        if let Some(entry) = shelf.entries.get_mut(&self.key) {
            entry.holders = entry.holders.saturating_sub(1);
        }
        self.shared.trim(&mut shelf);
    }
}

impl Blobs {
    /// Opens the directory. Blobs of an earlier start are kept if the host has not been rebooted since: after a loss of
    /// power a file may have its name and length, but not its bytes.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(dir: &Path, max_bytes: u64, uses: Arc<Uses>) -> Result<Self, DiskError> {
        let boot = fs::read_to_string(KERNEL_BOOT_ID).unwrap_or_default();
        let same_boot = !boot.is_empty() && fs::read_to_string(dir.join(BOOT_FILE)).is_ok_and(|text| text == boot);
        fs::create_dir_all(dir).map_err(DiskError::at("create", dir))?;
        let mut files = own_files(dir)?;
        if !same_boot {
            for file in files.drain(..) {
                fs::remove_file(&file.path).map_err(DiskError::at("remove", &file.path))?;
            }
        }
        // Only now: whatever is there from here on is of this boot.
        fs::write(dir.join(BOOT_FILE), boot).map_err(DiskError::at("write", dir))?;
        let shelf = shelved(dir, files);
        shelf.entries.values().for_each(|entry| uses.seen(entry.used_at));
        let (dir, max_bytes, shelf) = (dir.to_owned(), AtomicU64::new(max_bytes), Mutex::new(shelf));
        let shared = Shared { dir, max_bytes, uses, shelf, fetching: Keyed::default() };
        shared.trim(&mut shared.shelf());
        Ok(Self { shared: Arc::new(shared) })
    }

    /// They are kept up to so many bytes from now on, but for those that somebody holds.
    pub fn limit(&self, max_bytes: u64) {
        self.shared.max_bytes.store(max_bytes, Ordering::Relaxed);
        self.shared.trim(&mut self.shared.shelf());
    }

    /// The blob in a form, or the right to fetch it. Two who want the same blob fetch it once: the other one waits here.
    /// Whoever takes it as it is stored also takes it plain.
    pub async fn claim(&self, blob: &Blob, form: Form) -> Claim {
        let encoding = match form {
            Form::Plain => Encoding::Identity,
            Form::Stored => blob.encoding,
        };
        if encoding != Encoding::Identity
            && let Some(plain) = self.hold(blob.digest)
        {
            return Claim::Here(plain);
        }
        let key = Key { digest: blob.digest, encoding };
        let one = self.shared.fetching.lock(key).await;
        match self.hold_key(key) {
            Some(held) => Claim::Here(held),
            None => {
                // From here on it is the fetch's business; nobody may evict what it writes.
                let mut shelf = self.shared.shelf();
                shelf.entries.remove(&key);
                shelf.coming.insert(key);
                drop(shelf);
                Claim::Fetch(Fetch { blobs: self.clone(), key, path: self.path(key), _one: one })
            }
        }
    }

    /// Takes in a file with the stored bytes of `blob` that was just hashed, by a second name for the same bytes: the next job
    /// here that wants it need not fetch it. What cannot be linked is left out; it can be fetched.
    pub async fn adopt(&self, file: &Path, blob: &Blob) {
        use std::os::unix::fs::PermissionsExt as _;
        let key = Key { digest: blob.digest, encoding: blob.encoding };
        let _one = self.shared.fetching.lock(key).await;
        let path = self.path(key);
        if self.hold_key(key).is_some() || fs::hard_link(file, &path).is_err() {
            return;
        }
        // As if it had been fetched: readable for whatever user a step runs its tools as.
        let readable = fs::set_permissions(&path, fs::Permissions::from_mode(0o644));
        let owned = std::os::unix::fs::chown(&path, Some(nix::unistd::getuid().as_raw()), None);
        match (readable, owned, fs::metadata(&path)) {
            (Ok(()), Ok(()), Ok(metadata)) => drop(self.add(key, metadata.len())),
            _ => drop(fs::remove_file(&path)),
        }
    }

    /// The plain blob if it is here.
    pub fn hold(&self, digest: Digest) -> Option<Held> {
        self.hold_key(Key { digest, encoding: Encoding::Identity })
    }

    fn hold_key(&self, key: Key) -> Option<Held> {
        let mut shelf = self.shared.shelf();
        let entry = shelf.entries.get_mut(&key).filter(|entry| entry.state == State::Whole)?;
        entry.holders += 1;
        entry.used_at = self.shared.uses.next();
        let path = self.path(key);
        note_use(&path, entry.used_at);
        Some(Held { shared: self.shared.clone(), key, path })
    }

    fn add(&self, key: Key, size_bytes: u64) -> Held {
        let used_at = self.shared.uses.next();
        let path = self.path(key);
        note_use(&path, used_at);
        let entry = Entry { size_bytes, holders: 1, used_at, state: State::Whole };
        self.shared.shelf().entries.insert(key, entry);
        Held { shared: self.shared.clone(), key, path }
    }

    fn path(&self, key: Key) -> PathBuf {
        self.shared.dir.join(key.name())
    }
}

impl Shared {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Every change is a single step; a panic elsewhere does not spoil it.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what the policy lets go first, until the rest is within the limit.
    fn trim(&self, shelf: &mut Shelf) {
        let total: u64 = shelf.entries.values().map(|entry| entry.size_bytes).sum();
        let excess = total.saturating_sub(self.max_bytes.load(Ordering::Relaxed));
        if excess == 0 {
            return;
        }
        let things: Vec<Thing<Key>> = shelf.entries.iter().map(|(key, entry)| entry.thing(*key)).collect();
        let mut unnamed = Vec::new();
        for choice in policy::choose(&things, Reach::Spare, excess) {
            let path = self.dir.join(choice.thing.key.name());
            unnamed.extend(unfinished(&path).iter().chain([&path]).filter_map(|path| File::open(path).ok()));
            if let Err(error) = self.remove(shelf, choice.thing.key) {
                let blob = choice.thing.key.name();
                tracing::warn!(blob, %error, "cannot remove a blob that is over the limit");
                break;
            }
        }
        // A file goes with whoever has it open last, and the disk may take a while over a big one: not here, where others wait.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn_blocking(move || drop(unnamed));
        }
    }

    /// Removes a blob that nobody holds. Returns what its files took.
    fn remove(&self, shelf: &mut Shelf, key: Key) -> io::Result<u64> {
        let path = self.dir.join(key.name());
        remove(&path).and_then(|()| remove_unfinished(&path))?;
        Ok(shelf.entries.remove(&key).map_or(0, |entry| entry.size_bytes))
    }
}

/// A file that an earlier start left.
struct OwnFile {
    key: Key,
    state: State,
    path: PathBuf,
    metadata: Metadata,
}

/// What the worker itself has put there. Whatever else lies in the directory is somebody else's, as `lost+found` is where it is a file
/// system of its own: that stays, and takes room that nobody here counts.
fn own_files(dir: &Path) -> Result<Vec<OwnFile>, DiskError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(DiskError::at("read", dir))? {
        let entry = entry.map_err(DiskError::at("read", dir))?;
        let (name, path) = (entry.file_name(), entry.path());
        if name == BOOT_FILE {
            continue;
        }
        let metadata = entry.metadata().map_err(DiskError::at("read", &path))?;
        match name.to_str().and_then(parse_name).filter(|_| metadata.is_file()) {
            Some((key, state)) => files.push(OwnFile { key, state, path, metadata }),
            None => {
                tracing::warn!(path = %path.display(), "this is nothing that the worker put there; it is left alone")
            }
        }
    }
    Ok(files)
}

fn parse_name(name: &str) -> Option<(Key, State)> {
    let whole = Key::parse(name).map(|key| (key, State::Whole));
    whole.or_else(|| Some((Key::parse(Scratch::dest_of(name)?)?, State::Unfinished)))
}

/// The blobs of an earlier start, and what it had fetched of others.
fn shelved(dir: &Path, files: Vec<OwnFile>) -> Shelf {
    let mut shelf = Shelf::default();
    for OwnFile { key, state, metadata, .. } in files {
        let (size_bytes, used_at) = match state {
            State::Whole => (metadata.len(), last_use(&metadata)),
            State::Unfinished => (unfinished_bytes(&dir.join(key.name())), last_use(&metadata)),
        };
        let known = shelf.entries.entry(key).or_insert(Entry { size_bytes, holders: 0, used_at, state });
        if state == State::Whole {
            *known = Entry { size_bytes, holders: 0, used_at, state };
        }
    }
    shelf
}

/// Leaves the number of a use with the file, for the next process of this worker: as the time when it was last read, which nobody
/// else has a use for. When its content was made is left as it is: jobs see that.
fn note_use(path: &Path, used_at: u64) {
    let times = FileTimes::new().set_accessed(UNIX_EPOCH + Duration::from_millis(used_at));
    if let Err(error) = File::open(path).and_then(|file| file.set_times(times)) {
        tracing::debug!(path = %path.display(), %error, "a restart will not know when a blob was last used");
    }
}

fn last_use(metadata: &Metadata) -> u64 {
    let read = metadata.accessed().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    u64::try_from(read.as_millis()).unwrap_or(u64::MAX)
}

/// What a fetch writes until its blob is whole.
fn unfinished(path: &Path) -> [PathBuf; 3] {
    Scratch::beside(path).all().map(Path::to_owned)
}

/// What a fetch that was broken off takes on the disk.
fn unfinished_bytes(path: &Path) -> u64 {
    // The kernel counts in blocks of 512 bytes, whatever the file system does.
    unfinished(path).iter().filter_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.blocks() * 512).sum()
}

fn remove_unfinished(path: &Path) -> io::Result<()> {
    unfinished(path).iter().try_for_each(|path| remove(path))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
