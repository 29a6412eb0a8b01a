//! Logs of attempts: kept in a local file while they grow, filed in the cache as zstd when the attempt has ended.
//!
//! **Invariant:** an acked byte is on disk; bytes of one attempt are kept in order and without a gap. One writer at a time has
//! its turn at an attempt's log, and filing takes a turn too.

mod files;

use crate::cache::{Cache, CacheError};
use crate::private;
use bytes::Bytes;
use futures_util::StreamExt as _;
use railyard_common::id::{BuildId, JobName, LeaseId};
use railyard_common::layout;
use railyard_service::task;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};

/// Bytes of log that go to a reader at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// The log cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes are missing between what is kept and what was sent.
    #[error("the log of {lease} ends at byte {have}; the batch begins at {offset}")]
    Gap {
        /// The attempt.
        lease: LeaseId,
        /// Where the log ends.
        have: u64,
        /// Where the batch begins.
        offset: u64,
    },
    /// The local file fails.
    #[error("cannot {what} the log of {lease}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The attempt.
        lease: LeaseId,
        /// Why.
        source: io::Error,
    },
    /// The filed log fails.
    #[error("cannot use the filed log of {lease}")]
    Cache {
        /// The attempt.
        lease: LeaseId,
        /// Why.
        source: CacheError,
    },
}

/// Which attempt's log, under all its names.
#[derive(Clone, Debug)]
pub struct LogName {
    /// The attempt.
    pub lease: LeaseId,
    /// Its build.
    pub build: BuildId,
    /// Its job.
    pub job: JobName,
}

impl LogName {
    fn archive(&self) -> railyard_common::path::RelPath {
        layout::log(&self.build, &self.job, self.lease.attempt)
    }
}

/// Keeps and gives out logs.
pub struct LogStore {
    dir: PathBuf,
    cache: Arc<dyn Cache>,
    max_bytes: u64,
    /// Attempts whose log is growing.
    growing: Mutex<BTreeMap<LeaseId, Arc<Growing>>>,
}

/// A log that grows.
struct Growing {
    progress: watch::Sender<Growth>,
    /// An earlier process wrote the file, and may have died before it synced it.
    unsynced: AtomicBool,
    /// Held by whoever changes the file.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// One writer's turn at a log.
pub struct Writer {
    lease: LeaseId,
    path: PathBuf,
    max_bytes: u64,
    growing: Arc<Growing>,
    turn: OwnedMutexGuard<()>,
}

/// How far a log has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Bytes taken in all, those above the limit included.
    pub taken_bytes: u64,
    /// No more will come.
    pub ended: bool,
}

