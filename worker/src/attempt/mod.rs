//! One attempt of a job: fetch, run, upload, report; and whatever happens, nothing is left behind.

mod container;
pub mod dirs;
pub mod fault;
mod report;
mod spec;
mod tap;
pub mod upload;

use crate::cleanup::remove_until_gone;
use crate::disk::DiskError;
use crate::images::{prepare, save};
use crate::inputs;
use crate::log::{JobLog, Shipped, count, ship};
use crate::runtime::LocalImage;
use crate::workshop::Workshop;
use dirs::JobDir;
use fault::{Fault, outcome_of};
use futures_util::FutureExt as _;
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::id::LeaseId;
use railyard_common::order::Order;
use railyard_common::outcome::{LOG_TAIL_LINES, Outcome, OutcomeKind};
use railyard_proto::v1::Phase;
use railyard_service::{task, telemetry};
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

/// Runs an attempt to its end. Cancelled only by `stop`; dropping it half-way leaves things behind until the next start.
pub async fn run(shop: Arc<Workshop>, order: Order, stop: watch::Receiver<Option<Stop>>, events: mpsc::Sender<Event>) {
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
    let attempt = Attempt { shop, order, stop, events: events.clone() }.run().instrument(span);
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
    stop: watch::Receiver<Option<Stop>>,
    events: mpsc::Sender<Event>,
}

impl Attempt {
    async fn run(mut self) {
        let lease = self.order.lease;
        tracing::info!("attempt started");
        let opened = match JobDir::create(&self.shop.data, lease) {
            Ok(dir) => self.open_log(&dir).await.map(|log| (dir, log)),
            Err(error) => Err(error),
        };
        match opened {
            Ok((dir, log)) => {
                self.with_log(&dir, log).await;
                if let Err(error) = dir.remove().await {
                    tracing::warn!(%lease, %error, "a job's directory could not be removed; the next start tries again");
                }
            }
            Err(error) => {
                if let Some(outcome) = outcome_of(error.into(), self.engine_dir()) {
                    self.conclude(&outcome);
                    self.report(outcome, Left::default(), 0).await;
                }
            }
        }
    }

    async fn open_log(&self, dir: &JobDir) -> Result<Arc<JobLog>, DiskError> {
        JobLog::create(&dir.log(), self.shop.config.log.max.as_u64()).await.map(Arc::new)
    }

