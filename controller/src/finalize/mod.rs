//! The end of a build: published paths, the manifest, the index; then the farm is told.
//!
//! Every part can be done again: a controller that dies in the middle does all of it once more after its start.
//!
//! **Invariant:** of an untrusted build nothing is written but its own manifest.

mod failure;
mod manifest;
mod placing;
mod promote;
mod sums;

pub use promote::PromoteError;

use crate::audit::Audit;
use crate::cache::{Cache, CacheError, PutMode};
use crate::document::json;
use crate::driver::{CommandError, Handle};
use crate::index::{IndexError, Indexer, News};
use crate::logs::{LogName, LogStore};
use bytes::Bytes;
use failure::Failure;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use manifest::Manifest;
use railyard_common::backoff::Backoff;
use railyard_common::blob::Blob;
use railyard_common::id::{BuildId, LeaseId};
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_core::{BuildState, Command, Farm, Verdict};
use railyard_service::clock::Clock;
use railyard_service::{error_chain, task};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long the cache gets before the next try.
const RETRY: Backoff = Backoff { base_millis: 500, max_millis: 30_000 };
/// After this long a build ends with what stands in its way. Longer than an outage over a night; and nothing is lost, a retry
/// of the build writes it out without running anything again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Tries of a conditional put before it counts as the cache's failure: writers of one directory's sums are few.
const SUMS_TRIES: u32 = 20;

/// Ended attempts whose logs are looked at together: one look at the farm for all of them.
const FILING_BATCH_MAX: usize = 1_024;
/// Logs that are filed at a time: the cache is waited for more than the processor.
const FILING_MAX: usize = 8;

/// Ends builds. Cheap to clone.
#[derive(Clone)]
pub struct Finalizer {
    farm: Handle,
    cache: Arc<dyn Cache>,
    clock: Arc<dyn Clock>,
    wake: Arc<Notify>,
    index: Arc<Indexer>,
    /// Where the ends of promotions are recorded that nobody waits for.
    audit: Audit,
    /// Held by whoever places published files, or takes them away.
    placing: Arc<Mutex<()>>,
}

/// What there is to do for a build.
#[derive(Clone, Copy)]
enum Work {
    /// It has done all its jobs.
    End,
    /// A promotion was begun, and is neither ended nor forgotten.
    Promote,
}

/// A build for which that could not be done yet.
struct Retry {
    tries: u32,
    /// The first failure; monotonic.
    since: Duration,
    /// The next try; monotonic.
    due: Duration,
}

impl Finalizer {
    /// Ends builds of `farm` whenever `wake` is notified.
    pub fn new(farm: Handle, cache: Arc<dyn Cache>, clock: Arc<dyn Clock>, wake: Arc<Notify>, audit: Audit) -> Self {
        let index = Arc::new(Indexer::new(farm.clone(), cache.clone()));
        Self { farm, cache, clock, wake, index, audit, placing: Arc::default() }
    }

