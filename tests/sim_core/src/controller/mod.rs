//! The controller's process: the real dispatcher, and around it what the driver and the services do, without threads.
//!
//! An abstraction of `controller/src/driver` and `controller/src/rpc`: the same steps in the same order, with the journal,
//! the log files and the object store as simulated disks.

mod calls;
mod finalize;
mod logs;
mod sweep;

pub use sweep::reachable;

use crate::config::{Config, Trouble};
use crate::dice::{Dice, Purpose};
use crate::journal::{Append, Journal};
use crate::net::{CallId, ConnId, Down, Line, Refused, ReportCall, Up};
use crate::queue::Ms;
use crate::world::{Happening, World};
use finalize::Finalizer;
use logs::LogLines;
use railyard_common::backoff::Backoff;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;
use railyard_core::{Beat, Dispatcher, Event, Farm, Input, Output, Phase, Refusal, Round, Ticket};
use railyard_proto::v1;
use std::collections::{BTreeMap, BTreeSet};

/// Placement and expiry are looked at this often even if nothing happens.
const TICK: Ms = 1_000;
/// Waits between tries of a journal that cannot be written.
const STANDSTILL_RETRY: Backoff = Backoff { base_millis: 250, max_millis: 4_000 };
/// How often workers are asked for a heartbeat. (The real controller asks for 2 s; this is cheaper and as good for leases.)
pub const HEARTBEAT: Ms = 3_000;

/// The controller's host.
pub struct Controller {
    process: Option<Process>,
    starts: u32,
    ppm: i64,
    /// Its wall clock is so far off.
    pub wall_offset: i64,
    /// Its process stands still until then.
    pub paused_until: Ms,
    pub journal: Journal,
    /// Log files.
    pub logs: BTreeMap<LeaseId, u64>,
}

/// A running controller.
struct Process {
    epoch: u32,
    started: Ms,
    core: Dispatcher,
    inbox: Vec<Input>,
    waiting: BTreeMap<Ticket, Waiter>,
    last_ticket: u64,
    busy: Option<Busy>,
    wake: Option<Ms>,
    /// The session of each connection that was welcomed.
    sessions: BTreeMap<ConnId, (WorkerName, u64)>,
    log_lines: LogLines,
    finalizer: Finalizer,
}

/// What the driver waits for.
enum Busy {
    Append(Round, Append),
    /// The append failed; the journal is read again.
    Recover(Round),
    /// The journal cannot be written: everybody is answered from what is durable, and it is tried again and again.
    Standstill(u32),
}

/// Who waits for an answer of the dispatcher.
enum Waiter {
    Attach(ConnId),
    Done(CallId),
    Submit { call: CallId, number: usize, key: Option<String>, name: BuildId, named: bool },
    FindBuild { call: CallId, key: String },
    FreeName { call: CallId, number: usize, key: Option<String> },
    LookReport { call: CallId, host: usize, report: Box<ReportCall> },
    Reported { call: CallId },
    LookUpload { call: CallId, host: usize, lease: LeaseId, blobs: Vec<Blob> },
    LookDownload { call: CallId, host: usize, lease: LeaseId },
    LookLog { conn: ConnId, second: bool },
    LookFinalizing,
    Finalized(BuildId),
    LookSweep,
}

/// Something in the controller.
pub enum Ctl {
    Wake,
    JournalDone,
    Settle(CallId, usize, Box<ReportCall>),
    LogWritten(ConnId),
    Written(BuildId),
    Finalize,
    Sweep,
    Delete(BTreeSet<Digest>),
}

impl Controller {
    /// It has not started yet.
    pub fn new(config: &Config) -> Self {
        let mut dice = Dice::new(config.seed ^ 1, Purpose::Hosts);
        let drift = dice.within(0, 4_000) as i64 - 2_000;
        let ppm = if config.rate(Trouble::Skew, 2) > 0 { drift } else { 0 };
        Self {
            process: None,
            starts: 0,
            ppm,
            wall_offset: 0,
            paused_until: 0,
            journal: Journal::default(),
            logs: BTreeMap::new(),
        }
    }

