//! Blobs on this worker's disk, shared by the jobs that want them.
//!
//! **Invariant:** a file under its final name is complete and was verified; a blob that somebody holds is not removed.

use crate::disk::DiskError;
use crate::keyed::Keyed;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_transfer::Form;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedMutexGuard;

/// Names the boot of the host's kernel in which the files were written.
const BOOT_FILE: &str = "host-boot";

/// What a fetch adds to a blob's name until it is whole.
const UNFINISHED: [&str; 3] = ["part", "chunks", "plain"];

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
    max_bytes: u64,
    shelf: Mutex<Shelf>,
    fetching: Keyed<Key>,
}

/// A blob in one of its forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    digest: Digest,
    encoding: Encoding,
}

impl Key {
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
    /// Counts uses: what was used least recently has the lowest number.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    size_bytes: u64,
    holders: usize,
    used_at: u64,
    state: State,
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

    /// The disk is full: removes every blob that nobody holds. `false` if there was none.
    pub fn make_room(&self) -> bool {
        let freed_bytes = self.blobs.shared.evict(&mut self.blobs.shared.shelf(), 0);
        let digest = self.key.digest;
        tracing::warn!(%digest, freed_bytes, "the disk is full; removed the blobs that nobody holds");
        freed_bytes > 0
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let size_bytes = unfinished_bytes(&self.path);
        let shared = &self.blobs.shared;
        let mut shelf = shared.shelf();
        // Nothing is there if the fetch went well, or never began.
        if size_bytes > 0 && !shelf.entries.contains_key(&self.key) {
            shelf.clock += 1;
            let used_at = shelf.clock;
            shelf.entries.insert(self.key, Entry { size_bytes, holders: 0, used_at, state: State::Unfinished });
            shared.evict(&mut shelf, shared.max_bytes);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shelf = self.shared.shelf();
        if let Some(entry) = shelf.entries.get_mut(&self.key) {
            entry.holders = entry.holders.saturating_sub(1);
        }
        self.shared.evict(&mut shelf, self.shared.max_bytes);
    }
}

impl Blobs {
    /// Opens the directory. Blobs of an earlier start are kept if the host has not been rebooted since: after a loss of
    /// power a file may have its name and length, but not its bytes.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, DiskError> {
        let boot = fs::read_to_string(KERNEL_BOOT_ID).unwrap_or_default();
        let same_boot = !boot.is_empty() && fs::read_to_string(dir.join(BOOT_FILE)).is_ok_and(|text| text == boot);
        if !same_boot {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(DiskError::at("empty", dir)(error));
                }
                _ => {}
            }
        }
        fs::create_dir_all(dir).map_err(DiskError::at("create", dir))?;
        fs::write(dir.join(BOOT_FILE), boot).map_err(DiskError::at("write", dir))?;
        let shelf = Mutex::new(scan(dir)?);
        let shared = Shared { dir: dir.to_owned(), max_bytes, shelf, fetching: Keyed::default() };
        shared.evict(&mut shared.shelf(), max_bytes);
        Ok(Self { shared: Arc::new(shared) })
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
                self.shared.shelf().entries.remove(&key);
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
        shelf.clock += 1;
        let now = shelf.clock;
        let entry = shelf.entries.get_mut(&key).filter(|entry| entry.state == State::Whole)?;
        entry.holders += 1;
        entry.used_at = now;
        Some(Held { shared: self.shared.clone(), key, path: self.path(key) })
    }

    fn add(&self, key: Key, size_bytes: u64) -> Held {
        let mut shelf = self.shared.shelf();
        shelf.clock += 1;
        let used_at = shelf.clock;
        shelf.entries.insert(key, Entry { size_bytes, holders: 1, used_at, state: State::Whole });
        Held { shared: self.shared.clone(), key, path: self.path(key) }
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

    /// Removes what was used least recently and is not held, until the rest is within `limit_bytes`. Returns how many
    /// bytes that were.
    fn evict(&self, shelf: &mut Shelf, limit_bytes: u64) -> u64 {
        let before: u64 = shelf.entries.values().map(|entry| entry.size_bytes).sum();
        let mut total = before;
        while total > limit_bytes {
            let free = shelf.entries.iter().filter(|(_, entry)| entry.holders == 0);
            let Some(oldest) = free.min_by_key(|(_, entry)| entry.used_at).map(|(key, _)| *key) else { break };
            let path = self.dir.join(oldest.name());
            if let Err(error) = remove(&path).and_then(|()| remove_unfinished(&path)) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a blob that is over the limit");
                break;
            }
            total -= shelf.entries.remove(&oldest).map_or(0, |entry| entry.size_bytes);
        }
        before - total
    }
}

