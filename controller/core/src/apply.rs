//! Events change the state. This cannot fail: an event that names what is not there changes nothing.

use crate::build::{Build, BuildState, Verdict};
use crate::event::{Event, Next};
use crate::farm::Farm;
use crate::hold::Hold;
use crate::index::PlanIndex;
use crate::job::{Approval, Attempt, AttemptEnd, Job, JobResult, JobState};
use crate::kept::Kept;
use crate::worker::{Worker, WorkerOffer};
use railyard_common::id::{BuildId, JobId, LeaseId, WorkerName};
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Numbers after a restore count from here, to be short. A farm takes on less than a thousand jobs a second on average, and
/// a job has less than one attempt a second: each waits for a lease.
const YEAR_2026: Millis = Millis(1_767_225_600_000);
/// More jobs than a farm that is backed up every night takes on in between.
const RESTORED_JOBS_STEP: u64 = 1_000_000;
/// More attempts than a job has in all.
const RESTORED_ATTEMPTS_STEP: u32 = 1_000;

impl Farm {
    /// Changes the state by what happened.
    pub fn apply(&mut self, event: &Event) {
        self.queues.promote(event.at());
        match event {
            Event::BuildAccepted { at, plan, first_job, by, key, trace, priority, request } => {
                let build = Build {
                    plan: plan.clone(),
                    first_job: *first_job,
                    state: BuildState::Running,
                    submitted_at: *at,
                    by: by.clone(),
                    trace: trace.clone(),
                    priority: *priority,
                    request: request.clone(),
                    unfinished: plan.jobs.len(),
                    cancel_reason: None,
                    kept: Kept::default(),
                    index: Arc::new(PlanIndex::of(plan, *priority)),
                };
                self.accept(*at, build);
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
            Event::JobUploading { lease, .. } => self.uploading(*lease),
            Event::JobsApproved { at, jobs, by, .. } => jobs.iter().for_each(|job| self.approve(*at, *job, by)),
            Event::JobsCancelled { at, jobs, reason, .. } => {
                jobs.iter().for_each(|job| self.cancel_job(*at, *job, reason));
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
            Event::WorkerHeld { worker, hold, .. } => self.hold(worker, Some(hold)),
            Event::WorkerReleased { worker, .. } => self.hold(worker, None),
            Event::WorkerForgotten { worker, .. } => {
                self.workers.remove(worker);
                self.free_disk.remove(worker);
                self.pressures.remove(worker);
            }
            Event::TokenMade { .. }
            | Event::TokenUsed { .. }
            | Event::TokenDropped { .. }
            | Event::IdentityRevoked { .. } => self.apply_access(event),
            Event::BuildPinned { .. }
            | Event::BuildUnpinned { .. }
            | Event::BuildTagged { .. }
            | Event::BuildUntagged { .. }
            | Event::PromotionBegun { .. }
            | Event::PromotionFailed { .. }
            | Event::PromotionForgotten { .. }
            | Event::BuildPromoted { .. }
            | Event::BuildsReduced { .. }
            | Event::BuildsSwept { .. }
            | Event::BuildsForgotten { .. }
            | Event::BlobsClaimed { .. }
            | Event::SweepResumed { .. } => self.apply_keep(event),
            Event::ControllerRestored { at } => self.begin_after_restore(*at),
            Event::ControllerStarted { at } => {
                let names: Vec<WorkerName> = self.workers.keys().cloned().collect();
                names.iter().for_each(|name| self.worker_offline(*at, name));
            }
        }
    }

    /// Numbers that the farm cannot have given since the backup, whenever that was: they follow the time, so that a second
    /// restore of the same backup does not give those of the first again. The steps are for a clock that stands wrong.
    fn begin_after_restore(&mut self, at: Millis) {
        // What lies there may by now be that of builds which the backup does not know: nothing of it is taken back.
        self.builds.values_mut().for_each(|build| build.kept.promoting = None);
        let millis = at.since(YEAR_2026);
        let secs = u32::try_from(millis / 1000).unwrap_or(u32::MAX);
        self.restored_at = Some(at);
        self.next_job = self.next_job.saturating_add(RESTORED_JOBS_STEP).max(millis);
        self.first_attempt = self.first_attempt.saturating_add(RESTORED_ATTEMPTS_STEP).max(secs);
    }

    fn accept(&mut self, at: Millis, build: Build) {
        let (plan, index, ids) = (build.plan.clone(), build.index.clone(), build.jobs());
        self.next_job = self.next_job.max(build.first_job.0 + plan.jobs.len() as u64);
        self.unfinished += build.unfinished;
        self.builds.insert(plan.build.clone(), build);
        for (place, id) in ids.enumerate() {
            let needs = index.needs[place].len();
            let job = Job {
                build: plan.build.clone(),
                index: place,
                state: JobState::Blocked { needs },
                attempts: Vec::new(),
                lost: 0,
                failed: 0,
                path_len: index.path_lens[place],
                ready_at: None,
                ticket: 0,
                approval: None,
                cancelled: None,
                home: index.clone(),
            };
            self.jobs.insert(id, job);
            if needs == 0 {
                self.make_ready(at, id);
            }
        }
    }

    /// Everything that a job needs has succeeded.
    fn make_ready(&mut self, at: Millis, id: JobId) {
        let gated = self.spec(id).is_some_and(|spec| spec.approval.is_some());
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if gated && job.approval.is_none() && !planted::is(Bug::ApprovalIgnored) {
            job.state = JobState::AwaitsApproval { since: at };
        } else {
            self.queue(at, id, at);
        }
    }

    /// A job waits for a worker, from `not_before` on.
    fn queue(&mut self, at: Millis, id: JobId, not_before: Millis) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.state = JobState::Queued { since: at, not_before };
        if job.ready_at.is_none() {
            job.ready_at = Some(at);
            let order = if planted::is(Bug::GroupNotFifo) { u64::MAX / 2 - self.next_ticket } else { self.next_ticket };
            job.ticket = order;
            self.next_ticket += 1;
        }
        self.enqueue(id, at);
    }

    fn approve(&mut self, at: Millis, id: JobId, by: &str) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.approval = Some(Approval { at, by: by.to_owned() });
        if matches!(job.state, JobState::AwaitsApproval { .. }) {
            self.queue(at, id, at);
        }
    }