    /// The number of the running process.
    pub fn epoch(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.epoch)
    }

    /// Whether everything that has arrived is decided and durable.
    pub fn is_idle(&self) -> bool {
        let idle =
            |process: &Process| process.busy.is_none() && process.inbox.is_empty() && !process.core.has_own_work();
        self.process.as_ref().is_some_and(idle)
    }

    /// The farm in memory, if nothing of it is still to become durable.
    pub fn idle_farm(&self) -> Option<&Farm> {
        let idle = |process: &&Process| matches!(process.busy, None | Some(Busy::Standstill(_)));
        self.process.as_ref().filter(idle).map(|process| process.core.farm())
    }

    fn mono(&self, now: Ms) -> Millis {
        let since = now - self.process.as_ref().map_or(now, |process| process.started);
        Millis(since * (1_000_000 + self.ppm) as u64 / 1_000_000)
    }

    fn wall(&self, now: Ms) -> Millis {
        Millis((1_760_000_000_000 + now as i64 + self.wall_offset) as u64)
    }
}

impl World {
    /// The controller's process starts with what is on its disk.
    pub fn controller_starts(&mut self) {
        if self.controller.process.is_some() {
            return;
        }
        self.controller.starts += 1;
        let farm = self.controller.journal.load();
        self.check_loaded(&farm);
        let epoch = self.controller.starts;
        let now = self.now;
        self.trace.say(now, || format!("controller starts as {epoch}"));
        self.controller.process = Some(Process {
            epoch,
            started: self.now,
            core: Dispatcher::new(farm, Millis(0)),
            inbox: Vec::new(),
            waiting: BTreeMap::new(),
            last_ticket: 0,
            busy: None,
            wake: None,
            sessions: BTreeMap::new(),
            log_lines: LogLines::default(),
            finalizer: Finalizer::default(),
        });
        self.ledger.controller_started(now);
        let sweep = self.disks.within(20_000, 60_000);
        self.after(sweep, Ctl::Sweep);
        self.notify_finalizer();
        self.pump();
    }

    /// The controller's process dies; what was not flushed is lost, or not.
    pub fn controller_dies(&mut self, down: Ms) {
        let Some(process) = self.controller.process.take() else { return };
        if let Some(Busy::Append(round, append)) = process.busy
            && append != Append::Failed
            && !planted::is(Bug::ToldBeforeFlush)
            && self.disks.chance(500)
        {
            self.keep(round.events());
        }
        self.break_calls();
        self.reset_all(None);
        self.queue.put(self.now + down, Happening::ControllerStarts);
    }

    fn process_mut(&mut self) -> Option<&mut Process> {
        self.controller.process.as_mut()
    }

    fn after(&mut self, wait: Ms, what: Ctl) {
        let Some(epoch) = self.controller.epoch() else { return };
        self.queue.put(self.now + wait, Happening::Controller(epoch, what));
    }

    /// Something in the controller's process.
    pub fn controller_event(&mut self, epoch: u32, what: Ctl) {
        if self.controller.epoch() != Some(epoch) {
            return;
        }
        if self.controller.paused_until > self.now {
            let at = self.controller.paused_until;
            return self.queue.put(at, Happening::Controller(epoch, what));
        }
        match what {
            Ctl::Wake => {
                if let Some(process) = self.process_mut() {
                    process.wake = None;
                    if process.busy.is_none() {
                        self.round(Vec::new());
                    }
                }
            }
            Ctl::JournalDone => self.journal_done(),
            Ctl::Settle(call, host, report) => self.settle_report(call, host, report),
            Ctl::LogWritten(conn) => self.log_written(conn),
            Ctl::Written(build) => self.manifest_written(build),
            Ctl::Finalize => self.notify_finalizer(),
            Ctl::Sweep => self.begin_sweep(),
            Ctl::Delete(marked) => self.sweep_deletes(&marked),
        }
        self.pump();
    }

