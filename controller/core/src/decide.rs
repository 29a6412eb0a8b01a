//! Commands in, events out, nothing changed.

use crate::build::BuildState;
use crate::command::{Command, Report, Submission};
use crate::event::{Event, Next};
use crate::farm::Farm;
use crate::job::{Job, JobState};
use crate::refusal::Refusal;
use crate::worker::WorkerOffer;
use crate::{FAILED_BACKOFF, LOST_BACKOFF, LOST_BUDGET};
use railyard_common::id::{BuildId, JobId, JobSelector, LeaseId, WorkerName};
use railyard_common::job::JobSpec;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::plan::Plan;
use railyard_common::time::Millis;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most unfinished jobs that the farm takes on: 140,000 queued jobs are the largest backlog seen in the field; this
/// leaves room above it and bounds memory.
pub const UNFINISHED_JOBS_MAX: usize = 400_000;

impl Farm {
    /// What `command` comes to at `now`. An empty list means that it is done already, for instance a repeated submit or report.
    ///
    /// # Errors
    /// A [`Refusal`] if it cannot be carried out.
    pub fn decide(&self, now: Millis, command: &Command) -> Result<Vec<Event>, Refusal> {
        match command {
            Command::Submit(submission) => self.decide_submit(now, submission),
            Command::Cancel { build, by, reason } => self.decide_cancel(now, build, by, reason),
            Command::Retry { build, step } => self.decide_retry(now, build, step.as_ref()),
            Command::Hello { offer, held } => Ok(self.decide_hello(now, offer, held)),
            Command::Goodbye { worker } => Ok(self.decide_goodbye(now, worker)),
            Command::Drain { worker } => Ok(self.decide_drain(now, worker)),
            Command::Report(report) => self.decide_report(now, report),
            Command::Expire { lease } => Ok(self.decide_expire(now, *lease)),
            Command::Place => Ok(self.decide_place(now)),
            Command::Finalized { build, error } => self.decide_finalized(now, build, error.as_deref()),
            Command::Started => Ok(vec![Event::ControllerStarted { at: now }]),
        }
    }

    fn decide_submit(&self, now: Millis, submission: &Submission) -> Result<Vec<Event>, Refusal> {
        if submission.key.as_ref().is_some_and(|key| self.keys.contains_key(key)) {
            return Ok(Vec::new());
        }
        let plan = &submission.plan;
        if self.builds.contains_key(&plan.build) {
            return Err(Refusal::BuildExists(plan.build.clone()));
        }
        check_plan(plan)?;
        let unfinished: usize = self.builds.values().map(|build| build.unfinished).sum();
        if unfinished + plan.jobs.len() > UNFINISHED_JOBS_MAX {
            return Err(Refusal::Full(unfinished));
        }
        Ok(vec![Event::BuildAccepted {
            at: now,
            plan: Arc::new(plan.clone()),
            first_job: JobId(self.next_job),
            by: submission.by.clone(),
            key: submission.key.clone(),
            trace: submission.trace.clone(),
        }])
    }

    fn decide_cancel(&self, now: Millis, id: &BuildId, by: &str, reason: &str) -> Result<Vec<Event>, Refusal> {
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        match build.state {
            BuildState::Running => Ok(vec![Event::BuildCancelled {
                at: now,
                build: id.clone(),
                by: by.to_owned(),
                reason: reason.to_owned(),
            }]),
            BuildState::Cancelling { .. } => Ok(Vec::new()),
            BuildState::Finalizing { .. } => Err(Refusal::BuildEnds(id.clone())),
            BuildState::Ended { .. } => Err(Refusal::BuildEnded(id.clone())),
        }
    }

