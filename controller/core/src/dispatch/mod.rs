//! The synchronous heart of the controller: what a round of requests comes to, and what may leave when it is durable.
//!
//! A [`Dispatcher`] owns the farm and the soft state beside it. A round goes like this:
//!
//! ```text
//! round(inputs)    decides and applies; nothing may be told yet
//!   the shell appends Round::events() to the journal and flushes
//! release(round)   durable: gives everything that may leave, in order
//! abort(round)     not durable: goes back to what the journal holds
//! answer(inputs)   instead of all that, while nothing can be journaled
//! ```
//!
//! **Invariant:** no async, no I/O, no clock: times are arguments. `now` is wall-clock time, for records; `mono` is the
//! controller's own monotonic time, for leases. Nothing leaves but by [`Dispatcher::release`] and [`Dispatcher::abort`].

mod effect;
mod live;
mod message;
mod standstill;

pub use live::Live;
pub use message::{Beat, Input, Output, Phase, Said, Ticket};

use crate::{Command, Event, Farm, Refusal};
use railyard_common::disk::DiskReport;
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// The farm, what is true only while the controller runs, and what the controller itself wants done.
#[derive(Debug)]
pub struct Dispatcher {
    farm: Farm,
    live: Live,
    /// Commands of the controller itself, for the next round.
    own: VecDeque<Command>,
    /// When holds and the like were looked at last; monotonic.
    ticked_at: Millis,
}

/// How often it is looked at what only time ends: holds, the patience with drained workers.
const TICK_MILLIS: u64 = 1_000;

/// What one round has come to, before it is durable.
#[must_use = "a round is released or aborted"]
#[derive(Debug, Default)]
pub struct Round {
    events: Vec<Event>,
    answers: Vec<Answer>,
}

/// An answer that waits for the flush.
#[derive(Debug)]
enum Answer {
    Decided {
        ticket: Ticket,
        /// Its events are there in the round.
        result: Result<Range<usize>, Refusal>,
    },
    Welcome(Welcome),
    TurnedAway {
        ticket: Ticket,
        refusal: Refusal,
    },
    Beat(Beat),
    /// A drained worker is to stop what it still runs. Told again and again: once is enough for it.
    Stop {
        lease: LeaseId,
        reason: String,
    },
    Changed(BuildId),
    WorkersChanged,
    Read(Ticket),
}

/// A worker's hello that waits for its answer.
#[derive(Debug)]
struct Welcome {
    ticket: Ticket,
    worker: WorkerName,
    held: Vec<LeaseId>,
    builds: Vec<BuildId>,
    disk: Option<Arc<DiskReport>>,
}

impl Round {
    /// What must be durable before the round is released.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Lends the same to whoever makes it durable, on another thread for instance.
    pub fn lend_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Takes back what was lent; a round is released or aborted with it.
    pub fn take_back(&mut self, events: Vec<Event>) {
        self.events = events;
    }
}

impl Dispatcher {
    /// The controller starts with what its journal holds.
    pub fn new(farm: Farm, mono: Millis) -> Self {
        let own = VecDeque::from([Command::Started]);
        let mut dispatcher = Self { farm, live: Live::default(), own, ticked_at: mono };
        dispatcher.begin_leases(mono);
        dispatcher
    }

    /// Every live lease gets a full fresh TTL, from when workers can reach the controller: they may take that long to
    /// find it again.
    pub fn begin_leases(&mut self, mono: Millis) {
        let leases: Vec<LeaseId> = self.farm.live_leases().collect();
        for lease in leases {
            let ttl = match self.farm.ttl_millis(lease).unwrap_or_default() {
                _ if planted::is(Bug::RestartExpiresAll) => 0,
                _ if planted::is(Bug::RestartNeverExpires) => u64::MAX,
                ttl => ttl,
            };
            self.live.leases.begin(lease, mono, ttl);
        }
    }

    /// The farm. Between [`Dispatcher::round`] and its end it is ahead of the journal: nothing of it may be told then.
    pub fn farm(&self) -> &Farm {
        &self.farm
    }

    /// The soft state.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Whether a round is due even if nobody asks for anything.
    pub fn has_own_work(&self) -> bool {
        !self.own.is_empty()
    }

