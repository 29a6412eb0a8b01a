//! What becomes durable, and whether it may.

use crate::pipelines::End;
use crate::world::World;
use railyard_common::id::{BuildId, JobId, LeaseId, WorkerName};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::time::Millis;
use railyard_core::{Event, Farm, JobResult, JobState, LOST_BUDGET, Next, Round};

impl World {
    /// An event is durable from now on.
    pub fn durable(&mut self, _wall: Millis, event: &Event) {
        self.ledger.events += 1;
        self.before(event);
        self.ledger.durable.apply(event);
        if let Some(broken) = self.ledger.durable.check().into_iter().next() {
            self.breaks("farm-check", broken);
        }
        self.after_event(event);
        self.note_groups();
    }

    fn before(&mut self, event: &Event) {
        match event {
            Event::BuildAccepted { plan, first_job, .. } => {
                self.before_accepted(&plan.build, *first_job, plan.jobs.len())
            }
            Event::JobLeased { lease, worker, .. } => self.before_lease(*lease, worker),
            Event::AttemptEnded { lease, outcome, artifacts, image, log_bytes, next, .. } => {
                let result = JobResult { artifacts: artifacts.clone(), image: image.clone() };
                self.before_end(*lease, outcome, &result, *log_bytes);
                self.count_end(*lease, outcome, *next);
            }
            Event::BuildResumed { build, jobs, .. } => {
                self.ledger.cancelled.remove(build);
                for job in jobs {
                    self.ledger.stopped.remove(job);
                    self.ledger.successes.remove(job);
                    self.ledger.spent.remove(job);
                }
            }
            _ => {}
        }
    }

    fn after_event(&mut self, event: &Event) {
        match event {
            Event::JobLeased { lease, worker, .. } => {
                self.invariant_capacity(worker);
                let now = self.now;
                self.ledger.heard(now, std::iter::once(lease));
            }
            Event::BuildCancelled { build, .. } => drop(self.ledger.cancelled.insert(build.clone())),
            Event::JobsCancelled { jobs, .. } => self.ledger.stopped.extend(jobs),
            Event::JobsApproved { jobs, .. } => self.ledger.approved.extend(jobs),
            Event::JobUploading { lease, .. } => self.after_uploading(*lease),
            Event::AttemptEnded { lease, next: Next::End, .. } => self.invariant_poison(lease.job),
            Event::BuildEnded { build, .. } if !self.store.manifests.contains_key(build) => {
                self.breaks("manifest", format!("{build} has ended without its manifest"));
            }
            _ => {}
        }
    }

    fn before_accepted(&mut self, build: &BuildId, first: JobId, jobs: usize) {
        if self.ledger.durable.build(build).is_some() {
            self.breaks("one-build-per-name", format!("{build} is accepted again"));
        }
        let ids = (first.0..).take(jobs).map(JobId);
        if let Some(id) = ids.clone().find(|id| self.ledger.durable.job(*id).is_some()) {
            self.breaks("job-numbers-are-new", format!("{id} of {build} is the number of another job"));
        }
    }

    /// One lease per job at a time, attempts that rise, needs that succeeded, a worker that suits.
    fn before_lease(&mut self, lease: LeaseId, worker: &WorkerName) {
        let newest = LeaseId { job: lease.job, attempt: u32::MAX };
        let last = self.ledger.granted.range(..=newest).next_back().map(|(last, _)| *last);
        if let Some(last) = last.filter(|last| last.job == lease.job) {
            if last.attempt >= lease.attempt {
                return self.breaks("attempts-rise", format!("{lease} is granted after {last}"));
            }
            if !self.ledger.ended.contains(&last) {
                return self.breaks("one-lease-per-job", format!("{lease} is granted while {last} is live"));
            }
        }
        self.ledger.granted.insert(lease, self.now);
        let farm = &self.ledger.durable;
        let Some((job, spec)) = farm.job(lease.job).zip(farm.spec(lease.job)) else {
            return self.breaks("lease-has-a-job", format!("{lease} is of no job"));
        };
        let build = job.build.clone();
        let done = |need| {
            let build = farm.build(&build)?;
            farm.job_id(build, need).filter(|need| self.ledger.successes.contains_key(need))
        };
        if let Some(need) = spec.needs.iter().find(|need| done(need).is_none()) {
            let why = format!("{lease} is granted before {need} has succeeded");
            return self.breaks("needs-first", why);
        }
        if self.ledger.successes.contains_key(&lease.job) {
            return self.breaks("one-success", format!("{lease} is granted after a success"));
        }
        if self.ledger.cancelled.contains(&build) || self.ledger.stopped.contains(&lease.job) {
            return self.breaks("no-lease-after-cancel", format!("{lease} of {build} is granted after its cancel"));
        }
        self.before_placement(lease, worker);
    }