/// The blobs of an earlier start, and what it had fetched of others.
fn scan(dir: &Path) -> Result<Shelf, DiskError> {
    let mut shelf = Shelf::default();
    for entry in fs::read_dir(dir).map_err(DiskError::at("read", dir))? {
        let entry = entry.map_err(DiskError::at("read", dir))?;
        let (name, path) = (entry.file_name(), entry.path());
        if name == BOOT_FILE {
            continue;
        }
        let name = name.to_str().unwrap_or_default();
        let (whole, ending) = name.rsplit_once('.').unwrap_or((name, ""));
        let (key, state) = match (Key::parse(name), Key::parse(whole)) {
            (Some(key), _) => (key, State::Whole),
            (None, Some(key)) if UNFINISHED.contains(&ending) => (key, State::Unfinished),
            (None, _) => {
                fs::remove_file(&path).map_err(DiskError::at("remove", &path))?;
                continue;
            }
        };
        let size_bytes = match state {
            State::Whole => entry.metadata().map_err(DiskError::at("read", &path))?.len(),
            State::Unfinished => unfinished_bytes(&dir.join(key.name())),
        };
        let known = shelf.entries.entry(key).or_insert(Entry { size_bytes, holders: 0, used_at: 0, state });
        if state == State::Whole {
            *known = Entry { size_bytes, holders: 0, used_at: 0, state };
        }
    }
    Ok(shelf)
}

/// What a fetch adds to the name of its blob until it is whole.
fn unfinished(path: &Path) -> impl Iterator<Item = PathBuf> {
    UNFINISHED.into_iter().map(|ending| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{ending}"));
        PathBuf::from(name)
    })
}

/// What a fetch that was broken off takes on the disk.
fn unfinished_bytes(path: &Path) -> u64 {
    // The kernel counts in blocks of 512 bytes, whatever the file system does.
    unfinished(path).filter_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.blocks() * 512).sum()
}

