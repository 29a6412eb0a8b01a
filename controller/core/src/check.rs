//! What must always be true. Run after every event in tests, and when a snapshot is loaded.

use crate::build::BuildState;
use crate::farm::Farm;
use crate::job::JobState;
use railyard_common::id::LeaseId;
use railyard_common::job::Capacity;
use std::collections::{BTreeMap, BTreeSet};

impl Farm {
    /// Every broken invariant, in words; empty when all is well.
    pub fn check(&self) -> Vec<String> {
        let mut broken = Vec::new();
        self.invariant_leases(&mut broken);
        self.invariant_needs(&mut broken);
        self.invariant_builds(&mut broken);
        self.invariant_capacity(&mut broken);
        self.invariant_queues(&mut broken);
        broken
    }

    /// At most one live lease per job, held by one worker; attempts strictly increase; one success per job.
    fn invariant_leases(&self, broken: &mut Vec<String>) {
        let mut held: BTreeMap<LeaseId, usize> = BTreeMap::new();
        for lease in self.live_leases() {
            *held.entry(lease).or_default() += 1;
        }
        for (id, job) in &self.jobs {
            let open = job.attempts.iter().filter(|attempt| attempt.end.is_none()).count();
            let leased = matches!(job.state, JobState::Leased { .. });
            if open != usize::from(leased) {
                broken.push(format!("{id} has {open} open attempts while it is {:?}", job.state));
            }
            if let Some(lease) = job.live_lease(*id)
                && held.remove(&lease) != Some(1)
            {
                broken.push(format!("lease {lease} is not held by exactly one worker"));
            }
            if !job.attempts.windows(2).all(|pair| pair[0].number < pair[1].number) {
                broken.push(format!("{id}'s attempts do not increase"));
            }
        }
        broken.extend(held.keys().map(|lease| format!("lease {lease} is held though its job is not leased")));
    }

    /// No start before the needs have succeeded.
    fn invariant_needs(&self, broken: &mut Vec<String>) {
        for (id, job) in &self.jobs {
            let Some((build, spec)) = self.builds.get(&job.build).zip(self.spec(*id)) else {
                broken.push(format!("{id} belongs to no build"));
                continue;
            };
            let unmet = spec.needs.iter().filter(|need| {
                self.job_id(build, need)
                    .and_then(|need| self.jobs.get(&need))
                    .is_none_or(|need| need.result().is_none())
            });
            let unmet = unmet.count();
            let consistent = match job.state {
                JobState::Blocked { needs } => needs == unmet,
                JobState::Queued { .. } | JobState::Leased { .. } | JobState::Succeeded(_) => unmet == 0,
                JobState::Ended { .. } | JobState::Skipped { .. } => true,
            };
            if !consistent {
                broken.push(format!("{id} is {:?} with {unmet} unmet needs", job.state));
            }
        }
    }

    /// A build is over exactly when its jobs are.
    fn invariant_builds(&self, broken: &mut Vec<String>) {
        for (id, build) in &self.builds {
            let unfinished =
                build.jobs().filter(|job| !self.jobs.get(job).is_some_and(|job| job.is_terminal())).count();
            if unfinished != build.unfinished {
                broken.push(format!("{id} counts {} unfinished jobs and has {unfinished}", build.unfinished));
            }
            let open = matches!(build.state, BuildState::Running | BuildState::Cancelling { .. });
            if open != (unfinished > 0) {
                broken.push(format!("{id} is {:?} with {unfinished} unfinished jobs", build.state));
            }
        }
    }

    /// Reservations add up, and never exceed what the worker last said it has, unless it shrank.
    fn invariant_capacity(&self, broken: &mut Vec<String>) {
        for (name, worker) in &self.workers {
            let specs = worker.leases.iter().filter_map(|lease| self.spec(lease.job));
            let sum = specs.fold(Capacity::default(), |sum, spec| sum.plus(&spec.run.resources));
            if sum != worker.reserved {
                broken.push(format!("{name} has {:?} reserved, its leases make {sum:?}", worker.reserved));
            }
        }
    }

    /// The queues hold the queued jobs, no more and no less, each on its platform.
    fn invariant_queues(&self, broken: &mut Vec<String>) {
        let mut queued = BTreeSet::new();
        for (platform, queue) in &self.queues {
            for (_, id) in queue {
                queued.insert(*id);
                if self.spec(*id).map(|spec| spec.name.platform) != Some(*platform) {
                    broken.push(format!("{id} waits in the queue of {platform}"));
                }
            }
        }
        let want: BTreeSet<_> = self
            .jobs
            .iter()
            .filter(|(_, job)| matches!(job.state, JobState::Queued { .. }))
            .map(|(id, _)| *id)
            .collect();
        if queued != want {
            broken.push(format!("the queues hold {queued:?}, queued are {want:?}"));
        }
    }
}
