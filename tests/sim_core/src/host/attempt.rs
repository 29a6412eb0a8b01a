//! One attempt: fetch, run, upload, report; and whatever happens, nothing is left behind.

use super::Wrk;
use super::ship::Ship;
use crate::config::Config;
use crate::net::{CallId, Caller, Refused, Reply, ReportCall, Rpc};
use crate::pipelines::{End, Fate, fate};
use crate::queue::Ms;
use crate::world::World;
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::order::{Order, OrderImage};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_proto::v1::Phase;
use railyard_worker::session;
use std::fmt;
use std::time::Duration;

pub use railyard_worker::attempt::Stop;

/// How long a container may take to stop when somebody asks it to.
pub const STOP_GRACE: Ms = 4_000;
/// Tries to send or fetch a blob before the attempt is given up.
const TRANSFER_TRIES: u32 = 6;

/// An attempt.
pub struct Attempt {
    pub(super) order: Order,
    pub(super) fate: Fate,
    pub(super) step: Step,
    /// Rises with each step, so that alarms of earlier ones mean nothing.
    pub(super) serial: u64,
    stop: Option<Stop>,
    outcome: Option<Outcome>,
    artifacts: Vec<Artifact>,
    image: Option<Image>,
    uploads: Vec<(u64, Blob)>,
    to_send: Vec<(u64, Blob)>,
    tries: u32,
    call: Option<CallId>,
    pub(super) ship: Ship,
}

/// Where an attempt stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Prepare,
    AskInputs,
    Pull,
    Create,
    Run,
    /// The container is being stopped; then the attempt ends like this.
    Halt(Option<Outcome>),
    /// The container has ended well and is being removed.
    Collect,
    Hash,
    AskUpload,
    Send,
    /// Whatever is left is being removed.
    Remove,
    Ship,
    Report,
}

impl Step {
    fn phase(&self) -> Phase {
        match self {
            Self::Prepare | Self::AskInputs | Self::Pull | Self::Create => Phase::Fetch,
            Self::Run | Self::Halt(_) | Self::Collect => Phase::Run,
            Self::Hash | Self::AskUpload | Self::Send | Self::Remove | Self::Ship | Self::Report => Phase::Upload,
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, stop {:?}, call {:?}", self.step, self.stop, self.call)
    }
}

impl Attempt {
    /// Before its first step.
    pub fn new(config: &Config, order: Order) -> Self {
        let fate = fate(config, &order.run.script, order.lease.attempt);
        Self {
            order,
            fate,
            step: Step::Prepare,
            serial: 0,
            stop: None,
            outcome: None,
            artifacts: Vec::new(),
            image: None,
            uploads: Vec::new(),
            to_send: Vec::new(),
            tries: 0,
            call: None,
            ship: Ship::default(),
        }
    }

    fn inputs(&self) -> Vec<Digest> {
        let image = match &self.order.image {
            OrderImage::Image(image) => std::iter::once(&image.config).chain(&image.layers).copied().collect(),
            OrderImage::Registry(_) | OrderImage::Import(_) => Vec::new(),
        };
        let inputs = self.order.inputs.iter().map(|input| input.artifact.blob);
        image.into_iter().chain(inputs).map(|blob: Blob| blob.digest).collect()
    }

    /// What the container has left, in the work directory and as its image.
    fn collect(&mut self) {
        let blob = |what: &str, n: usize| {
            let text = format!("{what} {n} {}", self.fate.content);
            Blob::plain(Digest::of(text.as_bytes()), text.len() as u64)
        };
        let artifact = |n: usize| Artifact {
            path: format!("out-{n}.txt").parse().expect("a path"),
            blob: blob("output", n),
            media_type: "text/plain".to_owned(),
            published: None,
        };
        self.artifacts = (0..self.order.run.outputs.len()).map(artifact).collect();
        self.image = self.order.run.commit.then(|| Image { config: blob("config", 0), layers: vec![blob("layer", 0)] });
    }

    fn blobs(&self) -> Vec<Blob> {
        let image =
            self.image.iter().flat_map(|image| std::iter::once(image.config).chain(image.layers.iter().copied()));
        self.artifacts.iter().map(|artifact| artifact.blob).chain(image).collect()
    }