    fn ask(&mut self, waiter: Waiter, input: impl FnOnce(Ticket) -> Input) {
        let Some(process) = self.process_mut() else { return };
        process.last_ticket += 1;
        let ticket = Ticket(process.last_ticket);
        process.waiting.insert(ticket, waiter);
        process.inbox.push(input(ticket));
    }

    fn tell(&mut self, input: Input) {
        if let Some(process) = self.process_mut() {
            process.inbox.push(input);
        }
    }

    /// Rounds, for as long as something waits and the driver is free; then its alarm.
    pub fn pump(&mut self) {
        loop {
            if self.ledger.broken.is_some() {
                return;
            }
            match self.controller.process.as_ref().map(|process| process.busy.as_ref()) {
                Some(Some(Busy::Standstill(_))) => return self.stand_still(),
                Some(None) => {}
                Some(Some(_)) | None => return,
            }
            let Some(process) = self.process_mut() else { return };
            if process.inbox.is_empty() && !process.core.has_own_work() {
                break;
            }
            // As the driver: what it wants itself comes first, in a round of its own.
            let inputs = if process.core.has_own_work() { Vec::new() } else { std::mem::take(&mut process.inbox) };
            self.round(inputs);
        }
        let (wall, mono) = (self.controller.wall(self.now), self.controller.mono(self.now));
        let now = self.now;
        let Some(process) = self.process_mut() else { return };
        let wait = process.core.next_wake(wall, mono).map_or(TICK, |wait| wait.clamp(1, TICK));
        if process.wake.is_none_or(|at| at > now + wait) {
            process.wake = Some(now + wait);
            self.after(wait, Ctl::Wake);
        }
    }

    fn round(&mut self, inputs: Vec<Input>) {
        self.ledger.taken(self.now, &inputs);
        let (wall, mono) = (self.controller.wall(self.now), self.controller.mono(self.now));
        let Some(process) = self.controller.process.as_mut() else { return };
        let round = process.core.round(wall, mono, inputs);
        self.check_expiries(&round);
        let Some(process) = self.controller.process.as_mut() else { return };
        if round.events().is_empty() {
            let outputs = process.core.release(wall, mono, round);
            return self.carry_out(outputs);
        }
        let now = self.now;
        self.trace.say(now, || format!("round: {}", round.events().iter().map(brief).collect::<Vec<_>>().join(", ")));
        let journal = &self.controller.journal;
        let bad = journal.broken_until > now
            || (now < self.config.chaos_secs * 1000 && self.disks.chance(self.rates.journal));
        let append = match bad {
            false => Append::Good,
            true if self.disks.chance(600) => Append::Failed,
            true => Append::Doubtful,
        };
        let slow = self.controller.journal.slow_until > now;
        let wait = if slow { self.disks.within(100, 20_000) } else { self.disks.within(0, 4) };
        if planted::is(Bug::ToldBeforeFlush) {
            let events = round.events().to_vec();
            let Some(process) = self.controller.process.as_mut() else { return };
            let outputs = process.core.release(wall, mono, round);
            self.carry_out(outputs);
            return self.keep(&events);
        }
        if let Some(process) = self.process_mut() {
            process.busy = Some(Busy::Append(round, append));
        }
        self.after(wait, Ctl::JournalDone);
    }

    /// Events have become durable.
    fn keep(&mut self, events: &[Event]) {
        self.controller.journal.keep(events);
        let wall = self.controller.wall(self.now);
        for event in events {
            self.durable(wall, event);
        }
    }