    fn lease(&mut self, at: Millis, lease: LeaseId, name: &WorkerName) {
        self.dequeue(lease.job);
        let needs = self.reservation(lease);
        let Some(job) = self.jobs.get_mut(&lease.job) else { return };
        job.state = JobState::Leased { worker: name.clone() };
        let attempt =
            Attempt { number: lease.attempt, worker: name.clone(), leased_at: at, uploading: false, end: None };
        // Most jobs have one, and there are many jobs.
        job.attempts.reserve_exact(1);
        job.attempts.push(attempt);
        self.begin_use(lease);
        if let Some(worker) = self.workers.get_mut(name) {
            worker.leases.insert(lease);
            worker.reserved = worker.reserved.plus(&needs);
        }
    }

    /// The container has ended: only the disk stays reserved.
    fn uploading(&mut self, lease: LeaseId) {
        let before = self.reservation(lease);
        let Some(job) = self.jobs.get_mut(&lease.job) else { return };
        let build = job.build.clone();
        let Some(attempt) = job.attempts.iter_mut().find(|attempt| attempt.number == lease.attempt) else { return };
        if attempt.end.is_some() {
            return;
        }
        attempt.uploading = true;
        let name = attempt.worker.clone();
        let after = self.reservation(lease);
        self.use_less(&build.pipeline, u64::from(before.cpu_millis.saturating_sub(after.cpu_millis)));
        if let Some(worker) = self.workers.get_mut(&name).filter(|worker| worker.leases.contains(&lease)) {
            worker.reserved = worker.reserved.minus(&before).plus(&after);
        }
    }

    fn end_attempt(&mut self, lease: LeaseId, end: AttemptEnd, result: JobResult, next: Next) {
        let (at, kind, reason) = (end.at, end.outcome.kind, end.outcome.reason);
        let needs = self.reservation(lease);
        let stopping = self.is_cancelling(lease.job);
        let is_image_s_fault = reason == Reason::ImageMissing && self.is_image_s_fault(lease);
        if self.holder(lease).is_some() {
            self.end_use(lease);
        }
        // What it claimed is the build's now, or nobody's.
        self.claims.remove(&lease);
        let Some(job) = self.jobs.get_mut(&lease.job) else { return };
        let Some(attempt) = job.attempts.iter_mut().find(|attempt| attempt.number == lease.attempt) else { return };
        attempt.end = Some(end);
        if let Some(worker) = self.workers.get_mut(&attempt.worker) {
            if worker.leases.remove(&lease) {
                worker.reserved = worker.reserved.minus(&needs);
            }
            if !is_image_s_fault {
                count_loss(worker, attempt, at, kind, reason);
            }
        }
        match kind {
            OutcomeKind::Failed | OutcomeKind::TimedOut => job.failed += 1,
            OutcomeKind::Lost if planted::is(Bug::LostCountsAsFailed) => job.failed += 1,
            OutcomeKind::Lost | OutcomeKind::Refused => job.lost += 1,
            OutcomeKind::Succeeded | OutcomeKind::Cancelled => {}
        }
        match next {
            Next::Again { not_before } => self.queue(at, lease.job, not_before),
            Next::End if kind == OutcomeKind::Succeeded => {
                job.state = JobState::Succeeded(result);
                self.finish(lease.job);
                self.unblock_dependents(at, lease.job);
            }
            Next::End => {
                // What was to stop, and was lost instead, has stopped.
                let stopped = stopping && matches!(kind, OutcomeKind::Lost | OutcomeKind::Refused);
                let kind = if stopped { OutcomeKind::Cancelled } else { kind };
                job.state = JobState::Ended { kind, at };
                self.finish(lease.job);
                if !planted::is(Bug::FailurePoisonsNothing) {
                    self.skip_dependents(lease.job);
                }
            }
        }
    }

