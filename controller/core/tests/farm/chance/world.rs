//! A farm that chance acts upon, and what the world outside remembers of it.

use crate::chance::action::{Action, Offer, Step, WORKERS};
use crate::chance::concrete::{plan, worker_name, worker_offer};
use crate::common::{Ledger, Rebirth, event_from_json};
use proptest::sample::Index;
use railyard_common::id::{BootId, BuildId, JobSelector, LeaseId, WorkerName};
use railyard_common::identity::{Identity, Role};
use railyard_common::job::Capacity;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::priority::Priority;
use railyard_core::{
    BuildState, Command, Event, Hold, HoldKind, Job, JobState, LOST_BUDGET, Refusal, Report, Submission, Trace, Worker,
};
use std::collections::{BTreeMap, BTreeSet};

/// A farm, and what was seen of it from outside.
#[derive(Default)]
pub struct World {
    ledger: Ledger,
    /// Kinds of events and refusals so far.
    pub seen: BTreeSet<String>,
    /// Every lease ever, with the worker that got it.
    leases: BTreeMap<LeaseId, WorkerName>,
    live: BTreeSet<LeaseId>,
    accepted: Vec<Report>,
    keys: BTreeMap<String, BuildId>,
    boots: u32,
}

impl World {
    /// A world in which all this has happened.
    pub fn after(actions: &[Action]) -> Self {
        let mut world = Self::default();
        actions.iter().for_each(|action| world.act(action));
        world
    }

    /// Does one thing.
    fn act(&mut self, action: &Action) {
        match action {
            Action::Submit { version, key, steps, priority, supersede } => {
                self.submit(*version, *key, steps, *priority, *supersede);
            }
            Action::Tick => self.expect_ok(&Command::Tick),
            Action::Hold { worker, kind, secs, stop_secs } => self.hold(*worker, *kind, *secs, *stop_secs),
            Action::Release { worker } => self.release(*worker),
            Action::Uploading { lease } => {
                if let Some(lease) = self.any_lease(lease) {
                    self.expect_ok(&Command::Uploading { lease });
                }
            }
            Action::Approve { build, step } => self.approve(build, step.as_ref()),
            Action::CancelJobs { build, step } => self.cancel_jobs(build, step),
            Action::Measured { worker, gib } => self.ledger.note_free_disk(&worker_name(*worker), gib << 30),
            Action::Hello { worker, offer, reboot, forgets } => self.hello(*worker, offer, *reboot, *forgets),
            Action::Goodbye { worker } => self.expect_ok(&Command::Goodbye { worker: worker_name(*worker) }),
            Action::Revoke { worker } => self.revoke(*worker),
            Action::Drain { worker } => self.expect_ok(&Command::Drain { worker: worker_name(*worker) }),
            Action::Heartbeat { worker } => self.heartbeat(&worker_name(*worker)),
            Action::Place => self.expect_ok(&Command::Place),
            Action::Report { lease, kind } => {
                let live: Vec<LeaseId> = self.live.iter().copied().collect();
                if !live.is_empty() {
                    let lease = *lease.get(&live);
                    self.report(lease, self.leases[&lease].clone(), *kind);
                }
            }
            Action::ReportAny { lease, worker, kind } => {
                if let Some(lease) = self.any_lease(lease) {
                    self.report(lease, worker_name(*worker), *kind);
                }
            }
            Action::ReportAgain { report } => {
                if !self.accepted.is_empty() {
                    let report = report.get(&self.accepted).clone();
                    let answer = self.command(&Command::Report(Box::new(report.clone())));
                    assert_eq!(answer, Ok(0), "{report:?} a second time");
                }
            }
            Action::Expire { lease } => {
                if let Some(lease) = self.any_lease(lease) {
                    let live = self.live.contains(&lease);
                    let answer = self.command(&Command::Expire { lease });
                    assert_eq!(answer, Ok(usize::from(live)), "{lease} expires");
                }
            }
            Action::Advance { secs } => self.advance(secs * 1000),
            Action::Cancel { build } => self.cancel(build),
            Action::Retry { build, step } => self.retry(build, step.as_ref()),
            Action::Finalize { build, fails } => {
                let waiting: Vec<BuildId> = self.ledger.farm().finalizing().map(|build| build.id().clone()).collect();
                if !waiting.is_empty() {
                    let error = fails.then(|| "the cache does not answer".to_owned());
                    let answer = self.command(&Command::Finalized { build: build.get(&waiting).clone(), error });
                    assert_eq!(answer, Ok(1), "a build that waits is finalized");
                }
            }
            Action::FinalizeAny { build } => {
                if let Some(build) = self.any_build(build) {
                    self.expect_ok(&Command::Finalized { build, error: None });
                }
            }
            Action::Restart { from_snapshot } => {
                let from = if *from_snapshot { Rebirth::Snapshot } else { Rebirth::Journal };
                let mut events = Vec::new();
                self.ledger.restart(from, |event, _| events.push(event.clone()));
                self.remember(&events);
                assert!(self.ledger.farm().workers().all(|worker| !worker.online), "nobody is connected after a start");
            }
        }
    }

