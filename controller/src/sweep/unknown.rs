//! Deletes a build that only the cache knows: one that was built after the backup from which the journal came.

use super::metrics::Asked;
use super::plan::{Planned, page};
use super::{SweepError, Sweeper};
use crate::audit::{Act, By, Entry};
use crate::cache::CacheError;
use crate::driver::CommandError;
use crate::index::News;
use railyard_common::id::{BuildId, ChannelName};
use railyard_common::path::RelPath;
use railyard_common::{layout, tier};
use railyard_core::Refusal;
use railyard_core::sweep::{PAGE_LEN, Stop};
use railyard_service::error_chain;

impl Sweeper {
    /// Nobody waits for a grace: what it has published, its place in the lists, its logs. Its manifest goes last: until then the build is
    /// found, and all of this can be done again.
    pub(super) async fn delete_unknown(&self, build: &BuildId, by: By, why: String) -> Result<(), SweepError> {
        let (channel, paths) = match self.plan(Asked::Operator).await {
            Ok(Planned { stop: Some(stop), .. }) => return Err(stop.into()),
            Ok(Planned { plan, .. }) => plan.unknown.get(build).cloned().ok_or_else(|| unknown(build))?,
            // It may have published something, but nobody can say what.
            Err(SweepError::Stopped(Stop::BadManifest { build: bad, .. })) if bad == *build => {
                (ChannelName::usual().clone(), Vec::new())
            }
            Err(error) => return Err(error),
        };
        self.is_still_unknown(build).await?;
        let begun = Entry::new(Act::SweepBegin).by(by).target(build.to_string());
        self.audit.record(begun.detail("published", paths.len().to_string())).await?;
        let grace = self.settings.borrow().sweep.grace.millis();
        self.finalizer.unpublish(build, &paths, grace).await.map_err(SweepError::Left)?;
        // Nobody has ever listed an untrusted build.
        if !tier::is_untrusted(&build.version) {
            let news = News::Deleted { build: build.clone(), channel, at: self.clock.now(), why };
            let listed = self.finalizer.indexer().write(&build.pipeline, Some(&news)).await;
            listed.map_err(|error| left("the list of builds cannot be written", &error))?;
        }
        self.delete_logs(build).await.map_err(|error| left("its logs cannot be deleted", &error))?;
        // A cache that is slow may have let the farm take on another build of that name.
        self.is_still_unknown(build).await?;
        for record in [layout::placing(build), layout::build_manifest(build)] {
            let deleted = self.cache.delete(&record).await;
            deleted.map_err(|error| left(&format!("{record} cannot be deleted"), &error))?;
        }
        Ok(())
    }

    async fn is_still_unknown(&self, build: &BuildId) -> Result<(), SweepError> {
        let asked = build.clone();
        match self.farm.read(move |farm, _| farm.build(&asked).is_some()).await? {
            true => Err(unknown(build)),
            false => Ok(()),
        }
    }

    /// Or else they would be taken for those of the next build of that name.
    async fn delete_logs(&self, build: &BuildId) -> Result<(), CacheError> {
        let directory = layout::logs(build);
        let mut after: Option<RelPath> = None;
        loop {
            let logs = page(&*self.cache, directory.as_str(), after.as_ref()).await?;
            for log in &logs {
                self.cache.delete(&log.path).await?;
            }
            match logs.last() {
                Some(last) if logs.len() == PAGE_LEN => after = Some(last.path.clone()),
                _ => return Ok(()),
            }
        }
    }
}

fn unknown(build: &BuildId) -> SweepError {
    CommandError::Refused(Refusal::UnknownBuild(build.clone())).into()
}

fn left(what: &str, error: &dyn std::error::Error) -> SweepError {
    SweepError::Left(format!("{what}: {}", error_chain(error)))
}
