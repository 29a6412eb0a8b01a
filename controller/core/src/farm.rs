//! The whole state, and how to read it.

use crate::access::Access;
use crate::build::{Build, BuildState};
use crate::index::PlanIndex;
use crate::is_due;
use crate::job::{Job, JobState};
use crate::pressure::Pressure;
use crate::queue::{Line, Queues, Waiting};
use crate::worker::Worker;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, JobId, JobName, LeaseId, PipelineName, WorkerName};
use railyard_common::job::{Capacity, JobSpec};
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Every build, job and worker that the farm knows.
///
/// **Invariant:** `queues` holds exactly the jobs in [`JobState::Queued`], every worker's `reserved` is the sum over its `leases`,
/// and so is every pipeline's `usage`; `finalizing` holds exactly the builds in that state. [`Farm::check`] proves it.
#[derive(Clone, Debug, Default)]
pub struct Farm {
    pub(crate) builds: BTreeMap<BuildId, Build>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) workers: BTreeMap<WorkerName, Worker>,
    pub(crate) keys: BTreeMap<String, BuildId>,
    pub(crate) next_job: u64,
    pub(crate) next_ticket: u64,
    /// No attempt has a smaller number from now on; above 1 only after a restore.
    pub(crate) first_attempt: u32,
    pub(crate) access: Access,
    /// Blobs that live leases count on: they may be in no result yet.
    pub(crate) claims: BTreeMap<LeaseId, BTreeSet<Digest>>,
    /// When the state came back from a backup, until somebody says that the sweep may go on.
    pub(crate) restored_at: Option<Millis>,
    // From here on: derived, in no journal and in no snapshot.
    pub(crate) queues: Queues,
    /// Processors, in thousandths, that the running jobs of each pipeline use.
    pub(crate) usage: BTreeMap<PipelineName, u64>,
    pub(crate) unfinished: usize,
    /// Builds in [`BuildState::Finalizing`].
    pub(crate) finalizing: BTreeSet<BuildId>,
    /// Free disk as workers last measured it: soft, like heartbeats.
    pub(crate) free_disk: BTreeMap<WorkerName, Measured>,
    /// Workers under pressure, as they last said: soft as well.
    pub(crate) pressures: BTreeMap<WorkerName, Pressure>,
}

/// The state as a snapshot holds it; what can be derived is left out. It is read in two parts, side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    #[serde(flatten)]
    rest: SnapshotRest,
    #[serde(flatten)]
    jobs: SnapshotJobs,
}

/// The jobs of a snapshot: half of all there is to read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotJobs {
    jobs: Vec<(JobId, Job)>,
}

/// A snapshot without its jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRest {
    builds: Vec<Build>,
    workers: Vec<Worker>,
    keys: BTreeMap<String, BuildId>,
    next_job: u64,
    #[serde(default)]
    next_ticket: u64,
    #[serde(default)]
    first_attempt: u32,
    #[serde(default)]
    access: Access,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    claims: Vec<(LeaseId, BTreeSet<Digest>)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restored_at: Option<Millis>,
}

impl Snapshot {
    /// One that was read in its two parts.
    pub fn join(rest: SnapshotRest, jobs: SnapshotJobs) -> Self {
        Self { rest, jobs }
    }
}

/// What a worker said of its disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    bytes: u64,
    /// What these leases may still take is not in it. `None`: the worker does not look at leases.
    aware_of: Option<BTreeSet<LeaseId>>,
}

impl Farm {
    /// The number that the next job gets: all jobs of before have smaller ones.
    pub fn next_job(&self) -> JobId {
        JobId(self.next_job)
    }

    /// The state as a snapshot.
    pub fn snapshot(&self) -> Snapshot {
        let jobs = SnapshotJobs { jobs: self.jobs.iter().map(|(id, job)| (*id, job.clone())).collect() };
        let rest = SnapshotRest {
            builds: self.builds.values().cloned().collect(),
            workers: self.workers.values().cloned().collect(),
            keys: if planted::is(Bug::KeyForgotten) { BTreeMap::new() } else { self.keys.clone() },
            next_job: if planted::is(Bug::SnapshotForgetsJobs) { 0 } else { self.next_job },
            next_ticket: self.next_ticket,
            first_attempt: self.first_attempt,
            access: self.access.clone(),
            claims: self.claims.iter().map(|(lease, blobs)| (*lease, blobs.clone())).collect(),
            restored_at: self.restored_at,
        };
        Snapshot { rest, jobs }
    }

