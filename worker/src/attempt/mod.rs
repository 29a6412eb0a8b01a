//! One attempt of a job: fetch, run, upload, report; and whatever happens, nothing is left behind.
//!
//! An attempt outlives its process: [`record`] has what the next one needs to go on with it.

mod artifacts;
mod container;
pub mod dirs;
mod disk_watch;
pub mod fault;
mod mask;
mod patience;
mod phases;
pub mod record;
mod report;
mod spec;
mod tap;
pub mod upload;
mod verdict;
mod vigil;

use crate::cleanup::remove_until_gone;
use crate::disk::DiskError;
use crate::images::InUse;
use crate::log::{JobLog, Shipped, ship};
use crate::workshop::Workshop;
use dirs::JobDir;
use fault::{Fault, outcome_of};
use futures_util::FutureExt as _;
use railyard_common::blob::{Artifact, Image};
use railyard_common::id::LeaseId;
use railyard_common::order::Order;
use railyard_common::outcome::{LOG_TAIL_LINES, Outcome, OutcomeKind, Reason};
use railyard_common::redact::Masks;
use railyard_proto::v1::{self, Phase};
use railyard_service::{task, telemetry};
use record::{Record, Stage};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, Span, field, info_span};
use upload::Uploads;

/// Why an attempt must stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Somebody wants it so; why, for people.
    Cancelled(String),
    /// Its lease is about to expire.
    Fenced {
        /// How long the controller has not been heard.
        silent_for: Duration,
    },
    /// The lease is somebody else's: nothing is reported.
    Abandoned,
    /// The worker is being stopped.
    Drained,
}

/// Instead of what happened.
const SECRETS_GONE: &str =
    "what happened after its script is not told: its secrets are gone, and nothing could hide them in that";

/// What an attempt tells its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It entered a phase.
    Entered(LeaseId, Phase),
    /// It heard that the lease is somebody else's.
    Stale(LeaseId),
    /// It is over, and nothing of it is left.
    Done(LeaseId),
}

/// What a job leaves.
#[derive(Debug, Default)]
struct Left {
    artifacts: Vec<Artifact>,
    image: Option<Image>,
    uploads: Uploads,
}

/// How a worker holds an attempt.
#[derive(Debug)]
pub struct Reins {
    /// Tells it to stop.
    pub stop: watch::Sender<Option<Stop>>,
    /// Tells it when its lease was confirmed, on the clock of the kernel's boot.
    pub confirmed: watch::Sender<Duration>,
}

/// The attempt's ends of its [`Reins`], and where it tells what happens.
#[derive(Debug)]
pub struct Bridle {
    stop: watch::Receiver<Option<Stop>>,
    confirmed: watch::Receiver<Duration>,
    events: mpsc::Sender<Event>,
}

impl Reins {
    /// For an attempt that must stop `at_once` or not, and whose lease was confirmed then.
    pub fn new(at_once: Option<Stop>, confirmed_at: Duration, events: mpsc::Sender<Event>) -> (Self, Bridle) {
        let (stop, told) = watch::channel(at_once);
        let (confirmed, heard) = watch::channel(confirmed_at);
        (Self { stop, confirmed }, Bridle { stop: told, confirmed: heard, events })
    }
}

/// Runs an attempt to its end, from the stage where an earlier process left it if one did. Cancelled only by its reins;
/// dropping it half-way leaves it to the next start.
pub async fn run(shop: Arc<Workshop>, order: Order, left: Option<Stage>, bridle: Bridle) {
    let span = info_span!(
        "attempt",
        "cicd.pipeline.name" = %order.build.pipeline,
        "cicd.pipeline.task.name" = %order.job,
        "cicd.pipeline.task.run.id" = %order.lease,
        "cicd.pipeline.task.run.result" = field::Empty,
        "cicd.worker.name" = %shop.config.name,
        "railyard.build" = %order.build,
        "railyard.outcome" = field::Empty,
    );
    telemetry::set_parent(&span, &order.traceparent);
    let lease = order.lease;
    let Bridle { stop, confirmed, events } = bridle;
    let resumed = left.is_some();
    let attempt = Attempt {
        shop,
        order,
        resumed,
        image_in_use: None,
        masks: Some(Masks::default()),
        stop,
        confirmed,
        events: events.clone(),
    };
    let attempt = attempt.run(left.unwrap_or(Stage::Fetch)).instrument(span);
    // A bug in the last steps must not keep the lease alive for ever: it is not held any more, and expires.
    if let Err(panic) = caught(attempt).await {
        tracing::error!(%lease, %panic, "an attempt was given up");
    }
    // Nobody listens only when the worker is gone already.
    let _ = events.send(Event::Done(lease)).await;
}