    fn journal_done(&mut self) {
        let Some(busy) = self.process_mut().and_then(|process| process.busy.take()) else { return };
        match busy {
            Busy::Append(round, Append::Good) => {
                self.keep(round.events());
                let (wall, mono) = (self.controller.wall(self.now), self.controller.mono(self.now));
                let Some(process) = self.process_mut() else { return };
                let outputs = process.core.release(wall, mono, round);
                self.carry_out(outputs);
                self.maybe_snapshot();
            }
            Busy::Append(round, append) => {
                if append == Append::Doubtful {
                    self.keep(round.events());
                }
                self.refuse_waiting();
                if let Some(process) = self.process_mut() {
                    process.busy = Some(Busy::Recover(round));
                }
                let wait = self.disks.within(1, 300);
                self.after(wait, Ctl::JournalDone);
            }
            Busy::Recover(round) => {
                let farm = self.controller.journal.load();
                let mono = self.controller.mono(self.now);
                let Some(process) = self.process_mut() else { return };
                let outputs = process.core.abort(mono, round, farm);
                process.busy = Some(Busy::Standstill(1));
                self.carry_out(outputs);
                self.cut_all_sessions();
                self.ledger.controller_started(self.now);
                self.check_replay();
                self.after(STANDSTILL_RETRY.delay_millis(1), Ctl::JournalDone);
            }
            Busy::Standstill(tries) if self.controller.journal.broken_until > self.now => {
                if let Some(process) = self.process_mut() {
                    process.busy = Some(Busy::Standstill(tries + 1));
                }
                self.after(STANDSTILL_RETRY.delay_millis(tries + 1), Ctl::JournalDone);
            }
            Busy::Standstill(_) => {
                // Nothing has expired meanwhile.
                let (now, mono) = (self.now, self.controller.mono(self.now));
                if let Some(process) = self.process_mut() {
                    process.core.begin_leases(mono);
                }
                self.ledger.controller_started(now);
                self.notify_finalizer();
            }
        }
    }

    /// The journal cannot be written: who asks is answered, and nothing changes.
    fn stand_still(&mut self) {
        let (wall, mono) = (self.controller.wall(self.now), self.controller.mono(self.now));
        loop {
            let Some(process) = self.controller.process.as_mut() else { return };
            let inputs = std::mem::take(&mut process.inbox);
            if inputs.is_empty() {
                return;
            }
            let (outputs, refused) = process.core.answer(wall, mono, inputs);
            for ticket in refused {
                let waiter = self.process_mut().and_then(|process| process.waiting.remove(&ticket));
                waiter.into_iter().for_each(|waiter| self.refuse(ticket, waiter));
            }
            self.carry_out(outputs);
        }
    }

    fn maybe_snapshot(&mut self) {
        let Some(process) = self.controller.process.as_ref() else { return };
        // A crash in the middle leaves the snapshot before; that is the journal's own test.
        if self.controller.journal.wants_snapshot() {
            self.controller.journal.install(&process.core.farm().snapshot());
        }
    }

