//! Builds that go into another channel.
//!
//! What a build publishes there is published first, all of it or none: begun by one event, which says what, and ended by another.
//! Only the latter moves the build. A promotion that fails stays on record until what it had published is gone again.

use crate::build::Build;
use crate::event::Event;
use crate::farm::Farm;
use crate::kept::{Promoting, Promotion};
use crate::refusal::Refusal;
use railyard_common::blob::Blob;
use railyard_common::id::{BuildId, ChannelName};
use railyard_common::job::Placement;
use railyard_common::layout::is_publishable;
use railyard_common::path::RelPath;
use railyard_common::retention::Keep;
use railyard_common::time::Millis;
use std::collections::{BTreeMap, BTreeSet};

impl Farm {
    /// What a build has to have published in a channel.
    ///
    /// # Errors
    /// It cannot be promoted, or not into that channel.
    pub fn published_in(&self, id: &BuildId, channel: &ChannelName) -> Result<InChannel, Refusal> {
        let build = self.promotable(id)?;
        let no = |why: String| Refusal::NotPublishable { build: id.clone(), channel: channel.clone(), why };
        let mut paths: BTreeMap<RelPath, Blob> = BTreeMap::new();
        for (job, spec) in build.jobs().zip(&build.plan.jobs) {
            let Some(result) = self.jobs.get(&job).and_then(|job| job.result()) else { continue };
            let placement = Placement::in_channel(&spec.run.outputs, channel);
            for artifact in result.artifacts.iter().filter(|artifact| artifact.published.is_some()) {
                let place = placement.of(&artifact.path).transpose().map_err(|error| no(error.to_string()))?;
                let Some(path) = place.flatten() else { continue };
                if !is_publishable(&path) {
                    return Err(no(format!("{path} is the farm's own")));
                }
                if paths.insert(path.clone(), artifact.blob).is_some_and(|other| other.digest != artifact.blob.digest) {
                    return Err(no(format!("two of its files would be published at {path}")));
                }
            }
        }
        let published: BTreeMap<&RelPath, &Blob> = self.published(build).collect();
        let is_new = |path: &RelPath, blob: &Blob| published.get(path).is_none_or(|there| there.digest != blob.digest);
        let (new, standing) = paths.into_iter().partition(|(path, blob)| is_new(path, blob));
        Ok(InChannel { is_there: build.channel() == channel, new, standing })
    }

    /// Builds of which a promotion has been begun, and neither ended nor forgotten.
    pub fn promoting(&self) -> impl Iterator<Item = (&Build, &Promoting)> {
        self.builds.values().filter_map(|build| Some((build, build.kept.promoting.as_ref()?)))
    }

    fn promotable(&self, id: &BuildId) -> Result<&Build, Refusal> {
        let build = self.there(id)?;
        if build.is_untrusted() {
            return Err(Refusal::IsUntrusted { build: id.clone(), what: "promoted" });
        }
        if !build.is_success() || build.keep() != Keep::All {
            return Err(Refusal::NotPromotable(id.clone()));
        }
        match &build.kept.promoting {
            Some(one) => Err(Refusal::PromotionRuns { build: id.clone(), channel: one.promotion.channel.clone() }),
            None => Ok(build),
        }
    }

    pub(super) fn decide_promote(&self, now: Millis, wanted: Wanted<'_>) -> Result<Vec<Event>, Refusal> {
        let Wanted { build: id, channel, paths, fresh, by } = wanted;
        let build = self.promotable(id)?;
        if build.channel() == channel {
            return Ok(Vec::new());
        }
        let (build, paths) = (id.clone(), paths.clone());
        let promotion = Promotion { at: now, by: by.to_owned(), channel: channel.clone(), paths };
        Ok(vec![match promotion.paths.is_empty() {
            true => Event::BuildPromoted { at: now, build, promotion },
            false => Event::PromotionBegun { at: now, build, promotion, fresh: fresh.clone() },
        }])
    }

    pub(super) fn decide_end_promotion(&self, now: Millis, id: &BuildId, error: Option<&str>) -> Vec<Event> {
        let Some(promotion) = self.builds.get(id).and_then(Build::on_its_way) else { return Vec::new() };
        let build = id.clone();
        vec![match error {
            None => Event::BuildPromoted { at: now, build, promotion: Promotion { at: now, ..promotion.clone() } },
            Some(why) => Event::PromotionFailed { at: now, build, why: why.to_owned() },
        }]
    }

    pub(super) fn decide_forget_promotion(&self, now: Millis, id: &BuildId) -> Vec<Event> {
        let promoting = self.builds.get(id).and_then(|build| build.kept.promoting.as_ref());
        match promoting {
            Some(Promoting { failed: Some(_), .. }) => vec![Event::PromotionForgotten { at: now, build: id.clone() }],
            _ => Vec::new(),
        }
    }
}

/// What is published of a build once it is in a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InChannel {
    /// It is in it now.
    pub is_there: bool,
    /// What is published for that.
    pub new: BTreeMap<RelPath, Blob>,
    /// What it has published already.
    pub standing: BTreeMap<RelPath, Blob>,
}

/// What a promotion is to be.
pub(super) struct Wanted<'a> {
    pub build: &'a BuildId,
    pub channel: &'a ChannelName,
    pub paths: &'a BTreeMap<RelPath, Blob>,
    pub fresh: &'a BTreeSet<RelPath>,
    pub by: &'a str,
}
