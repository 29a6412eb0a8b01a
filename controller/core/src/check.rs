//! What must always be true. Run after every event in tests, and when a snapshot is loaded.

use crate::build::BuildState;
use crate::farm::Farm;
use crate::job::JobState;
use railyard_common::id::{BuildId, GroupName, JobId, LeaseId, PipelineName};
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
        self.invariant_groups(&mut broken);
        self.invariant_usage(&mut broken);
        self.invariant_kept(&mut broken);
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
            let Some(build) = self.builds.get(&job.build) else {
                broken.push(format!("{id} belongs to no build"));
                continue;
            };
            let unmet = self.unmet_needs(build, job.index);
            let consistent = match job.state {
                JobState::Blocked { needs } => needs == unmet,
                JobState::AwaitsApproval { .. }
                | JobState::Queued { .. }
                | JobState::Leased { .. }
                | JobState::Succeeded(_) => unmet == 0,
                JobState::Ended { .. } | JobState::Skipped { .. } => true,
            };
            if !consistent {
                broken.push(format!("{id} is {:?} with {unmet} unmet needs", job.state));
            }
        }
    }

    /// A build is over exactly when its jobs are.
    fn invariant_builds(&self, broken: &mut Vec<String>) {
        let finalizing = |id: &BuildId| matches!(self.builds[id].state, BuildState::Finalizing { .. });
        if !self.builds.keys().filter(|id| finalizing(id)).eq(&self.finalizing) {
            broken.push(format!("builds to be written out are said to be {:?}", self.finalizing));
        }
        let total: usize = self.builds.values().map(|build| build.unfinished).sum();
        if total != self.unfinished {
            broken.push(format!("the farm counts {} unfinished jobs, its builds {total}", self.unfinished));
        }
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
            let held = worker.leases.iter().map(|lease| self.reservation(*lease));
            let sum = held.fold(Capacity::default(), |sum, held| sum.plus(&held));
            if sum != worker.reserved {
                broken.push(format!("{name} has {:?} reserved, its leases make {sum:?}", worker.reserved));
            }
        }
    }

    /// Every queued job stands in one place, the right one, and nobody else does.
    fn invariant_queues(&self, broken: &mut Vec<String>) {
        let mut standing: Vec<JobId> = Vec::new();
        for (line, queue) in &self.queues.lines {
            if queue.by_path.len() != queue.by_age.len() || queue.by_path.is_empty() {
                broken.push(format!("a line has {} jobs by path, {} by age", queue.by_path.len(), queue.by_age.len()));
            }
            for (_, _, id) in queue.by_path.keys() {
                standing.push(*id);
                if self.line(*id).as_ref() != Some(line) {
                    broken.push(format!("{id} stands in the wrong line"));
                }
            }
        }
        standing.extend(self.queues.backoff.keys().map(|(_, id)| *id));
        for (name, group) in &self.queues.groups {
            for (_, id) in group.waiting.keys() {
                standing.push(*id);
                if self.line(*id).and_then(|line| line.group.clone()).as_ref() != Some(name) {
                    broken.push(format!("{id} waits in group {name}, which is not its own"));
                }
            }
        }
        standing.sort();
        let queued = self.jobs.iter().filter(|(_, job)| matches!(job.state, JobState::Queued { .. }));
        let queued: Vec<JobId> = queued.map(|(id, _)| *id).collect();
        if standing != queued || standing.len() != self.queues.len() {
            broken.push(format!("{} jobs stand in line: {standing:?}, queued are {queued:?}", self.queues.len()));
        }
    }

    /// No more jobs of a group run than the strictest of them allows, and the groups know who runs.
    fn invariant_groups(&self, broken: &mut Vec<String>) {
        let mut running: BTreeMap<&GroupName, BTreeMap<JobId, u32>> = BTreeMap::new();
        for lease in self.live_leases() {
            if let Some(own) = self.spec(lease.job).and_then(|spec| spec.concurrency.as_ref()) {
                running.entry(&own.group).or_default().insert(lease.job, own.limit);
            }
        }
        for (name, running) in &running {
            let limit = running.values().copied().min().unwrap_or(0) as usize;
            if running.len() > limit {
                broken.push(format!("{} jobs of group {name} run, {limit} may: {running:?}", running.len()));
            }
            if self.queues.groups.get(*name).map(|group| &group.running) != Some(running) {
                broken.push(format!("group {name} does not know who runs"));
            }
        }
        let known = self.queues.groups.values().filter(|group| !group.running.is_empty()).count();
        if known != running.len() {
            broken.push(format!("{known} groups believe that they run, {} do", running.len()));
        }
    }

    /// A tag is one build's, claims are of live leases, nothing is left of a build that runs but all, and only what succeeded and is whole
    /// is promoted.
    fn invariant_kept(&self, broken: &mut Vec<String>) {
        let mut tags = BTreeSet::new();
        for build in self.builds.values() {
            for tag in &build.kept.tags {
                if !tags.insert((&build.id().pipeline, tag)) {
                    broken.push(format!("two builds of {} have the tag {tag}", build.id().pipeline));
                }
            }
            if build.kept.promoting.is_some() && !(build.is_success() && build.kept.reduced.is_none()) {
                broken.push(format!("{} is being promoted, and is not a whole success", build.id()));
            }
            if build.kept.reduced.is_some() && !build.is_ended() {
                broken.push(format!("{} is reduced and has not ended", build.id()));
            }
        }
        let claimed = self.claims.keys().filter(|lease| self.holder(**lease).is_none());
        broken.extend(claimed.map(|lease| format!("{lease} claims blobs and is not live")));
    }

    /// What pipelines use is what their live leases reserve.
    fn invariant_usage(&self, broken: &mut Vec<String>) {
        let mut usage: BTreeMap<PipelineName, u64> = BTreeMap::new();
        for lease in self.live_leases() {
            let cpus = u64::from(self.reservation(lease).cpu_millis);
            if let Some(job) = self.jobs.get(&lease.job).filter(|_| cpus > 0) {
                *usage.entry(job.build.pipeline.clone()).or_default() += cpus;
            }
        }
        let known: BTreeMap<PipelineName, u64> =
            self.usage.iter().filter(|(_, cpus)| **cpus > 0).map(|(name, cpus)| (name.clone(), *cpus)).collect();
        if known != usage {
            broken.push(format!("pipelines use {usage:?}, on record are {known:?}"));
        }
    }
}