    fn decide_retry(&self, now: Millis, id: &BuildId, step: Option<&JobSelector>) -> Result<Vec<Event>, Refusal> {
        use crate::build::Verdict;
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        match build.state {
            BuildState::Ended { verdict: Verdict::Succeeded, error: None, .. } => {
                return Err(Refusal::BuildSucceeded(id.clone()));
            }
            BuildState::Ended { .. } => {}
            _ => return Err(Refusal::BuildRuns(id.clone())),
        }
        let mut again: BTreeSet<JobId> = BTreeSet::new();
        for (job, spec) in build.jobs().zip(&build.plan.jobs) {
            let chosen = match step {
                Some(step) => step.matches(&spec.name),
                None => self.jobs[&job].result().is_none(),
            };
            // The plan is in topological order, so needs have been looked at before.
            let follows =
                || spec.needs.iter().any(|need| self.job_id(build, need).is_some_and(|need| again.contains(&need)));
            if chosen || follows() {
                again.insert(job);
            }
        }
        // Every job succeeded and only the manifest could not be written: resuming is writing it again.
        let only_unwritten = step.is_none() && matches!(build.state, BuildState::Ended { error: Some(_), .. });
        if again.is_empty() && !only_unwritten {
            let step = step.map_or_else(|| "at all".to_owned(), ToString::to_string);
            return Err(Refusal::NothingToRetry { build: id.clone(), step });
        }
        // A step that is retried on its own still needs what it needs.
        let missing_need = again.iter().copied().find_map(|job| {
            let spec = self.spec(job)?;
            spec.needs.iter().find(|need| {
                let need = self.job_id(build, need);
                need.is_some_and(|id| !again.contains(&id) && self.jobs[&id].result().is_none())
            })
        });
        if let Some(need) = missing_need {
            return Err(Refusal::BadPlan(format!(
                "{need} did not succeed and is needed; retry that step, or the whole build"
            )));
        }
        Ok(vec![Event::BuildResumed { at: now, build: id.clone(), jobs: again.into_iter().collect() }])
    }

    fn decide_hello(&self, now: Millis, offer: &WorkerOffer, held: &[LeaseId]) -> Vec<Event> {
        let mut events = Vec::new();
        if let Some(worker) = self.workers.get(&offer.name) {
            // What it does not hold it never got, or lost with its process: the job is free at once.
            for lease in worker.leases.iter().filter(|lease| !held.contains(lease)) {
                let what =
                    if worker.offer.boot == offer.boot { "was cut off before it got" } else { "restarted without" };
                let message = format!("worker {} {what} lease {lease}", offer.name);
                events.push(self.lost(now, *lease, Reason::WorkerRestarted, message));
            }
        }
        events.push(Event::WorkerOnline { at: now, offer: offer.clone() });
        events
    }

    fn decide_goodbye(&self, now: Millis, worker: &WorkerName) -> Vec<Event> {
        match self.workers.get(worker) {
            Some(known) if known.online => vec![Event::WorkerOffline { at: now, worker: worker.clone() }],
            _ => Vec::new(),
        }
    }

    fn decide_drain(&self, now: Millis, worker: &WorkerName) -> Vec<Event> {
        match self.workers.get(worker) {
            Some(known) if !known.draining => vec![Event::WorkerDraining { at: now, worker: worker.clone() }],
            _ => Vec::new(),
        }
    }

    fn decide_report(&self, now: Millis, report: &Report) -> Result<Vec<Event>, Refusal> {
        if self.holder(report.lease) != Some(&report.worker) {
            // An answer may have been lost on the way: the same worker may say the same again.
            return if self.already_reported(report) { Ok(Vec::new()) } else { Err(Refusal::StaleLease(report.lease)) };
        }
        let next = self.next(now, report.lease, &report.outcome);
        let succeeded = report.outcome.kind == OutcomeKind::Succeeded;
        Ok(vec![Event::AttemptEnded {
            at: now,
            lease: report.lease,
            outcome: report.outcome.clone(),
            artifacts: if succeeded { report.artifacts.clone() } else { Vec::new() },
            image: if succeeded { report.image.clone() } else { None },
            log_bytes: report.log_bytes,
            next,
        }])
    }

    fn already_reported(&self, report: &Report) -> bool {
        let attempts = self.jobs.get(&report.lease.job).map(|job| job.attempts.as_slice()).unwrap_or_default();
        attempts.iter().any(|attempt| {
            attempt.number == report.lease.attempt
                && attempt.worker == report.worker
                && attempt.end.as_ref().is_some_and(|end| end.outcome == report.outcome)
        })
    }

    fn decide_expire(&self, now: Millis, lease: LeaseId) -> Vec<Event> {
        match self.holder(lease) {
            Some(worker) => {
                let message = format!("no word from worker {worker} for the lease's time to live");
                vec![self.lost(now, lease, Reason::WorkerGone, message)]
            }
            None => Vec::new(),
        }
    }

