//! Events change the state. This cannot fail: an event that names what is not there changes nothing.

use crate::build::{Build, BuildState, Trace, Verdict};
use crate::event::{Event, Next};
use crate::farm::Farm;
use crate::job::{Attempt, AttemptEnd, Job, JobResult, JobState};
use crate::worker::{Worker, WorkerOffer};
use railyard_common::id::{BuildId, JobId, JobName, LeaseId, WorkerName};
use railyard_common::job::Capacity;
use railyard_common::outcome::OutcomeKind;
use railyard_common::plan::Plan;
use railyard_common::time::Millis;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Farm {
    /// Changes the state by what happened.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::BuildAccepted { at, plan, first_job, by, key, trace } => {
                self.accept(*at, plan, *first_job, by, trace);
                if let Some(key) = key {
                    self.keys.insert(key.clone(), plan.build.clone());
                }
            }
            Event::JobLeased { at, lease, worker } => self.lease(*at, *lease, worker),
            Event::AttemptEnded { at, lease, outcome, artifacts, image, log_bytes, next } => {
                let end = AttemptEnd { at: *at, outcome: outcome.clone(), log_bytes: *log_bytes };
                let result = JobResult { artifacts: artifacts.clone(), image: image.clone() };
                self.end_attempt(*lease, end, result, *next);
            }
            Event::BuildCancelled { at, build, reason, .. } => self.cancel(*at, build, reason),
            Event::BuildResumed { at, build, jobs } => self.resume(*at, build, jobs),
            Event::BuildEnded { at, build, error } => self.end_build(*at, build, error.as_ref()),
            Event::WorkerOnline { at, offer } => self.worker_online(*at, offer),
            Event::WorkerOffline { at, worker } => self.worker_offline(*at, worker),
            Event::WorkerDraining { at, worker } => {
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.draining = true;
                    worker.changed_at = *at;
                }
            }
            Event::ControllerStarted { at } => {
                let names: Vec<WorkerName> = self.workers.keys().cloned().collect();
                names.iter().for_each(|name| self.worker_offline(*at, name));
            }
        }
    }

    fn accept(&mut self, at: Millis, plan: &Arc<Plan>, first_job: JobId, by: &str, trace: &Trace) {
        let path_lens = path_lens(plan);
        self.next_job = first_job.0 + plan.jobs.len() as u64;
        let build = Build {
            plan: plan.clone(),
            first_job,
            state: BuildState::Running,
            submitted_at: at,
            by: by.to_owned(),
            trace: trace.clone(),
            unfinished: plan.jobs.len(),
            cancel_reason: None,
        };
        let ids: Vec<JobId> = build.jobs().collect();
        self.builds.insert(plan.build.clone(), build);
        for (index, (id, spec)) in ids.into_iter().zip(&plan.jobs).enumerate() {
            let state = match spec.needs.len() {
                0 => JobState::Queued { since: at, not_before: at },
                needs => JobState::Blocked { needs },
            };
            let queued = matches!(state, JobState::Queued { .. });
            let (build, path_len) = (plan.build.clone(), path_lens[index]);
            self.jobs.insert(id, Job { build, index, state, attempts: Vec::new(), lost: 0, failed: 0, path_len });
            if queued {
                self.enqueue(id);
            }
        }
    }

    fn lease(&mut self, at: Millis, lease: LeaseId, name: &WorkerName) {
        self.dequeue(lease.job);
        let needs = self.reservation(lease.job);
        let Some(job) = self.jobs.get_mut(&lease.job) else { return };
        job.state = JobState::Leased { worker: name.clone() };
        job.attempts.push(Attempt { number: lease.attempt, worker: name.clone(), leased_at: at, end: None });
        if let Some(worker) = self.workers.get_mut(name) {
            worker.leases.insert(lease);
            worker.reserved = worker.reserved.plus(&needs);
        }
    }

    fn end_attempt(&mut self, lease: LeaseId, end: AttemptEnd, result: JobResult, next: Next) {
        let needs = self.reservation(lease.job);
        let Some(job) = self.jobs.get_mut(&lease.job) else { return };
        let (at, kind) = (end.at, end.outcome.kind);
        let Some(attempt) = job.attempts.iter_mut().find(|attempt| attempt.number == lease.attempt) else { return };
        attempt.end = Some(end);
        if let Some(worker) = self.workers.get_mut(&attempt.worker)
            && worker.leases.remove(&lease)
        {
            worker.reserved = worker.reserved.minus(&needs);
        }
        match kind {
            OutcomeKind::Failed | OutcomeKind::TimedOut => job.failed += 1,
            OutcomeKind::Lost | OutcomeKind::Refused => job.lost += 1,
            OutcomeKind::Succeeded | OutcomeKind::Cancelled => {}
        }
        match next {
            Next::Again { not_before } => {
                job.state = JobState::Queued { since: at, not_before };
                self.enqueue(lease.job);
            }
            Next::End if kind == OutcomeKind::Succeeded => {
                job.state = JobState::Succeeded(result);
                self.finish(lease.job);
                self.unblock_dependents(at, lease.job);
            }
            Next::End => {
                job.state = JobState::Ended { kind, at };
                self.finish(lease.job);
                self.skip_dependents(lease.job);
            }
        }
    }

    fn cancel(&mut self, at: Millis, id: &BuildId, reason: &str) {
        let Some(build) = self.builds.get_mut(id) else { return };
        build.state = BuildState::Cancelling { reason: reason.to_owned() };
        build.cancel_reason = Some(reason.to_owned());
        let jobs: Vec<JobId> = build.jobs().collect();
        for job_id in jobs {
            let waits = |job: &Job| matches!(job.state, JobState::Queued { .. } | JobState::Blocked { .. });
            if !self.jobs.get(&job_id).is_some_and(waits) {
                continue;
            }
            self.dequeue(job_id);
            if let Some(job) = self.jobs.get_mut(&job_id) {
                job.state = JobState::Ended { kind: OutcomeKind::Cancelled, at };
            }
            self.finish(job_id);
        }
    }

    fn resume(&mut self, at: Millis, id: &BuildId, again: &[JobId]) {
        let Some(build) = self.builds.get_mut(id) else { return };
        let again: BTreeSet<JobId> = build.jobs().filter(|job| again.contains(job)).collect();
        build.state = BuildState::Running;
        build.cancel_reason = None;
        build.unfinished += again.len();
        close_if_over(build, &self.jobs);
        let (plan, ids) = (build.plan.clone(), build.jobs());
        let id_of: BTreeMap<&JobName, JobId> = plan.jobs.iter().map(|spec| &spec.name).zip(ids).collect();
        for job_id in &again {
            let Some(spec) = self.spec(*job_id) else { continue };
            let unmet = spec.needs.iter().filter(|need| {
                let met = |need: &JobId| {
                    !again.contains(need) && self.jobs.get(need).is_some_and(|job| job.result().is_some())
                };
                !id_of.get(need).is_some_and(met)
            });
            let state = match unmet.count() {
                0 => JobState::Queued { since: at, not_before: at },
                needs => JobState::Blocked { needs },
            };
            let queued = matches!(state, JobState::Queued { .. });
            if let Some(job) = self.jobs.get_mut(job_id) {
                (job.state, job.lost, job.failed) = (state, 0, 0);
            }
            if queued {
                self.enqueue(*job_id);
            }
        }
    }

    fn end_build(&mut self, at: Millis, id: &BuildId, error: Option<&String>) {
        let Some(build) = self.builds.get_mut(id) else { return };
        if let BuildState::Finalizing { verdict } = build.state {
            let verdict = if error.is_some() && verdict == Verdict::Succeeded { Verdict::Failed } else { verdict };
            build.state = BuildState::Ended { verdict, at, error: error.cloned() };
        }
    }

    fn worker_online(&mut self, at: Millis, offer: &WorkerOffer) {
        let worker = self.workers.entry(offer.name.clone()).or_insert_with(|| Worker {
            offer: offer.clone(),
            online: true,
            draining: false,
            changed_at: at,
            reserved: Capacity::default(),
            leases: BTreeSet::new(),
        });
        worker.offer = offer.clone();
        (worker.online, worker.draining, worker.changed_at) = (true, false, at);
    }

    fn worker_offline(&mut self, at: Millis, name: &WorkerName) {
        if let Some(worker) = self.workers.get_mut(name)
            && worker.online
        {
            (worker.online, worker.changed_at) = (false, at);
        }
    }

    fn reservation(&self, id: JobId) -> Capacity {
        self.spec(id).map(|spec| spec.run.resources).unwrap_or_default()
    }

    /// One job less to wait for; the last one closes the build.
    fn finish(&mut self, id: JobId) {
        let Some(build) = self.jobs.get(&id).and_then(|job| self.builds.get_mut(&job.build)) else { return };
        build.unfinished = build.unfinished.saturating_sub(1);
        close_if_over(build, &self.jobs);
    }

    /// Jobs of the same build that need this one, directly.
    fn dependents(&self, id: JobId) -> Vec<JobId> {
        let build = self.jobs.get(&id).and_then(|job| self.builds.get(&job.build));
        let Some((name, build)) = self.spec(id).map(|spec| &spec.name).zip(build) else { return Vec::new() };
        build.jobs().zip(&build.plan.jobs).filter(|(_, spec)| spec.needs.contains(name)).map(|(id, _)| id).collect()
    }

    fn unblock_dependents(&mut self, at: Millis, id: JobId) {
        for dependent in self.dependents(id) {
            let Some(job) = self.jobs.get_mut(&dependent) else { continue };
            match job.state {
                JobState::Blocked { needs: 1 } => {
                    job.state = JobState::Queued { since: at, not_before: at };
                    self.enqueue(dependent);
                }
                JobState::Blocked { ref mut needs } => *needs -= 1,
                _ => {}
            }
        }
    }

    fn skip_dependents(&mut self, id: JobId) {
        let Some(because) = self.spec(id).map(|spec| spec.name.clone()) else { return };
        let mut reached = vec![id];
        while let Some(next) = reached.pop() {
            for dependent in self.dependents(next) {
                let Some(job) = self.jobs.get_mut(&dependent) else { continue };
                if matches!(job.state, JobState::Blocked { .. }) {
                    job.state = JobState::Skipped { because: because.clone() };
                    self.finish(dependent);
                    reached.push(dependent);
                }
            }
        }
    }
}

/// A build without unfinished jobs has its verdict, and its manifest is to be written.
fn close_if_over(build: &mut Build, jobs: &BTreeMap<JobId, Job>) {
    if build.unfinished > 0 {
        return;
    }
    let all_succeeded = build.jobs().all(|job| jobs.get(&job).is_some_and(|job| job.result().is_some()));
    let verdict = match build.state {
        BuildState::Cancelling { .. } if !all_succeeded => Verdict::Cancelled,
        _ if all_succeeded => Verdict::Succeeded,
        _ => Verdict::Failed,
    };
    build.state = BuildState::Finalizing { verdict };
}

/// For each job of a plan, the number of jobs on the longest way from it to the end.
fn path_lens(plan: &Plan) -> Vec<u32> {
    let index: BTreeMap<&JobName, usize> =
        plan.jobs.iter().enumerate().map(|(index, spec)| (&spec.name, index)).collect();
    let mut lens = vec![1; plan.jobs.len()];
    for (at, spec) in plan.jobs.iter().enumerate().rev() {
        for need in spec.needs.iter().filter_map(|need| index.get(need)) {
            lens[*need] = lens[*need].max(lens[at] + 1);
        }
    }
    lens
}