    fn before_end(&mut self, lease: LeaseId, outcome: &Outcome, result: &JobResult, log_bytes: u64) {
        if !self.ledger.granted.contains_key(&lease) {
            return self.breaks("end-of-a-lease", format!("{lease} ends and was never granted"));
        }
        if !self.ledger.ended.insert(lease) {
            return self.breaks("one-end-per-attempt", format!("{lease} ends again: {outcome:?}"));
        }
        let Some(worker) = self.ledger.durable.holder(lease).cloned() else {
            return self.breaks("end-of-a-lease", format!("{lease} ends and is not live"));
        };
        let host = self.hosts.iter().position(|host| host.name == worker);
        if host.is_some_and(|host| self.hosts[host].runs(lease)) {
            let why =
                format!("{lease} ends ({}: {}) while its container runs on {worker}", outcome.reason, outcome.message);
            return self.breaks("container-gone-before-end", why);
        }
        match (outcome.kind, outcome.reason) {
            (OutcomeKind::Succeeded, _) => self.before_success(lease, result, log_bytes),
            (OutcomeKind::Failed | OutcomeKind::TimedOut, reason) => self.before_failure(lease, outcome.kind, reason),
            _ => {}
        }
    }

    /// What is said to have succeeded has, and everything of it is there.
    fn before_success(&mut self, lease: LeaseId, result: &JobResult, log_bytes: u64) {
        if self.ledger.contained.get(&lease) != Some(&Some(End::Good)) {
            let how = self.ledger.contained.get(&lease);
            return self.breaks("success-is-real", format!("{lease} succeeded; its container: {how:?}"));
        }
        let images = result.image.iter().flat_map(|image| std::iter::once(&image.config).chain(&image.layers));
        let blobs: Vec<_> = result.artifacts.iter().map(|artifact| &artifact.blob).chain(images).collect();
        if let Some(blob) = blobs.into_iter().find(|blob| !self.store.has(&blob.digest)) {
            return self
                .breaks("artifacts-are-there", format!("{lease} left {}, which is not in the store", blob.digest));
        }
        let kept = self.controller.logs.get(&lease).copied().unwrap_or(0);
        if kept < log_bytes {
            return self.breaks("log-is-whole", format!("{lease} wrote {log_bytes} bytes of log, {kept} are kept"));
        }
        let successes = self.ledger.successes.entry(lease.job).or_default();
        *successes += 1;
        if *successes > 1 {
            self.breaks("one-success", format!("{lease} is another success of its job"));
        }
    }

    /// The farm's own losses are never the step's failures.
    fn before_failure(&mut self, lease: LeaseId, kind: OutcomeKind, reason: Reason) {
        let how = self.ledger.contained.get(&lease).copied().flatten();
        let fits = match (kind, reason) {
            (OutcomeKind::Failed, Reason::InputMissing) => true,
            (OutcomeKind::Failed, Reason::ExitCode) => matches!(how, Some(End::Code(_))),
            (OutcomeKind::Failed, Reason::Oom) => how == Some(End::Oom),
            (OutcomeKind::Failed, Reason::OutputMissing) => how == Some(End::OutputMissing),
            (OutcomeKind::TimedOut, _) => self.ledger.contained.contains_key(&lease),
            _ => false,
        };
        if !fits {
            self.breaks("failure-is-real", format!("{lease} is {kind} ({reason}); its container: {how:?}"));
        }
    }

    /// A lease expires only when nothing was heard of it for its time to live, and the controller was there to hear.
    pub fn check_expiries(&mut self, round: &Round) {
        let expired = round.events().iter().filter_map(|event| match event {
            Event::AttemptEnded { lease, outcome, .. } if outcome.message.starts_with("no word") => Some(*lease),
            _ => None,
        });
        let expired: Vec<LeaseId> = expired.collect();
        expired.into_iter().for_each(|lease| self.before_expiry(lease));
        let ended = |lease: &LeaseId| {
            let ends = |event: &Event| matches!(event, Event::AttemptEnded { lease: ended, .. } if ended == lease);
            round.events().iter().any(ends)
        };
        let late = self.ledger.durable.live_leases().find(|lease| self.is_overdue(*lease) && !ended(lease));
        if let Some(lease) = late {
            self.breaks("no-late-expiry", format!("{lease} was not heard of for its time to live, and lives on"));
        }
    }

