//! The driver alone, with a journal that waits for the test: what falls into one round, and what is told before it is durable.

use crate::common::memory::{Driven, offer};
use crate::common::{soon, until};
use railyard_common::id::{LeaseId, WorkerName};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::pipeline::{Pipeline, Request, Source};
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_controller::driver::{Change, CommandError, Handle, Hello, Link};
use railyard_controller::journal::{Journal, JournalError, Loaded};
use railyard_core::{Command, Event, Report, Snapshot, Submission, Trace};
use railyard_proto::v1;
use railyard_proto::v1::controller_message::Kind;
use railyard_service::clock::Clock;
use railyard_service::convert::ToProto as _;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What an append of the [`Gate`] comes to.
enum Flush {
    Good,
    /// The disk is full.
    Bad,
    /// It says so, though the events are there.
    Doubtful,
}

/// A journal in memory. Each append says that it waits, and then does as the test says.
struct Gate {
    kept: Arc<Mutex<Vec<Event>>>,
    waits: mpsc::UnboundedSender<Vec<Event>>,
    orders: std::sync::mpsc::Receiver<Flush>,
    snapshots: Arc<BrokenSnapshots>,
}

/// A place for snapshots that takes none.
#[derive(Default)]
struct BrokenSnapshots {
    wanted: AtomicBool,
    tried: AtomicU64,
}

impl Journal for Gate {
    fn load(&mut self) -> Result<Loaded, JournalError> {
        Ok(Loaded { snapshot: None, events: self.kept.lock().unwrap().clone() })
    }

    fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        // A test that is over neither listens nor orders.
        let _ = self.waits.send(events.to_vec());
        match self.orders.recv() {
            Ok(Flush::Good) => self.kept.lock().unwrap().extend_from_slice(events),
            Ok(Flush::Bad) | Err(_) => return Err(disk_full()),
            Ok(Flush::Doubtful) => {
                self.kept.lock().unwrap().extend_from_slice(events);
                return Err(disk_full());
            }
        }
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        self.snapshots.wanted.load(Ordering::SeqCst)
    }

    fn install(&mut self, _: &Snapshot) -> Result<(), JournalError> {
        self.snapshots.tried.fetch_add(1, Ordering::SeqCst);
        Err(disk_full())
    }
}

fn disk_full() -> JournalError {
    let source = std::io::ErrorKind::StorageFull.into();
    JournalError::Io { what: "write", path: "journal".into(), source }
}

/// Time that the test makes.
#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Millis {
        Millis(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.now().0)
    }
}

/// A driver and what moves it.
struct Stage {
    farm: Handle,
    clock: Arc<Hand>,
    waits: mpsc::UnboundedReceiver<Vec<Event>>,
    orders: std::sync::mpsc::Sender<Flush>,
    ended: mpsc::UnboundedReceiver<LeaseId>,
    snapshots: Arc<BrokenSnapshots>,
}

impl Stage {
    /// A driver that has started.
    async fn new() -> Self {
        let (waits_tx, waits) = mpsc::unbounded_channel();
        let (orders, orders_rx) = std::sync::mpsc::channel();
        let snapshots = Arc::<BrokenSnapshots>::default();
        let clock = Arc::new(Hand::default());
        let gate = Gate { kept: Arc::default(), waits: waits_tx, orders: orders_rx, snapshots: snapshots.clone() };
        let Driven { farm, ended, .. } = Driven::start(gate, clock.clone());
        let mut stage = Self { farm, clock, waits, orders, ended, snapshots };
        stage.flush(Flush::Good).await;
        stage
    }

    /// Waits until an append waits; gives its events.
    async fn waiting(&mut self) -> Vec<Event> {
        soon("an append", self.waits.recv()).await.unwrap()
    }

    /// Lets an append that waits, or will, come to its end.
    async fn flush(&mut self, order: Flush) -> Vec<Event> {
        self.orders.send(order).unwrap();
        self.waiting().await
    }

    /// Begins a session; gives its number and its messages.
    async fn attach(&mut self, name: &str) -> (u64, mpsc::Receiver<v1::ControllerMessage>) {
        let (link, messages) = link();
        let farm = self.farm.clone();
        let attach = farm.attach(hello(name), v1::Welcome::default(), link);
        let (session, _) = tokio::join!(attach, self.flush(Flush::Good));
        (session.unwrap(), messages)
    }

    /// Is this worker connected, by the state that is told?
    async fn is_online(&self, name: &str) -> bool {
        let name: WorkerName = name.parse().unwrap();
        self.farm.read(move |farm, _| farm.worker(&name).is_some_and(|worker| worker.online)).await.unwrap()
    }
}

fn link() -> (Link, mpsc::Receiver<v1::ControllerMessage>) {
    let (messages, receiver) = mpsc::channel(16);
    (Link { messages, cut: CancellationToken::new() }, receiver)
}

