//! The one owner of the farm.
//!
//! Everyone else sends it requests through a [`Handle`]. It drains what waits, decides and applies all of it, appends the events
//! once, flushes once, and only then answers and lets effects out: orders to workers, cancels, notices to readers.
//!
//! **Invariant:** nothing leaves this task that a crash could undo.

mod effects;
mod handle;
mod live;

pub use handle::{CommandError, Handle, Link};
pub use live::Live;

use crate::journal::{Journal, JournalError, JournalThread};
use handle::{Attach, Read, Request};
use railyard_common::backoff::Backoff;
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::time::Millis;
use railyard_core::{Command, Event, Farm};
use railyard_proto::v1;
use railyard_service::clock::Clock;
use railyard_service::convert::ToProto as _;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Requests that may wait: many times the workers that could speak at once; beyond it, senders wait.
const QUEUE_LEN: usize = 16_384;
/// Requests that share one flush. A flush takes about a millisecond; more than this in that time is a flood.
const BATCH_MAX: usize = 1_024;
/// Placement and expiry are looked at this often even if nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Waits between tries of a snapshot: each writes the whole state, and without one only the next start is slower.
const SNAPSHOT_RETRY: Backoff = Backoff { base_millis: 10_000, max_millis: 600_000 };

/// What other parts of the controller listen to.
#[derive(Clone)]
pub struct Notices {
    /// Builds that have changed.
    pub changed: broadcast::Sender<BuildId>,
    /// Leases that have ended: their logs can be filed.
    pub ended: mpsc::UnboundedSender<LeaseId>,
    /// Some build waits to be finalized.
    pub finalize: Arc<Notify>,
}

/// The farm and everything that must change with it.
pub struct Driver {
    farm: Farm,
    live: Live,
    journal: JournalThread,
    snapshots: Snapshots,
    clock: Arc<dyn Clock>,
    requests: mpsc::Receiver<Request>,
    own: VecDeque<Command>,
    notices: Notices,
}

/// Snapshots that could not be installed.
#[derive(Default)]
struct Snapshots {
    /// In a row.
    failed: u32,
    /// No other try before; monotonic.
    not_before: Millis,
}

/// An answer that waits for the flush.
enum Answer {
    Decided(oneshot::Sender<Result<Vec<Event>, CommandError>>, Result<Vec<Event>, CommandError>),
    Attached(Attach),
    Beat { worker: WorkerName, session: u64, beat: v1::Heartbeat },
    Read(Read),
}

/// What one round has come to, before it is durable.
#[derive(Default)]
struct Round {
    events: Vec<Event>,
    answers: Vec<Answer>,
}

impl Driver {
    /// Loads the farm from its journal.
    ///
    /// # Errors
    /// [`JournalError`] if the journal cannot be read. A broken invariant is only logged: a farm that does not start helps nobody.
    pub fn open(
        mut journal: Box<dyn Journal>,
        clock: Arc<dyn Clock>,
        notices: Notices,
    ) -> Result<(Self, Handle), JournalError> {
        let farm = journal.load()?.farm();
        for broken in farm.check() {
            tracing::error!(%broken, "the journal's state breaks an invariant; this is a bug");
        }
        let (tx, requests) = mpsc::channel(QUEUE_LEN);
        let handle = Handle::new(tx, notices.changed.clone());
        let own = VecDeque::from([Command::Started]);
        let journal = JournalThread::start(journal)?;
        let (live, snapshots) = (Live::default(), Snapshots::default());
        Ok((Self { farm, live, journal, snapshots, clock, requests, own, notices }, handle))
    }