    /// Whether nothing was heard of a lease for longer than its time to live. Clocks may run slow by 0.2 %.
    fn is_overdue(&self, lease: LeaseId) -> bool {
        let ttl = self.ledger.durable.ttl_millis(lease).unwrap_or_default();
        let heard = self.ledger.heard.get(&lease).copied().unwrap_or(0).max(self.ledger.controller_started);
        let taken = self.ledger.taken.get(&lease).copied().unwrap_or(0);
        self.now > heard.max(taken) + ttl + ttl / 250 + 2_000
    }

    fn before_expiry(&mut self, lease: LeaseId) {
        let ttl = self.ledger.durable.ttl_millis(lease).unwrap_or_default();
        let heard = self.ledger.heard.get(&lease).copied().unwrap_or(0).max(self.ledger.controller_started);
        // Its clock may run fast by 0.2 %.
        if self.now < heard + ttl - ttl / 250 - 1 {
            let why = format!("{lease} (ttl {ttl} ms) expires {} ms after it was heard of", self.now - heard);
            self.breaks("no-early-expiry", why);
        }
    }

    /// The two budgets are finite, and apart.
    fn count_end(&mut self, lease: LeaseId, outcome: &Outcome, next: Next) {
        let Some((job, spec)) = self.ledger.durable.job(lease.job).zip(self.ledger.durable.spec(lease.job)) else {
            return;
        };
        let (build, retries) = (job.build.clone(), spec.retries);
        let spent = self.ledger.spent.entry(lease.job).or_default();
        match outcome.kind {
            OutcomeKind::Lost | OutcomeKind::Refused => spent.0 += 1,
            OutcomeKind::Failed | OutcomeKind::TimedOut => spent.1 += 1,
            OutcomeKind::Succeeded | OutcomeKind::Cancelled => {}
        }
        let (lost, failed) = *spent;
        if lost > LOST_BUDGET || failed > retries + 1 {
            let why =
                format!("{lease} is attempt with {lost} lost and {failed} failed; the step has {retries} retries");
            return self.breaks("budgets-are-finite", why);
        }
        let stopped = self.ledger.cancelled.contains(&build) || self.ledger.stopped.contains(&lease.job);
        let given_up = next == Next::End && !stopped;
        let early = match outcome.kind {
            OutcomeKind::Lost | OutcomeKind::Refused => lost < LOST_BUDGET,
            OutcomeKind::Failed | OutcomeKind::TimedOut => failed <= retries,
            OutcomeKind::Succeeded | OutcomeKind::Cancelled => false,
        };
        if given_up && early {
            let why =
                format!("{lease} was the last with {lost} lost and {failed} failed; the step has {retries} retries");
            self.breaks("budgets-are-apart", why);
        }
    }

    /// What needs a job that did not succeed does not wait for it.
    fn invariant_poison(&mut self, id: JobId) {
        let farm = &self.ledger.durable;
        let Some(job) = farm.job(id).filter(|job| job.result().is_none() && job.is_terminal()) else { return };
        let Some((build, spec)) = farm.build(&job.build).zip(farm.spec(id)) else { return };
        let waits = build.jobs().zip(&build.plan.jobs).find(|(dependent, of)| {
            of.needs.contains(&spec.name)
                && farm.job(*dependent).is_some_and(|job| matches!(job.state, JobState::Blocked { .. }))
        });
        if let Some((dependent, _)) = waits {
            self.breaks("failure-poisons", format!("{dependent} still waits for {id}, which has ended"));
        }
    }

    /// What the controller holds in memory is what its durable events make.
    pub fn check_replay(&mut self) {
        let Some(farm) = self.controller.idle_farm() else { return };
        if farm.snapshot() != self.ledger.durable.snapshot() {
            self.breaks("memory-is-durable", "the controller's state is not what is durable".to_owned());
        }
    }

    /// What a controller reads at its start is what was durable.
    pub fn check_loaded(&mut self, farm: &Farm) {
        if farm.snapshot() != self.ledger.durable.snapshot() {
            let why = "the journal reads back as another state".to_owned();
            return self.breaks("replay-gives-the-state", why);
        }
        if let Some(key) = self.ledger.keys.iter().find(|(key, build)| farm.by_key(key) != Some(build)) {
            self.breaks("same-key-same-build", format!("a start has forgotten {key:?}"));
        }
        let acked = self.ledger.log_acked.iter();
        let short = acked.map(|(lease, acked)| (lease, acked, self.controller.logs.get(lease).copied().unwrap_or(0)));
        if let Some((lease, acked, kept)) = short.into_iter().find(|(_, acked, kept)| kept < acked) {
            self.breaks("log-acked-is-kept", format!("{acked} bytes of {lease} were acked, {kept} are kept"));
        }
    }
}