fn hello(name: &str) -> Hello {
    Hello { offer: Box::new(offer(name)), held: Vec::new(), builds: Vec::new(), said: None, disk: None }
}

fn submit(version: &str) -> Command {
    let text = crate::common::pipelines::SHORT_LEASE;
    let files = BTreeMap::new();
    let pipeline = Pipeline::parse(&Source { file_name: "railyard.yaml", text, files: &files }).unwrap();
    let request = Request::of(version.parse().unwrap());
    let plan = pipeline.plan(&request).unwrap();
    Command::Submit(Box::new(Submission {
        plan,
        key: None,
        request: String::new(),
        priority: Priority::default(),
        by: "olga".to_owned(),
        trace: Trace::default(),
    }))
}

async fn next_lease(messages: &mut mpsc::Receiver<v1::ControllerMessage>) -> LeaseId {
    loop {
        let message = soon("an order", messages.recv()).await.unwrap();
        if let Some(Kind::Lease(order)) = message.kind {
            let lease = order.lease.unwrap();
            return LeaseId { job: railyard_common::id::JobId(lease.job), attempt: lease.attempt };
        }
    }
}

#[tokio::test]
async fn nothing_is_told_before_it_is_durable() {
    let mut stage = Stage::new().await;
    let (session, mut messages) = stage.attach("anvil").await;
    soon("the welcome", messages.recv()).await.unwrap();
    let farm = stage.farm.clone();
    let mut submitted = pin!(farm.decide(submit("1")));
    let mut read = pin!(farm.read(|farm, _| farm.builds().count()));
    assert!(futures_util::poll!(&mut submitted).is_pending());
    assert!(futures_util::poll!(&mut read).is_pending());
    farm.beat("anvil".parse().unwrap(), session, v1::Heartbeat::default()).await.unwrap();

    let events = stage.waiting().await;
    assert!(matches!(events[..], [Event::BuildAccepted { .. }, Event::JobLeased { .. }]), "{events:?}");
    assert!(futures_util::poll!(&mut read).is_pending(), "a reader saw what was not durable");
    assert!(futures_util::poll!(&mut submitted).is_pending());
    assert!(messages.try_recv().is_err(), "something left before it was durable");

    stage.orders.send(Flush::Good).unwrap();
    submitted.await.unwrap();
    assert_eq!(read.await.unwrap(), 1);
    next_lease(&mut messages).await;
}

#[tokio::test]
async fn the_end_of_a_replaced_session_does_not_take_its_worker_offline() {
    let mut stage = Stage::new().await;
    let (old, _old_messages) = stage.attach("anvil").await;
    // One append holds the driver up, so that the hello and the end of the old stream fall into one round.
    let farm = stage.farm.clone();
    let mut held_up = pin!(farm.decide(submit("1")));
    assert!(futures_util::poll!(&mut held_up).is_pending());
    stage.waiting().await;
    let (link, mut messages) = link();
    let mut attach = pin!(farm.attach(hello("anvil"), v1::Welcome::default(), link));
    assert!(futures_util::poll!(&mut attach).is_pending());
    farm.detach("anvil".parse().unwrap(), old).await;
    for _ in 0..2 {
        stage.orders.send(Flush::Good).unwrap();
    }
    let new = attach.await.unwrap();
    assert!(new > old);
    assert!(stage.is_online("anvil").await);
    assert!(matches!(messages.recv().await.unwrap().kind, Some(Kind::Welcome(_))));
}