impl LogStore {
    /// Keeps growing logs in `dir`, at most `max_bytes` of each.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn open(dir: &Path, cache: Arc<dyn Cache>, max_bytes: u64) -> io::Result<Self> {
        private::make_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), cache, max_bytes, growing: Mutex::default() })
    }

    fn path(&self, lease: LeaseId) -> PathBuf {
        self.dir.join(format!("{lease}.log"))
    }

    fn growing(&self, lease: LeaseId) -> Arc<Growing> {
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let len = std::fs::metadata(self.path(lease)).map(|meta| meta.len()).ok();
            Arc::new(Growing {
                progress: watch::Sender::new(Growth { taken_bytes: len.unwrap_or(0), ended: false }),
                unsynced: AtomicBool::new(len.is_some()),
                turn: Arc::default(),
            })
        };
        growing.entry(lease).or_insert_with(fresh).clone()
    }

    /// Whether there is anything of an attempt's log that is not filed.
    pub fn has(&self, lease: LeaseId) -> bool {
        let known = self.growing.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&lease);
        known || self.path(lease).exists()
    }

    /// A turn at the log of a live attempt: waits until nobody else writes to it.
    pub async fn writer(&self, lease: LeaseId) -> Writer {
        let growing = self.growing(lease);
        let turn = growing.turn.clone().lock_owned().await;
        Writer { lease, path: self.path(lease), max_bytes: self.max_bytes, growing, turn }
    }

    /// Hears how the log of a live attempt grows.
    pub fn subscribe(&self, lease: LeaseId) -> watch::Receiver<Growth> {
        self.growing(lease).progress.subscribe()
    }

    /// An attempt that was asked for has ended: nothing will grow any more. A log that somebody still has in hand, or that
    /// is still to be filed, stays known: all who touch it must share one turn.
    pub fn forget(&self, lease: LeaseId) {
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody can take it in hand while the map is locked.
        let idle = growing.get(&lease).is_some_and(|known| Arc::strong_count(known) == 1);
        if idle && !self.path(lease).exists() {
            growing.remove(&lease);
        }
    }

    /// The attempt has ended: files its log in the cache and removes the local file. Doing it again does no harm.
    /// `reported_bytes` is how long the worker says the log is.
    ///
    /// # Errors
    /// [`LogError`]; the local file stays then.
    pub async fn file(&self, name: &LogName, reported_bytes: u64) -> Result<(), LogError> {
        let (lease, max) = (name.lease, self.max_bytes);
        let growing = self.growing(lease);
        let turn = growing.turn.lock().await;
        growing.progress.send_modify(|growth| {
            growth.ended = true;
            if growth.taken_bytes >= max {
                // After a restart only the worker knows how much was cut.
                growth.taken_bytes = growth.taken_bytes.max(reported_bytes);
            }
        });
        let path = self.path(lease);
        let (packed, taken) = (path.with_extension("zst"), growing.progress.borrow().taken_bytes);
        let (from, to) = (path.clone(), packed.clone());
        let packing = task::blocking(move || match from.exists() {
            true => files::pack(&from, &to, taken, max).map(|()| true),
            // Nothing was ever written, or it is filed already.
            false => Ok(false),
        });
        if packing.await.map_err(|source| LogError::Io { what: "pack", lease, source })? {
            let put = self.cache.put_file(&name.archive(), &packed).await;
            put.map_err(|source| LogError::Cache { lease, source })?;
            let removed =
                task::blocking(move || std::fs::remove_file(packed).and_then(|()| std::fs::remove_file(path)));
            removed.await.map_err(|source| LogError::Io { what: "remove", lease, source })?;
        }
        drop(turn);
        drop(growing);
        self.forget(lease);
        Ok(())
    }

    /// Attempts that have a local file.
    pub fn local(&self) -> Vec<LeaseId> {
        let names = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        names.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()).collect()
    }

    /// The log from `offset` on, in chunks with their offsets: as it is now or, with the growth of a live attempt, until that
    /// has ended.
    pub fn read(
        self: &Arc<Self>,
        name: LogName,
        offset: u64,
        growth: Option<watch::Receiver<Growth>>,
    ) -> mpsc::Receiver<Result<(u64, Bytes), LogError>> {
        let (tx, rx) = mpsc::channel(4);
        let store = self.clone();
        task::spawn("log reader", async move {
            if let Err(error) = store.read_into(&name, offset, growth, &tx).await {
                // A reader that went away does not want to hear it.
                let _ = tx.send(Err(error)).await;
            }
        });
        rx
    }

    async fn read_into(
        &self,
        name: &LogName,
        mut offset: u64,
        mut growth: Option<watch::Receiver<Growth>>,
        tx: &Chunks,
    ) -> Result<(), LogError> {
        let lease = name.lease;
        let mut file = None;
        loop {
            let over = growth.as_mut().is_none_or(|growth| growth.borrow_and_update().ended);
            if file.is_none() {
                // Stays open while it is filed and removed: a follower misses nothing.
                file = self.open_local(lease, offset).await?;
            }
            if let Some(file) = &file {
                let io = |source| LogError::Io { what: "read", lease, source };
                match send_rest(file, &mut offset, tx).await.map_err(io)? {
                    Reader::There => {}
                    Reader::Gone => return Ok(()),
                }
            }
            if over {
                break;
            }
            let Some(changes) = &mut growth else { break };
            tokio::select! {
                biased;
                () = tx.closed() => return Ok(()),
                // Nobody can tell any more: the attempt has ended. One last look.
                changed = changes.changed() => if changed.is_err() { growth = None },
            }
        }
        if file.is_none() {
            return self.read_filed(name, offset, tx).await;
        }
        self.tell_truncated(lease, offset, tx).await;
        Ok(())
    }

    async fn open_local(&self, lease: LeaseId, offset: u64) -> Result<Option<Arc<File>>, LogError> {
        let (path, max_bytes) = (self.path(lease), self.max_bytes);
        let opened = task::blocking(move || match File::open(path) {
            Ok(mut opened) => {
                // File systems refuse places that no file can reach. Nothing will ever be there, nor at this one.
                let reach = opened.metadata()?.len().max(max_bytes);
                opened.seek(SeekFrom::Start(offset.min(reach)))?;
                Ok(Some(Arc::new(opened)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        opened.await.map_err(|source| LogError::Io { what: "read", lease, source })
    }

    /// The note at the end of a log that was cut, as the filed log has it.
    async fn tell_truncated(&self, lease: LeaseId, offset: u64, tx: &Chunks) {
        let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner).get(&lease).cloned();
        let taken = growing.map_or(0, |growing| growing.progress.borrow().taken_bytes);
        if taken > self.max_bytes {
            let notice = Bytes::from(files::truncation_notice(taken, self.max_bytes));
            let seen = usize::try_from(offset.saturating_sub(self.max_bytes)).unwrap_or(usize::MAX);
            let _ = tx.send(Ok((offset, notice.slice(seen.min(notice.len())..)))).await;
        }
    }

    async fn read_filed(&self, name: &LogName, offset: u64, tx: &Chunks) -> Result<(), LogError> {
        let lease = name.lease;
        let cache = |source| LogError::Cache { lease, source };
        let io = |source| LogError::Io { what: "unpack", lease, source };
        let Some(mut stream) = self.cache.get_stream(&name.archive()).await.map_err(cache)? else { return Ok(()) };
        // Without a name: it goes with whoever reads.
        let fetched = Arc::new(tempfile::tempfile_in(&self.dir).map_err(io)?);
        while let Some(chunk) = stream.next().await {
            let (chunk, fetched) = (chunk.map_err(cache)?, fetched.clone());
            task::blocking(move || (&*fetched).write_all(&chunk)).await.map_err(io)?;
        }
        let mut unpacking = task::blocking(move || files::Unpacking::begin(fetched, offset)).await.map_err(io)?;
        let mut at = offset;
        loop {
            let (back, chunk) = task::blocking(move || {
                let chunk = unpacking.next();
                (unpacking, chunk)
            })
            .await;
            let chunk = chunk.map_err(io)?;
            let read = chunk.len() as u64;
            if read == 0 || tx.send(Ok((at, chunk))).await.is_err() {
                return Ok(());
            }
            (unpacking, at) = (back, at + read);
        }
    }
}

type Chunks = mpsc::Sender<Result<(u64, Bytes), LogError>>;

/// Whether somebody still reads.
enum Reader {
    There,
    Gone,
}

/// Sends what is in the file from `offset` on.
async fn send_rest(file: &Arc<File>, offset: &mut u64, tx: &Chunks) -> io::Result<Reader> {
    loop {
        let file = file.clone();
        let chunk = task::blocking(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = (&*file).read(&mut chunk)?;
            chunk.truncate(read);
            io::Result::Ok(Bytes::from(chunk))
        });
        let chunk = chunk.await?;
        let read = chunk.len() as u64;
        if read == 0 {
            return Ok(Reader::There);
        }
        if tx.send(Ok((*offset, chunk))).await.is_err() {
            return Ok(Reader::Gone);
        }
        *offset += read;
    }
}

impl Writer {
    /// Takes a batch that begins at `offset`; what is known already is skipped. Returns how many bytes are durable.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn append(self, offset: u64, data: Bytes) -> Result<u64, LogError> {
        let Self { lease, path, max_bytes, growing, turn } = self;
        let mut have = growing.progress.borrow().taken_bytes;
        if have >= max_bytes {
            // After a restart it is not known how much was left out. Nothing more is kept, so no gap can come of it.
            have = have.max(offset);
        }
        if offset > have {
            return Err(LogError::Gap { lease, have, offset });
        }
        let known = usize::try_from(have - offset).unwrap_or(usize::MAX);
        let unsynced = growing.unsynced.load(Ordering::Acquire);
        if known >= data.len() && !unsynced {
            return Ok(have);
        }
        let fresh = data.slice(known.min(data.len())..);
        let room = usize::try_from(max_bytes.saturating_sub(have)).unwrap_or(usize::MAX);
        let kept = fresh.slice(..fresh.len().min(room));
        let taken = have.saturating_add(fresh.len() as u64);
        let io = |source| LogError::Io { what: "append to", lease, source };
        // The turn goes with the work: should the caller be dropped, the next writer still waits for it.
        let written = task::blocking(move || {
            let _turn = turn;
            if unsynced {
                // What is known from the file is about to be acked.
                files::sync(&path)?;
                growing.unsynced.store(false, Ordering::Release);
            }
            if !kept.is_empty() {
                files::append(&path, have, &kept)?;
            }
            growing.progress.send_modify(|growth| growth.taken_bytes = taken);
            Ok(())
        });
        written.await.map_err(io)?;
        Ok(taken)
    }
}
