//! What a worker is told to run: a job with its image and inputs resolved to what earlier jobs left.

use crate::build::Build;
use crate::farm::Farm;
use crate::job::{Job, JobResult};
use railyard_common::id::{BuildId, JobName, LeaseId, StepName};
use railyard_common::job::{ImageSource, JobSpec};
use railyard_common::order::{InputArtifact, Order, OrderImage};
use railyard_common::path::Glob;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

impl Farm {
    /// The order for a live lease: the job with its image and inputs resolved. The traceparent is left to the shell.
    ///
    /// # Errors
    /// What an earlier job did not leave, though the job wants it; for people.
    pub fn order(&self, lease: LeaseId) -> Result<Order, String> {
        let gone = || format!("job {} is gone", lease.job);
        let job = self.jobs.get(&lease.job).ok_or_else(gone)?;
        let build = self.builds.get(&job.build).ok_or_else(gone)?;
        let spec = build.plan.jobs.get(job.index).ok_or_else(gone)?;
        Ok(Order {
            lease,
            build: job.build.clone(),
            job: spec.name.clone(),
            ttl_millis: u32::try_from(spec.lease_ttl_secs.saturating_mul(1000)).unwrap_or(u32::MAX),
            image: self.order_image(build, &spec.image)?,
            inputs: self.order_inputs(build, spec)?,
            run: spec.run.clone(),
            traceparent: String::new(),
        })
    }

    /// What a job left: one of `own`, or of another build.
    fn left_by(&self, own: &Build, build: Option<&BuildId>, name: &JobName) -> Option<&JobResult> {
        match build {
            Some(other) => self.used_job(other, name).map(|(_, result)| result),
            None => own.job_id(name).and_then(|id| self.jobs.get(&id)).and_then(Job::result),
        }
    }

    fn order_image(&self, build: &Build, source: &ImageSource) -> Result<OrderImage, String> {
        match source {
            ImageSource::Registry(reference) => Ok(OrderImage::Registry(reference.clone())),
            ImageSource::Job(name) => {
                let image = self.left_by(build, None, name).and_then(|result| result.image.clone());
                image
                    .map(OrderImage::Image)
                    .ok_or_else(|| format!("job {name} left no image; set `commit: true` on its step"))
            }
            ImageSource::Build { build: other, job } => {
                let image = self.left_by(build, Some(other), job).and_then(|result| result.image.clone());
                image.map(OrderImage::Image).ok_or_else(|| format!("the image of job {job} of build {other} is gone"))
            }
            ImageSource::Import { build: other, job, artifact } => {
                let matcher = artifact.matcher();
                let there = self.left_by(build, other.as_ref(), job).map_or(&[][..], |result| &result.artifacts);
                let mut found = there.iter().filter(|a| matcher.is_match(a.path.as_str()));
                let job = of(job, other.as_ref());
                match (found.next(), found.next()) {
                    (Some(one), None) => Ok(OrderImage::Import(one.clone())),
                    (None, _) => Err(format!("job {job} left no artifact `{artifact}` to import as the image")),
                    (Some(one), Some(two)) => Err(format!(
                        "`{artifact}` matches {} and {} of job {job}; name one to import",
                        one.path, two.path
                    )),
                }
            }
        }
    }

    fn order_inputs(&self, build: &Build, spec: &JobSpec) -> Result<Vec<InputArtifact>, String> {
        let mut inputs = Vec::new();
        let mut matched: BTreeMap<(Option<&BuildId>, &StepName, &Glob), bool> = BTreeMap::new();
        for input in &spec.inputs {
            let other = input.build.as_ref();
            let there = self.left_by(build, other, &input.job).map_or(&[][..], |result| &result.artifacts);
            let mut wanted = BTreeSet::new();
            for glob in &input.artifacts {
                let matcher = glob.matcher();
                let hits: Vec<usize> =
                    (0..there.len()).filter(|index| matcher.is_match(there[*index].path.as_str())).collect();
                *matched.entry((other, &input.job.step, glob)).or_default() |= !hits.is_empty();
                wanted.extend(hits);
            }
            inputs.extend(wanted.into_iter().map(|index| InputArtifact {
                mount_path: format!("{}/{}", input.mount_path.trim_end_matches('/'), there[index].path),
                artifact: there[index].clone(),
            }));
        }
        // A glob may match in one variant of a matrix and not in another, but somewhere it must.
        match matched.into_iter().find(|(_, found)| !found) {
            Some(((other, step, glob), _)) => {
                Err(format!("no artifact of step {} matches the input `{glob}`", of(step, other)))
            }
            None => Ok(inputs),
        }
    }
}

/// A job or step, and the build that it is of, if that is another one.
fn of(name: impl Display, build: Option<&BuildId>) -> String {
    build.map_or_else(|| name.to_string(), |build| format!("{name} of build {build}"))
}