    /// The faults are over: every worker comes back with room for everything, and every lease is reported. Then every build ends,
    /// within as many rounds as the budgets allow.
    pub fn calm_down(&mut self, moods: &[OutcomeKind]) {
        for worker in 0..WORKERS {
            let pool = worker == 0;
            let (cpu, gib, slots) = (64, 512, 16);
            let offer =
                Offer { amd: true, arm: true, emulated: false, privileged: true, cpu, gib, slots, pool, label: true };
            self.release(worker);
            self.hello(worker, &offer, false, 0);
            self.ledger.note_free_disk(&worker_name(worker), 512 << 30);
        }
        let mut moods = moods.iter().cycle();
        for _ in 0..self.rounds_allowed() {
            if self.ledger.farm().builds().all(|build| build.unfinished == 0) {
                break;
            }
            self.approve_all();
            self.expect_ok(&Command::Place);
            if self.live.is_empty() {
                let farm = self.ledger.farm();
                let ends = farm.workers().filter_map(|worker| worker.quarantined_until());
                let wait = ends.map(|end| end.since(self.ledger.now())).max().unwrap_or(0);
                self.advance(wait);
                self.expect_ok(&Command::Place);
            }
            for lease in self.live.clone() {
                let kind = moods.next().copied().unwrap_or(OutcomeKind::Succeeded);
                self.report(lease, self.leases[&lease].clone(), kind);
            }
            if let Some(end) = self.ledger.farm().next_backoff_end(self.ledger.now()) {
                self.advance(end.since(self.ledger.now()));
            }
        }
        let farm = self.ledger.farm();
        for build in farm.builds() {
            let over = matches!(build.state, BuildState::Finalizing { .. } | BuildState::Ended { .. });
            let now = self.ledger.now();
            let why: Vec<String> = build.jobs().map(|id| farm.why_waiting(id, now)).collect();
            assert!(over, "{} is {:?} when all is calm: {why:?}", build.id(), build.state);
        }
        assert_eq!(farm.live_leases().next(), None, "a lease outlives its build");
        let reserved = farm.workers().find(|worker| worker.reserved != Capacity::default());
        assert!(reserved.is_none(), "still reserved: {reserved:?}");
        let waiting: Vec<BuildId> = farm.finalizing().map(|build| build.id().clone()).collect();
        for build in waiting {
            self.expect_ok(&Command::Finalized { build, error: None });
        }
        assert!(self.ledger.farm().builds().all(|build| build.is_ended()), "a finalized build has not ended");
    }

    /// Replay and restore give this state.
    pub fn verify(&self) {
        self.ledger.verify();
    }

    /// Every event so far, as the journal gives it back.
    pub fn journal(&self) -> impl Iterator<Item = Event> {
        self.ledger.journal().iter().map(|record| event_from_json(record))
    }

    /// Each round leases something or waits for a backoff, and an attempt that ends costs at most one of each.
    fn rounds_allowed(&self) -> u32 {
        let farm = self.ledger.farm();
        let open = farm.builds().flat_map(|build| build.jobs()).filter_map(|id| farm.job(id).zip(farm.spec(id)));
        let open = open.filter(|(job, _)| !job.is_terminal());
        2 + open.map(|(_, spec)| 3 * (spec.retries + LOST_BUDGET)).sum::<u32>()
    }

