//! What workers say, and what operators say of them.

use crate::event::Event;
use crate::farm::Farm;
use crate::hold::Hold;
use crate::refusal::Refusal;
use crate::worker::WorkerOffer;
use railyard_common::id::{LeaseId, WorkerName};
use railyard_common::outcome::Reason;
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;

/// A worker that has been away for so long, and holds nothing, is forgotten: hosts that come and go under new names must not
/// pile up for ever.
pub const FORGET_WORKER_MILLIS: u64 = 7 * 24 * 3_600_000;

impl Farm {
    pub(super) fn decide_hello(
        &self,
        now: Millis,
        offer: &WorkerOffer,
        held: &[LeaseId],
    ) -> Result<Vec<Event>, Refusal> {
        let mut events = Vec::new();
        if let Some(worker) = self.workers.get(&offer.name) {
            if let Some(hold) = worker.hold.as_ref().filter(|_| worker.is_retired()) {
                return Err(Refusal::Retired { worker: offer.name.clone(), hold: hold.to_string() });
            }
            // What it does not hold it never got, or lost with its process: the job is free at once.
            let freed = |lease: &&LeaseId| match held.contains(lease) {
                true => planted::is(Bug::HelloFreesHeld),
                false => !planted::is(Bug::HelloKeepsLost),
            };
            for lease in worker.leases.iter().filter(freed) {
                let what =
                    if worker.offer.boot == offer.boot { "was cut off before it got" } else { "restarted without" };
                let message = format!("worker {} {what} lease {lease}", offer.name);
                events.push(self.lost(now, *lease, Reason::WorkerRestarted, message));
            }
        }
        events.push(Event::WorkerOnline { at: now, offer: offer.clone() });
        Ok(events)
    }

    pub(crate) fn decide_goodbye(&self, now: Millis, worker: &WorkerName) -> Vec<Event> {
        match self.workers.get(worker) {
            Some(known) if known.online => vec![Event::WorkerOffline { at: now, worker: worker.clone() }],
            _ => Vec::new(),
        }
    }

    pub(super) fn decide_drain(&self, now: Millis, worker: &WorkerName) -> Vec<Event> {
        match self.workers.get(worker) {
            Some(known) if !known.draining => vec![Event::WorkerDraining { at: now, worker: worker.clone() }],
            _ => Vec::new(),
        }
    }

    pub(super) fn decide_hold(&self, now: Millis, worker: &WorkerName, hold: &Hold) -> Result<Vec<Event>, Refusal> {
        let known = self.workers.get(worker).ok_or_else(|| Refusal::UnknownWorker(worker.clone()))?;
        if known.hold.as_ref() == Some(hold) {
            return Ok(Vec::new());
        }
        Ok(vec![Event::WorkerHeld { at: now, worker: worker.clone(), hold: hold.clone() }])
    }

    pub(super) fn decide_release(&self, now: Millis, worker: &WorkerName, by: &str) -> Result<Vec<Event>, Refusal> {
        let known = self.workers.get(worker).ok_or_else(|| Refusal::UnknownWorker(worker.clone()))?;
        if known.hold.is_none() && known.quarantined_until().is_none() {
            return Err(Refusal::NotHeld(worker.clone()));
        }
        Ok(vec![Event::WorkerReleased { at: now, worker: worker.clone(), by: by.to_owned() }])
    }

    /// Leases that a drained worker has had time enough for, with why they stop. It is told to stop them, and says how they ended:
    /// only then are the jobs free for others, for until then their containers may run.
    pub(crate) fn overdue(&self, now: Millis) -> Vec<(LeaseId, String)> {
        let late = self.workers.iter().filter(|(_, worker)| {
            worker.hold.as_ref().and_then(|hold| hold.stop_at).is_some_and(|stop_at| stop_at <= now)
        });
        let lease = |name: &WorkerName, lease: &LeaseId| {
            (*lease, format!("worker {name} was drained, and lease {lease} had not ended in time"))
        };
        late.flat_map(|(name, worker)| worker.leases.iter().map(move |id| lease(name, id))).collect()
    }

    pub(super) fn decide_tick(&self, now: Millis) -> Vec<Event> {
        let mut events = self.decide_forget_access(now);
        for (name, worker) in &self.workers {
            let hold = worker.hold.as_ref();
            if hold.and_then(|hold| hold.until).is_some_and(|until| until <= now) {
                events.push(Event::WorkerReleased { at: now, worker: name.clone(), by: String::new() });
            }
            let away = !worker.online && worker.leases.is_empty() && hold.is_none();
            if away && now.since(worker.changed_at) >= FORGET_WORKER_MILLIS {
                events.push(Event::WorkerForgotten { at: now, worker: name.clone() });
            }
        }
        events
    }
}
