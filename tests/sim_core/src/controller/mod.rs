//! The controller's process: the real dispatcher, and around it what the driver and the services do, without threads.
//!
//! An abstraction of `controller/src/driver` and `controller/src/rpc`: the same steps in the same order, with the journal,
//! the log files and the object store as simulated disks.

mod calls;
mod finalize;
mod logs;
mod rounds;
mod sessions;

use crate::config::{Config, Trouble};
use crate::dice::{Dice, Purpose};
use crate::journal::{Append, Journal};
use crate::net::{CallId, ConnId, Refused, ReportCall};
use crate::queue::Ms;
use crate::world::{Happening, World};
use finalize::Finalizer;
use logs::LogLines;
use railyard_common::blob::Blob;
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;
use railyard_core::{Dispatcher, Event, Farm, Input, Refusal, Round, Ticket};
use std::collections::BTreeMap;

/// Placement and expiry are looked at this often even if nothing happens.
const TICK: Ms = 1_000;
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
}

/// Something in the controller.
pub enum Ctl {
    Wake,
    JournalDone,
    Settle(CallId, usize, Box<ReportCall>),
    LogWritten(ConnId),
    Written(BuildId),
    Finalize,
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

impl Waiter {
    /// What a refusal of the farm is for a caller.
    fn refused(refusal: &Refusal) -> Refused {
        match refusal {
            Refusal::StaleLease(_) | Refusal::ForeignLease(_) => Refused::Stale,
            other => Refused::Final(other.to_string()),
        }
    }
}