    fn submit(&mut self, version: u8, key: Option<u8>, steps: &[Step], priority: u8, supersede: bool) {
        let plan = plan(version, steps, supersede);
        let priority = Priority::ALL[usize::from(priority) % Priority::ALL.len()];
        let older: Vec<BuildId> =
            self.ledger.farm().builds().filter(|build| build.is_running()).map(|build| build.id().clone()).collect();
        let (id, key) = (plan.build.clone(), key.map(|key| format!("key-{key}")));
        let known = key.as_ref().is_some_and(|key| self.keys.contains_key(key));
        let taken = self.ledger.farm().build(&id).is_some();
        let request = String::new();
        let by = "chance".to_owned();
        let submission = Submission { plan, key: key.clone(), request, priority, by, trace: Trace::default() };
        let answer = self.command(&Command::Submit(Box::new(submission)));
        match (known, taken) {
            (true, _) => assert_eq!(answer, Ok(0), "a known key"),
            (false, true) => assert_eq!(answer, Err(Refusal::BuildExists(id.clone()))),
            (false, false) => {
                let farm = self.ledger.farm();
                let stopped = older.iter().filter_map(|older| farm.build(older)).filter(|older| !older.is_running());
                let stopped: Vec<_> = stopped.map(|older| (older.priority, older.plan.supersede.is_some())).collect();
                assert_eq!(answer, Ok(1 + stopped.len()), "a new build, and those that it supersedes");
                let right =
                    |(priority, group): &(Priority, bool)| *priority != Priority::Release && *group && supersede;
                assert!(stopped.iter().all(right), "superseded: {stopped:?}");
                key.clone().map(|key| self.keys.insert(key, id));
            }
        }
        if let Some(key) = key.filter(|key| self.keys.contains_key(key)) {
            assert_eq!(self.ledger.farm().by_key(&key), self.keys.get(&key), "{key}");
        }
    }

    fn hello(&mut self, worker: usize, offer: &Offer, reboot: bool, forgets: u8) {
        let name = worker_name(worker);
        let known = self.ledger.farm().worker(&name).map(|worker| worker.offer.boot.clone());
        let boot = known.filter(|_| !reboot).unwrap_or_else(|| {
            self.boots += 1;
            BootId(self.boots.to_string())
        });
        let of_worker = self.live.iter().filter(|lease| self.leases[*lease] == name).copied().enumerate();
        let (held, forgotten): (Vec<_>, Vec<_>) = of_worker.partition(|(n, _)| forgets >> (n % 8) & 1 == 0);
        let held: Vec<LeaseId> = held.into_iter().map(|(_, lease)| lease).collect();
        let retired = self.ledger.farm().worker(&name).is_some_and(|worker| worker.is_retired());
        let offer = Box::new(worker_offer(name, boot, offer));
        let answer = self.command(&Command::Hello { offer, held: held.clone() });
        if retired {
            assert!(matches!(answer, Err(Refusal::Retired { .. })), "a retired worker comes back: {answer:?}");
            return;
        }
        assert_eq!(answer, Ok(1 + forgotten.len()), "a worker comes back with {held:?} and without {forgotten:?}");
    }

    fn hold(&mut self, worker: usize, kind: u8, secs: Option<u64>, stop_secs: Option<u64>) {
        let name = worker_name(worker);
        let known = self.ledger.farm().worker(&name).is_some();
        let kind = [HoldKind::Cordon, HoldKind::Drain, HoldKind::Retire][usize::from(kind) % 3];
        let at = |secs: Option<u64>| secs.map(|secs| self.ledger.now().plus(secs * 1000));
        let hold = Hold { kind, by: "chance".to_owned(), why: String::new(), until: at(secs), stop_at: at(stop_secs) };
        let answer = self.command(&Command::Hold { worker: name, hold });
        assert_eq!(answer.is_ok(), known, "a hold of a worker: {answer:?}");
    }

    fn release(&mut self, worker: usize) {
        let name = worker_name(worker);
        // An operator's word ends a quarantine as well.
        let is_held = |worker: &Worker| worker.hold.is_some() || worker.quarantined_until().is_some();
        let held = self.ledger.farm().worker(&name).is_some_and(is_held);
        let answer = self.command(&Command::Release { worker: name.clone(), by: "chance".to_owned() });
        assert_eq!(answer.is_ok(), held, "{name} is released: {answer:?}");
        assert!(!self.ledger.farm().worker(&name).is_some_and(is_held), "{name} is released and held");
    }

    fn revoke(&mut self, worker: usize) {
        let name = worker_name(worker);
        let identity = Identity::new(Role::Worker, name.as_str()).unwrap();
        let now = self.ledger.now();
        self.expect_ok(&Command::Revoke { identity: identity.clone(), by: "chance".to_owned(), why: String::new() });
        let farm = self.ledger.farm();
        assert!(farm.access().is_revoked(&identity, now) && !farm.access().is_revoked(&identity, now.plus(1)));
        assert!(farm.worker(&name).is_none_or(|worker| worker.leases.is_empty() && !worker.online));
    }

