//! Makes a plan: asks the cache what the planner wants to know.

use super::{Claims, SweepError};
use crate::cache::{Cache, CacheError, Entry, PutMode};
use crate::driver::Handle;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use railyard_common::backoff::Backoff;
use railyard_common::id::BuildId;
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_common::retention::Policy;
use railyard_common::time::Millis;
use railyard_core::sweep::{Ask, Listed, Look, PAGE_LEN, Planner, Stop, SweepPlan};
use railyard_service::error_chain;
use std::collections::BTreeSet;
use std::time::Duration;

/// Manifests that are read at a time.
const READERS: usize = 16;
/// Tries of one page or manifest. A store that fails every twentieth request fails one in sixty million so often in a row.
const TRIES: u32 = 6;
/// What the cache gets between them.
const RETRY: Backoff = Backoff { base_millis: 100, max_millis: 5_000 };

/// A plan, and why it may not be carried out, if so.
pub(super) struct Planned {
    pub(super) plan: SweepPlan,
    pub(super) stop: Option<Stop>,
}

/// What a sweep would do now. Every blob that is claimed from here on is left alone by it.
pub(super) async fn plan(
    farm: &Handle,
    cache: &dyn Cache,
    claims: &Claims,
    policy: &Policy,
    grace_millis: u64,
    now: Millis,
) -> Result<Planned, SweepError> {
    for directory in layout::SWEPT {
        mark_end(cache, &layout::end_mark(directory)).await?;
    }
    claims.look();
    let policy = policy.clone();
    let look = farm.read(move |farm, _| Look::of(farm, &policy, grace_millis, now)).await?;
    let mut planner = Planner::new(look, PAGE_LEN);
    loop {
        match planner.ask() {
            Ask::Page { prefix, after } => {
                let page = page(cache, prefix, after.as_ref()).await?;
                let listed = |entry: Entry| Listed { path: entry.path, bytes: entry.size, modified: entry.modified };
                planner.page(page.into_iter().map(listed).collect())?;
            }
            Ask::Manifests(builds) => {
                let mut read = stream::iter(builds).map(|build| manifest(cache, build)).buffered(READERS);
                while let Some((build, bytes)) = read.next().await {
                    planner.manifest(&build, bytes?.as_deref())?;
                }
                drop(read);
                planner.manifests_read();
            }
            Ask::Nothing => break,
        }
    }
    // A build that has ended since the look is not unknown.
    let known = farm.read(|farm, _| farm.builds().map(|build| build.id().clone()).collect::<BTreeSet<_>>()).await?;
    Ok(match planner.end(&known) {
        Ok(plan) => Planned { plan, stop: None },
        Err((stop, plan)) => Planned { plan: *plan, stop: Some(stop) },
    })
}

pub(super) async fn page(cache: &dyn Cache, prefix: &str, after: Option<&RelPath>) -> Result<Vec<Entry>, CacheError> {
    let mut tries = 1;
    loop {
        match cache.list(prefix, after.map(RelPath::as_str), PAGE_LEN).await {
            Err(error) if tries < TRIES => pause(&error, &mut tries).await,
            listed => return listed,
        }
    }
}

/// Whoever lists the cache must find this last.
async fn mark_end(cache: &dyn Cache, path: &RelPath) -> Result<(), CacheError> {
    let mut tries = 1;
    loop {
        let text = Bytes::from_static(b"The last object here: a listing without it was cut short.\n");
        match cache.put(path, text, PutMode::Create).await {
            Ok(_) | Err(CacheError::Conflict { .. }) => return Ok(()),
            Err(error) if tries < TRIES => pause(&error, &mut tries).await,
            Err(error) => return Err(error),
        }
    }
}

async fn manifest(cache: &dyn Cache, build: BuildId) -> (BuildId, Result<Option<Bytes>, CacheError>) {
    let path = layout::build_manifest(&build);
    let mut tries = 1;
    loop {
        match cache.get(&path).await {
            Err(error) if tries < TRIES => pause(&error, &mut tries).await,
            got => return (build, got.map(|got| got.map(|(bytes, _)| bytes))),
        }
    }
}

async fn pause(error: &CacheError, tries: &mut u32) {
    tracing::debug!(error = error_chain(error), "the cache is asked again");
    tokio::time::sleep(Duration::from_millis(RETRY.delay_millis(*tries))).await;
    *tries += 1;
}