    /// The append failed: those who asked for something hear so.
    fn refuse_waiting(&mut self) {
        let Some(process) = self.process_mut() else { return };
        let inbox: Vec<Ticket> = process.inbox.iter().filter_map(ticket_of).collect();
        let (later, now): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut process.waiting).into_iter().partition(|(ticket, _)| inbox.contains(ticket));
        process.waiting = later;
        for (ticket, waiter) in now {
            self.refuse(ticket, waiter);
        }
    }

    /// Whoever waits hears that the journal cannot be written; readers wait on.
    fn refuse(&mut self, ticket: Ticket, waiter: Waiter) {
        match waiter {
            Waiter::Done(call) | Waiter::Submit { call, .. } | Waiter::Reported { call } => {
                self.answer(call, Err(Refused::Passing));
            }
            Waiter::Attach(conn) => self.close_at_controller(conn),
            Waiter::Finalized(build) => self.finalize_again(build),
            waiter => {
                if let Some(process) = self.process_mut() {
                    process.waiting.insert(ticket, waiter);
                }
            }
        }
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Decided { ticket, result } => self.decided(ticket, result),
                Output::Read { ticket } => self.may_read(ticket),
                Output::Welcome { ticket, worker, session, held, .. } => self.welcomed(ticket, worker, session, held),
                Output::TurnedAway { ticket, refusal } => self.turn_away(ticket, &refusal),
                Output::Cut { worker, session } => {
                    let conn = self.session_conn(&worker, session);
                    if let Some(conn) = conn {
                        self.close_at_controller(conn);
                        self.session_over(conn);
                    }
                }
                Output::Ack { worker, session, sequence, lost } => {
                    self.check_ack(&worker, sequence, &lost);
                    self.send_session(&worker, session, Down::Ack { sequence, lost });
                }
                Output::Order { worker, session, order } => {
                    self.order_leaves(&worker, &order);
                    self.send_session(&worker, session, Down::Order(order));
                }
                Output::Cancel { worker, session, lease, reason } => {
                    self.send_session(&worker, session, Down::Cancel { lease, reason });
                }
                Output::Finalize => self.notify_finalizer(),
                Output::LeaseEnded(_) | Output::JobEnded(_) | Output::BuildEnded(_) => {}
                Output::BuildOver { .. } | Output::BuildChanged(_) => {}
            }
        }
        let now = self.now;
        if now.is_multiple_of(16) {
            self.check_replay();
        }
    }

    fn send_session(&mut self, worker: &WorkerName, session: u64, message: Down) {
        if let Some(conn) = self.session_conn(worker, session) {
            self.send_down(conn, message);
        }
    }

    fn session_conn(&self, worker: &WorkerName, session: u64) -> Option<ConnId> {
        let process = self.controller.process.as_ref()?;
        let conn = process.sessions.iter().find(|(_, (name, number))| name == worker && *number == session);
        conn.map(|(conn, _)| *conn)
    }

    /// A hello is refused: for good, or because a later one has come.
    fn turn_away(&mut self, ticket: Ticket, refusal: &Refusal) {
        let Some(process) = self.process_mut() else { return };
        let Some(Waiter::Attach(conn)) = process.waiting.remove(&ticket) else { return };
        if matches!(refusal, Refusal::Retired { .. }) {
            self.send_down(conn, Down::Refused);
        }
        self.close_at_controller(conn);
    }

    fn welcomed(&mut self, ticket: Ticket, worker: WorkerName, session: u64, held: Vec<LeaseId>) {
        let Some(process) = self.process_mut() else { return };
        let Some(Waiter::Attach(conn)) = process.waiting.remove(&ticket) else { return };
        self.cut_session(&worker);
        let Some(process) = self.process_mut() else { return };
        process.sessions.insert(conn, (worker.clone(), session));
        // While nothing can be journaled, what a hello frees is decided later.
        let decided = self.controller.process.as_ref().is_some_and(|process| process.busy.is_none());
        self.check_welcome(&worker, conn, &held, decided);
        let now = self.now;
        self.ledger.heard(now, held.iter());
        self.send_down(conn, Down::Welcome { held });
        if self.conns.get(&conn).is_none_or(|conn| conn.at_controller.is_none()) {
            self.session_over(conn);
        }
    }

    /// A new session replaces the one before.
    fn cut_session(&mut self, worker: &WorkerName) {
        let Some(process) = self.process_mut() else { return };
        let old: Vec<ConnId> =
            process.sessions.iter().filter(|(_, (name, _))| name == worker).map(|(conn, _)| *conn).collect();
        for conn in old {
            self.close_at_controller(conn);
            self.session_over(conn);
        }
    }

    fn cut_all_sessions(&mut self) {
        let Some(process) = self.process_mut() else { return };
        let old: Vec<ConnId> = process.sessions.keys().copied().collect();
        for conn in old {
            self.close_at_controller(conn);
            self.session_over(conn);
        }
    }

    fn session_over(&mut self, conn: ConnId) {
        let Some(process) = self.process_mut() else { return };
        if let Some((worker, session)) = process.sessions.remove(&conn) {
            process.inbox.push(Input::Detach { worker, session });
        }
    }

    /// A message on a connection.
    pub fn controller_hears(&mut self, id: ConnId, message: Up) {
        let Some(host) = self.conns.get(&id).map(|conn| conn.host) else { return };
        let now = self.now;
        self.trace.say(now, || format!("controller < w{host} #{id}: {}", brief_up(&message)));
        match message {
            Up::Hello { offer, held, said } => {
                self.ledger.hello(id, &held);
                let said = Some(said);
                let builds = Vec::new();
                self.ask(Waiter::Attach(id), |ticket| Input::Attach { ticket, offer, held, builds, said });
            }
            Up::Beat { sequence, leases, free_disk_bytes } => {
                let session = self.process_mut().and_then(|process| process.sessions.get(&id).cloned());
                if let Some((worker, session)) = session {
                    self.ledger.beat(&worker, sequence, leases.iter().map(|(lease, _)| *lease).collect());
                    self.ledger.heard(now, leases.iter().map(|(lease, _)| lease));
                    let leases = leases.into_iter().map(|(lease, phase)| (lease, phase_of(phase))).collect();
                    let free_disk_bytes = Some(free_disk_bytes);
                    self.tell(Input::Beat(Beat { worker, session, sequence, leases, free_disk_bytes }));
                }
            }
            Up::Draining => {
                let session = self.process_mut().and_then(|process| process.sessions.get(&id).cloned());
                if let Some((worker, session)) = session {
                    self.tell(Input::Draining { worker, session });
                }
            }
            Up::Log { lease, offset, bytes } => self.log_arrives(id, lease, offset, bytes),
            Up::Close => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.at_controller = None;
                }
                self.controller_loses(id);
            }
        }
        self.pump();
    }

    /// A connection is gone.
    pub fn controller_loses(&mut self, id: ConnId) {
        match self.conns.get(&id).map(|conn| conn.line) {
            Some(Line::Session) => self.session_over(id),
            Some(Line::Log(_)) => self.log_line_over(id),
            None => {}
        }
        self.pump();
    }
}