    fn approve(&mut self, build: &Index, step: Option<&Index>) {
        let Some(build) = self.any_build(build) else { return };
        let jobs = step.map(|step| self.selector(&build, step));
        // Refused where nothing waits for it; what is approved is judged when it is leased.
        let _ = self.command(&Command::Approve { build, jobs, by: "chance".to_owned() });
    }

    fn approve_all(&mut self) {
        let waits = |job: &Job| matches!(job.state, JobState::AwaitsApproval { .. });
        let farm = self.ledger.farm();
        let builds = farm.builds().filter(|build| build.jobs().filter_map(|id| farm.job(id)).any(waits));
        for build in builds.map(|build| build.id().clone()).collect::<Vec<_>>() {
            let running = self.ledger.farm().build(&build).is_some_and(|build| build.is_running());
            let answer = self.command(&Command::Approve { build, jobs: None, by: "chance".to_owned() });
            assert!(!running || answer == Ok(1), "what waits is approved: {answer:?}");
        }
    }

    fn cancel_jobs(&mut self, build: &Index, step: &Index) {
        let Some(build) = self.any_build(build) else { return };
        let jobs = self.selector(&build, step);
        let command = Command::CancelJobs {
            build: build.clone(),
            jobs: jobs.clone(),
            by: "chance".to_owned(),
            reason: "chance".to_owned(),
        };
        if self.command(&command).is_err() {
            return;
        }
        let farm = self.ledger.farm();
        let Some(build) = farm.build(&build).filter(|build| build.is_running()) else { return };
        for (id, spec) in build.jobs().zip(&build.plan.jobs).filter(|(_, spec)| jobs.matches(&spec.name)) {
            assert!(farm.job(id).is_some_and(|job| !job.is_waiting()), "{} is cancelled and waits", spec.name);
        }
    }

    fn selector(&self, build: &BuildId, step: &Index) -> JobSelector {
        let jobs = self.ledger.farm().build(build).map(|build| build.plan.jobs.clone()).unwrap_or_default();
        step.get(&jobs).name.to_string().parse().expect("a job's name points at it")
    }

    fn heartbeat(&mut self, worker: &WorkerName) {
        for lease in self.live.iter().filter(|lease| self.leases[*lease] == *worker) {
            assert!(self.ledger.renew(*lease), "{lease} is live and cannot be renewed");
        }
    }

    fn report(&mut self, lease: LeaseId, worker: WorkerName, kind: OutcomeKind) {
        let outcome = match kind {
            OutcomeKind::Succeeded => Outcome::succeeded(),
            kind => Outcome::new(kind, Reason::Signal, "chance"),
        };
        let holds = self.live.contains(&lease) && self.leases[&lease] == worker;
        let report = Report { lease, worker, outcome, artifacts: Vec::new(), image: None, log_bytes: 7 };
        let again = self
            .accepted
            .iter()
            .any(|known| (known.lease, &known.worker, &known.outcome) == (lease, &report.worker, &report.outcome));
        let answer = self.command(&Command::Report(Box::new(report.clone())));
        match (holds, again) {
            (true, _) => assert_eq!(answer, Ok(1), "{report:?} by the holder"),
            (false, true) => assert_eq!(answer, Ok(0), "{report:?} a second time"),
            (false, false) => assert_eq!(answer, Err(Refusal::StaleLease(lease)), "{report:?}"),
        }
        if holds {
            self.accepted.push(report);
        }
    }

    fn cancel(&mut self, build: &Index) {
        let Some(build) = self.any_build(build) else { return };
        let running = self.ledger.farm().build(&build).is_some_and(|build| build.is_running());
        let answer = self.command(&Command::Cancel {
            build: build.clone(),
            by: "chance".to_owned(),
            reason: "chance".to_owned(),
        });
        assert!(!running || answer == Ok(1), "a running build is cancelled: {answer:?}");
        let farm = self.ledger.farm();
        let jobs = farm.build(&build).into_iter().flat_map(|build| build.jobs()).filter_map(|id| farm.job(id));
        assert!(jobs.into_iter().all(|job| !job.is_waiting()), "{build} is cancelled and a job of it waits");
    }

    fn retry(&mut self, build: &Index, step: Option<&Index>) {
        let Some(build) = self.any_build(build) else { return };
        let step = step.map(|step| self.selector(&build, step));
        let answer = self.command(&Command::Retry { build: build.clone(), step: step.clone() });
        let farm = self.ledger.farm();
        let state = farm.build(&build).map(|build| &build.state);
        match answer {
            Ok(_) => assert!(!matches!(state, Some(BuildState::Ended { .. })), "{build} is resumed and is {state:?}"),
            Err(refusal) if step.is_none() => {
                let expected = matches!(refusal, Refusal::BuildRuns(_) | Refusal::BuildSucceeded(_));
                assert!(expected, "{build} is {state:?} and cannot be resumed as a whole: {refusal}");
            }
            Err(_) => {}
        }
    }

