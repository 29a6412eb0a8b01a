//! The lists of builds that people and scripts read, beside the manifests.
//!
//! The list of a whole pipeline is read, computed anew from the farm's state, and written if nobody has written it meanwhile; the
//! other files follow from it. Who writes is not remembered anywhere: whatever was lost, the next one writes what is true then. So
//! several controllers may write, in any order.
//!
//! **Invariant:** the farm is looked at after the list has been read. Whoever writes over a list has seen the farm later than
//! whoever wrote that list did, so of the writers of one farm the last one is right.

pub mod fuzz;
mod listing;

pub use listing::News;

use crate::cache::locks::Locks;
use crate::cache::{Cache, CacheError, PutMode};
use crate::driver::Handle;
use bytes::Bytes;
use listing::{Facts, Index};
use railyard_common::backoff::Backoff;
use railyard_common::digest::Digest;
use railyard_common::id::{ChannelName, PipelineName};
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_service::{error_chain, task};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Tries of a conditional put before it counts as the cache's failure: writers of one index are few.
const TRIES: u32 = 20;
/// Objects in one page of a listing.
const PAGE: usize = 1_000;
/// How long the cache gets before the next try.
const RETRY: Backoff = Backoff { base_millis: 500, max_millis: 30_000 };
/// Changed pipelines that are taken together.
const BATCH_MAX: usize = 1_024;

/// Writes the lists.
pub struct Indexer {
    farm: Handle,
    cache: Arc<dyn Cache>,
    /// One writer of a pipeline's lists at a time in this process: they need not compete.
    turns: Locks,
    seen: Mutex<Seen>,
}

/// What this process has seen to.
#[derive(Default)]
struct Seen {
    /// Pipelines of which all that lies in the cache has been looked at.
    pipelines: BTreeSet<PipelineName>,
    /// What the files say that follow from the list of a pipeline, revisions aside; `None` for a file that is not to be. Whoever
    /// changes such a file looks again at what it follows from, so what was right once is right until that changes.
    files: BTreeMap<RelPath, Option<Digest>>,
}

/// A list cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Because of the cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The controller is stopping.
    #[error("the controller is stopping")]
    Stopping,
}

/// A file that follows from the list of a pipeline.
enum Derived {
    List(Index),
    Other(Bytes),
}

impl Derived {
    fn over(&self, old: Option<&[u8]>) -> Bytes {
        match self {
            Self::List(index) => index.clone().file(old),
            Self::Other(bytes) => bytes.clone(),
        }
    }
}

impl Indexer {
    /// Lists the builds of `farm` in `cache`.
    pub fn new(farm: Handle, cache: Arc<dyn Cache>) -> Self {
        Self { farm, cache, turns: Locks::default(), seen: Mutex::default() }
    }