    /// What writes the lists of builds.
    pub fn indexer(&self) -> Arc<Indexer> {
        self.index.clone()
    }

    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        // Everything is done again if it is cut off.
        let _ = shutdown.run_until_cancelled(self.work()).await;
    }

    async fn work(&self) {
        let mut retries: BTreeMap<BuildId, Retry> = BTreeMap::new();
        loop {
            let waiting = self.farm.read(|farm, _| {
                let ending = farm.finalizing().map(|build| (build.id().clone(), Work::End));
                ending.chain(farm.promoting().map(|(build, _)| (build.id().clone(), Work::Promote))).collect()
            });
            let Ok(waiting) = waiting.await else {
                // The driver is gone, and with it the controller.
                return std::future::pending().await;
            };
            let waiting: BTreeMap<BuildId, Work> = waiting;
            retries.retain(|build, _| waiting.contains_key(build));
            for (build, work) in waiting {
                let begun = self.clock.monotonic();
                let earlier = retries.get(&build);
                if earlier.is_some_and(|retry| retry.due > begun) {
                    continue;
                }
                let (tries, since) = earlier.map_or((1, begun), |retry| (retry.tries.saturating_add(1), retry.since));
                let last = begun.saturating_sub(since) > GIVE_UP_AFTER;
                let is_done = match work {
                    Work::End => self.finalize(&build, last).await,
                    Work::Promote => self.resume_promotion(&build, last).await,
                };
                if is_done {
                    retries.remove(&build);
                } else {
                    let due = self.clock.monotonic() + Duration::from_millis(RETRY.delay_millis(tries));
                    retries.insert(build, Retry { tries, since, due });
                }
            }
            let next = retries.values().map(|retry| retry.due.saturating_sub(self.clock.monotonic())).min();
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = sleep_for(next) => {}
            }
        }
    }

    /// Returns whether there is nothing left to do. The last try ends the build, whatever it comes to.
    async fn finalize(&self, id: &BuildId, last: bool) -> bool {
        let wanted = id.clone();
        let manifest = self.farm.read(move |farm, _| manifest_of(farm, &wanted)).await;
        let manifest = match manifest {
            Ok(Some(manifest)) => manifest,
            // Somebody has ended it.
            Ok(None) => return true,
            Err(_) => return false,
        };
        let mut written = self.write(id, manifest).await;
        if last || matches!(written, Err(Failure::ForGood(_))) {
            written = self.give_up(id, written, last).await;
        }
        let error = match written {
            Ok(()) => None,
            Err(Failure::ForGood(why)) => Some(why),
            // The controller stops; its successor does all of this.
            Err(Failure::Stopping) => return false,
            Err(Failure::ForNow(error)) => {
                tracing::error!(build = %id, error = %error_chain(&error), "the build cannot be written out; it is tried again");
                self.farm.note_finalize_error(id.clone(), error_chain(&error)).await;
                return false;
            }
        };
        match self.farm.decide(Command::Finalized { build: id.clone(), error }).await {
            Ok(_) | Err(CommandError::Refused(_)) => true,
            Err(CommandError::Journal(_) | CommandError::Standstill(_) | CommandError::Stopping) => false,
        }
    }

    /// Nothing stays of a build that ends with an error. Without `last` it may be tried again.
    async fn give_up(&self, id: &BuildId, written: Result<(), Failure>, last: bool) -> Result<(), Failure> {
        let why = match written {
            Ok(()) => return Ok(()),
            Err(Failure::Stopping) => return Err(Failure::Stopping),
            Err(Failure::ForGood(why)) => why,
            Err(Failure::ForNow(error)) => error_chain(&error),
        };
        match self.take_back(id, &BTreeSet::new()).await {
            Err(failure @ Failure::ForNow(_)) if !last => Err(failure),
            Err(failure) => {
                // As good as it can be done. What stays is written down.
                tracing::error!(build = %id, ?failure, "what the build had published cannot be removed again");
                Err(Failure::ForGood(why))
            }
            Ok(()) => Err(Failure::ForGood(why)),
        }
    }

    async fn write(&self, id: &BuildId, mut manifest: Manifest) -> Result<(), Failure> {
        let is_published = manifest.verdict == Verdict::Succeeded && !manifest.untrusted;
        let published = if is_published { self.publish(id, &manifest).await } else { Ok(()) };
        if let Err(Failure::ForGood(why)) = &published {
            self.take_back(id, &BTreeSet::new()).await?;
            manifest.fail(why);
        }
        if let Err(failure @ (Failure::ForNow(_) | Failure::Stopping)) = published {
            return Err(failure);
        }
        let path = layout::build_manifest(id);
        self.cache.put(&path, json(&manifest), PutMode::Overwrite).await?;
        if manifest.untrusted {
            return Ok(());
        }
        let ending = News::Ending { build: id.clone(), verdict: manifest.verdict };
        match self.index.write(&id.pipeline, Some(&ending)).await {
            Ok(()) => {}
            Err(IndexError::Stopping) => return Err(Failure::Stopping),
            // Others write the same lists: that lies in nobody's build.
            Err(IndexError::Cache(error @ CacheError::Conflict { .. })) => return Err(Failure::ForNow(error)),
            Err(IndexError::Cache(error)) => return Err(error.into()),
        }
        if manifest.verdict == Verdict::Succeeded {
            // Before the farm is told, which is the end of it: a list that stays would one day take back what was published.
            self.end_placing(id).await?;
        }
        published
    }

    /// What the build's outputs say, all of it or none.
    async fn publish(&self, id: &BuildId, manifest: &Manifest) -> Result<(), Failure> {
        let _placing = self.placing.lock().await;
        let mut paths: BTreeMap<RelPath, Blob> = BTreeMap::new();
        let mut sources: BTreeMap<&RelPath, &RelPath> = BTreeMap::new();
        for artifact in manifest.jobs.iter().flat_map(|job| &job.artifacts) {
            let Some(path) = &artifact.published else { continue };
            if let Some(other) = paths.insert(path.clone(), artifact.blob)
                && other.digest != artifact.blob.digest
            {
                let other = sources[path];
                let why = format!("{other} and {} would both be published at {path}", artifact.path);
                return Err(Failure::ForGood(why));
            }
            sources.insert(path, &artifact.path);
        }
        let fresh = self.look(&paths).await?;
        self.begin_placing(id, &paths, &fresh).await?;
        self.place(id, &paths, &fresh).await
    }

    /// Read, change, put if nobody else has put meanwhile.
    async fn update_bytes(&self, path: &RelPath, next: impl Fn(Option<&[u8]>) -> Bytes) -> Result<(), Failure> {
        let mut last = None;
        for _ in 0..SUMS_TRIES {
            let old = self.cache.get(path).await?;
            let (old, etag) = old.map_or((None, None), |(bytes, etag)| (Some(bytes), Some(etag)));
            let new = next(old.as_deref());
            if old.as_ref() == Some(&new) {
                return Ok(());
            }
            match self.cache.put(path, new, PutMode::Match(etag)).await {
                Ok(_) => return Ok(()),
                Err(error @ CacheError::Conflict { .. }) => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        last.map_or(Ok(()), |error| Err(Failure::ForNow(error)))
    }
}

fn manifest_of(farm: &Farm, id: &BuildId) -> Option<Manifest> {
    let build = farm.build(id)?;
    match build.state {
        BuildState::Finalizing { verdict } => Some(Manifest::of(farm, build, verdict)),
        _ => None,
    }
}

/// Files the logs of attempts that have ended, those of before the start included.
async fn file_logs(
    farm: Handle,
    logs: Arc<LogStore>,
    mut ended: mpsc::UnboundedReceiver<LeaseId>,
    shutdown: CancellationToken,
) {
    let mut waiting: BTreeSet<LeaseId> = logs.local().into_iter().collect();
    let mut ends = Vec::new();
    let mut tries = 0u32;
    loop {
        let filed = shutdown.run_until_cancelled(file_all(&farm, &logs, std::mem::take(&mut waiting))).await;
        // What is left is found at the next start.
        let Some(failed) = filed else { return };
        tries = if failed.is_empty() { 0 } else { tries.saturating_add(1) };
        let wait = (tries > 0).then(|| Duration::from_millis(RETRY.delay_millis(tries)));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            taken = ended.recv_many(&mut ends, FILING_BATCH_MAX) => match taken {
                // The driver is gone, and with it the controller.
                0 => return shutdown.cancelled().await,
                _ => waiting.extend(ends.drain(..)),
            },
            () = sleep_for(wait) => {}
        }
        waiting.extend(failed);
    }
}

