//! The end of a build: published paths, the manifest, the index; then the farm is told.
//!
//! Every part can be done again: a controller that dies in the middle does all of it once more after its start.

mod manifest;

use crate::cache::{Cache, CacheError, PutMode};
use crate::driver::{CommandError, Handle};
use crate::logs::{LogName, LogStore};
use bytes::Bytes;
use manifest::{BuildIndex, IndexEntry, Latest, Manifest};
use railyard_common::backoff::Backoff;
use railyard_common::blob::Artifact;
use railyard_common::id::{BuildId, LeaseId};
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_core::{BuildState, Command, Farm, Verdict};
use railyard_service::{error_chain, task};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// How long the cache gets before the next try.
const RETRY: Backoff = Backoff { base_millis: 500, max_millis: 30_000 };
/// Tries of a conditional put before it counts as the cache's failure: writers of one index are few.
const INDEX_TRIES: u32 = 20;
/// Most builds that a pipeline's index lists; retention keeps about fifty.
const INDEX_MAX: usize = 1_000;

/// The file of digests beside published files, in the form of sha256sum.
const SUMS: &str = "SHA256SUMS";

/// Ends builds.
pub struct Finalizer {
    farm: Handle,
    cache: Arc<dyn Cache>,
    wake: Arc<Notify>,
}

/// What stands in the way for good, or for now.
enum Failure {
    ForGood(String),
    ForNow(CacheError),
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Conflict { .. } | CacheError::BadPath { .. } => Self::ForGood(error_chain(&error)),
            other => Self::ForNow(other),
        }
    }
}

impl Finalizer {
    /// Ends builds of `farm` whenever `wake` is notified.
    pub fn new(farm: Handle, cache: Arc<dyn Cache>, wake: Arc<Notify>) -> Self {
        Self { farm, cache, wake }
    }

    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tries = 0u32;
        loop {
            let waiting = self.farm.read(|farm, _| farm.finalizing().map(|build| build.id().clone()).collect()).await;
            let Ok(waiting) = waiting else { return };
            let waiting: Vec<BuildId> = waiting;
            let mut failed = false;
            for build in waiting {
                failed |= !self.finalize(&build).await;
            }
            tries = if failed { tries.saturating_add(1) } else { 0 };
            let again = async {
                if failed {
                    tokio::time::sleep(Duration::from_millis(RETRY.delay_millis(tries))).await;
                } else {
                    self.wake.notified().await;
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = again => {}
            }
        }
    }

    /// Returns whether the build has ended.
    async fn finalize(&self, id: &BuildId) -> bool {
        let wanted = id.clone();
        let manifest = self.farm.read(move |farm, _| manifest_of(farm, &wanted)).await;
        let Ok(Some(manifest)) = manifest else { return true };
        let error = match self.write(id, manifest).await {
            Ok(()) => None,
            Err(Failure::ForGood(why)) => Some(why),
            Err(Failure::ForNow(error)) => {
                tracing::error!(build = %id, error = %error_chain(&error), "the build cannot be written out; it is tried again");
                let (build, why) = (id.clone(), error_chain(&error));
                self.farm.note_finalize_error(build, why).await;
                return false;
            }
        };
        match self.farm.decide(Command::Finalized { build: id.clone(), error }).await {
            Ok(_) => true,
            Err(CommandError::Refused(_)) => true,
            Err(CommandError::Journal(_) | CommandError::Stopping) => false,
        }
    }

    async fn write(&self, id: &BuildId, mut manifest: Manifest) -> Result<(), Failure> {
        let published = if manifest.verdict == Verdict::Succeeded { self.publish(&manifest).await } else { Ok(()) };
        if let Err(Failure::ForGood(why)) = &published {
            manifest.fail(why);
        }
        if let Err(failure @ Failure::ForNow(_)) = published {
            return Err(failure);
        }
        let path = layout::build_manifest(id);
        self.cache.put(&path, json(&manifest), PutMode::Overwrite).await?;
        let entry = IndexEntry::of(&manifest);
        self.update(&layout::builds_index(&id.pipeline), |old| BuildIndex::with(old, entry.clone(), INDEX_MAX)).await?;
        if manifest.verdict == Verdict::Succeeded {
            self.update(&layout::latest(&id.pipeline), |old| Latest::newer(old, &manifest)).await?;
        }
        published
    }

    /// Published paths: looked at first, so that a conflict leaves none of them behind.
    async fn publish(&self, manifest: &Manifest) -> Result<(), Failure> {
        let mut paths: BTreeMap<&RelPath, &Artifact> = BTreeMap::new();
        for artifact in manifest.jobs.iter().flat_map(|job| &job.artifacts) {
            let Some(path) = &artifact.published else { continue };
            if let Some(other) = paths.insert(path, artifact)
                && other.blob.digest != artifact.blob.digest
            {
                let why = format!("{} and {} would both be published at {path}", other.path, artifact.path);
                return Err(Failure::ForGood(why));
            }
        }
        let mut fresh = Vec::new();
        for (path, artifact) in &paths {
            // What is there already is either the same, from an earlier try, or a conflict.
            match self.cache.get_stream(path).await? {
                Some(_) => self.cache.publish(&artifact.blob, path).await?,
                None => fresh.push((path, artifact)),
            }
        }
        for (path, artifact) in fresh {
            self.cache.publish(&artifact.blob, path).await?;
        }
        let mut directories: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
        for (path, artifact) in &paths {
            let Some((directory, name)) = path.as_str().rsplit_once('/') else { continue };
            directories.entry(directory).or_default().insert(name.to_owned(), artifact.blob.digest.hex());
        }
        for (directory, sums) in directories {
            // The pipeline made its own: it is published, and so it stays as it is.
            if sums.contains_key(SUMS) {
                continue;
            }
            let Ok(path) = format!("{directory}/{SUMS}").parse() else { continue };
            self.update_bytes(&path, |old| merge_sums(old, &sums)).await?;
        }
        Ok(())
    }