struct Attempt {
    shop: Arc<Workshop>,
    order: Order,
    /// An earlier process has begun it.
    resumed: bool,
    /// Keeps the image that its container began with.
    image_in_use: Option<InUse>,
    /// Hides the secrets of the step in what is told of it; `None` if they are gone and there is something to hide.
    masks: Option<Masks>,
    stop: watch::Receiver<Option<Stop>>,
    confirmed: watch::Receiver<Duration>,
    events: mpsc::Sender<Event>,
}

impl Attempt {
    async fn run(mut self, stage: Stage) {
        let lease = self.order.lease;
        tracing::info!(self.resumed, "attempt started");
        match self.open().await {
            Ok((dir, log)) => {
                let record = self.record(&dir);
                let _following = AbortOnDropHandle::new(task::spawn("record", record.follow(self.confirmed.clone())));
                self.with_log(&dir, log, stage).await;
                if let Err(error) = dir.remove().await {
                    tracing::warn!(%lease, %error, "a job's directory could not be removed; the next start tries again");
                }
            }
            Err(error) => {
                self.remove_container().await;
                self.remove_secrets().await;
                if let Err(error) = JobDir::of(&self.shop.data, lease).remove().await {
                    tracing::warn!(%lease, %error, "a job's directory could not be removed; the next start tries again");
                }
                if let Some(outcome) = outcome_of(error.into(), self.engine_dir()) {
                    self.conclude(&outcome);
                    let report = self.message(outcome, Left::default());
                    self.report(report, 0).await;
                }
            }
        }
    }

    async fn open(&self) -> Result<(JobDir, Arc<JobLog>), DiskError> {
        let dir = JobDir::create(&self.shop.data, self.order.lease)?;
        let log = JobLog::open(&dir.log(), self.shop.config.log.max.as_u64()).await?;
        if !self.resumed {
            let confirmed_at = *self.confirmed.borrow();
            self.record(&dir).begin(&self.order, confirmed_at).await?;
        }
        Ok((dir, Arc::new(log)))
    }

    fn record(&self, dir: &JobDir) -> Record {
        Record::new(&self.shop, dir)
    }

    /// The attempt, while its log travels.
    async fn with_log(&mut self, dir: &JobDir, log: Arc<JobLog>, stage: Stage) {
        let shipping = self.ship(log.clone());
        let report = match stage {
            Stage::Report => self.kept_report(dir).await,
            stage => self.finish(dir, &log, stage).await,
        };
        self.remove_container().await;
        self.remove_secrets().await;
        // Before the report: what the job had reserved is free when the controller hears that it is over.
        if let Err(error) = dir.clear().await {
            tracing::warn!(lease = %self.order.lease, %error, "a job's files could not be removed");
        }
        let Some(report) = report else { return shipping.abort() };
        let log_bytes = unless_abandoned(self.stop.clone(), async { shipping.await.ok() }).await.flatten();
        match log_bytes {
            Some(Shipped::Whole(bytes) | Shipped::Full(bytes)) => self.report(report, bytes).await,
            Some(Shipped::Stale) | None => {}
        }
    }

    /// Does what is left to do, and ends the log. `None` if nobody wants to hear of it.
    async fn finish(&mut self, dir: &JobDir, log: &JobLog, stage: Stage) -> Option<v1::ReportRequest> {
        let mut left = Left::default();
        let ended = match caught(self.execute(dir, log, stage, &mut left)).await {
            Ok(ended) => ended,
            Err(panic) => Err(Fault::bug(&panic)),
        };
        let mut outcome = match ended {
            Ok(()) => Outcome::succeeded(),
            Err(fault) => outcome_of(fault, self.engine_dir())?,
        };
        // It may name what the step has written.
        outcome.message = match &self.masks {
            Some(masks) => masks.mask_text(&outcome.message),
            // Of a success nothing is told that is the step's.
            None if outcome.kind == OutcomeKind::Succeeded => outcome.message,
            None => SECRETS_GONE.to_owned(),
        };
        if outcome.reason == Reason::DiskFull && self.shop.disks.reserve.give() {
            // Its log and its report have to be written.
            tracing::warn!("the disk is full; the reserve is given away");
        }
        let outcome = self.with_tail(outcome, log).await;
        self.conclude(&outcome);
        self.close_log(log, &outcome).await;
        let report = self.message(outcome, left);
        // Before anything goes that it could be learnt from again.
        self.record(dir).conclude(&report).await;
        Some(report)
    }

    /// The report of an attempt that had ended when its process did.
    async fn kept_report(&self, dir: &JobDir) -> Option<v1::ReportRequest> {
        self.enter(Phase::Upload).await;
        match self.record(dir).report().await {
            Ok(report) => Some(report),
            Err(error) => {
                let outcome = outcome_of(error.into(), self.engine_dir())?;
                Some(self.message(outcome, Left::default()))
            }
        }
    }

