//! Blobs on this worker's disk, shared by the jobs that want them.
//!
//! **Invariant:** a file under its final name is complete and was verified; a blob that somebody holds is not removed.

use crate::disk::DiskError;
use crate::keyed::Keyed;
use railyard_common::digest::Digest;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedMutexGuard;

/// Names the boot of the host's kernel in which the files were written.
const BOOT_FILE: &str = "host-boot";

/// What a fetch adds to a blob's name until it is whole.
const PART: &str = "part";

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
    fetching: Keyed<Digest>,
}

#[derive(Debug, Default)]
struct Shelf {
    entries: BTreeMap<Digest, Entry>,
    /// Counts uses: what was used least recently has the lowest number.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    size_bytes: u64,
    holders: usize,
    used_at: u64,
}

/// A blob that is there and stays while this is held.
#[derive(Debug)]
pub struct Held {
    shared: Arc<Shared>,
    digest: Digest,
    path: PathBuf,
}

impl Held {
    /// The plain bytes. Not to be written to: others read them too.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it up, and says that nobody is likely to want it again soon.
    pub fn discard(self) {
        self.shared.shelf().entries.entry(self.digest).and_modify(|entry| entry.used_at = 0);
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
/// written goes with it: nothing counts it, so nothing else would make room.
#[derive(Debug)]
pub struct Fetch {
    blobs: Blobs,
    digest: Digest,
    path: PathBuf,
    _one: OwnedMutexGuard<()>,
}

impl Fetch {
    /// Where the complete, verified file must appear.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It has appeared.
    ///
    /// # Errors
    /// [`DiskError`] if it has not.
    pub fn done(self) -> Result<Held, DiskError> {
        let size_bytes = fs::metadata(&self.path).map_err(DiskError::at("read", &self.path))?.len();
        Ok(self.blobs.add(self.digest, size_bytes))
    }

    /// The disk is full: removes every blob that nobody holds. `false` if there was none.
    pub fn make_room(&self) -> bool {
        let freed_bytes = self.blobs.shared.evict(&mut self.blobs.shared.shelf(), 0);
        tracing::warn!(digest = %self.digest, freed_bytes, "the disk is full; removed the blobs that nobody holds");
        freed_bytes > 0
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // Nothing is there if the fetch went well, or never began.
        match fs::remove_file(self.path.with_extension(PART)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(digest = %self.digest, %error, "cannot remove what a failed fetch has written");
            }
            _ => {}
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shelf = self.shared.shelf();
        if let Some(entry) = shelf.entries.get_mut(&self.digest) {
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

    /// The blob, or the right to fetch it. Two who want the same blob fetch it once: the other one waits here.
    pub async fn claim(&self, digest: Digest) -> Claim {
        let one = self.shared.fetching.lock(digest).await;
        match self.hold(digest) {
            Some(held) => Claim::Here(held),
            None => Claim::Fetch(Fetch { blobs: self.clone(), digest, path: self.path(digest), _one: one }),
        }
    }

    /// Takes in a file that was just hashed, by a second name for the same bytes: the next job here that wants it need
    /// not fetch it. What cannot be linked is left out; it can be fetched.
    pub async fn adopt(&self, file: &Path, digest: Digest) {
        use std::os::unix::fs::PermissionsExt as _;
        let _one = self.shared.fetching.lock(digest).await;
        let path = self.path(digest);
        if self.hold(digest).is_some() || fs::hard_link(file, &path).is_err() {
            return;
        }
        // As if it had been fetched: readable for whatever user a step runs its tools as.
        let readable = fs::set_permissions(&path, fs::Permissions::from_mode(0o644));
        let owned = std::os::unix::fs::chown(&path, Some(nix::unistd::getuid().as_raw()), None);
        match (readable, owned, fs::metadata(&path)) {
            (Ok(()), Ok(()), Ok(metadata)) => drop(self.add(digest, metadata.len())),
            _ => drop(fs::remove_file(&path)),
        }
    }

    /// The blob if it is here.
    pub fn hold(&self, digest: Digest) -> Option<Held> {
        let mut shelf = self.shared.shelf();
        shelf.clock += 1;
        let now = shelf.clock;
        let entry = shelf.entries.get_mut(&digest)?;
        entry.holders += 1;
        entry.used_at = now;
        Some(Held { shared: self.shared.clone(), digest, path: self.path(digest) })
    }

    fn add(&self, digest: Digest, size_bytes: u64) -> Held {
        let mut shelf = self.shared.shelf();
        shelf.clock += 1;
        let used_at = shelf.clock;
        shelf.entries.insert(digest, Entry { size_bytes, holders: 1, used_at });
        Held { shared: self.shared.clone(), digest, path: self.path(digest) }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.shared.dir.join(digest.hex())
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
            let Some(oldest) = free.min_by_key(|(_, entry)| entry.used_at).map(|(digest, _)| *digest) else { break };
            let path = self.dir.join(oldest.hex());
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a blob that is over the limit");
                    break;
                }
                _ => {}
            }
            total -= shelf.entries.remove(&oldest).map_or(0, |entry| entry.size_bytes);
        }
        before - total
    }
}

/// The blobs of an earlier start. What else lies there is a fetch that was broken off.
fn scan(dir: &Path) -> Result<Shelf, DiskError> {
    let mut shelf = Shelf::default();
    for entry in fs::read_dir(dir).map_err(DiskError::at("read", dir))? {
        let entry = entry.map_err(DiskError::at("read", dir))?;
        let name = entry.file_name();
        if name == BOOT_FILE {
            continue;
        }
        match name.to_str().and_then(|name| Digest::from_hex(name).ok()) {
            Some(digest) => {
                let size_bytes = entry.metadata().map_err(DiskError::at("read", &entry.path()))?.len();
                shelf.entries.insert(digest, Entry { size_bytes, holders: 0, used_at: 0 });
            }
            None => fs::remove_file(entry.path()).map_err(DiskError::at("remove", &entry.path()))?,
        }
    }
    Ok(shelf)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(blobs: &Blobs, text: &str) -> Held {
        match blobs.claim(Digest::of(text.as_bytes())).await {
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
        let Claim::Here(held) = blobs.claim(Digest::of(b"aaaa")).await else { panic!("it is not here") };
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
        blobs.adopt(&file, Digest::of(b"out")).await;
        fs::remove_file(&file).unwrap();
        assert_eq!(fs::read(blobs.hold(Digest::of(b"out")).unwrap().path()).unwrap(), b"out");
    }

    #[tokio::test]
    async fn a_fetch_that_failed_leaves_nothing_and_a_full_disk_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 100).unwrap();
        let files = || fs::read_dir(dir.path()).unwrap().count() - 1;
        drop(get(&blobs, "unheld").await);
        let held = get(&blobs, "held").await;
        let Claim::Fetch(fetch) = blobs.claim(Digest::of(b"new")).await else { panic!("it is here already") };
        fs::write(fetch.path().with_extension(PART), "ne").unwrap();
        assert_eq!(files(), 3);
        assert!(fetch.make_room() && held.path().exists());
        assert_eq!(files(), 2);
        assert!(!fetch.make_room(), "what is held stays");
        drop(fetch);
        assert_eq!(files(), 1);
    }
}
