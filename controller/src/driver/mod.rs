//! The one owner of the farm.
//!
//! Everyone else sends it requests through a [`Handle`]. It drains what waits, has the [`Dispatcher`] decide and apply all of
//! it, appends the events once, flushes once, and only then carries out what the dispatcher lets out: answers, orders to
//! workers, cancels, notices to readers.
//!
//! **Invariant:** nothing leaves this task that a crash could undo.

mod effects;
mod handle;
mod standstill;

pub(crate) use handle::disk_of;
pub use handle::{CommandError, Handle, Hello, Link};

use crate::journal::{Journal, JournalError, JournalThread};
use effects::Sessions;
use handle::{Greeting, Read, Request};
use railyard_common::backoff::Backoff;
use railyard_common::id::{BuildId, LeaseId, PipelineName};
use railyard_common::time::Millis;
use railyard_core::{Access, Dispatcher, Event, Input, Round, Ticket};
use railyard_service::clock::Clock;
use standstill::End;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Requests that may wait: many times the workers that could speak at once; beyond it, senders wait.
const QUEUE_LEN: usize = 16_384;
/// Requests that share one flush. A flush takes about a millisecond; more than this in that time is a flood.
const BATCH_MAX: usize = 1_024;
/// Placement and expiry are looked at this often even if nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Waits between tries of a snapshot: each writes the whole state, and without one only the next start is slower.
const SNAPSHOT_RETRY: Backoff = Backoff { base_millis: 10_000, max_millis: 600_000 };

/// What looks different now, for those who watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This build.
    Build(BuildId),
    /// Workers, and so why jobs wait, in whatever build.
    Workers,
}

/// What other parts of the controller listen to.
#[derive(Clone)]
pub struct Notices {
    /// What looks different now.
    pub changed: broadcast::Sender<Change>,
    /// Leases that have ended: their logs can be filed, and their uploads removed.
    pub ended: Vec<mpsc::UnboundedSender<LeaseId>>,
    /// Pipelines whose lists of builds are to be written anew.
    pub listed: Vec<mpsc::UnboundedSender<PipelineName>>,
    /// Some build waits to be finalized.
    pub finalize: Arc<Notify>,
}

/// The dispatcher, and everything that it needs of the world.
pub struct Driver {
    dispatcher: Dispatcher,
    journal: JournalThread,
    snapshots: Snapshots,
    clock: Arc<dyn Clock>,
    requests: mpsc::Receiver<Request>,
    sessions: Sessions,
    waiting: Waiting,
    notices: Notices,
    /// Who may come in, as it is durable.
    access: watch::Sender<Arc<Access>>,
    /// Why the journal cannot be written, for as long as it cannot.
    stuck: watch::Sender<Option<String>>,
}

/// Snapshots that could not be installed.
#[derive(Default)]
struct Snapshots {
    /// In a row.
    failed: u32,
    /// No other try before; monotonic.
    not_before: Millis,
}

/// What the journal says after an append.
#[derive(Default)]
struct After {
    /// A snapshot would pay.
    wants_snapshot: bool,
    /// Why another append should not be tried.
    stuck: Option<JournalError>,
}

/// Those who wait for the answers of the round.
#[derive(Default)]
struct Waiting {
    last: Ticket,
    commands: BTreeMap<Ticket, oneshot::Sender<Result<Vec<Event>, CommandError>>>,
    greetings: BTreeMap<Ticket, Greeting>,
    reads: BTreeMap<Ticket, Read>,
}