    /// Sends the log while it grows. A log that can no longer be read is sent as far as it could.
    fn ship(&self, log: Arc<JobLog>) -> AbortOnDropHandle<Shipped> {
        let (uplink, events, lease) = (self.shop.uplink.clone(), self.events.clone(), self.order.lease);
        let batch_bytes = self.shop.config.log_batch_bytes();
        let flush = Duration::from_millis(self.shop.config.log.flush_millis);
        AbortOnDropHandle::new(task::spawn("log", async move {
            let shipped = ship(&uplink, lease, log.path(), log.written(), batch_bytes, flush).await;
            match shipped {
                Ok(Shipped::Stale) => {
                    // Nobody listens only when the worker is gone already.
                    let _ = events.send(Event::Stale(lease)).await;
                    Shipped::Stale
                }
                Ok(shipped) => shipped,
                Err(error) => {
                    tracing::warn!(%lease, %error, "the log cannot be read; reporting without its end");
                    Shipped::Whole(0)
                }
            }
        }))
    }

    /// The last lines of the log, for the reader of a failure.
    async fn with_tail(&self, mut outcome: Outcome, log: &JobLog) -> Outcome {
        if !matches!(outcome.kind, OutcomeKind::Succeeded | OutcomeKind::Cancelled | OutcomeKind::Refused) {
            outcome.log_tail = log.last_lines(LOG_TAIL_LINES).await;
        }
        outcome
    }

    async fn close_log(&self, log: &JobLog, outcome: &Outcome) {
        let told = if outcome.kind == OutcomeKind::Succeeded { "succeeded" } else { &outcome.message };
        if let Err(error) = log.close(told).await {
            tracing::warn!(lease = %self.order.lease, %error, "the end of a log could not be written");
        }
    }

    fn conclude(&self, outcome: &Outcome) {
        let span = Span::current();
        span.record("railyard.outcome", outcome.kind.as_str());
        span.record("cicd.pipeline.task.run.result", result_of(outcome.kind));
        tracing::info!(reason = %outcome.reason, why = outcome.message, "attempt ended");
    }

    /// Where the engine writes, if this worker can see that; else its own directory, most often on the same disk.
    fn engine_dir(&self) -> &std::path::Path {
        self.shop.runtime.disk().filter(|dir| dir.exists()).unwrap_or_else(|| self.shop.data.root())
    }

    /// The secrets of the step are of use while its container runs, and to hide them in what is told of it.
    async fn remove_secrets(&self) {
        let (secrets, lease) = (self.shop.secrets.clone(), self.order.lease);
        if let Err(error) = crate::blocking::blocking(move || secrets.remove(lease)).await {
            let error = railyard_service::error_chain(&error);
            tracing::error!(%lease, error, "secrets of a step that has ended are still in memory; the next start tries again");
        }
    }

    /// Removes the container, now or as soon as the engine lets it go.
    async fn remove_container(&self) {
        let name = spec::container_name(&self.shop.farm, &self.shop.config, &self.order);
        let Err(error) = self.shop.runtime.remove(&name).await else { return };
        tracing::warn!(container = name, %error, "a container could not be removed; trying on");
        let runtime = self.shop.runtime.clone();
        task::spawn("remove-container", async move { remove_until_gone(&*runtime, &name).await });
    }
}

/// Something panicked; what it said.
#[derive(Debug, thiserror::Error)]
#[error("panic: {0}")]
struct Panic(String);

/// `work`, with a panic as its error. What it was working on is given up, so nobody sees it half-changed.
async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
        Panic(said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned()))
    })
}

/// `work`, unless the attempt must stop.
async fn unless_stopped<T>(
    mut stop: watch::Receiver<Option<Stop>>,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::select! {
        biased;
        why = stopped(&mut stop) => Err(Fault::Stopped(why)),
        done = work => done,
    }
}

/// `work`, unless nobody wants its result any more.
async fn unless_abandoned<T>(mut stop: watch::Receiver<Option<Stop>>, work: impl Future<Output = T>) -> Option<T> {
    let abandoned = async {
        if stop.wait_for(|stop| *stop == Some(Stop::Abandoned)).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = abandoned => None,
        done = work => Some(done),
    }
}

/// Waits until the attempt must stop.
async fn stopped(stop: &mut watch::Receiver<Option<Stop>>) -> Stop {
    match stop.wait_for(Option::is_some).await.map(|stop| stop.clone()) {
        Ok(Some(why)) => why,
        // Whoever could stop it is gone: then nobody will.
        _ => std::future::pending().await,
    }
}

/// As OpenTelemetry's conventions for CI name it.
fn result_of(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Succeeded => "success",
        OutcomeKind::Failed => "failure",
        OutcomeKind::TimedOut => "timeout",
        OutcomeKind::Cancelled => "cancellation",
        OutcomeKind::Lost => "error",
        OutcomeKind::Refused => "skip",
    }
}
