//! Why a job waits, for people.

use crate::build::Build;
use crate::farm::Farm;
use crate::is_due;
use crate::job::{Job, JobState};
use crate::worker::{Worker, shortages};
use railyard_common::id::{GroupName, JobId, PipelineName};
use railyard_common::job::JobSpec;
use railyard_common::time::Millis;

/// Jobs of a group that are counted: more would only say that it takes long, and a page of builds asks for many jobs.
const COUNTED_MAX: usize = 1_000;

/// Workers that are named in one reason; the others are counted.
const NAMED_MAX: usize = 3;

impl Farm {
    /// Why a job waits, for people; empty if it does not.
    pub fn why_waiting(&self, id: JobId, now: Millis) -> String {
        let (Some(job), Some(spec)) = (self.jobs.get(&id), self.spec(id)) else { return String::new() };
        match &job.state {
            JobState::Blocked { .. } => self.why_blocked(job, spec),
            JobState::AwaitsApproval { .. } => {
                let what = spec.approval.as_deref().filter(|what| !what.is_empty());
                let what = what.map(|what| format!(" ({what})")).unwrap_or_default();
                format!("waits for approval{what}: railyard approve {} {}", job.build, spec.name)
            }
            JobState::Queued { not_before, .. } if !is_due(*not_before, now) => {
                format!("tries again in {} s", not_before.since(now).div_ceil(1000))
            }
            JobState::Queued { .. } => self.why_queued(id, spec, now),
            JobState::Skipped { because } => format!("{because} did not succeed"),
            _ => String::new(),
        }
    }

    fn why_blocked(&self, job: &Job, spec: &JobSpec) -> String {
        let Some(build) = self.builds.get(&job.build) else { return String::new() };
        let unmet = spec.needs.iter().filter(|need| {
            build.job_id(need).and_then(|id| self.jobs.get(&id)).is_none_or(|job| job.result().is_none())
        });
        format!("waits for {}", unmet.map(ToString::to_string).collect::<Vec<_>>().join(", "))
    }

    fn why_queued(&self, id: JobId, spec: &JobSpec, now: Millis) -> String {
        if let Some(nobody) = self.why_never(spec) {
            return nobody;
        }
        if let Some(concurrency) = &spec.concurrency
            && let Some(turn) = self.why_not_its_turn(id, &concurrency.group, concurrency.limit)
        {
            return turn;
        }
        let ahead = || self.jobs_ahead(id);
        match self.why_no_room(spec, now) {
            Some(why) => why,
            None => match ahead() {
                0 => "about to be leased".to_owned(),
                ahead => format!("waits for its turn; {ahead} more urgent, of a pipeline with less running, or older"),
            },
        }
    }

    /// Why a job of a group may not start, though a worker could take it.
    fn why_not_its_turn(&self, id: JobId, name: &GroupName, limit: u32) -> Option<String> {
        let group = self.queues.groups.get(name)?;
        let before = group.waiting.keys().take_while(|(_, waiting)| *waiting != id).take(COUNTED_MAX).count();
        let before_it = if before < COUNTED_MAX { before.to_string() } else { format!("{COUNTED_MAX} or more") };
        if !group.admits(limit) {
            let own = self.jobs.get(&id).map(|job| &job.build.pipeline);
            let running: Vec<String> = group.running.keys().map(|id| self.who(id, own)).collect();
            let line = if before > 0 { format!(", {before_it} before it") } else { String::new() };
            return Some(format!("waits for its turn in group {name}: {} runs{line}", some_of(&running)));
        }
        (before > 0).then(|| format!("waits for its turn in group {name}: {before_it} before it"))
    }

    /// Jobs of the same shape that go before it for sure: of a more urgent class.
    fn jobs_ahead(&self, id: JobId) -> usize {
        let Some(line) = self.line(id) else { return 0 };
        let same = self.queues.lines.iter().filter(|(other, _)| other.shape.platform == line.shape.platform);
        same.filter(|(other, _)| other.priority > line.priority).map(|(_, queue)| queue.by_path.len()).sum()
    }

    /// Why a job like `spec` would wait if it became ready now; `None` if it would be leased at once, as far as can be told.
    pub fn why_it_would_wait(&self, pipeline: &PipelineName, spec: &JobSpec, now: Millis) -> Option<String> {
        let turn = || {
            let concurrency = spec.concurrency.as_ref()?;
            self.why_group_is_full(pipeline, &concurrency.group, concurrency.limit)
        };
        self.why_never(spec).or_else(turn).or_else(|| self.why_no_room(spec, now))
    }

    /// Whether `worker` could take `spec` now.
    pub fn could_take(&self, worker: &Worker, spec: &JobSpec, now: Millis) -> bool {
        self.takes_leases(worker, now) && worker.offer.suits(spec) && self.available(worker).fits(&spec.run.resources)
    }