    /// In how many milliseconds there is something to do even if nobody asks for anything; `None` if never.
    pub fn next_wake(&self, now: Millis, mono: Millis) -> Option<u64> {
        if self.has_own_work() {
            return Some(0);
        }
        let expiry = self.live.leases.next_deadline().map(|at| at.since(mono));
        let backoff = self.farm.next_backoff_end(now).map(|at| at.since(now));
        expiry.into_iter().chain(backoff).min()
    }

    /// Decides and applies all of `inputs`, then what is due by itself: expiries and placement.
    pub fn round(&mut self, now: Millis, mono: Millis, inputs: impl IntoIterator<Item = Input>) -> Round {
        let mut round = Round::default();
        self.decide_own(now, &mut round);
        for input in inputs {
            self.take(now, mono, input, &mut round);
        }
        // After the inputs: a heartbeat that waited for a slow flush still counts.
        let expired = self.live.leases.expired(mono);
        self.own.extend(expired.into_iter().map(|lease| Command::Expire { lease }));
        if mono.since(self.ticked_at) >= TICK_MILLIS {
            self.ticked_at = mono;
            self.own.push_back(Command::Tick);
            let overdue = self.farm.overdue(now).into_iter();
            round.answers.extend(overdue.map(|(lease, reason)| Answer::Stop { lease, reason }));
        }
        self.decide_own(now, &mut round);
        self.carry(now, &Command::Place, &mut round);
        round
    }

    /// Decides and applies these and nothing else, not even what is due: for what may not wait until there is room for more.
    pub fn urgent_round(&mut self, now: Millis, mono: Millis, inputs: impl IntoIterator<Item = Input>) -> Round {
        let mut round = Round::default();
        for input in inputs {
            self.take(now, mono, input, &mut round);
        }
        round
    }

    /// The round is durable. Gives what leaves, in the order in which it must.
    pub fn release(&mut self, now: Millis, mono: Millis, round: Round) -> Vec<Output> {
        let mut out = Vec::new();
        // Answers leave first, and the events in them are looked at until the end.
        let mut told: Vec<(usize, Range<usize>)> = Vec::new();
        for answer in round.answers {
            match answer {
                Answer::Decided { ticket, result } => {
                    let place = out.len();
                    let result = result.map(|events| {
                        told.push((place, events));
                        Vec::new()
                    });
                    out.push(Output::Decided { ticket, result });
                }
                Answer::Welcome(welcome) => self.welcome(now, mono, welcome, &mut out),
                Answer::TurnedAway { ticket, refusal } => out.push(Output::TurnedAway { ticket, refusal }),
                Answer::Beat(beat) => self.answer_beat(now, beat, &mut out),
                Answer::Stop { lease, reason } => self.cancel(lease, reason, &mut out),
                Answer::Changed(build) => out.push(Output::BuildChanged(build)),
                Answer::WorkersChanged => out.push(Output::WorkersChanged),
                Answer::Read(ticket) => out.push(Output::Read { ticket }),
            }
        }
        for event in &round.events {
            self.effect(mono, event, &mut out);
        }
        let mut events = round.events.into_iter();
        let mut passed = 0;
        for (place, range) in told {
            let own = events.by_ref().skip(range.start - passed).take(range.len()).collect();
            passed = range.end;
            if let Output::Decided { result: Ok(result), .. } = &mut out[place] {
                *result = own;
            }
        }
        out
    }

    /// The round may not be durable: nothing of it may be told. `farm` is what the journal holds; the controller starts
    /// again from there, so every session is over: workers connect again and find out what holds. Commands of the round
    /// are refused by the shell. Gives what leaves all the same: readers, who see the state as it is now, and notices
    /// that have whoever acts on such look for himself.
    pub fn abort(&mut self, mono: Millis, round: Round, farm: Farm) -> Vec<Output> {
        if !planted::is(Bug::AbortKeepsRound) {
            self.farm = farm;
        }
        self.live = self.live.restarted();
        self.own = VecDeque::from([Command::Started]);
        self.begin_leases(mono);
        let reads = round.answers.iter().filter_map(|answer| match answer {
            Answer::Read(ticket) => Some(Output::Read { ticket: *ticket }),
            _ => None,
        });
        let mut out: Vec<Output> = reads.collect();
        self.look_again(&round.events, &mut out);
        out
    }

