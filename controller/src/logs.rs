//! Logs of attempts: kept in a local file while they grow, filed in the cache as zstd when the attempt has ended.
//!
//! **Invariant:** an acked byte is on disk; bytes of one attempt are kept in order and without a gap.

use crate::cache::{Cache, CacheError};
use bytes::Bytes;
use futures_util::StreamExt as _;
use railyard_common::id::{BuildId, JobName, LeaseId};
use railyard_common::layout;
use railyard_service::task;
use std::collections::BTreeMap;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};

/// Bytes of log that go to a reader at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// zstd level of filed logs: text shrinks some twenty times at little cost.
const ARCHIVE_LEVEL: i32 = 3;

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
    /// Attempts whose log is growing: how many bytes were taken, whether the attempt has ended.
    growing: Mutex<BTreeMap<LeaseId, watch::Sender<Growth>>>,
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
        std::fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), cache, max_bytes, growing: Mutex::default() })
    }

    fn path(&self, lease: LeaseId) -> PathBuf {
        self.dir.join(format!("{lease}.log"))
    }

    fn growth(&self, lease: LeaseId) -> watch::Sender<Growth> {
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let taken_bytes = std::fs::metadata(self.path(lease)).map_or(0, |meta| meta.len());
            watch::Sender::new(Growth { taken_bytes, ended: false })
        };
        growing.entry(lease).or_insert_with(fresh).clone()
    }

    /// Takes a batch that begins at `offset`; what is known already is skipped. Returns how many bytes are durable.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn append(&self, lease: LeaseId, offset: u64, data: Bytes) -> Result<u64, LogError> {
        let growth = self.growth(lease);
        let have = growth.borrow().taken_bytes;
        if offset > have {
            return Err(LogError::Gap { lease, have, offset });
        }
        let known = usize::try_from(have - offset).unwrap_or(usize::MAX);
        if known >= data.len() {
            return Ok(have);
        }
        let fresh = data.slice(known..);
        let room = usize::try_from(self.max_bytes.saturating_sub(have)).unwrap_or(usize::MAX);
        let kept = fresh.slice(..fresh.len().min(room));
        let (path, taken) = (self.path(lease), have + fresh.len() as u64);
        let io = |source| LogError::Io { what: "append to", lease, source };
        if !kept.is_empty() {
            let written = tokio::task::spawn_blocking(move || append_file(&path, have, &kept)).await;
            written.map_err(|error| io(io::Error::other(error)))?.map_err(io)?;
        }
        growth.send_modify(|growth| growth.taken_bytes = growth.taken_bytes.max(taken));
        Ok(taken)
    }

    /// The attempt has ended: files its log in the cache and removes the local file. Doing it again does no harm.
    ///
    /// # Errors
    /// [`LogError`]; the local file stays then.
    pub async fn file(&self, name: &LogName) -> Result<(), LogError> {
        let lease = name.lease;
        let growth = self.growth(lease);
        growth.send_modify(|growth| growth.ended = true);
        let path = self.path(lease);
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            let (packed, taken) = (path.with_extension("zst"), growth.borrow().taken_bytes);
            let io = |source| LogError::Io { what: "pack", lease, source };
            let (from, to) = (path.clone(), packed.clone());
            let done = tokio::task::spawn_blocking(move || pack(&from, &to, taken)).await;
            done.map_err(|error| io(io::Error::other(error)))?.map_err(io)?;
            let put = self.cache.put_file(&name.archive(), &packed).await;
            put.map_err(|source| LogError::Cache { lease, source })?;
            let remove = |source| LogError::Io { what: "remove", lease, source };
            tokio::fs::remove_file(&packed).await.map_err(remove)?;
            tokio::fs::remove_file(&path).await.map_err(remove)?;
        }
        self.growing.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease);
        Ok(())
    }

    /// Attempts that have a local file.
    pub fn local(&self) -> Vec<LeaseId> {
        let names = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        names.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()).collect()
    }

    /// The log from `offset` on, in chunks with their offsets; with `follow`, until the attempt has ended.
    pub fn read(
        self: &Arc<Self>,
        name: LogName,
        offset: u64,
        follow: bool,
    ) -> mpsc::Receiver<Result<(u64, Bytes), LogError>> {
        let (tx, rx) = mpsc::channel(4);
        let store = self.clone();
        task::spawn("log reader", async move {
            if let Err(error) = store.read_into(&name, offset, follow, &tx).await {
                // A reader that went away does not want to hear it.
                let _ = tx.send(Err(error)).await;
            }
        });
        rx
    }

    async fn read_into(&self, name: &LogName, offset: u64, follow: bool, tx: &Chunks) -> Result<(), LogError> {
        let lease = name.lease;
        if tokio::fs::try_exists(self.path(lease)).await.unwrap_or(false) || follow && !self.is_filed(name).await? {
            self.read_growing(lease, offset, follow, tx).await
        } else {
            self.read_filed(name, offset, tx).await
        }
    }

    async fn is_filed(&self, name: &LogName) -> Result<bool, LogError> {
        let found = self.cache.get_stream(&name.archive()).await;
        found.map(|stream| stream.is_some()).map_err(|source| LogError::Cache { lease: name.lease, source })
    }

    async fn read_growing(&self, lease: LeaseId, mut offset: u64, follow: bool, tx: &Chunks) -> Result<(), LogError> {
        let mut growth = self.growth(lease).subscribe();
        let io = |source| LogError::Io { what: "read", lease, source };
        let mut file: Option<tokio::fs::File> = None;
        loop {
            let now = *growth.borrow_and_update();
            if file.is_none() {
                // Stays open while it is filed and removed: a follower misses nothing.
                file = match tokio::fs::File::open(self.path(lease)).await {
                    Ok(mut opened) => {
                        opened.seek(SeekFrom::Start(offset)).await.map_err(io)?;
                        Some(opened)
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(io(error)),
                };
            }
            if let Some(file) = &mut file {
                loop {
                    let mut chunk = vec![0; CHUNK_BYTES];
                    let read = file.read(&mut chunk).await.map_err(io)?;
                    if read == 0 {
                        break;
                    }
                    chunk.truncate(read);
                    if tx.send(Ok((offset, chunk.into()))).await.is_err() {
                        return Ok(());
                    }
                    offset += read as u64;
                }
            }
            if !follow || now.ended {
                return self.tell_truncated(now.taken_bytes, offset, tx).await;
            }
            let gone = tokio::select! {
                biased;
                () = tx.closed() => true,
                changed = growth.changed() => changed.is_err(),
            };
            if gone {
                return Ok(());
            }
        }
    }

    async fn tell_truncated(&self, taken: u64, offset: u64, tx: &Chunks) -> Result<(), LogError> {
        if taken > self.max_bytes {
            let _ = tx.send(Ok((offset, truncation_notice(taken, self.max_bytes).into()))).await;
        }
        Ok(())
    }

    async fn read_filed(&self, name: &LogName, offset: u64, tx: &Chunks) -> Result<(), LogError> {
        let lease = name.lease;
        let cache = |source| LogError::Cache { lease, source };
        let io = |source| LogError::Io { what: "unpack", lease, source };
        let Some(mut stream) = self.cache.get_stream(&name.archive()).await.map_err(cache)? else { return Ok(()) };
        let fetched = tempfile::NamedTempFile::new_in(&self.dir).map_err(io)?;
        let mut file = tokio::fs::File::create(fetched.path()).await.map_err(io)?;
        while let Some(chunk) = stream.next().await {
            file.write_all(&chunk.map_err(cache)?).await.map_err(io)?;
        }
        file.flush().await.map_err(io)?;
        let tx = tx.clone();
        let unpacked = tokio::task::spawn_blocking(move || unpack(fetched.path(), offset, &tx)).await;
        unpacked.map_err(|error| io(io::Error::other(error)))?.map_err(io)
    }
}

