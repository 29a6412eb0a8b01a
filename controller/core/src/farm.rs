//! The whole state, and how to read it.

use crate::build::{Build, BuildState};
use crate::decide::is_due;
use crate::job::{Job, JobState};
use crate::worker::{Worker, shortages};
use railyard_common::blob::Artifact;
use railyard_common::id::{BuildId, JobId, JobName, LeaseId, PipelineName, StepName, WorkerName};
use railyard_common::job::{ImageSource, JobSpec};
use railyard_common::order::{InputArtifact, Order, OrderImage};
use railyard_common::path::Glob;
use railyard_common::platform::Platform;
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The place of a queued job: longest remaining path first, then the oldest.
pub(crate) type Rank = (Reverse<u32>, JobId);

/// Every build, job and worker that the farm knows.
///
/// **Invariant:** `queues` holds exactly the jobs in [`JobState::Queued`], and every worker's `reserved` is the sum over its `leases`.
/// [`Farm::check`] proves both.
#[derive(Clone, Debug, Default)]
pub struct Farm {
    pub(crate) builds: BTreeMap<BuildId, Build>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) workers: BTreeMap<WorkerName, Worker>,
    pub(crate) keys: BTreeMap<String, BuildId>,
    pub(crate) next_job: u64,
    pub(crate) queues: BTreeMap<Platform, BTreeSet<Rank>>,
}

/// The state as a snapshot holds it; what can be derived is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    builds: Vec<Build>,
    jobs: Vec<(JobId, Job)>,
    workers: Vec<Worker>,
    keys: BTreeMap<String, BuildId>,
    next_job: u64,
}