    fn report(&self) -> Option<ReportCall> {
        let outcome = self.outcome.clone()?;
        let good = outcome.kind == OutcomeKind::Succeeded;
        Some(ReportCall {
            lease: self.order.lease,
            outcome,
            artifacts: if good { self.artifacts.clone() } else { Vec::new() },
            image: self.image.clone().filter(|_| good),
            uploads: if good { self.uploads.clone() } else { Vec::new() },
            log_bytes: self.ship.whole.unwrap_or(0),
        })
    }
}

impl World {
    /// A new process goes on with what an earlier one left, as far as there is time for that.
    pub(super) fn take_up(&mut self, host: usize) {
        let mono = self.hosts[host].mono(self.now);
        for (lease, (mut attempt, confirmed_at)) in std::mem::take(&mut self.hosts[host].left) {
            let ttl = Duration::from_millis(attempt.order.ttl_millis.into());
            let phase = attempt.step.phase();
            let until = session::fence_at(confirmed_at, ttl);
            if phase != Phase::Upload && until <= mono {
                continue;
            }
            let now = self.now;
            self.trace.say(now, || format!("w{host} takes up {lease} ({:?})", attempt.step));
            attempt.ship.reopen();
            attempt.stop = None;
            let step = attempt.step.clone();
            let Some(process) = self.hosts[host].process.as_mut() else { return };
            process.session.adopt(lease, ttl, confirmed_at, phase);
            process.attempts.insert(lease, attempt);
            // From here on somebody looks after it again.
            if let Some(container) = self.hosts[host].containers.get_mut(&lease) {
                container.excused = false;
            }
            self.go_on(host, lease, step);
        }
    }

    /// The step is done again, or looked after again.
    fn go_on(&mut self, host: usize, lease: LeaseId, step: Step) {
        match step {
            Step::Prepare | Step::AskInputs | Step::Pull | Step::Create => {
                self.next_step(host, lease, Step::Prepare, Some(20));
            }
            Step::Run if self.hosts[host].containers.contains_key(&lease) => {
                // Its timeout goes on from when it was started; here: at most as long again.
                let Some(attempt) = self.hosts[host].attempt(lease) else { return };
                let wall = attempt.order.run.timeout_secs * 1000;
                self.next_step(host, lease, Step::Run, Some(wall));
                self.later(host, 400, Wrk::LogGrows(lease));
                self.container_ended(host, lease);
            }
            Step::Halt(_) | Step::Collect if self.hosts[host].containers.contains_key(&lease) => {
                let wait = self.engine.within(5, 300);
                self.next_step(host, lease, step, None);
                self.remove_container(host, lease, wait);
            }
            Step::Halt(outcome) => self.conclude(host, lease, outcome),
            Step::Run => self.lost(host, lease, Reason::Engine),
            Step::Collect | Step::Hash | Step::AskUpload | Step::Send => {
                if let Some(attempt) = self.hosts[host].attempt(lease) {
                    attempt.uploads.clear();
                    attempt.to_send.clear();
                }
                self.next_step(host, lease, Step::Hash, Some(50));
            }
            Step::Remove | Step::Ship | Step::Report => {
                let Some(attempt) = self.hosts[host].attempt(lease) else { return };
                let outcome = attempt.outcome.clone();
                self.conclude(host, lease, outcome);
            }
        }
        self.ship(host, lease);
    }

    pub(super) fn begin_attempt(&mut self, host: usize, lease: LeaseId) {
        self.ledger.attempts += 1;
        self.check_begun(host, lease);
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        let wait = attempt.fate.prepare_millis;
        attempt.ship.written = 100;
        self.next_step(host, lease, Step::Prepare, Some(wait));
        self.ship(host, lease);
    }

    /// The attempt is at `step` from now on, and goes on after `wait`.
    fn next_step(&mut self, host: usize, lease: LeaseId, step: Step, wait: Option<Ms>) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        attempt.step = step;
        attempt.serial += 1;
        attempt.call = None;
        let serial = attempt.serial;
        if let Some(wait) = wait {
            self.later(host, wait, Wrk::Step(lease, serial));
        }
    }

    fn enter(&mut self, host: usize, lease: LeaseId, phase: Phase) {
        if let Some(process) = self.hosts[host].process.as_mut() {
            process.session.handle_phase(lease, phase);
        }
    }