type Chunks = mpsc::Sender<Result<(u64, Bytes), LogError>>;

fn truncation_notice(taken: u64, max: u64) -> String {
    format!("\n[railyard: the log is longer than its limit of {max} bytes; {} bytes are left out here]\n", taken - max)
}

fn append_file(path: &Path, at: u64, data: &[u8]) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    // A crash may have left bytes that were never acked; they come again.
    file.set_len(at)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(data)?;
    file.sync_data()
}

fn pack(from: &Path, to: &Path, taken: u64) -> io::Result<()> {
    let mut source = std::fs::File::open(from)?;
    let kept = source.metadata()?.len();
    let mut encoder = zstd::Encoder::new(std::fs::File::create(to)?, ARCHIVE_LEVEL)?;
    encoder.include_checksum(true)?;
    io::copy(&mut source, &mut encoder)?;
    if taken > kept {
        encoder.write_all(truncation_notice(taken, kept).as_bytes())?;
    }
    encoder.finish()?.sync_all()
}

fn unpack(path: &Path, offset: u64, tx: &Chunks) -> io::Result<()> {
    let mut decoder = zstd::Decoder::new(std::fs::File::open(path)?)?;
    io::copy(&mut (&mut decoder).take(offset), &mut io::sink())?;
    let mut at = offset;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut decoder).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Ok(());
        }
        let read = chunk.len() as u64;
        if tx.blocking_send(Ok((at, chunk.into()))).is_err() {
            return Ok(());
        }
        at += read;
    }
}