    /// Why one more job of a group would wait for its turn.
    fn why_group_is_full(&self, pipeline: &PipelineName, name: &GroupName, limit: u32) -> Option<String> {
        let group = self.queues.groups.get(name)?;
        if !group.admits(limit) {
            let running: Vec<String> = group.running.keys().map(|id| self.who(id, Some(pipeline))).collect();
            return Some(format!("would wait for its turn in group {name}: {} runs", some_of(&running)));
        }
        let before = group.waiting.len();
        (before > 0).then(|| format!("would wait for its turn in group {name}: {before} before it"))
    }

    /// A job, by its name for those of its own pipeline. Others need not know what that builds.
    fn who(&self, id: &JobId, asked_by: Option<&PipelineName>) -> String {
        let Some((job, spec)) = self.jobs.get(id).zip(self.spec(*id)) else { return id.to_string() };
        match asked_by == Some(&job.build.pipeline) {
            true => format!("{} {}", job.build, spec.name),
            false => format!("a job of pipeline {}", job.build.pipeline),
        }
    }

    /// What the workers that could run `spec` lack now; `None` if one lacks nothing.
    fn why_no_room(&self, spec: &JobSpec, now: Millis) -> Option<String> {
        let able = self.workers.values().filter(|worker| worker.is_willing() && worker.offer.suits(spec));
        let mut reasons = Vec::new();
        for worker in able {
            let name = &worker.offer.name;
            if worker.is_quarantined(now) {
                reasons.push(why_quarantined(worker, now));
                continue;
            }
            if let Some(pressure) = self.pressure(name) {
                reasons.push(format!("{name} takes nothing new: {pressure}"));
                continue;
            }
            let short = shortages(&spec.run.resources, &self.available(worker));
            let (wanted, free) = short.first()?;
            reasons.push(format!("needs {wanted}; {name} has {free} free"));
        }
        Some(some_of(&reasons))
    }

    /// Why no connected worker could ever run `spec`; `None` if one could.
    pub fn why_never(&self, spec: &JobSpec) -> Option<String> {
        let (willing, held): (Vec<&Worker>, Vec<&Worker>) =
            self.workers.values().filter(|worker| worker.online).partition(|worker| worker.is_willing());
        match (willing.is_empty(), held.is_empty()) {
            (true, true) => return Some("no worker is connected".to_owned()),
            (true, false) => {
                let holds: Vec<String> = held.iter().map(|worker| why_held(worker)).collect();
                return Some(format!("every connected worker is held back: {}", some_of(&holds)));
            }
            (false, _) => {}
        }
        if willing.iter().any(|worker| worker.offer.suits(spec)) {
            return None;
        }
        if let Some(worker) = held.iter().find(|worker| worker.offer.suits(spec)) {
            return Some(format!("only a worker that is held back could run it: {}", why_held(worker)));
        }
        let platform = spec.name.platform;
        if willing.iter().all(|worker| worker.offer.offers(platform).is_none()) {
            return Some(format!("no connected worker offers {platform}"));
        }
        let offers = willing.iter().filter(|worker| worker.offer.offers(platform).is_some());
        let objections: Vec<String> = offers.filter_map(|worker| worker.offer.objection(spec)).collect();
        Some(some_of(&objections))
    }

    /// Needs of `build`'s jobs that have not been met, by number; for the invariants.
    pub(crate) fn unmet_needs(&self, build: &Build, place: usize) -> usize {
        let needs = build.index.needs.get(place).map_or(&[][..], Vec::as_slice);
        build.ids(needs).filter(|need| self.jobs.get(need).is_none_or(|job| job.result().is_none())).count()
    }
}

fn why_held(worker: &Worker) -> String {
    let name = &worker.offer.name;
    match &worker.hold {
        Some(hold) => format!("{name} is {hold}"),
        None => format!("{name} is being stopped"),
    }
}

fn why_quarantined(worker: &Worker, now: Millis) -> String {
    let (name, losses) = (&worker.offer.name, worker.losses);
    let wait = worker.quarantined_until().map_or(0, |until| until.since(now).div_ceil(1000));
    match worker.leases.is_empty() {
        true => format!("{name} is in quarantine after {losses} losses in a row; it may try one job in {wait} s"),
        false => format!("{name} is in quarantine after {losses} losses in a row, and tries one job"),
    }
}

/// The first few, and how many more there are.
fn some_of(reasons: &[String]) -> String {
    let mut text = reasons.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
    if reasons.len() > NAMED_MAX {
        text.push_str(&format!("; and {} more", reasons.len() - NAMED_MAX));
    }
    text
}
