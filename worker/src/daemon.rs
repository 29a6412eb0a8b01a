//! The worker's one owner: it holds the session, and tells attempts and the link what to do.

mod leases;

use crate::attempt::record::{self, Left};
use crate::attempt::{Event, Reins};
use crate::cleanup;
use crate::host;
use crate::link::{self, LinkEvent, LinkRefused};
use crate::pressure::Gauge;
use crate::runtime::RuntimeError;
use crate::session::Session;
use crate::workshop::Workshop;
use anyhow::Context as _;
use railyard_common::id::{BuildId, LeaseId};
use railyard_common::job::Capacity;
use railyard_common::platform::PlatformOffer;
use railyard_common::{PROTOCOL, VERSION};
use railyard_proto::v1;
use railyard_proto::v1::{controller_message, worker_message};
use railyard_service::convert::{FromProto as _, ToProto as _, all};
use railyard_service::task;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Events of attempts and of the link that wait to be looked at. Whoever sends more waits.
const QUEUE_EVENTS: usize = 256;

/// At shutdown, how long stopped attempts may take to clean up and to be reported, beyond their containers' grace.
const LAST_REPORTS: Duration = Duration::from_secs(5);

/// How long the images of builds that are over may take to go when the worker stops; what is left goes at the next start.
const LAST_IMAGES: Duration = Duration::from_secs(15);

/// How long the controller may take to close a stream that the worker has closed.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Heartbeats before the controller has said how often it wants them.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Images that are still in use when their build is over: tries to remove them, and the wait between.
const FORGET_TRIES: u32 = 10;
const FORGET_PAUSE: Duration = Duration::from_secs(3);

/// Whether new jobs are taken.
enum Standing {
    Working,
    /// Running jobs may go on until then.
    Draining(Duration),
    /// All jobs were told to stop; what has not ended by then is dropped.
    Stopping(Duration),
}

/// The worker.
pub struct Daemon {
    shop: Arc<Workshop>,
    boot_id: String,
    platforms: Vec<PlatformOffer>,
    capacity: Capacity,
    gauge: Gauge,
    session: Session,
    standing: Standing,
    /// The running attempts.
    held: BTreeMap<LeaseId, Reins>,
    attempts: JoinSet<()>,
    /// Builds that are over, while their images go.
    forgetting: BTreeMap<BuildId, AbortOnDropHandle<()>>,
    events: mpsc::Sender<Event>,
    /// Where messages go while a stream is open.
    outbound: Option<mpsc::Sender<v1::WorkerMessage>>,
    heartbeat: Duration,
    next_beat_at: Duration,
    /// How long the link waits for a word of the controller.
    patience: watch::Sender<Duration>,
}

impl Daemon {
    /// A worker that holds nothing yet; `is_idle` if there is nothing to go on with either.
    ///
    /// # Errors
    /// If the host cannot be measured.
    pub fn new(shop: Arc<Workshop>, is_idle: bool) -> anyhow::Result<(Self, mpsc::Receiver<Event>)> {
        let (events, heard) = mpsc::channel(QUEUE_EVENTS);
        let mut boot = [0; 16];
        getrandom::fill(&mut boot).context("the kernel gave no random bytes for the boot id")?;
        let daemon = Self {
            boot_id: hex::encode(boot),
            platforms: host::platforms(&shop.config),
            capacity: host::capacity_again(&shop.config, &host::base(&shop)?, &shop.data.offer(), is_idle)
                .context("cannot tell what this host has to offer")?,
            gauge: Gauge::new(&shop.pressure_dir, shop.config.pressure),
            shop,
            session: Session::new(),
            standing: Standing::Working,
            held: BTreeMap::new(),
            attempts: JoinSet::new(),
            forgetting: BTreeMap::new(),
            events,
            outbound: None,
            heartbeat: HEARTBEAT,
            next_beat_at: Duration::ZERO,
            patience: watch::Sender::new(Session::new().patience(HEARTBEAT)),
        };
        Ok((daemon, heard))
    }