    /// A step has taken its time.
    pub(super) fn attempt_steps(&mut self, host: usize, lease: LeaseId, serial: u64) {
        let Some(attempt) = self.hosts[host].attempt(lease).filter(|attempt| attempt.serial == serial) else { return };
        let fate = attempt.fate.clone();
        match attempt.step.clone() {
            Step::Prepare if self.disk_is_full(host) => self.lost(host, lease, Reason::DiskFull),
            Step::Prepare if self.hosts[host].attempt(lease).is_some_and(|attempt| !attempt.inputs().is_empty()) => {
                self.next_step(host, lease, Step::AskInputs, None);
                self.ask_for(host, lease);
            }
            Step::Prepare => self.create(host, lease),
            Step::Pull => self.pull(host, lease),
            Step::Create if self.engine_refuses(host) => self.lost(host, lease, Reason::Engine),
            Step::Create => self.run_container(host, lease, &fate),
            // The alarm of a running container is one of its timeouts.
            Step::Run => {
                let reason = if fate.end == End::Silent { Reason::Silence } else { Reason::WallClock };
                let outcome = Outcome::new(OutcomeKind::TimedOut, reason, "too long");
                self.halt(host, lease, Some(outcome), STOP_GRACE);
            }
            Step::Hash if fate.end == End::OutputMissing => {
                let outcome = Outcome::new(OutcomeKind::Failed, Reason::OutputMissing, "no such file");
                self.conclude(host, lease, Some(outcome));
            }
            Step::Hash => {
                if let Some(attempt) = self.hosts[host].attempt(lease) {
                    attempt.collect();
                    if attempt.blobs().is_empty() {
                        return self.conclude(host, lease, Some(Outcome::succeeded()));
                    }
                }
                self.next_step(host, lease, Step::AskUpload, None);
                self.ask_for(host, lease);
            }
            Step::Send => self.send(host, lease),
            _ => {}
        }
    }

    fn create(&mut self, host: usize, lease: LeaseId) {
        let wait = self.engine.within(10, 500);
        self.next_step(host, lease, Step::Create, Some(wait));
    }

    fn run_container(&mut self, host: usize, lease: LeaseId, fate: &Fate) {
        self.enter(host, lease, Phase::Run);
        let ends = match fate.end {
            End::Never | End::Silent => None,
            end => Some((fate.run_millis, end)),
        };
        self.container_starts(host, lease, ends);
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        let run = &attempt.order.run;
        let (wall, silence) = (run.timeout_secs * 1000, run.silence_timeout_secs * 1000);
        // A step that says nothing is stopped for that, if it has such a limit.
        let silent = fate.end == End::Silent && silence > 0 && silence < wall;
        self.next_step(host, lease, Step::Run, Some(if silent { silence } else { wall }));
        self.later(host, 400, Wrk::LogGrows(lease));
    }

    /// A container has ended by itself.
    pub(super) fn container_ended(&mut self, host: usize, lease: LeaseId) {
        let full = self.disk_is_full(host);
        let end = self.hosts[host].containers.get(&lease).and_then(|container| container.ended);
        let Some(attempt) = self.hosts[host].attempt(lease).filter(|attempt| attempt.step == Step::Run) else { return };
        attempt.ship.written = attempt.ship.written.max(100 + attempt.fate.log_bytes);
        let failed = |reason| Some(Outcome::new(OutcomeKind::Failed, reason, "it failed"));
        match end {
            Some(End::Good | End::OutputMissing) => {
                let wait = self.engine.within(5, 200);
                self.next_step(host, lease, Step::Collect, None);
                self.remove_container(host, lease, wait);
            }
            Some(End::Code(_)) if full => self.lost(host, lease, Reason::DiskFull),
            Some(End::Code(_)) => self.conclude(host, lease, failed(Reason::ExitCode)),
            Some(End::Oom) => self.conclude(host, lease, failed(Reason::Oom)),
            Some(End::Never | End::Silent) | None => {}
        }
        self.ship(host, lease);
        self.settle(host);
    }

