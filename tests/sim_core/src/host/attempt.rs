//! One attempt: fetch, run, upload, report; and whatever happens, nothing is left behind.

use super::Wrk;
use super::ship::Ship;
use crate::config::Config;
use crate::net::{CallId, ReportCall};
use crate::pipelines::{End, Fate, fate};
use crate::queue::Ms;
use crate::world::World;
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::order::{Order, OrderImage};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_proto::v1::Phase;
use std::fmt;

pub use railyard_worker::attempt::Stop;

/// How long a container may take to stop when somebody asks it to.
pub const STOP_GRACE: Ms = 4_000;

/// An attempt.
pub struct Attempt {
    pub(super) order: Order,
    pub(super) fate: Fate,
    pub(super) step: Step,
    /// Rises with each step, so that alarms of earlier ones mean nothing.
    pub(super) serial: u64,
    pub(super) stop: Option<Stop>,
    pub(super) outcome: Option<Outcome>,
    artifacts: Vec<Artifact>,
    image: Option<Image>,
    pub(super) uploads: Vec<(u64, Blob)>,
    pub(super) to_send: Vec<(u64, Blob)>,
    pub(super) tries: u32,
    pub(super) call: Option<CallId>,
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
    pub(super) fn phase(&self) -> Phase {
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

    pub(super) fn inputs(&self) -> Vec<Digest> {
        let image = match &self.order.image {
            OrderImage::Image(image) => std::iter::once(&image.config).chain(&image.layers).copied().collect(),
            OrderImage::Registry(_) | OrderImage::Import(_) => Vec::new(),
        };
        let inputs = self.order.inputs.iter().map(|input| input.artifact.blob);
        image.into_iter().chain(inputs).map(|blob: Blob| blob.digest).collect()
    }

    /// What the container has left, in the work directory and as its image.
    pub(super) fn collect(&mut self) {
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

    pub(super) fn blobs(&self) -> Vec<Blob> {
        let image =
            self.image.iter().flat_map(|image| std::iter::once(image.config).chain(image.layers.iter().copied()));
        self.artifacts.iter().map(|artifact| artifact.blob).chain(image).collect()
    }

    pub(super) fn report(&self) -> Option<ReportCall> {
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
    pub(super) fn next_step(&mut self, host: usize, lease: LeaseId, step: Step, wait: Option<Ms>) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        attempt.step = step;
        attempt.serial += 1;
        attempt.call = None;
        let serial = attempt.serial;
        if let Some(wait) = wait {
            self.later(host, wait, Wrk::Step(lease, serial));
        }
    }

    pub(super) fn enter(&mut self, host: usize, lease: LeaseId, phase: Phase) {
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

    pub(super) fn create(&mut self, host: usize, lease: LeaseId) {
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
}