    /// Writes what has changed of the lists of a pipeline and of its channels. `news` count as well.
    ///
    /// # Errors
    /// [`IndexError`]. Then some of the files may be written and others not.
    pub async fn write(&self, pipeline: &PipelineName, news: Option<&News>) -> Result<(), IndexError> {
        let _turn = self.turns.hold(pipeline.as_str()).await;
        let is_known = self.seen().pipelines.contains(pipeline);
        let mut channels = if is_known { BTreeSet::new() } else { self.channels_there(pipeline).await? };
        let mut last = CacheError::Conflict { path: layout::builds_index(pipeline) };
        for _ in 0..TRIES {
            match self.try_write(pipeline, news, &mut channels).await {
                Ok(true) => {
                    self.seen().pipelines.insert(pipeline.clone());
                    return Ok(());
                }
                Ok(false) => {}
                Err(IndexError::Cache(error @ CacheError::Conflict { .. })) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last.into())
    }

    /// Returns whether all files say the same in the end. `channels` are those to look at besides those that are listed.
    async fn try_write(
        &self,
        pipeline: &PipelineName,
        news: Option<&News>,
        channels: &mut BTreeSet<ChannelName>,
    ) -> Result<bool, IndexError> {
        let path = layout::builds_index(pipeline);
        let (old, mut etag) = self.cache.get(&path).await?.unzip();
        let standing = old.as_deref().and_then(Index::read);
        channels.extend(standing.iter().flat_map(Index::channels).cloned());
        let (name, own) = (pipeline.clone(), news.cloned());
        let facts = self.farm.read(move |farm, _| Facts::of(farm, &name, own.as_ref())).await;
        let index = facts.map_err(|_| IndexError::Stopping)?.over(standing);
        channels.extend(index.channels().cloned());
        if old.is_none() && index.is_empty() && channels.is_empty() {
            return Ok(true);
        }
        let new = index.clone().file(old.as_deref());
        if old.as_ref() != Some(&new) {
            etag = Some(self.cache.put(&path, new, PutMode::Match(etag)).await?);
        }
        if !self.derive(pipeline, &index, channels).await? {
            return Ok(true);
        }
        // Somebody may have written the list meanwhile, and the others by it, before we wrote them by ours.
        Ok(self.cache.get(&path).await?.map(|(_, etag)| etag) == etag)
    }

    /// Writes what follows from `index`. Returns whether anything had to be written.
    async fn derive(
        &self,
        pipeline: &PipelineName,
        index: &Index,
        channels: &BTreeSet<ChannelName>,
    ) -> Result<bool, IndexError> {
        let latest = |index: &Index| index.latest().map(|latest| Derived::Other(latest.file()));
        let mut wrote = self.settle(layout::latest(pipeline), latest(index)).await?;
        for channel in channels {
            let own = index.of_channel(channel);
            let newest = latest(&own);
            let list = Some(own).filter(|own| !own.is_empty()).map(Derived::List);
            wrote |= self.settle(layout::channel_index(pipeline, channel), list).await?;
            wrote |= self.settle(layout::channel_latest(pipeline, channel), newest).await?;
        }
        Ok(wrote)
    }

    /// Makes a file what it should be, or none. Returns whether it was otherwise.
    async fn settle(&self, path: RelPath, wanted: Option<Derived>) -> Result<bool, IndexError> {
        let mark = wanted.as_ref().map(|wanted| Digest::of(&wanted.over(None)));
        if self.seen().files.get(&path) == Some(&mark) {
            return Ok(false);
        }
        let wrote = self.replace(&path, wanted.as_ref()).await?;
        self.seen().files.insert(path, mark);
        Ok(wrote)
    }

    async fn replace(&self, path: &RelPath, wanted: Option<&Derived>) -> Result<bool, CacheError> {
        let mut last = CacheError::Conflict { path: path.clone() };
        for _ in 0..TRIES {
            let (old, etag) = self.cache.get(path).await?.unzip();
            let new = wanted.map(|wanted| wanted.over(old.as_deref()));
            if new == old {
                return Ok(false);
            }
            let Some(new) = new else {
                self.cache.delete(path).await?;
                return Ok(true);
            };
            match self.cache.put(path, new, PutMode::Match(etag)).await {
                Ok(_) => return Ok(true),
                Err(error @ CacheError::Conflict { .. }) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Channels that have files in the cache, whatever is listed.
    async fn channels_there(&self, pipeline: &PipelineName) -> Result<BTreeSet<ChannelName>, CacheError> {
        let root = layout::channels(pipeline);
        let (mut found, mut after) = (BTreeSet::new(), None::<String>);
        loop {
            let page = self.cache.list(root.as_str(), after.as_deref(), PAGE).await?;
            let names = page.iter().filter_map(|entry| {
                let below = entry.path.as_str().strip_prefix(root.as_str())?.strip_prefix('/')?;
                below.split('/').next()?.parse().ok()
            });
            found.extend::<Vec<ChannelName>>(names.collect());
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.path.to_string()),
                _ => return Ok(found),
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the lists of `changed` pipelines; at first those of all, as far as they are not what they should be.
pub fn start(
    indexer: Arc<Indexer>,
    changed: mpsc::UnboundedReceiver<PipelineName>,
    shutdown: CancellationToken,
) -> JoinHandle<()> {
    // Everything is done again if it is cut off.
    task::spawn("indexer", async move {
        let _ = shutdown.run_until_cancelled(work(&indexer, changed)).await;
    })
}

async fn work(indexer: &Indexer, mut changed: mpsc::UnboundedReceiver<PipelineName>) {
    let all = indexer.farm.read(|farm, _| farm.builds().map(|build| build.id().pipeline.clone()).collect()).await;
    let Ok(mut waiting): Result<BTreeSet<PipelineName>, _> = all else { return std::future::pending().await };
    let mut tries = 0u32;
    let mut batch = Vec::new();
    loop {
        let mut failed = BTreeSet::new();
        for pipeline in std::mem::take(&mut waiting) {
            match indexer.write(&pipeline, None).await {
                Ok(()) => {}
                // The driver is gone, and with it the controller.
                Err(IndexError::Stopping) => return std::future::pending().await,
                Err(IndexError::Cache(error)) => {
                    tracing::warn!(%pipeline, error = %error_chain(&error), "the list of builds cannot be written; it is tried again");
                    failed.insert(pipeline);
                }
            }
        }
        tries = if failed.is_empty() { 0 } else { tries.saturating_add(1) };
        let wait = (tries > 0).then(|| Duration::from_millis(RETRY.delay_millis(tries)));
        tokio::select! {
            biased;
            taken = changed.recv_many(&mut batch, BATCH_MAX) => match taken {
                0 => return std::future::pending().await,
                _ => waiting.extend(batch.drain(..)),
            },
            () = sleep_for(wait) => {}
        }
        waiting.extend(failed);
    }
}

/// For ever, if there is nothing to wait for.
async fn sleep_for(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