    /// Goes on with what is `left` of an earlier process, and works until `shutdown`, or until the controller refuses
    /// the worker.
    ///
    /// # Errors
    /// [`LinkRefused`].
    pub async fn run(
        mut self,
        left: Vec<Left>,
        mut heard: mpsc::Receiver<Event>,
        shutdown: CancellationToken,
    ) -> Result<(), LinkRefused> {
        // Before the greeting, which names them.
        self.adopt(left);
        let (link_events, mut link_heard) = mpsc::channel(QUEUE_EVENTS);
        let link = link::keep(self.shop.uplink.clone(), link_events, self.patience.subscribe());
        let mut link = AbortOnDropHandle::new(task::spawn("link", link));
        let mut refused = None;
        tracing::info!(
            worker = %self.shop.config.name, controller = self.shop.config.controller, ?self.platforms, ?self.capacity,
            "worker started"
        );
        while !self.is_over() {
            let wake_in = self.wake_at().saturating_sub(self.now());
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if matches!(self.standing, Standing::Working) => self.drain(),
                ended = &mut link, if refused.is_none() => {
                    refused = Some(refusal(ended));
                    self.outbound = None;
                    self.stop_all();
                }
                Some(event) = link_heard.recv() => self.handle_link(event),
                Some(event) = heard.recv() => self.handle_event(event),
                () = tokio::time::sleep(wake_in) => {}
            }
            self.handle_time();
        }
        self.attempts.shutdown().await;
        self.say_goodbye(&mut link_heard).await;
        link.abort();
        let forgetting = futures_util::future::join_all(std::mem::take(&mut self.forgetting).into_values());
        if tokio::time::timeout(LAST_IMAGES, forgetting).await.is_err() {
            tracing::info!("some images of builds that are over stay until the next start");
        }
        if let Err(error) = self.tidy().await {
            tracing::warn!(%error, "not everything could be cleaned up; the next start tries again");
        }
        tracing::info!("worker stopped");
        refused.flatten().map_or(Ok(()), Err)
    }

    /// Nothing runs any more: whatever is still there goes.
    async fn tidy(&self) -> Result<(), RuntimeError> {
        cleanup::find(&self.shop, &BTreeSet::new()).await?.remove(&self.shop).await
    }

    /// A clock that the next process of this worker can go on with.
    fn now(&self) -> Duration {
        self.shop.clock.boottime()
    }

    /// Closes the stream behind the last message, and waits until the controller has seen that: what it has not read of
    /// our draining it would answer with more jobs.
    async fn say_goodbye(&mut self, link_heard: &mut mpsc::Receiver<LinkEvent>) {
        if self.outbound.take().is_none() {
            return;
        }
        let closed = async { while !matches!(link_heard.recv().await, Some(LinkEvent::Closed) | None) {} };
        if tokio::time::timeout(GOODBYE_TIMEOUT, closed).await.is_err() {
            tracing::debug!("the controller did not close the stream");
        }
    }

    fn is_over(&self) -> bool {
        match self.standing {
            Standing::Working => false,
            Standing::Draining(_) => self.held.is_empty(),
            Standing::Stopping(until) => self.held.is_empty() || self.now() >= until,
        }
    }

    /// When there is something to do even if nothing happens.
    fn wake_at(&self) -> Duration {
        let beat = self.outbound.as_ref().map(|_| self.next_beat_at);
        let over = match self.standing {
            Standing::Working => None,
            Standing::Draining(until) | Standing::Stopping(until) => Some(until),
        };
        let never = self.now() + HEARTBEAT;
        [self.session.next_tick_at(), beat, over].into_iter().flatten().fold(never, Duration::min)
    }

    fn handle_time(&mut self) {
        let now = self.now();
        let actions = self.session.tick(now);
        self.act(actions);
        if let Standing::Draining(until) = self.standing
            && now >= until
        {
            self.stop_all();
        }
        let patience = self.session.patience(self.heartbeat);
        self.patience.send_if_modified(|known| std::mem::replace(known, patience) != patience);
        if self.outbound.is_some() && now >= self.next_beat_at {
            self.beat(now);
        }
    }

    fn beat(&mut self, now: Duration) {
        let (sequence, statuses) = self.session.handle_beat(now);
        self.next_beat_at = now + self.session.heartbeat_interval(self.heartbeat);
        let leases = statuses
            .into_iter()
            .map(|(lease, phase)| v1::LeaseStatus { lease: Some(lease.to_proto()), phase: phase.into() })
            .collect();
        let free_disk_bytes = self.shop.free_bytes(self.shop.data.root()).unwrap_or_default();
        let disk = self.shop.disks.report(now).map(|disk| disk.to_proto());
        let pressure = self.gauge.read();
        self.say(worker_message::Kind::Heartbeat(v1::Heartbeat { sequence, leases, free_disk_bytes, pressure, disk }));
    }

    fn say(&mut self, kind: worker_message::Kind) {
        let Some(outbound) = &self.outbound else { return };
        // A full queue is a stream that does not move. The link notices that nothing is answered, and opens another.
        if let Err(error) = outbound.try_send(v1::WorkerMessage { kind: Some(kind) }) {
            tracing::debug!(%error, "a message to the controller was dropped");
        }
    }

    fn handle_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Opening(answer) => {
                let hello = self.hello();
                // The link was aborted if nobody waits for the answer.
                let _ = answer.send(hello);
            }
            LinkEvent::Opened(welcome, outbound) => self.handle_welcome(welcome, outbound),
            LinkEvent::Heard(kind) => self.handle_heard(*kind),
            LinkEvent::Closed => self.outbound = None,
        }
    }

    fn hello(&mut self) -> v1::Hello {
        let config = &self.shop.config;
        let held = self.session.handle_hello(self.shop.clock.boottime());
        v1::Hello {
            worker: config.name.to_string(),
            boot_id: self.boot_id.clone(),
            version: VERSION.to_owned(),
            protocol: PROTOCOL,
            platforms: all(&self.platforms),
            labels: config.labels.clone().into_iter().collect(),
            capacity: Some(self.capacity.to_proto()),
            held: all(&held),
            builds: self.shop.shelf.builds().iter().map(ToString::to_string).collect(),
            allows_privileged: config.allow_privileged,
            allows: config.allow.iter().map(ToString::to_string).collect(),
            pool: config.pool.as_ref().map(ToString::to_string).unwrap_or_default(),
            host_boot: record::kernel_boot(),
            uptime_millis: u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX),
            disk: self.shop.disks.report(self.now()).map(|disk| disk.to_proto()),
        }
    }

    fn handle_welcome(&mut self, welcome: v1::Welcome, outbound: mpsc::Sender<v1::WorkerMessage>) {
        tracing::info!(farm = welcome.farm, version = welcome.version, "connected to the controller");
        self.outbound = Some(outbound);
        if welcome.heartbeat_millis > 0 {
            self.heartbeat = Duration::from_millis(welcome.heartbeat_millis.into());
        }
        // At once: what is held must be confirmed, and for how long it had not been is not known.
        self.next_beat_at = self.now();
        let actions = self.session.handle_welcome(&leases(welcome.held));
        self.act(actions);
        if !matches!(self.standing, Standing::Working) {
            self.say(worker_message::Kind::Draining(v1::Draining {}));
        }
        welcome.builds_over.into_iter().for_each(|build| self.forget(&build));
    }

    fn handle_heard(&mut self, kind: controller_message::Kind) {
        match kind {
            controller_message::Kind::Welcome(_) => tracing::debug!("the controller welcomes a second time"),
            controller_message::Kind::Lease(order) => self.handle_order(order),
            controller_message::Kind::HeartbeatAck(ack) => {
                let lost: Vec<LeaseId> = leases(ack.lost).into_iter().collect();
                let actions = self.session.handle_ack(ack.sequence, &lost);
                self.act(actions);
                self.pass_on_confirmations();
            }
            controller_message::Kind::Cancel(cancel) => {
                for lease in leases(cancel.lease.into_iter().collect()) {
                    let actions = self.session.handle_cancel(lease, cancel.reason.clone());
                    self.act(actions);
                }
            }
            controller_message::Kind::BuildOver(over) => self.forget(&over.build),
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Entered(lease, phase) => self.session.handle_phase(lease, phase),
            Event::Stale(lease) => {
                let actions = self.session.handle_stale(lease);
                self.act(actions);
            }
            Event::Done(lease) => {
                self.session.handle_done(lease);
                self.held.remove(&lease);
                self.shop.disks.promises.end(lease);
                self.shop.disks.stir();
                // Its task has nothing more to do; taken out so that the set does not grow.
                while self.attempts.try_join_next().is_some() {}
            }
        }
    }

    fn drain(&mut self) {
        let grace = Duration::from_secs(self.shop.config.drain_grace_secs);
        tracing::info!(running = self.held.len(), ?grace, "draining");
        self.say(worker_message::Kind::Draining(v1::Draining {}));
        self.standing = Standing::Draining(self.now() + grace);
    }
}

/// Leases out of a message; what is none is left out.
fn leases(protos: Vec<v1::LeaseId>) -> BTreeSet<LeaseId> {
    protos.into_iter().filter_map(|lease| LeaseId::from_proto(lease).ok()).collect()
}

/// Why the link ended: `None` if nobody said.
fn refusal(ended: Result<Result<(), LinkRefused>, tokio::task::JoinError>) -> Option<LinkRefused> {
    match ended {
        Ok(Ok(())) => None,
        Ok(Err(refused)) => Some(refused),
        Err(error) => {
            let why = format!("the link to the controller ended in a bug: {error}");
            Some(LinkRefused(Box::new(tonic::Status::internal(why))))
        }
    }
}
