//! What people ask of builds and jobs.

use crate::build::{Build, BuildState, Verdict};
use crate::command::Submission;
use crate::event::Event;
use crate::farm::Farm;
use crate::job::JobState;
use crate::refusal::Refusal;
use railyard_common::id::{BuildId, JobId, JobSelector};
use railyard_common::plan::Plan;
use railyard_common::planted::{self, Bug};
use railyard_common::priority::Priority;
use railyard_common::tier;
use railyard_common::time::Millis;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most unfinished jobs that the farm takes on: 140,000 queued jobs are the largest backlog seen in the field; this
/// leaves room above it and bounds memory.
pub const UNFINISHED_JOBS_MAX: usize = 400_000;
/// With so many it takes on no untrusted builds: however many changes strangers propose, a release finds room.
const UNTRUSTED_UNFINISHED_MAX: usize = UNFINISHED_JOBS_MAX / 2;

impl Farm {
    pub(super) fn decide_submit(&self, now: Millis, submission: &Submission) -> Result<Vec<Event>, Refusal> {
        if let Some(key) = &submission.key
            && let Some(build) = self.keys.get(key)
            && !planted::is(Bug::DuplicateSubmit)
        {
            return self.repeated(key, build, submission);
        }
        let plan = &submission.plan;
        if self.builds.contains_key(&plan.build) {
            return Err(Refusal::BuildExists(plan.build.clone()));
        }
        // A version goes before a tag: whoever submits could take a tag's meaning away, and only operators may.
        let tagged = plan.build.version.as_str().parse().ok().and_then(|tag| self.tagged(&plan.build.pipeline, &tag));
        if let Some(tagged) = tagged {
            return Err(Refusal::VersionIsTag { build: plan.build.clone(), of: tagged.id().clone() });
        }
        // What was deleted and swept has left its name; what was made from it names it still.
        if let Some(user) = self.users(&plan.build).find(|user| !user.is_deleted()) {
            return Err(Refusal::VersionIsUsed { build: plan.build.clone(), by: user.id().clone() });
        }
        check_plan(plan)?;
        self.check_uses(plan)?;
        if plan.untrusted && submission.priority > Priority::Change {
            return Err(Refusal::TooUrgent(submission.priority));
        }
        let most = if plan.untrusted { UNTRUSTED_UNFINISHED_MAX } else { UNFINISHED_JOBS_MAX };
        if self.unfinished + plan.jobs.len() > most {
            return Err(Refusal::Full(self.unfinished));
        }
        let accepted = Event::BuildAccepted {
            at: now,
            plan: Arc::new(plan.clone()),
            first_job: JobId(self.next_job),
            by: submission.by.clone(),
            key: submission.key.clone(),
            trace: submission.trace.clone(),
            priority: submission.priority,
            request: submission.request.clone(),
        };
        let superseded = self.superseded_by(plan).map(|older| Event::BuildCancelled {
            at: now,
            build: older.id().clone(),
            by: submission.by.clone(),
            reason: format!("superseded by {}", plan.build),
        });
        Ok(std::iter::once(accepted).chain(superseded).collect())
    }

    /// The same key again: the same build, if the same was asked for.
    fn repeated(&self, key: &str, build: &BuildId, submission: &Submission) -> Result<Vec<Event>, Refusal> {
        let before = self.builds.get(build).map_or("", |build| build.request.as_str());
        let known = !before.is_empty() && !submission.request.is_empty();
        if known && before != submission.request {
            return Err(Refusal::KeyReused { key: key.to_owned(), build: build.clone() });
        }
        Ok(Vec::new())
    }