    fn decide_own(&mut self, now: Millis, round: &mut Round) {
        while let Some(command) = self.own.pop_front() {
            self.carry(now, &command, round);
        }
    }

    /// Gives the place of the command's events in the round.
    fn decide(&mut self, now: Millis, command: &Command, round: &mut Round) -> Result<Range<usize>, Refusal> {
        let events = self.farm.decide(now, command)?;
        events.iter().for_each(|event| self.farm.apply(event));
        let first = round.events.len();
        round.events.extend(events);
        Ok(first..round.events.len())
    }

    /// The same where nobody waits for an answer.
    fn carry(&mut self, now: Millis, command: &Command, round: &mut Round) {
        // A refusal means that it came too late: what it was for has ended otherwise. Placing is never refused.
        let _ = self.decide(now, command, round);
    }

    fn take(&mut self, now: Millis, mono: Millis, input: Input, round: &mut Round) {
        match input {
            Input::Command { ticket, command } => {
                let result = self.decide(now, &command, round);
                round.answers.push(Answer::Decided { ticket, result });
            }
            Input::Attach { ticket, offer, held, builds, said, disk } => {
                let worker = offer.name.clone();
                if said.is_some_and(|said| self.live.is_late(&worker, said)) && !planted::is(Bug::LateHello) {
                    let refusal = Refusal::LateHello(worker);
                    round.answers.push(Answer::TurnedAway { ticket, refusal });
                    return;
                }
                // What it claims and does not hold is told in the answer.
                let decided = self.decide(now, &Command::Hello { offer, held: held.clone() }, round);
                if let Err(refusal) = decided {
                    round.answers.push(Answer::TurnedAway { ticket, refusal });
                    return;
                }
                if let Some(disk) = &disk {
                    self.farm.note_room(&worker, disk.room_bytes, held.iter().copied());
                }
                // So that the end of the session before is not taken for the worker's.
                self.live.replace(&worker);
                round.answers.push(Answer::Welcome(Welcome { ticket, worker, held, builds, disk }));
            }
            Input::Detach { worker, session } => {
                if self.live.detach(&worker, session) {
                    self.carry(now, &Command::Goodbye { worker }, round);
                }
            }
            Input::Draining { worker, session } => {
                if self.live.session(&worker) == Some(session) || planted::is(Bug::StaleDetach) {
                    let _ = self.decide(now, &Command::Drain { worker }, round);
                }
            }
            Input::Beat(beat) => {
                self.hear(now, mono, &beat, round);
                round.answers.push(Answer::Beat(beat));
            }
            Input::FinalizeError { build, why } => {
                self.live.note_finalize_error(build.clone(), why);
                round.answers.push(Answer::Changed(build));
            }
            // Readers act on what they see: they see it when it is durable.
            Input::Read { ticket } => round.answers.push(Answer::Read(ticket)),
        }
    }

    /// A heartbeat renews what the worker holds. Soft state: nothing is journaled but that a container has ended, because from
    /// then on what it reserved is free.
    fn hear(&mut self, now: Millis, mono: Millis, beat: &Beat, round: &mut Round) {
        match (&beat.disk, beat.free_disk_bytes) {
            (Some(disk), _) => {
                self.farm.note_room(&beat.worker, disk.room_bytes, beat.leases.iter().map(|(lease, _)| *lease));
            }
            (None, Some(bytes)) => self.farm.note_free_disk(&beat.worker, bytes),
            (None, None) => {}
        }
        if self.farm.note_pressure(&beat.worker, beat.pressure) {
            round.answers.push(Answer::WorkersChanged);
        }
        for (lease, phase) in &beat.leases {
            if self.farm.holder(*lease) != Some(&beat.worker) {
                continue;
            }
            self.live.leases.renew(*lease, mono);
            if *phase == Some(Phase::Upload) {
                // Never refused, and nothing if it is known already.
                self.carry(now, &Command::Uploading { lease: *lease }, round);
            }
        }
    }
}

#[cfg(test)]
mod tests;