    fn cancel(&mut self, at: Millis, id: &BuildId, reason: &str) {
        let Some(build) = self.builds.get_mut(id) else { return };
        build.state = BuildState::Cancelling { reason: reason.to_owned() };
        build.cancel_reason = Some(reason.to_owned());
        let jobs: Vec<JobId> = build.jobs().collect();
        for job in jobs {
            self.end_waiting(at, job);
        }
    }

    /// A job that waits is over, and so is what needs it; one that runs is to stop, which its worker is told.
    fn cancel_job(&mut self, at: Millis, id: JobId, reason: &str) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.is_terminal()) else { return };
        job.cancelled = Some(reason.to_owned());
        if self.end_waiting(at, id) {
            self.skip_dependents(id);
        }
    }

    /// Ends a job of which nothing runs. Returns whether it was one.
    fn end_waiting(&mut self, at: Millis, id: JobId) -> bool {
        if !self.jobs.get(&id).is_some_and(Job::is_waiting) || planted::is(Bug::CancelLeavesQueue) {
            return false;
        }
        self.dequeue(id);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.state = JobState::Ended { kind: OutcomeKind::Cancelled, at };
        }
        self.finish(id);
        true
    }

    fn resume(&mut self, at: Millis, id: &BuildId, again: &[JobId]) {
        let Some(build) = self.builds.get_mut(id) else { return };
        let again: BTreeSet<JobId> = build.jobs().filter(|job| again.contains(job)).collect();
        build.state = BuildState::Running;
        build.cancel_reason = None;
        build.unfinished += again.len();
        self.unfinished += again.len();
        if close_if_over(build, &self.jobs) {
            self.finalizing.insert(id.clone());
        }
        for id in &again {
            // First of all of them: what one needs may run again as well.
            if let Some(job) = self.jobs.get_mut(id) {
                job.state = JobState::Blocked { needs: 0 };
                (job.lost, job.failed, job.ready_at, job.cancelled) = (0, 0, None, None);
            }
        }
        self.blame_others(id, &again);
        for id in again {
            let Some((build, place)) =
                self.jobs.get(&id).and_then(|job| Some((self.builds.get(&job.build)?, job.index)))
            else {
                continue;
            };
            let needs = self.unmet_needs(build, place);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.state = JobState::Blocked { needs };
            }
            if needs == 0 {
                self.make_ready(at, id);
            }
        }
    }

    /// Jobs that stay skipped though what they were skipped for runs again: another need of theirs did not succeed.
    fn blame_others(&mut self, id: &BuildId, again: &BTreeSet<JobId>) {
        let Some(build) = self.builds.get(id) else { return };
        for (place, job_id) in build.jobs().enumerate() {
            let Some(Job { state: JobState::Skipped { because }, .. }) = self.jobs.get(&job_id) else { continue };
            if !build.job_id(because).is_some_and(|cause| again.contains(&cause)) {
                continue;
            }
            // Dependencies come first, so what a need is skipped for is right already.
            let mut others = build.ids(&build.index.needs[place]).filter_map(|need| self.jobs.get(&need));
            let cause = others.find_map(|need| match &need.state {
                JobState::Ended { .. } => build.plan.jobs.get(need.index).map(|spec| spec.name.clone()),
                JobState::Skipped { because } => Some(because.clone()),
                _ => None,
            });
            if let Some((job, cause)) = self.jobs.get_mut(&job_id).zip(cause) {
                job.state = JobState::Skipped { because: cause };
            }
        }
    }

    fn end_build(&mut self, at: Millis, id: &BuildId, error: Option<&String>) {
        let Some(build) = self.builds.get_mut(id) else { return };
        if let BuildState::Finalizing { verdict } = build.state {
            self.finalizing.remove(id);
            let verdict = if error.is_some() && verdict == Verdict::Succeeded { Verdict::Failed } else { verdict };
            build.state = BuildState::Ended { verdict, at, error: error.cloned() };
        }
    }

    fn worker_online(&mut self, at: Millis, offer: &WorkerOffer) {
        let worker = self.workers.entry(offer.name.clone()).or_insert_with(|| Worker::new(offer.clone(), at));
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

    fn hold(&mut self, name: &WorkerName, hold: Option<&Hold>) {
        if let Some(worker) = self.workers.get_mut(name) {
            worker.hold = hold.cloned();
            // Whoever takes a worker back trusts it again.
            worker.losses = if hold.is_none() { 0 } else { worker.losses };
        }
    }

    /// One job less to wait for; the last one closes the build.
    fn finish(&mut self, id: JobId) {
        let Some(build) = self.jobs.get(&id).and_then(|job| self.builds.get_mut(&job.build)) else { return };
        build.unfinished = build.unfinished.saturating_sub(1);
        self.unfinished = self.unfinished.saturating_sub(1);
        if close_if_over(build, &self.jobs) {
            self.finalizing.insert(build.id().clone());
        }
    }

    /// Jobs of the same build that need this one, directly.
    fn dependents(&self, id: JobId) -> Vec<JobId> {
        let Some(job) = self.jobs.get(&id) else { return Vec::new() };
        job.home.dependents.get(job.index).map_or_else(Vec::new, |places| job.siblings(id, places).collect())
    }

    fn unblock_dependents(&mut self, at: Millis, id: JobId) {
        for dependent in self.dependents(id) {
            let Some(job) = self.jobs.get_mut(&dependent) else { continue };
            match job.state {
                JobState::Blocked { needs: 0 | 1 } => self.make_ready(at, dependent),
                JobState::Blocked { needs: 2 } if planted::is(Bug::UnblockedEarly) => self.make_ready(at, dependent),
                JobState::Blocked { ref mut needs } => *needs -= 1,
                _ => {}
            }
        }
    }

    /// Whether an image that could not be had says nothing about the worker: a stranger has named it, or the build has missed it
    /// before. A worker that has no way to registries loses the jobs of many builds.
    fn is_image_s_fault(&self, lease: LeaseId) -> bool {
        let Some(job) = self.jobs.get(&lease.job) else { return false };
        let Some(build) = self.builds.get(&job.build) else { return false };
        let image = |job: &Job| job.spec().map(|spec| spec.image.clone());
        let wanted = image(job);
        let before = build.jobs().filter_map(|id| Some((id, self.jobs.get(&id)?))).any(|(id, other)| {
            let missed = other.attempts.iter().filter(|one| (id, one.number) != (lease.job, lease.attempt));
            let mut missed = missed.filter_map(|one| one.end.as_ref());
            missed.any(|end| end.outcome.reason == Reason::ImageMissing) && image(other) == wanted
        });
        build.is_untrusted() || before
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

/// A loss counts against its worker; any other end clears it. What was leased before the last loss went down with that, and what
/// an operator's drain took is nobody's fault.
fn count_loss(worker: &mut Worker, attempt: &Attempt, at: Millis, kind: OutcomeKind, reason: Reason) {
    match kind {
        OutcomeKind::Lost if reason == Reason::Drained => {}
        OutcomeKind::Succeeded | OutcomeKind::Failed | OutcomeKind::TimedOut => worker.losses = 0,
        OutcomeKind::Lost if worker.losses == 0 || attempt.leased_at > worker.last_loss_at => {
            worker.losses += 1;
            worker.last_loss_at = at;
        }
        OutcomeKind::Lost | OutcomeKind::Refused | OutcomeKind::Cancelled => {}
    }
}

/// A build without unfinished jobs has its verdict, and its manifest is to be written. Returns whether it is so.
fn close_if_over(build: &mut Build, jobs: &BTreeMap<JobId, Job>) -> bool {
    if build.unfinished > 0 {
        return false;
    }
    let all_succeeded = build.jobs().all(|job| jobs.get(&job).is_some_and(|job| job.result().is_some()));
    let ends = || {
        build.jobs().filter_map(|job| jobs.get(&job)).filter_map(|job| match job.state {
            JobState::Ended { kind, .. } => Some(kind),
            _ => None,
        })
    };
    let cancelled = matches!(build.state, BuildState::Cancelling { .. })
        || (ends().all(|kind| kind == OutcomeKind::Cancelled) && ends().next().is_some());
    let verdict = match (all_succeeded, cancelled) {
        (true, _) => Verdict::Succeeded,
        (false, true) => Verdict::Cancelled,
        (false, false) => Verdict::Failed,
    };
    build.state = BuildState::Finalizing { verdict };
    true
}