    /// The attempt, while its log travels.
    async fn with_log(&mut self, dir: &JobDir, log: Arc<JobLog>) {
        let shipping = self.ship(log.clone());
        let mut left = Left::default();
        let ended = match caught(self.execute(dir, &log, &mut left)).await {
            Ok(ended) => ended,
            Err(panic) => Err(Fault::bug(&panic)),
        };
        let outcome = match ended {
            Ok(()) => Some(Outcome::succeeded()),
            Err(fault) => outcome_of(fault, self.engine_dir()),
        };
        let outcome = match outcome {
            Some(outcome) => Some(self.with_tail(outcome, &log).await),
            None => None,
        };
        self.remove_container().await;
        // Before the report: what the job had reserved is free when the controller hears that it is over.
        if let Err(error) = dir.clear().await {
            tracing::warn!(lease = %self.order.lease, %error, "a job's files could not be removed");
        }
        if let Some(outcome) = outcome {
            self.conclude(&outcome);
            self.close_log(&log, &outcome).await;
            let log_bytes = unless_abandoned(self.stop.clone(), async { shipping.await.ok() }).await.flatten();
            match log_bytes {
                Some(Shipped::Whole(bytes) | Shipped::Full(bytes)) => self.report(outcome, left, bytes).await,
                Some(Shipped::Stale) | None => {}
            }
        } else {
            shipping.abort();
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

    async fn execute(&mut self, dir: &JobDir, log: &JobLog, left: &mut Left) -> Result<(), Fault> {
        let Order { lease, build, job, .. } = &self.order;
        let who = &self.shop.config.name;
        log.note(&format!("{build} {job}, attempt {} on worker {who}", lease.attempt)).await?;
        spec::check(&self.shop.config, &self.order)?;
        self.enter(Phase::Fetch).await;
        let (image, mounts) =
            unless_stopped(self.stop.clone(), self.fetch(dir, log).instrument(info_span!("fetch"))).await?;
        self.enter(Phase::Run).await;
        let committed = self.work(dir, log, &image, &mounts).instrument(info_span!("run")).await?;
        self.enter(Phase::Upload).await;
        unless_stopped(self.stop.clone(), self.upload(dir, log, committed, left).instrument(info_span!("upload"))).await
    }

    async fn fetch(&self, dir: &JobDir, log: &JobLog) -> Result<(LocalImage, Vec<inputs::InputMount>), Fault> {
        let (shop, order) = (&self.shop, &self.order);
        let image = prepare::prepare(shop, order, log).await?;
        let mut mounts = Vec::new();
        if !order.inputs.is_empty() {
            let started = shop.clock.monotonic();
            let blobs: Vec<Blob> = order.inputs.iter().map(|input| input.artifact.blob).collect();
            let held = inputs::fetch(shop, order.lease, &blobs).await?;
            let (tree, apart, inputs) = (dir.inputs(), spec::can_remount(order), order.inputs.clone());
            // The blobs are held until their second names are there.
            mounts = crate::blocking::blocking(move || inputs::lay_out(&tree, &inputs, &held, apart)).await?;
            let bytes = bytesize::ByteSize::b(blobs.iter().map(|blob| blob.size_bytes).sum()).display().iec();
            let secs = (shop.clock.monotonic() - started).as_secs_f32();
            log.note(&format!("fetched {}, {bytes}, in {secs:.1} s", count(blobs.len(), "input"))).await?;
        }
        let script = dir.script();
        write_script(&script, &spec::script(&order.run.script)).await.map_err(DiskError::at("write", &script))?;
        Ok((image, mounts))
    }

    /// Runs the container and, where the step wants it, makes an image of it. No container is left when it returns well.
    async fn work(
        &mut self,
        dir: &JobDir,
        log: &JobLog,
        image: &LocalImage,
        mounts: &[inputs::InputMount],
    ) -> Result<Option<save::Committed>, Fault> {
        let shop = self.shop.clone();
        let spec = spec::container(&shop.farm, &shop.config, &shop.data, dir, &self.order, &image.id, mounts);
        log.note("running the script").await?;
        let started = shop.clock.monotonic();
        container::run(&shop, &self.order, &spec, &dir.work(), log, &mut self.stop).await?;
        let secs = (shop.clock.monotonic() - started).as_secs_f32();
        log.note(&format!("the script ended well after {secs:.1} s")).await?;
        let committed = if self.order.run.commit {
            Some(unless_stopped(self.stop.clone(), save::commit(&shop, &self.order, image, &spec.name)).await?)
        } else {
            None
        };
        shop.runtime.remove(&spec.name).await?;
        Ok(committed)
    }

    async fn upload(
        &self,
        dir: &JobDir,
        log: &JobLog,
        committed: Option<save::Committed>,
        left: &mut Left,
    ) -> Result<(), Fault> {
        let (shop, order) = (&self.shop, &self.order);
        left.artifacts =
            upload::artifacts(shop, order.lease, &dir.work(), &order.run.outputs, &mut left.uploads, log).await?;
        if let Some(committed) = committed {
            let image = save::save(shop, order.lease, &committed, &dir.scratch(), &mut left.uploads, log).await?;
            left.image = Some(image);
        }
        Ok(())
    }

    async fn enter(&self, phase: Phase) {
        // Nobody listens only when the worker is gone already.
        let _ = self.events.send(Event::Entered(self.order.lease, phase)).await;
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
        let closed = match log.note(told).await {
            Ok(()) => log.close().await.map(drop),
            // Closed all the same, or what is there would never be reported.
            Err(error) => log.close().await.map(drop).and(Err(error)),
        };
        if let Err(error) = closed {
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

async fn write_script(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    tokio::fs::write(path, text).await?;
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).await
}