fn ticket_of(input: &Input) -> Option<Ticket> {
    match input {
        Input::Command { ticket, .. } | Input::Attach { ticket, .. } | Input::Read { ticket } => Some(*ticket),
        Input::Detach { .. } | Input::Draining { .. } | Input::Beat(_) | Input::FinalizeError { .. } => None,
    }
}

fn phase_of(phase: v1::Phase) -> Option<Phase> {
    match phase {
        v1::Phase::Unspecified => None,
        v1::Phase::Fetch => Some(Phase::Fetch),
        v1::Phase::Run => Some(Phase::Run),
        v1::Phase::Upload => Some(Phase::Upload),
    }
}

/// An event in a few words.
pub fn brief(event: &Event) -> String {
    match event {
        Event::BuildAccepted { plan, key, .. } => {
            format!("accepted {} ({} jobs, {key:?})", plan.build, plan.jobs.len())
        }
        Event::JobLeased { lease, worker, .. } => format!("{lease} to {worker}"),
        Event::AttemptEnded { lease, outcome, next, .. } => {
            format!("{lease} {} {} ({}) {next:?}", outcome.kind, outcome.reason, outcome.message)
        }
        Event::BuildCancelled { build, .. } => format!("cancelled {build}"),
        Event::BuildResumed { build, jobs, .. } => format!("resumed {build} {jobs:?}"),
        Event::BuildEnded { build, .. } => format!("ended {build}"),
        Event::WorkerOnline { offer, .. } => format!("{} online as {}", offer.name, offer.boot.0),
        Event::WorkerOffline { worker, .. } => format!("{worker} offline"),
        other => format!("{other:?}"),
    }
}

fn brief_up(message: &Up) -> String {
    match message {
        Up::Hello { offer, held, said } => {
            format!("hello {} holding {held:?} said {}", offer.boot.0, said.uptime_millis)
        }
        Up::Beat { sequence, leases, .. } => format!("beat {sequence} {leases:?}"),
        other => format!("{other:?}"),
    }
}

impl Waiter {
    /// What a refusal of the farm is for a caller.
    fn refused(refusal: &Refusal) -> Refused {
        match refusal {
            Refusal::StaleLease(_) => Refused::Stale,
            other => Refused::Final(other.to_string()),
        }
    }
}