    /// The state that a snapshot holds.
    pub fn restore(snapshot: Snapshot) -> Self {
        let Snapshot { rest, jobs } = snapshot;
        let mut farm = Self {
            builds: rest.builds.into_iter().map(|build| (build.id().clone(), build)).collect(),
            jobs: jobs.jobs.into_iter().collect(),
            workers: rest.workers.into_iter().map(|worker| (worker.offer.name.clone(), worker)).collect(),
            keys: rest.keys,
            next_job: rest.next_job,
            next_ticket: rest.next_ticket,
            first_attempt: rest.first_attempt,
            access: rest.access,
            claims: rest.claims.into_iter().collect(),
            restored_at: rest.restored_at,
            ..Self::default()
        };
        for build in farm.builds.values_mut() {
            build.index = Arc::new(PlanIndex::of(&build.plan, build.priority));
            farm.unfinished += build.unfinished;
            if let BuildState::Finalizing { .. } = build.state {
                farm.finalizing.insert(build.id().clone());
            }
            let last = JobId(build.first_job.0 + build.plan.jobs.len() as u64);
            for (_, job) in farm.jobs.range_mut(build.first_job..last) {
                job.home = build.index.clone();
                // What was read left room for more.
                job.attempts.shrink_to_fit();
            }
        }
        let active: Vec<JobId> = farm
            .jobs
            .iter()
            .filter(|(_, job)| matches!(job.state, JobState::Queued { .. } | JobState::Leased { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in active {
            match farm.jobs.get(&id).and_then(|job| job.live_lease(id)) {
                Some(lease) => farm.begin_use(lease),
                // Those whose backoff is over stand in line from the first event on.
                None => farm.enqueue(id, Millis(0)),
            }
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

    /// The newest build of a pipeline: whoever means an untrusted one has to name it.
    pub fn newest(&self, pipeline: &PipelineName) -> Option<&Build> {
        let builds = self
            .builds
            .values()
            .filter(|build| build.id().pipeline == *pipeline && !build.is_untrusted() && !build.is_deleted());
        builds.max_by_key(|build| build.first_job)
    }

    /// The build that was submitted under a key.
    pub fn by_key(&self, key: &str) -> Option<&BuildId> {
        self.keys.get(key)
    }

    /// The build that was submitted under a key by this very request.
    pub fn submitted(&self, key: &str, request: &str) -> Option<&Build> {
        self.builds.get(self.keys.get(key)?).filter(|build| !request.is_empty() && build.request == request)
    }

    /// A job.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// The number of a build's job.
    pub fn job_id(&self, build: &Build, name: &JobName) -> Option<JobId> {
        build.job_id(name)
    }

    /// What a job is to do.
    pub fn spec(&self, id: JobId) -> Option<&JobSpec> {
        self.jobs.get(&id)?.spec()
    }

    /// Every worker, by name.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// A worker.
    pub fn worker(&self, name: &WorkerName) -> Option<&Worker> {
        self.workers.get(name)
    }

    /// Whether an attempt is one of an untrusted build; `None` if there is no such job.
    pub fn is_untrusted(&self, lease: LeaseId) -> Option<bool> {
        let job = self.jobs.get(&lease.job)?;
        Some(self.builds.get(&job.build)?.is_untrusted())
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
        self.finalizing.iter().filter_map(|id| self.builds.get(id))
    }

    /// The earliest end of a backoff after `now`, if a job waits for one.
    pub fn next_backoff_end(&self, now: Millis) -> Option<Millis> {
        let alone = self.queues.backoff.range((now.plus(1), JobId(0))..).next().map(|((end, _), _)| *end);
        // In a group, everybody waits for the first.
        let grouped = self
            .queues
            .groups
            .values()
            .filter_map(|group| group.waiting.values().next().map(|(_, job)| job.not_before));
        grouped.chain(alone).filter(|end| !is_due(*end, now)).min()
    }

    /// Why a lease's attempt is to stop, if somebody cancelled it or its build.
    pub fn cancel_reason(&self, lease: LeaseId) -> Option<&str> {
        let job = self.jobs.get(&lease.job)?;
        match &self.builds.get(&job.build)?.state {
            BuildState::Cancelling { reason } => Some(reason),
            _ => job.cancelled.as_deref(),
        }
    }

    /// Notes how much disk a worker has left, as it measured. Forgotten with the process: it is measured again soon.
    pub fn note_free_disk(&mut self, worker: &WorkerName, bytes: u64) {
        if self.workers.contains_key(worker) {
            self.free_disk.insert(worker.clone(), Measured { bytes, aware_of: None });
        }
    }

    /// Notes what a worker says that one more job can have of its disk, beside what the leases `aware_of` may still take.
    pub fn note_room(&mut self, worker: &WorkerName, bytes: u64, aware_of: impl IntoIterator<Item = LeaseId>) {
        if self.workers.contains_key(worker) {
            let aware_of = Some(aware_of.into_iter().collect());
            self.free_disk.insert(worker.clone(), Measured { bytes, aware_of });
        }
    }

    /// Notes whether a worker is under pressure. Forgotten with the process, as free disk is. Returns whether it was otherwise.
    pub fn note_pressure(&mut self, worker: &WorkerName, pressure: Option<Pressure>) -> bool {
        let before = match pressure.filter(|_| self.workers.contains_key(worker)) {
            Some(pressure) => self.pressures.insert(worker.clone(), pressure),
            None => self.pressures.remove(worker),
        };
        before.map(|before| before.scarce) != self.pressure(worker).map(|now| now.scarce)
    }

    /// What a worker is under pressure of.
    pub fn pressure(&self, worker: &WorkerName) -> Option<Pressure> {
        self.pressures.get(worker).copied()
    }

    /// Whether a worker takes a lease now.
    pub(crate) fn takes_leases(&self, worker: &Worker, now: Millis) -> bool {
        worker.takes_leases(now) && self.pressure(&worker.offer.name).is_none()
    }

    /// What a worker has left to lease: nothing that is reserved, and no disk that is not there.
    pub fn available(&self, worker: &Worker) -> Capacity {
        let free = worker.free();
        let measured = self.free_disk.get(&worker.offer.name).map_or(u64::MAX, |known| self.still_there(worker, known));
        Capacity { disk_bytes: free.disk_bytes.min(measured), ..free }
    }

    /// What is there of a measured disk, without what was leased since and the worker did not know of.
    fn still_there(&self, worker: &Worker, measured: &Measured) -> u64 {
        let Some(aware_of) = &measured.aware_of else { return measured.bytes };
        let news = worker.leases.iter().filter(|lease| !aware_of.contains(lease));
        let taken = news.filter_map(|lease| self.spec(lease.job)).map(|spec| spec.run.resources.disk_bytes).sum();
        measured.bytes.saturating_sub(taken)
    }

    /// Jobs that wait for a worker.
    pub fn queued(&self) -> usize {
        self.queues.len()
    }

    /// The line in which a job waits.
    pub(crate) fn line(&self, id: JobId) -> Option<Arc<Line>> {
        let job = self.jobs.get(&id)?;
        job.home.lines.get(job.index).cloned()
    }

    /// A queued job takes its place.
    pub(crate) fn enqueue(&mut self, id: JobId, now: Millis) {
        if let Some((line, waiting)) = self.place_of(id) {
            self.queues.insert(&line, waiting, now);
        }
    }

    /// A queued job leaves its place.
    pub(crate) fn dequeue(&mut self, id: JobId) {
        if let Some((line, waiting)) = self.place_of(id) {
            self.queues.remove(&line, &waiting);
        }
    }

    fn place_of(&self, id: JobId) -> Option<(Arc<Line>, Waiting)> {
        let job = self.jobs.get(&id)?;
        let JobState::Queued { since, not_before } = job.state else { return None };
        let (path_len, ticket) = (job.path_len, job.ticket);
        let ready_at = job.ready_at.unwrap_or(since);
        Some((self.line(id)?, Waiting { id, path_len, ticket, ready_at, not_before }))
    }

    /// What a lease keeps of its worker: everything, and only the disk when its container has ended.
    pub(crate) fn reservation(&self, lease: LeaseId) -> Capacity {
        let Some((job, spec)) = self.jobs.get(&lease.job).zip(self.spec(lease.job)) else { return Capacity::default() };
        let uploading = job.attempts.iter().any(|attempt| attempt.number == lease.attempt && attempt.uploading);
        let all = spec.run.resources;
        if uploading { Capacity { disk_bytes: all.disk_bytes, ..Capacity::default() } } else { all }
    }

    /// A live lease counts in its group and for its pipeline.
    pub(crate) fn begin_use(&mut self, lease: LeaseId) {
        let Some(line) = self.line(lease.job) else { return };
        let limit = self.spec(lease.job).and_then(|spec| spec.concurrency.as_ref()).map_or(0, |group| group.limit);
        self.queues.begin(&line, lease.job, limit);
        let cpus = u64::from(self.reservation(lease).cpu_millis);
        *self.usage.entry(line.pipeline.clone()).or_default() += cpus;
    }

    /// It counts no more. Called while the lease is still live.
    pub(crate) fn end_use(&mut self, lease: LeaseId) {
        let Some(line) = self.line(lease.job) else { return };
        self.queues.end(&line, lease.job);
        self.use_less(&line.pipeline, u64::from(self.reservation(lease).cpu_millis));
    }

    pub(crate) fn use_less(&mut self, pipeline: &PipelineName, cpus: u64) {
        if let Some(usage) = self.usage.get_mut(pipeline) {
            *usage = usage.saturating_sub(cpus);
            if *usage == 0 {
                self.usage.remove(pipeline);
            }
        }
    }
}