fn remove_unfinished(path: &Path) -> io::Result<()> {
    unfinished(path).try_for_each(|path| remove(&path))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(text: &str) -> Blob {
        Blob::plain(Digest::of(text.as_bytes()), text.len() as u64)
    }

    async fn get(blobs: &Blobs, text: &str) -> Held {
        match blobs.claim(&blob(text), Form::Plain).await {
            Claim::Here(held) => held,
            Claim::Fetch(fetch) => {
                fs::write(fetch.path(), text).unwrap();
                fetch.done().unwrap()
            }
        }
    }

    #[tokio::test]
    async fn keeps_what_is_used_and_drops_what_was_used_longest_ago() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 10).unwrap();
        let has = |text: &str| dir.path().join(Digest::of(text.as_bytes()).hex()).exists();
        drop(get(&blobs, "aaaa").await);
        drop(get(&blobs, "bbbb").await);
        drop(get(&blobs, "aaaa").await);
        let held = get(&blobs, "cccc").await;
        drop(get(&blobs, "dddd").await);
        assert_eq!([has("aaaa"), has("bbbb"), has("cccc"), has("dddd")], [false, false, true, true]);
        let more = get(&blobs, "eeeeeeee").await;
        assert!(has("cccc") && has("eeeeeeee"), "held blobs stay, over the limit or not");
        held.discard();
        drop(more);
        assert!(!has("cccc") && has("eeeeeeee"));
    }

    #[tokio::test]
    async fn a_blob_is_fetched_once_and_found_again_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 100).unwrap();
        drop(get(&blobs, "aaaa").await);
        fs::write(dir.path().join("half.part"), "x").unwrap();
        let blobs = Blobs::open(dir.path(), 100).unwrap();
        let Claim::Here(held) = blobs.claim(&blob("aaaa"), Form::Plain).await else { panic!("it is not here") };
        assert_eq!(fs::read(held.path()).unwrap(), b"aaaa");
        assert!(!dir.path().join("half.part").exists());
        fs::write(dir.path().join(BOOT_FILE), "another boot").unwrap();
        assert!(Blobs::open(dir.path(), 100).unwrap().hold(Digest::of(b"aaaa")).is_none());
    }

    #[tokio::test]
    async fn an_output_is_taken_in_without_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&dir.path().join("blobs"), 100).unwrap();
        let file = dir.path().join("out");
        fs::write(&file, "out").unwrap();
        blobs.adopt(&file, &blob("out")).await;
        fs::remove_file(&file).unwrap();
        assert_eq!(fs::read(blobs.hold(Digest::of(b"out")).unwrap().path()).unwrap(), b"out");
    }

    #[tokio::test]
    async fn a_packed_blob_serves_those_who_unpack_it_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&dir.path().join("blobs"), 100).unwrap();
        let packed = Blob { encoding: Encoding::Zstd, stored_bytes: 4, ..blob("plain bytes") };
        let file = dir.path().join("out");
        fs::write(&file, "zstd").unwrap();
        blobs.adopt(&file, &packed).await;
        let Claim::Here(held) = blobs.claim(&packed, Form::Stored).await else { panic!("it is not here") };
        assert_eq!((held.encoding(), fs::read(held.path()).unwrap()), (Encoding::Zstd, b"zstd".to_vec()));
        let Claim::Fetch(fetch) = blobs.claim(&packed, Form::Plain).await else { panic!("it is packed") };
        assert_eq!(fetch.form(), Form::Plain);
        fs::write(fetch.path(), "plain bytes").unwrap();
        drop(fetch.done().unwrap());
        let Claim::Here(held) = blobs.claim(&packed, Form::Stored).await else { panic!("it is not here") };
        assert_eq!(held.encoding(), Encoding::Identity, "plain bytes need no unpacking");
    }

    #[tokio::test]
    async fn a_fetch_that_was_broken_off_is_kept_while_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 100_000).unwrap();
        let files = || fs::read_dir(dir.path()).unwrap().count() - 1;
        let held = get(&blobs, "held").await;
        let begin = |blobs: Blobs| async move {
            let Claim::Fetch(fetch) = blobs.claim(&blob("new"), Form::Plain).await else {
                panic!("it is here already")
            };
            for path in unfinished(fetch.path()) {
                fs::write(path, "ne").unwrap();
            }
            fetch
        };
        drop(begin(blobs.clone()).await);
        assert_eq!(files(), 4);
        let blobs = Blobs::open(dir.path(), 100_000).unwrap();
        assert_eq!(files(), 4, "also over a restart");
        let fetch = begin(blobs.clone()).await;
        blobs.shared.evict(&mut blobs.shared.shelf(), 0);
        assert_eq!(files(), 3, "nobody removes what is being fetched");
        drop(fetch);
        let Claim::Fetch(other) = blobs.claim(&blob("other"), Form::Plain).await else { panic!("it is here already") };
        assert!(other.make_room());
        assert_eq!(files(), 0);
        assert!(!other.make_room(), "there is nothing left");
        drop(held);
    }

    #[tokio::test]
    async fn what_is_held_stays_on_a_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 100).unwrap();
        drop(get(&blobs, "unheld").await);
        let held = get(&blobs, "held").await;
        let Claim::Fetch(fetch) = blobs.claim(&blob("new"), Form::Plain).await else { panic!("it is here already") };
        assert!(fetch.make_room() && held.path().exists());
        assert!(!fetch.make_room(), "what is held stays");
    }
}
