//! What must hold of every event, judged from outside: written against the promises of the farm, not against its code.
//!
//! [`railyard_core::Farm::check`] looks at one state; this looks at how one state became the next.

use railyard_common::id::{BuildId, JobId, LeaseId, WorkerName};
use railyard_common::outcome::OutcomeKind;
use railyard_common::time::Millis;
use railyard_core::{BuildState, Event, Farm, JobState, LOST_BUDGET, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// What has been seen so far.
#[derive(Default)]
pub struct Audit {
    leased: BTreeSet<LeaseId>,
    ended: BTreeSet<LeaseId>,
    /// Attempts since the last submit or retry.
    spent: BTreeMap<JobId, u32>,
    /// Jobs and builds that are over, as they ended.
    jobs_over: BTreeMap<JobId, JobState>,
    builds_over: BTreeMap<BuildId, BuildState>,
}

impl Audit {
    /// Judges `event` by the state that it is about to change.
    pub fn before(&mut self, farm: &Farm, now: Millis, event: &Event) {
        match event {
            Event::JobLeased { lease, worker, .. } => {
                self.invariant_lease_is_new(farm, *lease);
                self.invariant_attempts_are_bounded(farm, *lease);
                invariant_job_may_start(farm, now, *lease);
                invariant_worker_suits(farm, *lease, worker);
                invariant_groups_take_turns(farm, *lease);
            }
            Event::AttemptEnded { lease, outcome, .. } => {
                assert!(self.leased.contains(lease), "{lease} ends and was never leased");
                assert!(self.ended.insert(*lease), "{lease} ends a second time, now {outcome:?}");
            }
            Event::BuildResumed { build, jobs, .. } => {
                assert!(self.builds_over.remove(build).is_some(), "{build} is resumed and has not ended");
                // What stays skipped may be so for another reason from now on.
                let skipped = |state: &mut JobState| matches!(state, JobState::Skipped { .. });
                let of_build: BTreeSet<JobId> = farm.build(build).into_iter().flat_map(|build| build.jobs()).collect();
                self.jobs_over.retain(|job, state| !of_build.contains(job) || jobs.contains(job) || !skipped(state));
                for job in jobs {
                    assert!(self.jobs_over.remove(job).is_some(), "{job} is resumed and has not ended");
                    self.spent.remove(job);
                }
            }
            Event::BuildsReduced { builds, .. } => {
                for one in builds {
                    let build =
                        farm.build(&one.build).unwrap_or_else(|| panic!("{} is reduced and unknown", one.build));
                    assert!(build.is_ended(), "{} is reduced and has not ended", one.build);
                    assert!(one.keep < build.keep(), "{} is reduced from {} to {}", one.build, build.keep(), one.keep);
                }
            }
            Event::BuildsForgotten { builds, .. } => builds.iter().for_each(|build| self.forget(farm, build)),
            Event::BlobsClaimed { lease, .. } => {
                assert!(farm.live_leases().any(|live| live == *lease), "{lease} claims blobs and is over");
            }
            _ => {}
        }
    }

    /// Of a deleted build nothing is known any more, and that is no change of what was over.
    fn forget(&mut self, farm: &Farm, id: &BuildId) {
        let build = farm.build(id).unwrap_or_else(|| panic!("{id} is forgotten and unknown"));
        assert!(build.is_deleted(), "{id} is forgotten and not deleted");
        self.builds_over.remove(id);
        build.jobs().for_each(|job| drop(self.jobs_over.remove(&job)));
    }

    /// Judges the state that an event has made.
    pub fn after(&mut self, farm: &Farm) {
        self.invariant_over_is_over(farm);
        for build in farm.builds() {
            for id in build.jobs() {
                let job = farm.job(id).unwrap_or_else(|| panic!("{id} of {} is missing", build.id()));
                if job.is_terminal() {
                    self.jobs_over.entry(id).or_insert_with(|| job.state.clone());
                }
            }
            if build.is_ended() {
                self.builds_over.entry(build.id().clone()).or_insert_with(|| build.state.clone());
            }
            invariant_verdict(farm, build);
        }
    }

    fn invariant_over_is_over(&self, farm: &Farm) {
        for (id, state) in &self.jobs_over {
            let is = farm.job(*id).map(|job| &job.state);
            assert_eq!(is, Some(state), "{id} was over and has changed");
        }
        for (id, state) in &self.builds_over {
            let is = farm.build(id).map(|build| &build.state);
            assert_eq!(is, Some(state), "{id} was over and has changed");
        }
    }

    fn invariant_lease_is_new(&mut self, farm: &Farm, lease: LeaseId) {
        let newest = self.leased.range(..=LeaseId { job: lease.job, attempt: u32::MAX }).next_back();
        if let Some(newest) = newest.filter(|newest| newest.job == lease.job) {
            assert!(newest.attempt < lease.attempt, "{lease} follows {newest}");
        }
        assert!(self.leased.insert(lease), "{lease} is leased a second time");
        assert!(farm.live_leases().all(|live| live.job != lease.job), "{lease} is leased beside a live lease");
    }

    /// Each failure and each loss is paid from its own budget; together they bound the attempts.
    fn invariant_attempts_are_bounded(&mut self, farm: &Farm, lease: LeaseId) {
        let retries = farm.spec(lease.job).map_or(0, |spec| spec.retries);
        let spent = self.spent.entry(lease.job).or_default();
        *spent += 1;
        assert!(*spent <= retries + LOST_BUDGET, "{lease} is attempt {spent} with {retries} retries");
    }
}

/// Its build runs, everything that it needs has succeeded, and its backoff is over.
fn invariant_job_may_start(farm: &Farm, now: Millis, lease: LeaseId) {
    let job = farm.job(lease.job).unwrap_or_else(|| panic!("{lease} is of no job"));
    let build = farm.build(&job.build).unwrap_or_else(|| panic!("{lease} is of no build"));
    assert!(build.is_running(), "{lease} is leased while its build is {:?}", build.state);
    match job.state {
        JobState::Queued { not_before, .. } => assert!(not_before <= now, "{lease} is leased at {now}: {not_before}"),
        ref state => panic!("{lease} is leased while its job is {state:?}"),
    }
    let gated = build.plan.jobs[job.index].approval.is_some();
    assert!(!gated || job.approval.is_some(), "{lease} is leased and nobody has approved it");
    assert!(job.cancelled.is_none(), "{lease} is leased and its job is cancelled");
    for need in &build.plan.jobs[job.index].needs {
        let met = farm.job_id(build, need).and_then(|id| farm.job(id)).is_some_and(|job| job.result().is_some());
        assert!(met, "{lease} is leased and {need} has not succeeded");
    }
}

/// No more of a group run than the strictest of them allows, and nobody who came earlier and could run somewhere is passed over.
fn invariant_groups_take_turns(farm: &Farm, lease: LeaseId) {
    let Some(own) = farm.spec(lease.job).and_then(|spec| spec.concurrency.clone()) else { return };
    let in_group =
        |id: &JobId| farm.spec(*id).and_then(|spec| spec.concurrency.as_ref()).filter(|c| c.group == own.group);
    let running = farm.live_leases().filter_map(|live| in_group(&live.job)).map(|other| other.limit);
    let limits: Vec<u32> = running.chain([own.limit]).collect();
    let strictest = limits.iter().copied().min().unwrap_or(0);
    assert!(limits.len() <= strictest as usize, "{lease} is one too many in group {}: {limits:?}", own.group);
    let ticket = farm.job(lease.job).map_or(0, |job| job.ticket);
    let all = farm.builds().flat_map(|build| build.jobs());
    for earlier in all.filter(|id| *id != lease.job && in_group(id).is_some()) {
        let (Some(job), Some(spec)) = (farm.job(earlier), farm.spec(earlier)) else { continue };
        let waits = matches!(job.state, JobState::Queued { .. }) && job.ticket < ticket;
        let could_run = |worker: &railyard_core::Worker| {
            worker.online && !worker.draining && worker.hold.is_none() && worker.offer.objection(spec).is_none()
        };
        assert!(!waits || !farm.workers().any(could_run), "{lease} overtakes {earlier} in group {}", own.group);
    }
}

/// The worker is here, takes leases, offers the platform, allows what the job wants, and has room for it.
fn invariant_worker_suits(farm: &Farm, lease: LeaseId, name: &WorkerName) {
    let worker = farm.worker(name).unwrap_or_else(|| panic!("{lease} goes to {name}, which nobody knows"));
    let spec = farm.spec(lease.job).unwrap_or_else(|| panic!("{lease} has no plan"));
    assert!(worker.online && !worker.draining, "{lease} goes to {name}, which takes none");
    assert!(worker.hold.is_none(), "{lease} goes to {name}, which is {:?}", worker.hold);
    assert_eq!(worker.offer.pool, spec.pool, "{lease} goes to {name}, of another pool");
    for (label, value) in &spec.labels {
        assert_eq!(worker.offer.labels.get(label), Some(value), "{lease} goes to {name}: label {label}");
    }
    let platforms: Vec<_> = worker.offer.platforms.iter().map(|offer| offer.platform).collect();
    assert!(
        platforms.contains(&spec.name.platform),
        "{lease} for {} goes to {name}: {platforms:?}",
        spec.name.platform
    );
    assert!(worker.offer.allows_privileged || !spec.run.privileged, "{lease} is privileged, {name} allows none");
    let uploads = |held: &LeaseId| farm.job(held.job).and_then(|job| job.attempts.last()).is_some_and(|a| a.uploading);
    let held = worker.leases.iter().filter_map(|held| Some((farm.spec(held.job)?, uploads(held))));
    let (mut cpu, mut memory, mut disk, mut slots) = (0, 0, 0, 0);
    for (needs, uploads) in held.chain([(spec, false)]).map(|(spec, uploads)| (&spec.run.resources, uploads)) {
        disk += needs.disk_bytes;
        if !uploads {
            cpu += needs.cpu_millis;
            memory += needs.memory_bytes;
            slots += needs.slots;
        }
    }
    let has = &worker.offer.capacity;
    let fits = cpu <= has.cpu_millis && memory <= has.memory_bytes && disk <= has.disk_bytes && slots <= has.slots;
    assert!(
        fits,
        "{lease} makes {name} run {cpu} mcpu, {memory} B memory, {disk} B disk, {slots} jobs; it has {has:?}"
    );
}

/// A build is called what its jobs became; a job is skipped only because of one that ended badly.
fn invariant_verdict(farm: &Farm, build: &railyard_core::Build) {
    let jobs = || build.jobs().filter_map(|id| farm.job(id));
    let all_succeeded = jobs().all(|job| job.result().is_some());
    let (verdict, error) = match &build.state {
        BuildState::Running | BuildState::Cancelling { .. } => return,
        BuildState::Finalizing { verdict } => (verdict, false),
        BuildState::Ended { verdict, error, .. } => (verdict, error.is_some()),
    };
    assert!(jobs().all(|job| job.is_terminal()), "{} is over before its jobs", build.id());
    let consistent = match verdict {
        Verdict::Succeeded => all_succeeded && !error,
        Verdict::Failed => !all_succeeded || error,
        Verdict::Cancelled => !all_succeeded,
    };
    assert!(consistent, "{} is {:?}", build.id(), build.state);
    for job in jobs() {
        if let JobState::Skipped { because } = &job.state {
            let cause = farm.job_id(build, because).and_then(|id| farm.job(id)).map(|job| &job.state);
            let bad = matches!(cause, Some(JobState::Ended { kind, .. }) if *kind != OutcomeKind::Succeeded);
            assert!(bad, "a job of {} is skipped because of {because}, which is {cause:?}", build.id());
        }
    }
}
