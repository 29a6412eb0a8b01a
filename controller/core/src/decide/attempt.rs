//! How attempts end, and what becomes of their jobs.

use crate::command::Report;
use crate::event::{Event, Next};
use crate::farm::Farm;
use crate::job::Job;
use crate::refusal::Refusal;
use crate::{FAILED_BACKOFF, LOST_BACKOFF, LOST_BUDGET};
use railyard_common::id::{JobId, LeaseId};
use railyard_common::job::JobSpec;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;

impl Farm {
    pub(super) fn decide_report(&self, now: Millis, report: &Report) -> Result<Vec<Event>, Refusal> {
        if self.holder(report.lease) != Some(&report.worker) && !planted::is(Bug::ReportUnfenced) {
            // An answer may have been lost on the way: the same worker may say the same again.
            match self.already_reported(report) {
                true if planted::is(Bug::ReportTwice) => {}
                true => return Ok(Vec::new()),
                false => return Err(Refusal::StaleLease(report.lease)),
            }
        }
        let outcome = self.unasked(report);
        let next = self.next(now, report.lease, &outcome);
        let succeeded = outcome.kind == OutcomeKind::Succeeded;
        Ok(vec![Event::AttemptEnded {
            at: now,
            lease: report.lease,
            outcome,
            artifacts: if succeeded { report.artifacts.clone() } else { Vec::new() },
            image: if succeeded { report.image.clone() } else { None },
            log_bytes: report.log_bytes,
            next,
        }])
    }

    /// What was stopped, and not because somebody wanted the job stopped, is lost: its worker was drained.
    fn unasked(&self, report: &Report) -> Outcome {
        let mut outcome = report.outcome.clone();
        if outcome.kind == OutcomeKind::Cancelled && !self.is_cancelling(report.lease.job) {
            (outcome.kind, outcome.reason) = (OutcomeKind::Lost, Reason::Drained);
        }
        outcome
    }

    fn already_reported(&self, report: &Report) -> bool {
        // As it may have been taken down.
        let drained = |end: &Outcome| {
            let told = &report.outcome;
            told.kind == OutcomeKind::Cancelled && end.reason == Reason::Drained && end.message == told.message
        };
        let attempts = self.jobs.get(&report.lease.job).map(|job| job.attempts.as_slice()).unwrap_or_default();
        attempts.iter().any(|attempt| {
            attempt.number == report.lease.attempt
                && attempt.worker == report.worker
                && attempt.end.as_ref().is_some_and(|end| end.outcome == report.outcome || drained(&end.outcome))
        })
    }

    pub(super) fn decide_uploading(&self, now: Millis, lease: LeaseId) -> Vec<Event> {
        let last = self.holder(lease).and_then(|_| self.jobs.get(&lease.job)?.attempts.last());
        match last {
            Some(attempt) if !attempt.uploading => vec![Event::JobUploading { at: now, lease }],
            _ => Vec::new(),
        }
    }

    pub(super) fn decide_expire(&self, now: Millis, lease: LeaseId) -> Vec<Event> {
        match self.holder(lease) {
            Some(worker) => {
                let message = format!("no word from worker {worker} for the lease's time to live");
                vec![self.lost(now, lease, Reason::WorkerGone, message)]
            }
            None => Vec::new(),
        }
    }

    pub(crate) fn lost(&self, now: Millis, lease: LeaseId, reason: Reason, message: String) -> Event {
        let mut outcome = Outcome::new(OutcomeKind::Lost, reason, message);
        if self.is_cancelling(lease.job) {
            outcome.kind = OutcomeKind::Cancelled;
        }
        let next = self.next(now, lease, &outcome);
        Event::AttemptEnded { at: now, lease, outcome, artifacts: Vec::new(), image: None, log_bytes: 0, next }
    }

    pub(crate) fn is_cancelling(&self, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else { return false };
        job.cancelled.is_some() || self.builds.get(&job.build).is_some_and(|build| !build.is_running())
    }

    /// What becomes of a job after an attempt with this outcome: the two budgets, kept apart.
    fn next(&self, now: Millis, lease: LeaseId, outcome: &Outcome) -> Next {
        let (Some(job), Some(spec)) = (self.jobs.get(&lease.job), self.spec(lease.job)) else { return Next::End };
        if self.is_cancelling(lease.job) && !planted::is(Bug::RetryAfterCancel) {
            return Next::End;
        }
        retry_after(job, spec, outcome).map_or(Next::End, |wait| Next::Again { not_before: now.plus(wait) })
    }
}

/// How long to wait before another attempt; `None` if there is to be none.
fn retry_after(job: &Job, spec: &JobSpec, outcome: &Outcome) -> Option<u64> {
    match outcome.kind {
        OutcomeKind::Succeeded | OutcomeKind::Cancelled => None,
        // It is missing for every attempt, until an operator stores it.
        OutcomeKind::Failed if outcome.reason == Reason::SecretMissing => None,
        OutcomeKind::Failed | OutcomeKind::TimedOut => {
            let failed = job.failed + 1;
            (failed <= spec.retries || planted::is(Bug::FailedBudgetIgnored))
                .then(|| FAILED_BACKOFF.delay_millis(failed))
        }
        OutcomeKind::Lost | OutcomeKind::Refused => {
            let lost = job.lost + 1;
            (lost < LOST_BUDGET || planted::is(Bug::LostBudgetIgnored)).then(|| LOST_BACKOFF.delay_millis(lost))
        }
    }
}