    fn decide_finalized(&self, now: Millis, id: &BuildId, error: Option<&str>) -> Result<Vec<Event>, Refusal> {
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        match build.state {
            BuildState::Finalizing { .. } => {
                Ok(vec![Event::BuildEnded { at: now, build: id.clone(), error: error.map(str::to_owned) }])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn lost(&self, now: Millis, lease: LeaseId, reason: Reason, message: String) -> Event {
        let mut outcome = Outcome::new(OutcomeKind::Lost, reason, message);
        if self.is_cancelling(lease.job) {
            outcome.kind = OutcomeKind::Cancelled;
        }
        let next = self.next(now, lease, &outcome);
        Event::AttemptEnded { at: now, lease, outcome, artifacts: Vec::new(), image: None, log_bytes: 0, next }
    }

    fn is_cancelling(&self, job: JobId) -> bool {
        let build = self.jobs.get(&job).and_then(|job| self.builds.get(&job.build));
        build.is_some_and(|build| !build.is_running())
    }

    /// What becomes of a job after an attempt with this outcome: the two budgets, kept apart.
    fn next(&self, now: Millis, lease: LeaseId, outcome: &Outcome) -> Next {
        let (Some(job), Some(spec)) = (self.jobs.get(&lease.job), self.spec(lease.job)) else { return Next::End };
        if self.is_cancelling(lease.job) {
            return Next::End;
        }
        retry_after(job, spec, outcome).map_or(Next::End, |wait| Next::Again { not_before: now.plus(wait) })
    }
}

/// How long to wait before another attempt; `None` if there is to be none.
fn retry_after(job: &Job, spec: &JobSpec, outcome: &Outcome) -> Option<u64> {
    match outcome.kind {
        OutcomeKind::Succeeded | OutcomeKind::Cancelled => None,
        OutcomeKind::Failed | OutcomeKind::TimedOut => {
            let failed = job.failed + 1;
            (failed <= spec.retries).then(|| FAILED_BACKOFF.delay_millis(failed))
        }
        OutcomeKind::Lost | OutcomeKind::Refused => {
            let lost = job.lost + 1;
            (lost < LOST_BUDGET).then(|| LOST_BACKOFF.delay_millis(lost))
        }
    }
}

fn check_plan(plan: &Plan) -> Result<(), Refusal> {
    if plan.jobs.is_empty() {
        return Err(Refusal::BadPlan("it has no jobs".to_owned()));
    }
    let mut seen = BTreeSet::new();
    for spec in &plan.jobs {
        if let Some(need) = spec.needs.iter().find(|need| !seen.contains(need)) {
            return Err(Refusal::BadPlan(format!("{} needs {need}, which does not come before it", spec.name)));
        }
        // A need is counted down once, so a second mention would never be met.
        if let Some(need) =
            spec.needs.iter().enumerate().find_map(|(n, need)| spec.needs[..n].contains(need).then_some(need))
        {
            return Err(Refusal::BadPlan(format!("{} needs {need} twice", spec.name)));
        }
        if !seen.insert(&spec.name) {
            return Err(Refusal::BadPlan(format!("{} comes twice", spec.name)));
        }
    }
    Ok(())
}

/// Whether a backoff is over. None is longer than the longest: an end further off was set before the clock went back.
pub(crate) fn is_due(not_before: Millis, now: Millis) -> bool {
    let longest = LOST_BACKOFF.max_millis.max(FAILED_BACKOFF.max_millis);
    not_before <= now || not_before > now.plus(longest)
}

impl Farm {
    /// Whether a job is waiting for a worker.
    pub(crate) fn is_ready(&self, id: JobId, now: Millis) -> bool {
        match self.jobs.get(&id).map(|job| &job.state) {
            Some(JobState::Queued { not_before, .. }) => is_due(*not_before, now),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_back_does_not_make_a_backoff_last() {
        let now = Millis(10_000_000);
        assert!(is_due(now, now));
        assert!(!is_due(now.plus(1), now));
        assert!(!is_due(now.plus(FAILED_BACKOFF.max_millis), now));
        // Set an hour ago, before somebody put the clock right.
        assert!(is_due(now.plus(3_600_000), now));
    }
}
