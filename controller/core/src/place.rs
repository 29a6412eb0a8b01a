//! Which job goes to which worker.
//!
//! Each pass recomputes from the state alone, so no notification can be lost. Platforms have queues of their own: a starved
//! one blocks no other. Within a queue: the longest remaining path first, then age.

use crate::event::Event;
use crate::farm::Farm;
use crate::job::Job;
use crate::worker::Worker;
use railyard_common::id::{JobId, LeaseId, WorkerName};
use railyard_common::job::{Capacity, JobSpec};
use railyard_common::outcome::OutcomeKind;
use railyard_common::time::Millis;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// How well a worker suits a job; the greatest wins. Fields in order of weight.
type Score = (Reverse<usize>, bool, usize, Capacity, Reverse<WorkerName>);

impl Farm {
    pub(crate) fn decide_place(&self, now: Millis) -> Vec<Event> {
        let mut free: BTreeMap<&WorkerName, Capacity> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.takes_leases())
            .map(|(name, worker)| (name, worker.free()))
            .collect();
        let mut events = Vec::new();
        for queue in self.queues.values() {
            for (_, id) in queue {
                free.retain(|_, free| free.slots > 0);
                if free.is_empty() {
                    return events;
                }
                if !self.is_ready(*id, now) {
                    continue;
                }
                let (Some(job), Some(spec)) = (self.jobs.get(id), self.spec(*id)) else { continue };
                let Some(worker) = self.best_worker(job, spec, &free) else { continue };
                if let Some(left) = free.get_mut(&worker) {
                    *left = left.minus(&spec.run.resources);
                }
                events.push(Event::JobLeased { at: now, lease: next_lease(*id, job), worker });
            }
        }
        events
    }

    fn best_worker(&self, job: &Job, spec: &JobSpec, free: &BTreeMap<&WorkerName, Capacity>) -> Option<WorkerName> {
        let able = free.iter().filter_map(|(name, free)| {
            let worker = self.workers.get(*name)?;
            let suits = free.fits(&spec.run.resources) && worker.offer.objection(spec).is_none();
            suits.then(|| (self.score(job, spec, worker, *free), *name))
        });
        able.max_by(|a, b| a.0.cmp(&b.0)).map(|(_, name)| name.clone())
    }

    fn score(&self, job: &Job, spec: &JobSpec, worker: &Worker, free: Capacity) -> Score {
        let name = &worker.offer.name;
        // Counted, so that a loss elsewhere does not send a job back to where it is lost every time.
        let lost_there = job.attempts.iter().filter(|attempt| {
            let kind = attempt.end.as_ref().map(|end| end.outcome.kind);
            attempt.worker == *name && matches!(kind, Some(OutcomeKind::Lost | OutcomeKind::Refused))
        });
        let native = worker.offer.offers(spec.name.platform) == Some(false);
        let build = &self.builds[&job.build];
        let needs_ran_there = spec.needs.iter().filter(|need| {
            let need = self.job_id(build, need).and_then(|id| self.jobs.get(&id));
            need.and_then(|need| need.attempts.last()).is_some_and(|attempt| attempt.worker == *name)
        });
        (Reverse(lost_there.count()), native, needs_ran_there.count(), free, Reverse(name.clone()))
    }
}

fn next_lease(id: JobId, job: &Job) -> LeaseId {
    LeaseId { job: id, attempt: job.attempts.last().map_or(1, |last| last.number + 1) }
}