    async fn update<T, F>(&self, path: &RelPath, next: F) -> Result<(), Failure>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
        F: Fn(Option<T>) -> T,
    {
        self.update_bytes(path, |old| {
            // An index that cannot be read is made anew from here: it is derived, the manifests are the truth.
            let old = old.and_then(|bytes| serde_json::from_slice(bytes).ok());
            json(&next(old))
        })
        .await
    }

    /// Read, change, put if nobody else has put meanwhile.
    async fn update_bytes(&self, path: &RelPath, next: impl Fn(Option<&[u8]>) -> Bytes) -> Result<(), Failure> {
        let mut last = None;
        for _ in 0..INDEX_TRIES {
            let old = self.cache.get(path).await?;
            let (old, etag) = old.map_or((None, None), |(bytes, etag)| (Some(bytes), Some(etag)));
            let new = next(old.as_deref());
            if old.as_ref() == Some(&new) {
                return Ok(());
            }
            match self.cache.put(path, new, PutMode::Match(etag)).await {
                Ok(_) => return Ok(()),
                Err(error @ CacheError::Conflict { .. }) => last = Some(error),
                Err(error) => return Err(Failure::ForNow(error)),
            }
        }
        last.map_or(Ok(()), |error| Err(Failure::ForNow(error)))
    }
}

fn json<T: serde::Serialize>(value: &T) -> Bytes {
    let mut bytes = serde_json::to_vec_pretty(value).expect("manifests are plain JSON");
    bytes.push(b'\n');
    bytes.into()
}

/// Lines of `SHA256SUMS`: those that stand, and the new ones.
fn merge_sums(old: Option<&[u8]>, sums: &BTreeMap<String, String>) -> Bytes {
    let old = String::from_utf8_lossy(old.unwrap_or_default()).into_owned();
    let mut lines: BTreeMap<&str, &str> =
        old.lines().filter_map(|line| line.split_once("  ")).map(|(sum, name)| (name, sum)).collect();
    lines.extend(sums.iter().map(|(name, sum)| (name.as_str(), sum.as_str())));
    lines.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect::<String>().into()
}

fn manifest_of(farm: &Farm, id: &BuildId) -> Option<Manifest> {
    let build = farm.build(id)?;
    match build.state {
        BuildState::Finalizing { verdict } => Some(Manifest::of(farm, build, verdict)),
        _ => None,
    }
}

/// Files the logs of attempts that have ended, those of before the start included.
pub async fn file_logs(
    farm: Handle,
    logs: Arc<LogStore>,
    mut ended: mpsc::UnboundedReceiver<LeaseId>,
    shutdown: CancellationToken,
) {
    let mut waiting: BTreeSet<LeaseId> = logs.local().into_iter().collect();
    let mut tries = 0u32;
    loop {
        let mut failed = BTreeSet::new();
        for lease in std::mem::take(&mut waiting) {
            match name_of(&farm, lease).await {
                Some((name, log_bytes)) => {
                    if let Err(error) = logs.file(&name, log_bytes).await {
                        tracing::warn!(%lease, error = %error_chain(&error), "the log cannot be filed; it is tried again");
                        failed.insert(lease);
                    }
                }
                None => tracing::debug!(%lease, "its attempt runs on; its log is not filed yet"),
            }
        }
        tries = if failed.is_empty() { 0 } else { tries.saturating_add(1) };
        let retry = async {
            if tries == 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(RETRY.delay_millis(tries))).await;
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            lease = ended.recv() => match lease {
                Some(lease) => { waiting.insert(lease); }
                None => return,
            },
            () = retry => {}
        }
        waiting.extend(failed);
    }
}

/// The names of an ended attempt's log, and its length; `None` while it runs, or if the farm does not know it.
async fn name_of(farm: &Handle, lease: LeaseId) -> Option<(LogName, u64)> {
    let found = farm.read(move |farm, _| {
        let job = farm.job(lease.job)?;
        let spec = farm.spec(lease.job)?;
        let end = job.attempts.iter().find(|attempt| attempt.number == lease.attempt)?.end.as_ref()?;
        Some((LogName { lease, build: job.build.clone(), job: spec.name.clone() }, end.log_bytes))
    });
    found.await.ok().flatten()
}

/// Starts both workers on builds' ends.
pub fn start(
    finalizer: Finalizer,
    logs: Arc<LogStore>,
    ended: mpsc::UnboundedReceiver<LeaseId>,
    shutdown: &CancellationToken,
) -> Vec<tokio::task::JoinHandle<()>> {
    let farm = finalizer.farm.clone();
    vec![
        task::spawn("finalizer", finalizer.run(shutdown.clone())),
        task::spawn("log filing", file_logs(farm, logs, ended, shutdown.clone())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_merged_and_sorted() {
        let new = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let first = merge_sums(None, &new);
        assert_eq!(&first[..], b"1  a\n2  b\n");
        let more = BTreeMap::from([("c".to_owned(), "3".to_owned())]);
        assert_eq!(&merge_sums(Some(&first), &more)[..], b"1  a\n2  b\n3  c\n");
        assert_eq!(merge_sums(Some(&first), &new), first);
    }
}