    /// Older builds of the same pipeline, tier and group for which no worker has begun to work. Never a release.
    fn superseded_by<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = &'a Build> {
        let group = plan.supersede.as_ref();
        let all = group.into_iter().flat_map(|_| self.builds.values());
        let same = all
            .filter(move |older| older.plan.supersede.as_ref() == group && older.id().pipeline == plan.build.pipeline)
            .filter(|older| older.is_untrusted() == plan.untrusted);
        same.filter(|older| older.is_running() && older.priority != Priority::Release && !self.has_begun(older))
    }

    fn has_begun(&self, build: &Build) -> bool {
        build.jobs().any(|job| self.jobs.get(&job).is_some_and(|job| !job.attempts.is_empty()))
    }

    pub(super) fn decide_cancel(
        &self,
        now: Millis,
        id: &BuildId,
        by: &str,
        reason: &str,
    ) -> Result<Vec<Event>, Refusal> {
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

    pub(super) fn decide_cancel_jobs(
        &self,
        now: Millis,
        id: &BuildId,
        jobs: &JobSelector,
        by: &str,
        reason: &str,
    ) -> Result<Vec<Event>, Refusal> {
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        match build.state {
            BuildState::Running => {}
            BuildState::Cancelling { .. } => return Ok(Vec::new()),
            BuildState::Finalizing { .. } => return Err(Refusal::BuildEnds(id.clone())),
            BuildState::Ended { .. } => return Err(Refusal::BuildEnded(id.clone())),
        }
        let what = "could be cancelled: those of that name have ended, or there is none";
        let open: Vec<JobId> = self.jobs_of(build, jobs).filter(|job| !self.jobs[job].is_terminal()).collect();
        if open.is_empty() {
            return Err(Refusal::NoSuchJob { build: id.clone(), job: jobs.to_string(), what });
        }
        let jobs: Vec<JobId> = open.into_iter().filter(|job| self.jobs[job].cancelled.is_none()).collect();
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let (by, reason) = (by.to_owned(), reason.to_owned());
        Ok(vec![Event::JobsCancelled { at: now, build: id.clone(), jobs, by, reason }])
    }

    pub(super) fn decide_approve(
        &self,
        now: Millis,
        id: &BuildId,
        jobs: Option<&JobSelector>,
        by: &str,
    ) -> Result<Vec<Event>, Refusal> {
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        if !build.is_running() {
            return Err(Refusal::NothingToApprove(id.clone()));
        }
        let gated = |job: &JobId| self.spec(*job).is_some_and(|spec| spec.approval.is_some());
        let waits = |job: &JobId| matches!(self.jobs[job].state, JobState::AwaitsApproval { .. });
        let meant: Vec<JobId> = match jobs {
            Some(jobs) => self.jobs_of(build, jobs).filter(gated).collect(),
            None => build.jobs().filter(waits).collect(),
        };
        if meant.is_empty() {
            return Err(match jobs {
                Some(jobs) => {
                    Refusal::NoSuchJob { build: id.clone(), job: jobs.to_string(), what: "is to be approved" }
                }
                None => Refusal::NothingToApprove(id.clone()),
            });
        }
        let open = |job: &JobId| self.jobs[job].approval.is_none() && self.jobs[job].is_waiting();
        let jobs: Vec<JobId> = meant.into_iter().filter(open).collect();
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Event::JobsApproved { at: now, build: id.clone(), jobs, by: by.to_owned() }])
    }

    fn jobs_of(&self, build: &Build, selector: &JobSelector) -> impl Iterator<Item = JobId> {
        build.jobs().zip(&build.plan.jobs).filter(|(_, spec)| selector.matches(&spec.name)).map(|(id, _)| id)
    }

    pub(super) fn decide_retry(
        &self,
        now: Millis,
        id: &BuildId,
        step: Option<&JobSelector>,
    ) -> Result<Vec<Event>, Refusal> {
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        if build.kept.reduced.is_some() {
            return Err(Refusal::BuildReduced(id.clone()));
        }
        match build.state {
            BuildState::Ended { verdict: Verdict::Succeeded, error: None, .. } => {
                return Err(Refusal::BuildSucceeded(id.clone()));
            }
            BuildState::Ended { .. } => {}
            _ => return Err(Refusal::BuildRuns(id.clone())),
        }
        let again = self.jobs_again(build, step);
        // Every job succeeded and only the manifest could not be written: resuming is writing it again.
        let only_unwritten = step.is_none() && matches!(build.state, BuildState::Ended { error: Some(_), .. });
        if again.is_empty() && !only_unwritten {
            let step = step.map_or_else(|| "at all".to_owned(), ToString::to_string);
            return Err(Refusal::NothingToRetry { build: id.clone(), step });
        }
        // A step that is retried on its own still needs what it needs.
        if let Some(need) = again.iter().find_map(|job| self.need_not_met(build, *job, &again)) {
            return Err(Refusal::BadPlan(format!(
                "{need} did not succeed and is needed; retry that step, or the whole build"
            )));
        }
        // A success stays as it is, but somebody may have deleted it since.
        for spec in build.jobs().zip(&build.plan.jobs).filter(|(id, _)| again.contains(id)).map(|(_, spec)| spec) {
            self.check_job_uses(&build.plan, spec)?;
        }
        Ok(vec![Event::BuildResumed { at: now, build: id.clone(), jobs: again.into_iter().collect() }])
    }

    /// The jobs that a retry runs again: those that are meant, and what follows them. What also needs another job that did not
    /// succeed stays as it is, for it could not run.
    fn jobs_again(&self, build: &Build, step: Option<&JobSelector>) -> BTreeSet<JobId> {
        let mut again: BTreeSet<JobId> = BTreeSet::new();
        // The plan is in topological order, so needs have been looked at before.
        for ((job, spec), needs) in build.jobs().zip(&build.plan.jobs).zip(&build.index.needs) {
            let chosen = match step {
                Some(step) => step.matches(&spec.name),
                None => self.jobs[&job].result().is_none(),
            };
            let follows = || {
                build.ids(needs).any(|need| again.contains(&need)) && self.need_not_met(build, job, &again).is_none()
            };
            if chosen || follows() {
                again.insert(job);
            }
        }
        again
    }

    /// A need of `job` that has not succeeded and is not run `again`.
    fn need_not_met(&self, build: &Build, job: JobId, again: &BTreeSet<JobId>) -> Option<String> {
        let place = self.jobs.get(&job)?.index;
        let mut needs = build.ids(build.index.needs.get(place)?);
        let unmet = needs.find(|need| !again.contains(need) && self.jobs[need].result().is_none())?;
        self.spec(unmet).map(|spec| spec.name.to_string())
    }

    pub(super) fn decide_finalized(
        &self,
        now: Millis,
        id: &BuildId,
        error: Option<&str>,
    ) -> Result<Vec<Event>, Refusal> {
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        match build.state {
            BuildState::Finalizing { .. } => {
                Ok(vec![Event::BuildEnded { at: now, build: id.clone(), error: error.map(str::to_owned) }])
            }
            _ => Ok(Vec::new()),
        }
    }
}

fn check_plan(plan: &Plan) -> Result<(), Refusal> {
    if plan.jobs.is_empty() {
        return Err(Refusal::BadPlan("it has no jobs".to_owned()));
    }
    if let Some(fault) = tier::fault(plan) {
        return Err(Refusal::BadPlan(fault));
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