impl Farm {
    /// The state as a snapshot.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            builds: self.builds.values().cloned().collect(),
            jobs: self.jobs.iter().map(|(id, job)| (*id, job.clone())).collect(),
            workers: self.workers.values().cloned().collect(),
            keys: self.keys.clone(),
            next_job: self.next_job,
        }
    }

    /// The state that a snapshot holds.
    pub fn restore(snapshot: Snapshot) -> Self {
        let mut farm = Self {
            builds: snapshot.builds.into_iter().map(|build| (build.id().clone(), build)).collect(),
            jobs: snapshot.jobs.into_iter().collect(),
            workers: snapshot.workers.into_iter().map(|worker| (worker.offer.name.clone(), worker)).collect(),
            keys: snapshot.keys,
            next_job: snapshot.next_job,
            queues: BTreeMap::new(),
        };
        let queued: Vec<JobId> = farm
            .jobs
            .iter()
            .filter(|(_, job)| matches!(job.state, JobState::Queued { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in queued {
            farm.enqueue(id);
        }
        farm
    }

    /// A build.
    pub fn build(&self, id: &BuildId) -> Option<&Build> {
        self.builds.get(id)
    }

    /// Every build, by name.
    pub fn builds(&self) -> impl Iterator<Item = &Build> {
        self.builds.values()
    }

    /// The newest build of a pipeline.
    pub fn newest(&self, pipeline: &PipelineName) -> Option<&Build> {
        self.builds.values().filter(|build| build.id().pipeline == *pipeline).max_by_key(|build| build.first_job)
    }

    /// The build that was submitted under a key.
    pub fn by_key(&self, key: &str) -> Option<&BuildId> {
        self.keys.get(key)
    }

    /// A job.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// The number of a build's job.
    pub fn job_id(&self, build: &Build, name: &JobName) -> Option<JobId> {
        build.plan.jobs.iter().position(|spec| spec.name == *name).map(|index| JobId(build.first_job.0 + index as u64))
    }

    /// What a job is to do.
    pub fn spec(&self, id: JobId) -> Option<&JobSpec> {
        let job = self.jobs.get(&id)?;
        self.builds.get(&job.build)?.plan.jobs.get(job.index)
    }

    /// Every worker, by name.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// A worker.
    pub fn worker(&self, name: &WorkerName) -> Option<&Worker> {
        self.workers.get(name)
    }

    /// The worker that holds a lease now.
    pub fn holder(&self, lease: LeaseId) -> Option<&WorkerName> {
        let job = self.jobs.get(&lease.job)?;
        match &job.state {
            JobState::Leased { worker } if job.live_lease(lease.job) == Some(lease) => Some(worker),
            _ => None,
        }
    }

    /// Every live lease.
    pub fn live_leases(&self) -> impl Iterator<Item = LeaseId> {
        self.workers.values().flat_map(|worker| worker.leases.iter().copied())
    }

    /// How long a live lease lives without a heartbeat.
    pub fn ttl_millis(&self, lease: LeaseId) -> Option<u64> {
        self.spec(lease.job).map(|spec| spec.lease_ttl_secs.saturating_mul(1000))
    }

    /// Builds whose manifest is to be written.
    pub fn finalizing(&self) -> impl Iterator<Item = &Build> {
        self.builds.values().filter(|build| matches!(build.state, BuildState::Finalizing { .. }))
    }

    /// The earliest end of a backoff after `now`, if a job waits for one.
    pub fn next_backoff_end(&self, now: Millis) -> Option<Millis> {
        let ends = self.queues.values().flatten().filter_map(|(_, id)| match self.jobs.get(id).map(|job| &job.state) {
            Some(JobState::Queued { not_before, .. }) if !is_due(*not_before, now) => Some(*not_before),
            _ => None,
        });
        ends.min()
    }

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

    fn artifacts_of(&self, build: &Build, name: &JobName) -> &[Artifact] {
        let result = self.job_id(build, name).and_then(|id| self.jobs.get(&id)).and_then(Job::result);
        result.map_or(&[], |result| &result.artifacts)
    }

    fn order_image(&self, build: &Build, source: &ImageSource) -> Result<OrderImage, String> {
        match source {
            ImageSource::Registry(reference) => Ok(OrderImage::Registry(reference.clone())),
            ImageSource::Job(name) => {
                let job = self.job_id(build, name).and_then(|id| self.jobs.get(&id));
                let image = job.and_then(Job::result).and_then(|result| result.image.clone());
                image
                    .map(OrderImage::Image)
                    .ok_or_else(|| format!("job {name} left no image; set `commit: true` on its step"))
            }
            ImageSource::Import { job, artifact } => {
                let matcher = artifact.matcher();
                let mut found = self.artifacts_of(build, job).iter().filter(|a| matcher.is_match(a.path.as_str()));
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
        let mut matched: BTreeMap<(&StepName, &Glob), bool> = BTreeMap::new();
        for input in &spec.inputs {
            let there = self.artifacts_of(build, &input.job);
            let mut wanted = BTreeSet::new();
            for glob in &input.artifacts {
                let matcher = glob.matcher();
                let hits: Vec<usize> =
                    (0..there.len()).filter(|index| matcher.is_match(there[*index].path.as_str())).collect();
                *matched.entry((&input.job.step, glob)).or_default() |= !hits.is_empty();
                wanted.extend(hits);
            }
            inputs.extend(wanted.into_iter().map(|index| InputArtifact {
                mount_path: format!("{}/{}", input.mount_path.trim_end_matches('/'), there[index].path),
                artifact: there[index].clone(),
            }));
        }
        // A glob may match in one variant of a matrix and not in another, but somewhere it must.
        match matched.into_iter().find(|(_, found)| !found) {
            Some(((step, glob), _)) => Err(format!("no artifact of step {step} matches the input `{glob}`")),
            None => Ok(inputs),
        }
    }

    /// Why a job waits, for people; empty if it does not.
    pub fn why_waiting(&self, id: JobId, now: Millis) -> String {
        let (Some(job), Some(spec)) = (self.jobs.get(&id), self.spec(id)) else { return String::new() };
        match &job.state {
            JobState::Blocked { .. } => {
                let build = &self.builds[&job.build];
                let unmet = spec.needs.iter().filter(|need| {
                    self.job_id(build, need).and_then(|id| self.jobs.get(&id)).is_none_or(|job| job.result().is_none())
                });
                format!("waits for {}", unmet.map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
            JobState::Queued { not_before, .. } if !is_due(*not_before, now) => {
                format!("tries again in {} s", not_before.since(now).div_ceil(1000))
            }
            JobState::Queued { .. } => self.why_unplaced(spec),
            JobState::Skipped { because } => format!("{because} did not succeed"),
            _ => String::new(),
        }
    }

    /// Why no worker takes `spec` now.
    pub fn why_unplaced(&self, spec: &JobSpec) -> String {
        if let Some(nobody) = self.why_never(spec) {
            return nobody;
        }
        let able =
            self.workers.values().filter(|worker| worker.takes_leases() && worker.offer.objection(spec).is_none());
        let reasons: Vec<String> = able
            .filter_map(|worker| {
                let short = shortages(&spec.run.resources, &worker.free());
                let (wanted, free) = short.first()?;
                Some(format!("needs {wanted}; {} has {free} free", worker.offer.name))
            })
            .collect();
        if reasons.is_empty() { "about to be leased".to_owned() } else { reasons.join("; ") }
    }

    /// Why no connected worker could ever run `spec`; `None` if one could.
    pub fn why_never(&self, spec: &JobSpec) -> Option<String> {
        let (online, draining): (Vec<&Worker>, Vec<&Worker>) =
            self.workers.values().filter(|worker| worker.online).partition(|worker| worker.takes_leases());
        match (online.is_empty(), draining.is_empty()) {
            (true, true) => return Some("no worker is connected".to_owned()),
            (true, false) => return Some("every connected worker is draining".to_owned()),
            (false, _) => {}
        }
        let platform = spec.name.platform;
        let offers = |worker: &&&Worker| worker.offer.offers(platform).is_some();
        if online.iter().find(offers).is_none() {
            return Some(match draining.iter().find(offers) {
                Some(worker) => {
                    format!("{} offers {platform} and is draining; no other worker does", worker.offer.name)
                }
                None => format!("no connected worker offers {platform}"),
            });
        }
        let objections: Vec<String> = online.iter().filter_map(|worker| worker.offer.objection(spec)).collect();
        (objections.len() == online.len()).then(|| objections.join("; "))
    }

    pub(crate) fn enqueue(&mut self, id: JobId) {
        let (Some(platform), Some(job)) = (self.spec(id).map(|spec| spec.name.platform), self.jobs.get(&id)) else {
            return;
        };
        self.queues.entry(platform).or_default().insert((Reverse(job.path_len), id));
    }

    pub(crate) fn dequeue(&mut self, id: JobId) {
        let (Some(platform), Some(job)) = (self.spec(id).map(|spec| spec.name.platform), self.jobs.get(&id)) else {
            return;
        };
        let rank = (Reverse(job.path_len), id);
        if let Some(queue) = self.queues.get_mut(&platform) {
            queue.remove(&rank);
        }
    }
}