#[tokio::test]
async fn a_failed_append_undoes_the_round_and_the_next_one_works() {
    let mut stage = Stage::new().await;
    let farm = stage.farm.clone();
    let (refused, _) = tokio::join!(farm.decide(submit("1")), stage.flush(Flush::Bad));
    let Err(CommandError::Journal(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("cannot write journal"), "{why}");
    // It starts again from what is durable.
    let events = stage.flush(Flush::Good).await;
    assert!(matches!(events[..], [Event::ControllerStarted { .. }]), "{events:?}");
    assert_eq!(farm.read(|farm, _| farm.builds().count()).await.unwrap(), 0);
    let (accepted, _) = tokio::join!(farm.decide(submit("1")), stage.flush(Flush::Good));
    assert_eq!(accepted.unwrap().len(), 1);
}

#[tokio::test]
async fn a_heartbeat_that_waited_for_a_slow_flush_keeps_its_lease() {
    let mut stage = Stage::new().await;
    let (session, mut messages) = stage.attach("anvil").await;
    let farm = stage.farm.clone();
    let (accepted, _) = tokio::join!(farm.decide(submit("1")), stage.flush(Flush::Good));
    accepted.unwrap();
    let lease = next_lease(&mut messages).await;

    let mut slow = pin!(farm.decide(submit("2")));
    assert!(futures_util::poll!(&mut slow).is_pending());
    stage.waiting().await;
    // The disk takes longer than the lease lives; the heartbeat has come meanwhile.
    let status = v1::LeaseStatus { lease: Some(lease.to_proto()), phase: v1::Phase::Run.into() };
    let beat = v1::Heartbeat { sequence: 1, leases: vec![status], ..Default::default() };
    farm.beat("anvil".parse().unwrap(), session, beat).await.unwrap();
    stage.clock.0.store(10_001, Ordering::SeqCst);
    stage.orders.send(Flush::Good).unwrap();
    slow.await.unwrap();
    let acked = async {
        loop {
            if let Some(Kind::HeartbeatAck(ack)) = messages.recv().await.unwrap().kind {
                return ack;
            }
        }
    };
    assert_eq!(soon("the ack", acked).await, v1::HeartbeatAck { sequence: 1, lost: Vec::new() });
    assert!(farm.read(move |farm, _| farm.holder(lease).is_some()).await.unwrap());

    // Without another one it ends at its time.
    stage.clock.0.store(20_002, Ordering::SeqCst);
    for _ in 0..8 {
        stage.orders.send(Flush::Good).unwrap();
    }
    until("the expiry", async || farm.read(move |farm, _| farm.holder(lease).is_none()).await.unwrap().then_some(()))
        .await;
}

#[tokio::test]
async fn a_reader_in_a_failed_round_sees_what_is_durable() {
    let mut stage = Stage::new().await;
    let farm = stage.farm.clone();
    let mut submitted = pin!(farm.decide(submit("1")));
    let mut read = pin!(farm.read(|farm, _| farm.builds().count()));
    assert!(futures_util::poll!(&mut submitted).is_pending());
    assert!(futures_util::poll!(&mut read).is_pending());
    stage.flush(Flush::Bad).await;
    assert!(matches!(submitted.await, Err(CommandError::Journal(_))));
    assert_eq!(soon("the answer", read).await.unwrap(), 0);
}

/// The append failed and its events are there all the same: those who wait for them hear of it.
#[tokio::test]
async fn what_reached_the_disk_in_a_failed_append_is_told() {
    let mut stage = Stage::new().await;
    let (_, mut messages) = stage.attach("anvil").await;
    let farm = stage.farm.clone();
    let (accepted, _) = tokio::join!(farm.decide(submit("1")), stage.flush(Flush::Good));
    accepted.unwrap();
    let lease = next_lease(&mut messages).await;

    let mut changes = farm.changes();
    let report = Report {
        lease,
        worker: "anvil".parse().unwrap(),
        outcome: Outcome::new(OutcomeKind::Succeeded, Reason::Done, "done"),
        artifacts: Vec::new(),
        image: None,
        log_bytes: 0,
    };
    let reported = farm.decide(Command::Report(Box::new(report)));
    let (reported, _) = tokio::join!(reported, stage.flush(Flush::Doubtful));
    assert!(matches!(reported, Err(CommandError::Journal(_))), "{reported:?}");
    assert_eq!(soon("the end of the lease", stage.ended.recv()).await, Some(lease));
    assert_eq!(soon("the change", changes.recv()).await.unwrap(), Change::Build("short/1".parse().unwrap()));
    stage.orders.send(Flush::Good).unwrap();
    assert_eq!(farm.read(|farm, _| farm.finalizing().count()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_snapshot_that_fails_takes_nothing_back_and_is_tried_again_later() {
    let mut stage = Stage::new().await;
    stage.snapshots.wanted.store(true, Ordering::SeqCst);
    let farm = stage.farm.clone();
    let tried = |stage: &Stage| stage.snapshots.tried.load(Ordering::SeqCst);
    for (version, at, tries) in [("1", 0, 1), ("2", 9_000, 1), ("3", 10_000, 2), ("4", 29_000, 2), ("5", 30_000, 3)] {
        stage.clock.0.store(at, Ordering::SeqCst);
        let (accepted, _) = tokio::join!(farm.decide(submit(version)), stage.flush(Flush::Good));
        accepted.unwrap();
        // Answered in a later round than the snapshot.
        let known = farm.read(|farm, _| farm.builds().count()).await.unwrap();
        assert_eq!((known.to_string().as_str(), tried(&stage)), (version, tries), "at {at} ms");
    }
}

/// Slow peers can fill the runtime's pool for blocking work; the farm goes on.
#[test]
fn the_journal_does_not_wait_for_the_blocking_pool() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let slow = tokio::task::spawn_blocking(move || held.recv().is_err());
        let mut stage = Stage::new().await;
        let farm = stage.farm.clone();
        let (accepted, _) = tokio::join!(farm.decide(submit("1")), stage.flush(Flush::Good));
        assert_eq!(accepted.unwrap().len(), 1);
        drop(release);
        assert!(slow.await.unwrap());
    });
}
