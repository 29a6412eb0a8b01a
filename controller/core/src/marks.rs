//! What the farm's state says must stay in the cache.

use crate::build::{Build, BuildState, Verdict};
use crate::farm::Farm;
use crate::job::Job;
use railyard_common::blob::{Artifact, Blob};
use railyard_common::digest::Digest;
use railyard_common::id::{PipelineName, TagName};
use railyard_common::path::RelPath;
use railyard_common::planted::{self, Bug};
use railyard_common::priority::Priority;
use railyard_common::retention::{BlobFact, BuildFact, BuildStage, Copies, Keep};
use railyard_common::time::Millis;
use std::collections::BTreeMap;

impl Farm {
    /// What retention must know of every build.
    pub fn facts(&self, copies: Copies) -> Vec<BuildFact> {
        self.builds.values().map(|build| self.fact(build, copies)).collect()
    }

    fn fact(&self, build: &Build, copies: Copies) -> BuildFact {
        let stage = match build.state {
            BuildState::Ended { verdict, at, .. } => BuildStage::Ended { succeeded: verdict == Verdict::Succeeded, at },
            BuildState::Running | BuildState::Cancelling { .. } | BuildState::Finalizing { .. } => BuildStage::Running,
        };
        let publishes = build.publishes();
        let artifacts = self.artifacts(build);
        let artifacts =
            artifacts.map(|one| BlobFact::new(&one.blob, one.published.as_ref().filter(|_| publishes), copies));
        let images = self.image_blobs(build).map(|blob| BlobFact::new(blob, None, copies));
        let promoted = build.kept.promotions.iter().flat_map(|one| &one.paths);
        let promoted = promoted.map(|(path, blob)| BlobFact::new(blob, Some(path), copies));
        BuildFact {
            build: build.id().clone(),
            channel: build.channel().clone(),
            untrusted: build.is_untrusted(),
            number: build.first_job.0,
            stage,
            keep: build.keep(),
            platforms: build.plan.platforms.clone(),
            pins: build.kept.pins.clone(),
            tags: build.kept.tags.clone(),
            promoted: !build.kept.promotions.is_empty(),
            release: build.priority == Priority::Release,
            uses: build.plan.uses.clone(),
            blobs: artifacts.chain(images).chain(promoted).collect(),
        }
    }

    /// What its jobs left.
    pub fn artifacts(&self, build: &Build) -> impl Iterator<Item = &Artifact> {
        build.jobs().filter_map(|id| self.jobs.get(&id)?.result()).flat_map(|result| &result.artifacts)
    }

    fn image_blobs(&self, build: &Build) -> impl Iterator<Item = &Blob> {
        let results = build.jobs().filter_map(|id| self.jobs.get(&id).and_then(Job::result));
        results.flat_map(|result| {
            result.image.iter().flat_map(|image| std::iter::once(&image.config).chain(&image.layers))
        })
    }

    /// Where files of a build lie, or will: what its jobs publish, and what was or is being published for its promotions.
    pub fn published<'a>(&'a self, build: &'a Build) -> impl Iterator<Item = (&'a RelPath, &'a Blob)> {
        let publishes = build.publishes();
        let own = self.artifacts(build).filter(move |_| publishes);
        let own = own.filter_map(|one| Some((one.published.as_ref()?, &one.blob)));
        own.chain(build.kept.promotions.iter().chain(build.on_its_way()).flat_map(|one| &one.paths))
    }

    /// The blobs of which as much is kept of a build.
    pub fn blobs_of<'a>(&'a self, build: &'a Build, keep: Keep) -> impl Iterator<Item = &'a Blob> {
        let all = keep == Keep::All;
        let published = (keep == Keep::Published).then_some(build);
        let whole = all.then_some(build);
        let artifacts = whole.into_iter().flat_map(|build| self.artifacts(build)).map(|one| &one.blob);
        let images = whole.into_iter().flat_map(|build| self.image_blobs(build));
        let promoted = whole.into_iter().flat_map(|build| self.published(build)).map(|(_, blob)| blob);
        let published = published.into_iter().flat_map(|build| self.published(build)).map(|(_, blob)| blob);
        artifacts.chain(images).chain(promoted).chain(published)
    }

    /// Every blob that must stay, in order: of each build what is kept of it for now, and what live leases claim.
    pub fn marks(&self, now: Millis, grace_millis: u64) -> Vec<Digest> {
        let builds = self.builds.values().filter(|build| build.is_ended() || !planted::is(Bug::SweepIgnoresLeases));
        let of_builds = builds.flat_map(|build| self.blobs_of(build, build.keep_for_now(now, grace_millis)));
        let mut marks: Vec<Digest> = of_builds.map(|blob| blob.digest).collect();
        if !planted::is(Bug::ClaimForgotten) {
            marks.extend(self.claims.values().flatten());
        }
        marks.sort_unstable();
        marks.dedup();
        marks
    }

    /// Published paths at which a build that is kept for now has something, or may have; with whether that is settled: of a build that
    /// has not ended it is not, nor of a promotion.
    pub fn paths_in_use(&self, now: Millis, grace_millis: u64) -> BTreeMap<&RelPath, bool> {
        let mut in_use = BTreeMap::new();
        let kept = self.builds.values().filter(|build| build.keep_for_now(now, grace_millis) >= Keep::Published);
        for build in kept {
            let on_its_way = build.on_its_way().map(|one| &one.paths);
            for (path, _) in self.published(build) {
                let is_settled = build.is_ended() && on_its_way.is_none_or(|paths| !paths.contains_key(path));
                *in_use.entry(path).or_insert(false) |= is_settled;
            }
        }
        in_use
    }

    /// The build of a pipeline that has a tag.
    pub fn tagged(&self, pipeline: &PipelineName, tag: &TagName) -> Option<&Build> {
        self.builds.values().find(|build| build.id().pipeline == *pipeline && build.kept.tags.contains(tag))
    }

    /// When the state came back from a backup, if nobody has said since that the sweep may go on.
    pub fn restored_at(&self) -> Option<Millis> {
        self.restored_at
    }
}