    fn advance(&mut self, millis: u64) {
        let mut events = Vec::new();
        self.ledger.advance(millis, |event, _| events.push(event.clone()));
        self.remember(&events);
    }

    fn any_lease(&self, pick: &Index) -> Option<LeaseId> {
        let all: Vec<LeaseId> = self.leases.keys().copied().collect();
        (!all.is_empty()).then(|| *pick.get(&all))
    }

    fn any_build(&self, pick: &Index) -> Option<BuildId> {
        let all: Vec<BuildId> = self.ledger.farm().builds().map(|build| build.id().clone()).collect();
        (!all.is_empty()).then(|| pick.get(&all).clone())
    }

    fn expect_ok(&mut self, command: &Command) {
        let answer = self.command(command);
        assert!(answer.is_ok(), "{command:?}: {answer:?}");
    }

    /// The number of events, or the refusal.
    fn command(&mut self, command: &Command) -> Result<usize, Refusal> {
        let answer = self.ledger.run(command, |_, _| {});
        match &answer {
            Ok(events) => self.remember(events),
            Err(refusal) => _ = self.seen.insert(format!("refused {}", refusal.reason())),
        }
        answer.map(|events| events.len())
    }

    fn remember(&mut self, events: &[Event]) {
        for event in events {
            let word = match event {
                Event::BuildAccepted { .. } => "build-accepted".to_owned(),
                Event::JobLeased { lease, worker, .. } => {
                    self.leases.insert(*lease, worker.clone());
                    self.live.insert(*lease);
                    "job-leased".to_owned()
                }
                Event::AttemptEnded { lease, outcome, .. } => {
                    self.live.remove(lease);
                    format!("attempt-ended {}", outcome.kind)
                }
                Event::JobUploading { .. } => "job-uploading".to_owned(),
                Event::JobsApproved { .. } => "jobs-approved".to_owned(),
                Event::JobsCancelled { .. } => "jobs-cancelled".to_owned(),
                Event::WorkerHeld { .. } => "worker-held".to_owned(),
                Event::WorkerReleased { by, .. } if by.is_empty() => "worker-released by time".to_owned(),
                Event::WorkerReleased { .. } => "worker-released".to_owned(),
                Event::TokenMade { .. } => "token-made".to_owned(),
                Event::TokenUsed { .. } => "token-used".to_owned(),
                Event::TokenDropped { .. } => "token-dropped".to_owned(),
                Event::IdentityRevoked { .. } => "identity-revoked".to_owned(),
                Event::WorkerForgotten { .. } => "worker-forgotten".to_owned(),
                Event::BuildCancelled { .. } => "build-cancelled".to_owned(),
                Event::BuildResumed { .. } => "build-resumed".to_owned(),
                Event::BuildEnded { .. } => "build-ended".to_owned(),
                Event::WorkerOnline { .. } => "worker-online".to_owned(),
                Event::WorkerOffline { .. } => "worker-offline".to_owned(),
                Event::WorkerDraining { .. } => "worker-draining".to_owned(),
                Event::BuildPinned { .. } => "build-pinned".to_owned(),
                Event::BuildUnpinned { .. } => "build-unpinned".to_owned(),
                Event::BuildTagged { .. } => "build-tagged".to_owned(),
                Event::BuildUntagged { .. } => "build-untagged".to_owned(),
                Event::PromotionBegun { .. } => "promotion-begun".to_owned(),
                Event::PromotionFailed { .. } => "promotion-failed".to_owned(),
                Event::PromotionForgotten { .. } => "promotion-forgotten".to_owned(),
                Event::BuildPromoted { .. } => "build-promoted".to_owned(),
                Event::BuildsReduced { .. } => "builds-reduced".to_owned(),
                Event::BuildsSwept { .. } => "builds-swept".to_owned(),
                Event::BuildsForgotten { .. } => "builds-forgotten".to_owned(),
                Event::BlobsClaimed { .. } => "blobs-claimed".to_owned(),
                Event::SweepResumed { .. } => "sweep-resumed".to_owned(),
                Event::ControllerRestored { .. } => "controller-restored".to_owned(),
                Event::ControllerStarted { .. } => "controller-started".to_owned(),
            };
            self.seen.insert(word);
        }
    }
}