    /// A container has been removed.
    pub(super) fn container_gone(&mut self, host: usize, lease: LeaseId) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        match attempt.step.clone() {
            Step::Halt(outcome) => self.conclude(host, lease, outcome),
            Step::Collect if attempt.stop.is_some() => {
                let outcome = attempt.stop.as_ref().and_then(stopped);
                self.conclude(host, lease, outcome);
            }
            Step::Collect => {
                self.enter(host, lease, Phase::Upload);
                let wait = self.engine.within(5, 400);
                self.next_step(host, lease, Step::Hash, Some(wait));
            }
            Step::Remove => self.removed(host, lease),
            // Somebody outside has removed it: it has ended.
            Step::Run => {
                self.conclude(host, lease, Some(Outcome::new(OutcomeKind::Lost, Reason::Engine, "it is gone")))
            }
            _ => {}
        }
        self.settle(host);
    }

    fn halt(&mut self, host: usize, lease: LeaseId, outcome: Option<Outcome>, grace: Ms) {
        let wait = self.engine.within(5, grace.max(300));
        self.next_step(host, lease, Step::Halt(outcome), None);
        self.remove_container(host, lease, wait);
    }

    fn lost(&mut self, host: usize, lease: LeaseId, reason: Reason) {
        self.conclude(host, lease, Some(Outcome::new(OutcomeKind::Lost, reason, "the farm's fault")));
    }

    /// The attempt must stop. It may be told again, more urgently.
    pub(super) fn stop_attempt(&mut self, host: usize, lease: LeaseId, why: Stop) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        attempt.stop = Some(why.clone());
        let urgent = matches!(why, Stop::Fenced { .. } | Stop::Abandoned);
        let outcome = stopped(&why);
        match attempt.step.clone() {
            Step::Run => self.halt(host, lease, outcome, if urgent { 0 } else { STOP_GRACE }),
            Step::Halt(_) | Step::Collect if urgent => {
                // A kill overtakes the stop that waits for the grace. Why it is stopped does not change.
                let wait = self.engine.within(5, 300);
                self.remove_container(host, lease, wait);
            }
            Step::Halt(_) | Step::Collect | Step::Remove => {}
            Step::Ship | Step::Report if why == Stop::Abandoned => self.over(host, lease),
            Step::Ship | Step::Report => {}
            _ => self.conclude(host, lease, outcome),
        }
    }

    /// The worker is leaving: what was told to stop already stays so.
    pub(super) fn stop_attempt_softly(&mut self, host: usize, lease: LeaseId) {
        if self.hosts[host].attempt(lease).is_some_and(|attempt| attempt.stop.is_none()) {
            self.stop_attempt(host, lease, Stop::Drained);
        }
    }

    /// How it ended is known: what is left goes, then it is told; `None` if nobody wants to hear.
    fn conclude(&mut self, host: usize, lease: LeaseId, outcome: Option<Outcome>) {
        if let Some(attempt) = self.hosts[host].attempt(lease) {
            attempt.outcome = outcome;
        }
        self.next_step(host, lease, Step::Remove, None);
        if !self.hosts[host].containers.contains_key(&lease) {
            return self.removed(host, lease);
        }
        let wait = self.engine.within(5, 300);
        self.remove_container(host, lease, wait);
        if self.hosts[host].engine_bad_until > self.now {
            // The engine does not obey: removal is tried on, and the end is told all the same.
            if let Some(container) = self.hosts[host].containers.get_mut(&lease) {
                container.excused = true;
            }
            self.removed(host, lease);
        }
    }

    fn removed(&mut self, host: usize, lease: LeaseId) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        // Meanwhile it may have been given up.
        let nobody = attempt.outcome.is_none() || attempt.stop == Some(Stop::Abandoned);
        attempt.ship.closed = true;
        if nobody {
            return self.over(host, lease);
        }
        self.next_step(host, lease, Step::Ship, None);
        self.ship(host, lease);
    }

    /// The log is there, as far as it will ever be.
    pub(super) fn shipped(&mut self, host: usize, lease: LeaseId) {
        if self.hosts[host].attempt(lease).is_some_and(|attempt| attempt.step == Step::Ship) {
            self.next_step(host, lease, Step::Report, None);
            self.ask_for(host, lease);
        }
    }

    pub(super) fn over(&mut self, host: usize, lease: LeaseId) {
        let now = self.now;
        self.trace.say(now, || format!("w{host} is done with {lease}"));
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        process.session.handle_done(lease);
        if let Some(conn) = process.attempts.remove(&lease).and_then(|attempt| attempt.ship.conn()) {
            self.close_at_worker(conn);
        }
    }

    /// Calls what the step needs, until it is answered.
    fn ask_for(&mut self, host: usize, lease: LeaseId) {
        let Some(process) = self.hosts[host].process.as_ref() else { return };
        let (number, Some(attempt)) = (process.number, process.attempts.get(&lease)) else { return };
        let rpc = match attempt.step {
            Step::AskInputs => Rpc::PrepareDownload { host, lease },
            Step::AskUpload => Rpc::PrepareUpload { host, lease, blobs: attempt.blobs() },
            Step::Report => match attempt.report() {
                Some(report) => Rpc::Report { host, report: Box::new(report) },
                None => return self.over(host, lease),
            },
            _ => return,
        };
        let call = self.call(Caller::Attempt { host, process: number, lease }, rpc);
        if let Some(attempt) = self.hosts[host].attempt(lease) {
            attempt.call = Some(call);
        }
    }

    pub(super) fn call_again(&mut self, host: usize, lease: LeaseId, serial: u64) {
        if self.hosts[host].attempt(lease).is_some_and(|attempt| attempt.serial == serial) {
            self.ask_for(host, lease);
        }
    }

    /// An attempt's call was answered.
    pub fn attempt_answered(&mut self, host: usize, lease: LeaseId, call: CallId, answer: Result<Reply, Refused>) {
        let Some(attempt) = self.hosts[host].attempt(lease).filter(|attempt| attempt.call == Some(call)) else {
            return;
        };
        attempt.call = None;
        attempt.tries += 1;
        let (tries, serial, step) = (attempt.tries, attempt.serial, attempt.step.clone());
        match (answer, step) {
            (Err(Refused::Passing | Refused::Gap), _) => {
                let wait = self.pause(tries);
                self.later(host, wait, Wrk::CallAgain(lease, serial));
            }
            (Ok(reply), Step::Report) => {
                self.check_reported(host, lease, &reply);
                self.over(host, lease);
            }
            (Err(Refused::Stale), Step::Report) => self.over(host, lease),
            (Err(Refused::Final(why)), Step::Report) => self.report_loss(host, lease, why),
            (Err(Refused::Stale), _) => self.conclude(host, lease, None),
            (Err(Refused::Final(_)), _) => self.lost(host, lease, Reason::Transfer),
            (Ok(_), Step::AskInputs) => self.next_step(host, lease, Step::Pull, Some(5)),
            (Ok(Reply::Tickets(tickets)), Step::AskUpload) => {
                if let Some(attempt) = self.hosts[host].attempt(lease) {
                    let blobs = attempt.blobs();
                    attempt.to_send = tickets.into_iter().zip(blobs).filter_map(|(t, blob)| Some((t?, blob))).collect();
                    attempt.tries = 0;
                }
                self.next_step(host, lease, Step::Send, Some(2));
            }
            (Ok(_), _) => {}
        }
    }

    /// A success that is refused for good becomes a loss: the job must not hang on it.
    fn report_loss(&mut self, host: usize, lease: LeaseId, why: String) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        if attempt.outcome.as_ref().is_some_and(|outcome| outcome.reason == Reason::Transfer) {
            return self.over(host, lease);
        }
        attempt.outcome = Some(Outcome::new(OutcomeKind::Lost, Reason::Transfer, why));
        self.next_step(host, lease, Step::Report, None);
        self.ask_for(host, lease);
    }

    /// A try of a transfer failed. Returns whether that was the last.
    fn transfer_failed(&mut self, host: usize, lease: LeaseId, step: Step) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        attempt.tries += 1;
        let tries = attempt.tries;
        if tries >= TRANSFER_TRIES {
            return self.lost(host, lease, Reason::Transfer);
        }
        let wait = self.pause(tries);
        self.next_step(host, lease, step, Some(wait));
    }

    fn pull(&mut self, host: usize, lease: LeaseId) {
        let Some(digests) = self.hosts[host].attempt(lease).map(|attempt| attempt.inputs()) else { return };
        if self.store_refuses() {
            return self.transfer_failed(host, lease, Step::Pull);
        }
        if let Some(digest) = digests.iter().find(|digest| !self.store.has(digest)) {
            let why = format!("{lease} was ordered with input {digest}, which is not in the store");
            return self.breaks("inputs-are-there", why);
        }
        self.create(host, lease);
    }

    /// Sends one blob after another.
    fn send(&mut self, host: usize, lease: LeaseId) {
        if self.store_refuses() {
            return self.transfer_failed(host, lease, Step::Send);
        }
        let takes = self.store_takes();
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        match attempt.to_send.pop() {
            None => self.conclude(host, lease, Some(Outcome::succeeded())),
            Some((upload, blob)) if self.store.send(upload) => {
                if let Some(attempt) = self.hosts[host].attempt(lease) {
                    attempt.uploads.push((upload, blob));
                }
                self.next_step(host, lease, Step::Send, Some(takes));
            }
            // The upload was forgotten: another one is asked for.
            Some(_) => {
                self.next_step(host, lease, Step::AskUpload, None);
                self.ask_for(host, lease);
            }
        }
    }
}

/// What is reported of an attempt that was stopped.
fn stopped(why: &Stop) -> Option<Outcome> {
    match why {
        Stop::Cancelled(why) => Some(Outcome::new(OutcomeKind::Cancelled, Reason::Cancelled, why.clone())),
        Stop::Fenced { .. } => Some(Outcome::new(OutcomeKind::Lost, Reason::WorkerGone, "fenced")),
        Stop::Drained => Some(Outcome::new(OutcomeKind::Lost, Reason::WorkerRestarted, "stopped")),
        Stop::Abandoned => None,
    }
}