/// Files the logs of these attempts, as far as there are any. Gives back those that are to be tried again.
async fn file_all(farm: &Handle, logs: &LogStore, mut leases: BTreeSet<LeaseId>) -> BTreeSet<LeaseId> {
    leases.retain(|lease| logs.has(*lease));
    if leases.is_empty() {
        return leases;
    }
    let asked = leases.clone();
    let names = farm.read(move |farm, _| asked.into_iter().map(|lease| (lease, name_of(farm, lease))).collect());
    let Ok(names) = names.await else { return leases };
    let names: Vec<(LeaseId, Option<(LogName, u64)>)> = names;
    let filing = names.into_iter().map(|(lease, name)| async move {
        let is_done = file_log(logs, lease, name).await;
        (!is_done).then_some(lease)
    });
    let filing = futures_util::stream::iter(filing).buffer_unordered(FILING_MAX);
    filing.filter_map(std::future::ready).collect().await
}

/// Returns whether there is nothing left to do.
async fn file_log(logs: &LogStore, lease: LeaseId, name: Option<(LogName, u64)>) -> bool {
    let Some((name, log_bytes)) = name else {
        tracing::debug!(%lease, "its attempt runs on; its log is not filed yet");
        return true;
    };
    let filed = logs.file(&name, log_bytes).await;
    if let Err(error) = &filed {
        tracing::warn!(%lease, error = %error_chain(error), "the log cannot be filed; it is tried again");
    }
    filed.is_ok()
}

/// For ever, if there is nothing to wait for.
async fn sleep_for(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// The names of an ended attempt's log, and its length; `None` while it runs, or if the farm does not know it.
fn name_of(farm: &Farm, lease: LeaseId) -> Option<(LogName, u64)> {
    let job = farm.job(lease.job)?;
    let spec = farm.spec(lease.job)?;
    let end = job.attempts.iter().find(|attempt| attempt.number == lease.attempt)?.end.as_ref()?;
    Some((LogName { lease, build: job.build.clone(), job: spec.name.clone() }, end.log_bytes))
}

/// Starts both workers on builds' ends.
pub fn start(
    finalizer: Finalizer,
    logs: Arc<LogStore>,
    ended: mpsc::UnboundedReceiver<LeaseId>,
    shutdown: &CancellationToken,
) -> FuturesUnordered<JoinHandle<()>> {
    let farm = finalizer.farm.clone();
    FuturesUnordered::from_iter([
        task::spawn("finalizer", finalizer.run(shutdown.clone())),
        task::spawn("log filing", file_logs(farm, logs, ended, shutdown.clone())),
    ])
}