    /// Runs until `shutdown`, or until the journal can be neither written nor read again.
    ///
    /// # Errors
    /// [`JournalError`] in the latter case.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), JournalError> {
        let ended = self.work(shutdown).await;
        self.journal.close().await;
        ended
    }

    async fn work(&mut self, shutdown: CancellationToken) -> Result<(), JournalError> {
        self.begin_leases();
        self.notices.finalize.notify_one();
        loop {
            let mut waiting = Vec::new();
            let wake = self.next_wake();
            if self.own.is_empty() {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return Ok(()),
                    taken = self.requests.recv_many(&mut waiting, BATCH_MAX) => if taken == 0 { return Ok(()) },
                    () = tokio::time::sleep(wake) => {}
                }
            }
            let round = self.decide_round(waiting);
            self.commit(round).await?;
        }
    }

    /// Every live lease gets a full fresh TTL: workers may take that long to find the controller again.
    fn begin_leases(&mut self) {
        let now = self.monotonic();
        let leases: Vec<LeaseId> = self.farm.live_leases().collect();
        for lease in leases {
            let ttl = self.farm.ttl_millis(lease).unwrap_or_default();
            self.live.leases.begin(lease, now, ttl);
        }
    }

    fn monotonic(&self) -> Millis {
        Millis(u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX))
    }

    fn next_wake(&self) -> Duration {
        let expiry = self.live.leases.next_deadline().map(|at| at.since(self.monotonic()));
        let now = self.clock.now();
        let backoff = self.farm.next_backoff_end(now).map(|at| at.since(now));
        let soonest = expiry.into_iter().chain(backoff).min().map(Duration::from_millis);
        soonest.map_or(TICK, |soonest| soonest.min(TICK))
    }

    fn decide_round(&mut self, waiting: Vec<Request>) -> Round {
        let mut round = Round::default();
        self.decide_own(&mut round);
        for request in waiting {
            self.take(request, &mut round);
        }
        // After the requests: a heartbeat that waited for a slow flush still counts.
        let expired = self.live.leases.expired(self.monotonic());
        self.own.extend(expired.into_iter().map(|lease| Command::Expire { lease }));
        self.decide_own(&mut round);
        let _ = self.decide(&Command::Place, &mut round);
        round
    }

    fn decide_own(&mut self, round: &mut Round) {
        while let Some(command) = self.own.pop_front() {
            if let Err(refusal) = self.decide(&command, round) {
                tracing::debug!(%refusal, ?command, "a command of the controller itself came too late");
            }
        }
    }

    fn decide(&mut self, command: &Command, round: &mut Round) -> Result<Vec<Event>, railyard_core::Refusal> {
        let events = self.farm.decide(self.clock.now(), command)?;
        events.iter().for_each(|event| self.farm.apply(event));
        round.events.extend(events.iter().cloned());
        Ok(events)
    }

    fn take(&mut self, request: Request, round: &mut Round) {
        match request {
            Request::Decide { command, reply } => {
                let decided = self.decide(&command, round).map_err(CommandError::Refused);
                round.answers.push(Answer::Decided(reply, decided));
            }
            Request::Attach(attach) => {
                let command = Command::Hello { offer: attach.offer.clone(), held: attach.held.clone() };
                // A hello is never refused; what it claims and does not hold is told in the answer.
                let _ = self.decide(&command, round);
                self.live.replace(&attach.offer.name);
                round.answers.push(Answer::Attached(attach));
            }
            Request::Detach { worker, session } => {
                if self.live.detach(&worker, session) {
                    let _ = self.decide(&Command::Goodbye { worker }, round);
                }
            }
            Request::Beat { worker, session, beat } => {
                self.renew(&worker, &beat);
                round.answers.push(Answer::Beat { worker, session, beat });
            }
            Request::NoteFinalizeError { build, why } => {
                self.live.note_finalize_error(build.clone(), why);
                self.build_changed(&build);
            }
            // Readers act on what they see: they see it when it is durable.
            Request::Read(read) => round.answers.push(Answer::Read(read)),
        }
    }

    /// A heartbeat renews what the worker holds. Soft state: nothing is journaled.
    fn renew(&mut self, worker: &WorkerName, beat: &v1::Heartbeat) {
        let now = self.monotonic();
        for lease in beat.leases.iter().filter_map(|status| status.lease.as_ref()).map(handle::lease_id) {
            if self.farm.holder(lease) == Some(worker) {
                self.live.leases.renew(lease, now);
            }
        }
    }

    /// The answer to a heartbeat: what the worker has lost, by the state that is durable.
    fn answer_beat(&mut self, worker: &WorkerName, session: u64, beat: v1::Heartbeat) {
        let mut lost = Vec::new();
        for status in beat.leases {
            let Some(lease) = status.lease.map(|lease| handle::lease_id(&lease)) else { continue };
            if self.farm.holder(lease) == Some(worker) {
                let phase = v1::Phase::try_from(status.phase).unwrap_or_default();
                if self.live.set_phase(lease, phase) {
                    self.changed(lease);
                }
            } else {
                lost.push(lease.to_proto());
            }
        }
        self.live.seen(worker, self.clock.now());
        let ack = v1::HeartbeatAck { sequence: beat.sequence, lost };
        self.live.send_to(worker, Some(session), v1::controller_message::Kind::HeartbeatAck(ack));
    }

    /// Makes the round durable, then lets it out.
    async fn commit(&mut self, round: Round) -> Result<(), JournalError> {
        let mut wants_snapshot = false;
        if !round.events.is_empty() {
            match self.append(&round.events).await {
                Ok(long) => wants_snapshot = long,
                Err(error) => return self.recover(error, round).await,
            }
        }
        for answer in round.answers {
            match answer {
                // A caller that went away does not want its answer any more.
                Answer::Decided(reply, decided) => drop(reply.send(decided)),
                Answer::Attached(attach) => self.welcome(attach),
                Answer::Beat { worker, session, beat } => self.answer_beat(&worker, session, beat),
                Answer::Read(read) => read(&self.farm, &self.live),
            }
        }
        for event in &round.events {
            self.effect(event);
        }
        if wants_snapshot && self.monotonic() >= self.snapshots.not_before {
            self.install_snapshot().await;
        }
        Ok(())
    }

    /// Returns whether a snapshot would pay.
    async fn append(&self, events: &[Event]) -> Result<bool, JournalError> {
        let events = events.to_vec();
        self.journal.run(move |journal| journal.append(&events).map(|()| journal.wants_snapshot())).await
    }

    /// A snapshot that fails takes nothing back: the tail goes on, and a later try may work.
    async fn install_snapshot(&mut self) {
        let snapshot = self.farm.snapshot();
        let installed = self.journal.run(move |journal| journal.install(&snapshot)).await;
        let failed = self.snapshots.failed + 1;
        self.snapshots = match installed {
            Ok(()) => Snapshots::default(),
            Err(error) => {
                let wait = SNAPSHOT_RETRY.delay_millis(failed);
                let error = railyard_service::error_chain(&error);
                tracing::error!(%error, "the journal cannot be shortened; it is tried again in {} s", wait / 1000);
                Snapshots { failed, not_before: self.monotonic().plus(wait) }
            }
        };
    }

    /// The append failed: nothing of the round may be told. The state goes back to what is durable, callers hear why,
    /// workers connect again and find out what holds. Readers look when that is done.
    async fn recover(&mut self, error: JournalError, round: Round) -> Result<(), JournalError> {
        let why = railyard_service::error_chain(&error);
        tracing::error!(error = %why, "the journal cannot be written; refusing new work");
        let mut reads = Vec::new();
        for answer in round.answers {
            match answer {
                Answer::Decided(reply, _) => drop(reply.send(Err(CommandError::Journal(why.clone())))),
                Answer::Read(read) => reads.push(read),
                Answer::Attached(_) | Answer::Beat { .. } => {}
            }
        }
        let loaded = self.journal.run(|journal| journal.load()).await;
        self.farm = loaded?.farm();
        self.live = Live::default();
        self.own = VecDeque::from([Command::Started]);
        self.begin_leases();
        reads.into_iter().for_each(|read| read(&self.farm, &self.live));
        self.look_again(&round.events);
        tokio::time::sleep(TICK).await;
        Ok(())
    }

    /// The worker's session begins: first the welcome, then orders.
    fn welcome(&mut self, attach: Attach) {
        let name = attach.offer.name.clone();
        let now = self.monotonic();
        let held: Vec<LeaseId> =
            attach.held.iter().copied().filter(|lease| self.farm.holder(*lease) == Some(&name)).collect();
        let over = |build: &&BuildId| self.farm.build(build).is_none_or(|build| build.is_ended());
        let welcome = v1::Welcome {
            held: held.iter().map(|lease| lease.to_proto()).collect(),
            builds_over: attach.builds.iter().filter(over).map(ToString::to_string).collect(),
            ..attach.welcome
        };
        let session = self.live.attach(name.clone(), attach.link);
        self.live.seen(&name, self.clock.now());
        self.live.send_to(&name, Some(session), v1::controller_message::Kind::Welcome(welcome));
        for lease in &held {
            self.live.leases.renew(*lease, now);
        }
        let stopping: Vec<(LeaseId, String)> =
            held.iter().filter_map(|lease| Some((*lease, self.cancel_reason(*lease)?))).collect();
        // Whoever asked may have gone; then the stream's end is noticed soon.
        let _ = attach.reply.send(session);
        for (lease, reason) in stopping {
            self.send_cancel(lease, reason);
        }
    }
}
