//! Carries a plan out. Everything of it can be done again: what a killed sweep left, the next one finds.

use super::report::Tally;
use super::{Progress, Report, Settings, SweepError, Sweeper};
use crate::cache::CacheError;
use crate::driver::CommandError;
use railyard_common::backoff::Backoff;
use railyard_common::id::BuildId;
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_common::retention::{Keep, Policy};
use railyard_core::sweep::{Gone, GoneKind, SweepPlan, Unpublished};
use railyard_core::{Command, Event, Force};
use railyard_service::error_chain;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Most objects that are deleted together: what S3 takes in one request.
const BATCH: usize = 1_000;
/// Tries of a delete in one sweep.
const TRIES: u32 = 4;
/// What the cache gets between them.
const RETRY: Backoff = Backoff { base_millis: 200, max_millis: 5_000 };

impl Sweeper {
    /// First the tombstones, then what went with those of before.
    pub(super) async fn carry_out(
        &self,
        plan: &SweepPlan,
        by: &str,
        settings: &Settings,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Report, SweepError> {
        let (policy, grace_millis) = (&settings.policy, settings.sweep.grace.millis());
        let rate = settings.sweep.deletes_per_sec;
        let mut tally = Tally::of(plan.digest, &self.metrics);
        tally.reduced(self.reduce(plan, by, policy).await?);
        let mut failed: BTreeSet<BuildId> = BTreeSet::new();
        for one in &plan.reduced {
            match self.finalizer.unpublish(&one.build, &one.paths, grace_millis).await {
                Ok(count) => tally.unpublished(count),
                Err(why) => {
                    tally.failed(why);
                    failed.insert(one.build.clone());
                }
            }
        }
        let started = self.clock.monotonic();
        for batch in plan.gone.chunks(batch_len(rate)) {
            let spent = self.clock.monotonic().saturating_sub(started);
            tokio::time::sleep(pause(rate, tally.report().deleted, spent)).await;
            self.delete(batch, plan, grace_millis, &mut tally, &mut failed).await;
            let report = tally.report();
            progress(Progress { done: report.deleted, of: plan.gone.len() as u64, bytes: report.bytes });
        }
        let swept: Vec<&Unpublished> = plan.reduced.iter().filter(|one| !failed.contains(&one.build)).collect();
        // A list that still had a build which the farm has forgotten would have it for ever.
        let indexer = self.finalizer.indexer();
        for pipeline in swept.iter().map(|one| &one.build.pipeline).collect::<BTreeSet<_>>() {
            if let Err(error) = indexer.write(pipeline, None).await {
                tally.failed(format!("the list of {pipeline}'s builds: {}", error_chain(&error)));
                failed.extend(swept.iter().map(|one| &one.build).filter(|build| build.pipeline == *pipeline).cloned());
            }
        }
        let swept = swept.into_iter().filter(|one| !failed.contains(&one.build));
        let builds = swept.map(|one| (one.build.clone(), one.keep)).collect();
        let events = self.farm.decide(Command::Swept { builds }).await?;
        for event in events {
            if let Event::BuildsForgotten { builds, .. } = event {
                tally.forgotten(builds.len() as u64);
            }
        }
        Ok(tally.end())
    }

    async fn reduce(&self, plan: &SweepPlan, by: &str, policy: &Policy) -> Result<u64, SweepError> {
        let builds = plan.reductions();
        if builds.is_empty() {
            return Ok(0);
        }
        let (by, count) = (by.to_owned(), builds.len() as u64);
        match self.farm.decide(Command::Reduce { builds, by, force: Force::Rules(Arc::new(policy.clone())) }).await {
            Ok(_) => Ok(count),
            Err(CommandError::Refused(refusal)) => Err(SweepError::Outdated(refusal.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete(
        &self,
        batch: &[Gone],
        plan: &SweepPlan,
        grace_millis: u64,
        tally: &mut Tally<'_>,
        failed: &mut BTreeSet<BuildId>,
    ) {
        let blobs = batch.iter().filter_map(|gone| match gone.kind {
            GoneKind::Blob(digest) => Some(digest),
            GoneKind::Log | GoneKind::Record => None,
        });
        // Held until the last try: nobody is told meanwhile that the cache has one of them.
        let deleting = self.claims.delete(blobs);
        let mut left: Vec<&Gone> = Vec::with_capacity(batch.len());
        for gone in batch {
            if gone.kind == GoneKind::Record && gone.build.as_ref().is_some_and(|build| failed.contains(build)) {
                // What is left of its build must be found again: it goes with the next sweep.
                continue;
            }
            let is_wanted = match gone.kind {
                GoneKind::Blob(digest) => !deleting.has(&digest),
                GoneKind::Log | GoneKind::Record => self.came_back(gone, grace_millis).await,
            };
            if is_wanted {
                tally.left();
                continue;
            }
            if let Some(build) = cut_off(gone)
                && let Err(why) = self.finalizer.take_back_unknown(build, &plan.published).await
            {
                tally.failed(why);
                continue;
            }
            left.push(gone);
        }
        let mut errors: Vec<CacheError> = Vec::new();
        for tries in 1..=TRIES {
            if left.is_empty() {
                break;
            }
            let paths: Vec<RelPath> = left.iter().map(|gone| gone.path.clone()).collect();
            let done = self.cache.delete_all(&paths).await;
            errors.clear();
            let mut again = Vec::new();
            for (gone, done) in left.into_iter().zip(done) {
                match done {
                    Ok(()) => tally.deleted(gone),
                    Err(error) => {
                        errors.push(error);
                        again.push(gone);
                    }
                }
            }
            left = again;
            if !left.is_empty() && tries < TRIES {
                tokio::time::sleep(Duration::from_millis(RETRY.delay_millis(tries))).await;
            }
        }
        for (gone, error) in left.into_iter().zip(errors) {
            failed.extend(gone.build.clone());
            tally.failed(format!("{}: {}", gone.path, error_chain(&error)));
        }
    }

    /// Whether an object of a build that nobody knew is one of a build that somebody has submitted since; it may have ended and been
    /// deleted again, and stays for its grace.
    async fn came_back(&self, gone: &Gone, grace_millis: u64) -> bool {
        let Some(build) = gone.build.clone() else { return false };
        let now = self.clock.now();
        let is_kept = move |farm: &railyard_core::Farm, _: &_| {
            farm.build(&build).is_some_and(|build| build.keep_for_now(now, grace_millis) > Keep::Nothing)
        };
        // A controller that stops deletes nothing more.
        self.farm.read(is_kept).await.unwrap_or(true)
    }
}

/// The build that was about to publish what this object says, and was cut off.
fn cut_off(gone: &Gone) -> Option<&BuildId> {
    gone.build.as_ref().filter(|build| gone.kind == GoneKind::Record && gone.path == layout::placing(build))
}

/// Objects that are deleted together: no more than may go in a second.
fn batch_len(rate: u32) -> usize {
    match usize::try_from(rate) {
        Ok(0) | Err(_) => BATCH,
        Ok(rate) => rate.min(BATCH),
    }
}

/// What is left of the time that so many deletes are to take, before the next ones.
fn pause(rate: u32, deleted: u64, spent: Duration) -> Duration {
    match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(deleted as f64 / f64::from(rate)).saturating_sub(spent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many are deleted at what time, in milliseconds, if that itself takes none.
    fn deletes(rate: u32, objects: usize) -> Vec<(u64, u128)> {
        let (mut now, mut deleted) = (Duration::ZERO, 0);
        let batches = vec![(); objects];
        let delete = |batch: &[()]| {
            now += pause(rate, deleted, now);
            deleted += batch.len() as u64;
            (batch.len() as u64, now.as_millis())
        };
        batches.chunks(batch_len(rate)).map(delete).collect()
    }

    #[test]
    fn no_second_has_more_deletes_than_it_may() {
        assert_eq!(deletes(2, 5), [(2, 0), (2, 1_000), (1, 2_000)]);
        assert_eq!(deletes(5_000, 2_500), [(1_000, 0), (1_000, 200), (500, 400)]);
        assert_eq!(deletes(0, 1_500), [(1_000, 0), (500, 0)]);
        assert_eq!(pause(2, 2, Duration::from_secs(3)), Duration::ZERO, "the cache itself is slower");
    }
}