impl Waiting {
    fn ticket(&mut self) -> Ticket {
        self.last.0 += 1;
        self.last
    }
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
        let (stuck, is_stuck) = watch::channel(None);
        let (access, seen_access) = watch::channel(Arc::new(farm.access().clone()));
        let handle = Handle::new(tx, notices.changed.clone(), is_stuck, seen_access);
        let journal = JournalThread::start(journal)?;
        let dispatcher = Dispatcher::new(farm, monotonic(&*clock));
        let (snapshots, sessions, waiting) = (Snapshots::default(), Sessions::default(), Waiting::default());
        let driver =
            Self { dispatcher, journal, snapshots, clock, requests, sessions, waiting, notices, access, stuck };
        Ok((driver, handle))
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
        // Only now can workers reach the controller.
        self.dispatcher.begin_leases(self.monotonic());
        self.notices.finalize.notify_one();
        let mut stuck = self.journal.run(|journal| journal.has_room()).await.err();
        loop {
            if let Some(error) = stuck.take()
                && let End::Stop = self.stand_still(error, &shutdown).await?
            {
                return Ok(());
            }
            let mut waiting = Vec::new();
            if !self.dispatcher.has_own_work() {
                let wake = self.next_wake();
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return Ok(()),
                    taken = self.requests.recv_many(&mut waiting, BATCH_MAX) => if taken == 0 { return Ok(()) },
                    () = tokio::time::sleep(wake) => {}
                }
            }
            let inputs: Vec<Input> = waiting.into_iter().filter_map(|request| self.take(request)).collect();
            let round = self.dispatcher.round(self.clock.now(), self.monotonic(), inputs);
            stuck = self.commit(round).await?;
        }
    }

    fn monotonic(&self) -> Millis {
        monotonic(&*self.clock)
    }

    fn next_wake(&self) -> Duration {
        let soonest = self.dispatcher.next_wake(self.clock.now(), self.monotonic());
        soonest.map_or(TICK, |soonest| Duration::from_millis(soonest).min(TICK))
    }

    /// A request as the dispatcher takes it; who waits for its answer is kept here. Whoever only wants to look is served at
    /// once: between two rounds everything is durable.
    fn take(&mut self, request: Request) -> Option<Input> {
        Some(match request {
            Request::Decide { command, reply } => {
                let ticket = self.waiting.ticket();
                self.waiting.commands.insert(ticket, reply);
                Input::Command { ticket, command }
            }
            Request::Attach(attach) => {
                let ticket = self.waiting.ticket();
                self.waiting.greetings.insert(ticket, attach.greeting);
                let Hello { offer, held, builds, said, disk } = attach.hello;
                Input::Attach { ticket, offer, held, builds, said, disk }
            }
            Request::Detach { worker, session } => {
                self.sessions.end(&worker, session);
                Input::Detach { worker, session }
            }
            Request::Draining { worker, session } => Input::Draining { worker, session },
            Request::Beat(beat) => Input::Beat(beat),
            Request::NoteFinalizeError { build, why } => Input::FinalizeError { build, why },
            Request::Read(read) => {
                let ticket = self.waiting.ticket();
                self.waiting.reads.insert(ticket, read);
                Input::Read { ticket }
            }
            Request::Look(look) => {
                look(self.dispatcher.farm(), self.dispatcher.live());
                return None;
            }
        })
    }

    /// Makes the round durable, then lets it out. Gives what keeps the next one from being made durable, if that is known.
    async fn commit(&mut self, mut round: Round) -> Result<Option<JournalError>, JournalError> {
        let mut after = After::default();
        if !round.events().is_empty() {
            match self.append(&mut round).await {
                Ok(then) => after = then,
                Err(error) => return self.recover(error, round).await.map(Some),
            }
        }
        if round.events().iter().any(Event::is_access) {
            // First of all: whoever hears that somebody is shut out may rely on it.
            self.publish_access();
        }
        for output in self.dispatcher.release(self.clock.now(), self.monotonic(), round) {
            self.carry_out(output);
        }
        if after.wants_snapshot && after.stuck.is_none() && self.monotonic() >= self.snapshots.not_before {
            self.install_snapshot().await;
        }
        Ok(after.stuck)
    }

    fn publish_access(&self) {
        self.access.send_replace(Arc::new(self.dispatcher.farm().access().clone()));
    }

    async fn append(&mut self, round: &mut Round) -> Result<After, JournalError> {
        let events = round.lend_events();
        let append = move |journal: &mut dyn Journal| {
            let appended = journal.append(&events);
            let after =
                appended.map(|()| After { wants_snapshot: journal.wants_snapshot(), stuck: journal.has_room().err() });
            (after, events)
        };
        let (after, events) = self.journal.run(append).await;
        round.take_back(events);
        after
    }

    /// A snapshot that fails takes nothing back: the tail goes on, and a later try may work.
    async fn install_snapshot(&mut self) {
        let snapshot = self.dispatcher.farm().snapshot();
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
    /// workers connect again and find out what holds. Readers look when that is done. Gives the error back.
    async fn recover(&mut self, error: JournalError, round: Round) -> Result<JournalError, JournalError> {
        let why = railyard_service::error_chain(&error);
        for (_, reply) in std::mem::take(&mut self.waiting.commands) {
            // A caller that went away does not want its answer any more.
            drop(reply.send(Err(CommandError::Journal(why.clone()))));
        }
        self.waiting.greetings.clear();
        let loaded = self.journal.run(|journal| journal.load()).await;
        let outputs = self.dispatcher.abort(self.monotonic(), round, loaded?.farm());
        self.sessions = Sessions::default();
        self.publish_access();
        for output in outputs {
            self.carry_out(output);
        }
        Ok(error)
    }
}

fn monotonic(clock: &dyn Clock) -> Millis {
    Millis(u64::try_from(clock.monotonic().as_millis()).unwrap_or(u64::MAX))
}
