//! Rounds of the dispatcher and their journal: decide, append, tell; and what happens when the journal cannot be written.

use super::{Busy, Ctl, TICK, Waiter, brief};
use crate::journal::Append;
use crate::net::Refused;
use crate::world::World;
use railyard_common::backoff::Backoff;
use railyard_common::planted::{self, Bug};
use railyard_core::{Event, Input, Ticket};
use std::collections::BTreeMap;

/// Waits between tries of a journal that cannot be written.
const STANDSTILL_RETRY: Backoff = Backoff { base_millis: 250, max_millis: 4_000 };

impl World {
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

    pub(super) fn round(&mut self, inputs: Vec<Input>) {
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
    pub(super) fn keep(&mut self, events: &[Event]) {
        self.controller.journal.keep(events);
        let wall = self.controller.wall(self.now);
        for event in events {
            self.durable(wall, event);
        }
    }

    pub(super) fn journal_done(&mut self) {
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
}

fn ticket_of(input: &Input) -> Option<Ticket> {
    match input {
        Input::Command { ticket, .. } | Input::Attach { ticket, .. } | Input::Read { ticket } => Some(*ticket),
        Input::Detach { .. } | Input::Draining { .. } | Input::Beat(_) | Input::FinalizeError { .. } => None,
    }
}
