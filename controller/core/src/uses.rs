//! Other builds that a build takes images and artifacts from.
//!
//! Only a build that has succeeded, and of which everything is kept, can be used: a success is final, so what its jobs left stays
//! as it is for as long as somebody uses it.

use crate::build::{Build, BuildState, Verdict};
use crate::farm::Farm;
use crate::job::{Job, JobResult};
use crate::refusal::Refusal;
use railyard_common::build_ref::{BuildRef, UsedJob, Which};
use railyard_common::id::{BuildId, ChannelName, JobId, JobName, PipelineName, StepName};
use railyard_common::job::{ImageSource, JobSpec};
use railyard_common::plan::Plan;
use railyard_common::retention::Keep;
use std::collections::{BTreeMap, BTreeSet};

/// The word that means the newest success wherever a tag could stand.
const LATEST: &str = "latest";

impl Farm {
    /// The build that is meant, if one that is `untrusted` or not may use it.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn usable_build(&self, reference: &BuildRef, untrusted: bool) -> Result<&Build, String> {
        let BuildRef { pipeline, which } = reference;
        match which {
            Which::Named(name) => {
                let id = BuildId { pipeline: pipeline.clone(), version: name.clone() };
                if self.builds.contains_key(&id) {
                    return self.usable(&id, untrusted);
                }
                if let Some(tagged) = name.as_str().parse().ok().and_then(|tag| self.tagged(pipeline, &tag)) {
                    return self.usable(tagged.id(), untrusted);
                }
                if name.as_str() == LATEST {
                    return self.newest_usable(pipeline, None);
                }
                Err(format!("there is no build `{id}`, and no build of {pipeline} has that tag"))
            }
            Which::Newest => self.newest_usable(pipeline, None),
            Which::NewestOf(channel) => self.newest_usable(pipeline, Some(channel)),
        }
    }

    /// The newest success. Whoever means an untrusted one has to name it.
    fn newest_usable(&self, pipeline: &PipelineName, channel: Option<&ChannelName>) -> Result<&Build, String> {
        let all = self.builds.values().filter(|build| build.id().pipeline == *pipeline && !build.is_untrusted());
        let good = all.filter(|build| build.is_success() && build.keep() == Keep::All);
        let of_channel = good.filter(|build| channel.is_none_or(|channel| build.channel() == channel));
        of_channel.max_by_key(|build| build.first_job).ok_or_else(|| match channel {
            Some(channel) => format!("no build of pipeline `{pipeline}` has succeeded in the channel `{channel}`"),
            None => format!("no build of pipeline `{pipeline}` has succeeded"),
        })
    }

    fn usable(&self, id: &BuildId, untrusted: bool) -> Result<&Build, String> {
        let build = self.builds.get(id).ok_or_else(|| format!("there is no build `{id}`"))?;
        let fault = match (&build.state, build.keep()) {
            (_, Keep::Nothing) => "was deleted".to_owned(),
            (_, Keep::Manifest | Keep::Published) => "is kept in part only".to_owned(),
            _ if build.is_untrusted() && !untrusted => "is untrusted, and this one is not".to_owned(),
            _ if build.is_success() => return Ok(build),
            (BuildState::Ended { verdict: Verdict::Cancelled, .. }, _) => {
                "has not succeeded: it was cancelled".to_owned()
            }
            (BuildState::Ended { .. }, _) => "has not succeeded: it has failed".to_owned(),
            _ => "has not succeeded: it has not ended".to_owned(),
        };
        Err(format!("build `{id}` {fault}"))
    }

    /// Refuses a plan that takes something from a build that cannot be used. Whoever made the plan has looked at artifacts: what
    /// a success left does not change.
    pub(crate) fn check_uses(&self, plan: &Plan) -> Result<(), Refusal> {
        if let Some(build) =
            plan.jobs.iter().flat_map(JobSpec::uses).map(|(build, _)| build).find(|build| !plan.uses.contains(build))
        {
            return Err(Refusal::BadPlan(format!(
                "it takes something from {build}, which is not among those that it uses"
            )));
        }
        for build in &plan.uses {
            self.usable(build, plan.untrusted).map_err(Refusal::CannotUse)?;
        }
        plan.jobs.iter().try_for_each(|spec| self.check_job_uses(plan, spec))
    }

    /// The same of one job.
    pub(crate) fn check_job_uses(&self, plan: &Plan, spec: &JobSpec) -> Result<(), Refusal> {
        for (build, job) in spec.uses() {
            self.usable(build, plan.untrusted).map_err(Refusal::CannotUse)?;
            let Some((_, left)) = self.used_job(build, job) else {
                return Err(Refusal::CannotUse(format!("build `{build}` has no job `{job}`")));
            };
            let is_image =
                matches!(&spec.image, ImageSource::Build { build: of, job: from } if (of, from) == (build, job));
            if is_image && left.image.is_none() {
                return Err(Refusal::CannotUse(format!("job `{job}` of build `{build}` left no image")));
            }
        }
        Ok(())
    }

    /// What the jobs of these steps of a build have left.
    pub fn used_jobs(&self, build: &Build, steps: &BTreeSet<StepName>) -> BTreeMap<JobName, UsedJob> {
        let named = build.jobs().zip(&build.plan.jobs).filter(|(_, spec)| steps.contains(&spec.name.step));
        let left = named.filter_map(|(id, spec)| Some((spec.name.clone(), self.jobs.get(&id)?.result()?)));
        left.map(|(name, result)| {
            let artifacts = result.artifacts.iter().map(|artifact| artifact.path.clone()).collect();
            (name, UsedJob { image: result.image.is_some(), artifacts })
        })
        .collect()
    }

    /// A job of another build, and what it left.
    pub(crate) fn used_job(&self, build: &BuildId, job: &JobName) -> Option<(JobId, &JobResult)> {
        let id = self.builds.get(build)?.job_id(job)?;
        Some((id, self.jobs.get(&id).and_then(Job::result)?))
    }
}
