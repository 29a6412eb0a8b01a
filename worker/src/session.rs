//! What this worker holds, and until when. Pure: time is an argument, what must happen comes back as [`Action`]s.
//!
//! **Invariant:** a container never outlives its lease. The deadline of a lease is counted on the worker's own
//! monotonic clock from when the last *acknowledged* heartbeat was *sent*; the controller cannot have counted from an
//! earlier moment. [`Session::tick`] fences a lease a margin before that.

mod heartbeat;

use heartbeat::Heartbeats;
use railyard_common::id::LeaseId;
use railyard_common::planted::{self, Bug};
use railyard_proto::v1::Phase;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A container is stopped this long before its lease expires: longer than a busy engine needs to kill one.
pub const FENCE_MARGIN: Duration = Duration::from_secs(15);

/// For short leases the margin is this part of the lease instead, or nothing would be left of it.
const FENCE_MARGIN_PART: u32 = 4;

/// Heartbeats in the life of the shortest lease, at least: a few may be lost without harm.
const HEARTBEATS_PER_LEASE: u32 = 6;

/// Heartbeats without any answer after which the connection counts as dead, though it may look alive.
const SILENT_HEARTBEATS: u32 = 4;

/// And at least so long, for controllers that ask for many heartbeats.
const SILENCE_MIN: Duration = Duration::from_secs(10);

/// For short leases it is this part of the lease instead: time must be left for another connection before the fence.
const SILENCE_PART: u32 = 3;

/// What the session wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop the container, clean up, report that it was cancelled.
    Cancel {
        /// Which.
        lease: LeaseId,
        /// Why, for people.
        reason: String,
    },
    /// Stop the container now: the lease is about to expire. The result may still be reported.
    Fence {
        /// Which.
        lease: LeaseId,
        /// How long the controller has not been heard.
        silent_for: Duration,
    },
    /// The lease is somebody else's: stop, clean up, report nothing.
    Abandon(LeaseId),
}

/// What becomes of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start the attempt: the lease is held from now on.
    Start,
    /// It is held already.
    Known,
    /// Its lease may be over: it must not be begun.
    Late,
}

/// A lease that this worker holds.
#[derive(Clone, Debug)]
struct Held {
    ttl: Duration,
    /// When the last acknowledged heartbeat with this lease was sent.
    confirmed_at: Duration,
    phase: Phase,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Its container runs, or will.
    Live,
    /// It was told to stop, and its container may take a while for that.
    Cancelled,
    /// Its container was to be gone at once; the result is still to be reported.
    Fenced,
}

/// When the container of a lease must be stopped that was last confirmed then.
pub fn fence_at(confirmed_at: Duration, ttl: Duration) -> Duration {
    if planted::is(Bug::FenceMarginZero) {
        return confirmed_at + ttl;
    }
    (confirmed_at + ttl).saturating_sub(FENCE_MARGIN.min(ttl / FENCE_MARGIN_PART))
}

impl Held {
    /// When it must be fenced, if it must be at all: what has no container any more only waits to be reported.
    fn fence_at(&self) -> Option<Duration> {
        match self.standing {
            Standing::Fenced => None,
            Standing::Live | Standing::Cancelled if self.phase == Phase::Upload => None,
            Standing::Live | Standing::Cancelled => Some(fence_at(self.confirmed_at, self.ttl)),
        }
    }
}

/// The state of held leases.
#[derive(Debug, Default)]
pub struct Session {
    leases: BTreeMap<LeaseId, Held>,
    heartbeats: Heartbeats,
}

impl Session {
    /// Nothing is held.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stream was opened and `Hello` goes out. Gives the leases that it must name.
    pub fn handle_hello(&mut self, now: Duration) -> Vec<LeaseId> {
        self.heartbeats.restart(now);
        self.leases.keys().copied().collect()
    }

    /// The controller answered `Hello`: what it does not name is not ours any more.
    pub fn handle_welcome(&mut self, held: &BTreeSet<LeaseId>) -> Vec<Action> {
        if planted::is(Bug::WelcomeIgnored) {
            return Vec::new();
        }
        let lost: Vec<LeaseId> = self.leases.keys().filter(|lease| !held.contains(lease)).copied().collect();
        self.abandon(&lost)
    }

    /// An order arrived. The same order again, after a reconnect, changes nothing; one that took so long that its
    /// lease may be over is not begun.
    pub fn handle_order(&mut self, now: Duration, lease: LeaseId, ttl: Duration) -> Verdict {
        if self.leases.contains_key(&lease) {
            return Verdict::Known;
        }
        // The stream is ordered: the lease was granted after the last heartbeat whose ack arrived here was sent.
        let confirmed_at = if planted::is(Bug::FenceFromOrder) { now } else { self.heartbeats.confirmed_at() };
        let held = Held { ttl, confirmed_at, phase: Phase::Fetch, standing: Standing::Live };
        if held.fence_at().is_some_and(|at| at <= now) {
            return Verdict::Late;
        }
        self.leases.insert(lease, held);
        Verdict::Start
    }

    /// An earlier process of this worker held the lease; its attempt is gone on with. Whether it is still ours the
    /// controller says when it has answered `Hello`; until then it lives from when that process last had it confirmed.
    pub fn adopt(&mut self, lease: LeaseId, ttl: Duration, confirmed_at: Duration, phase: Phase) {
        self.leases.insert(lease, Held { ttl, confirmed_at, phase, standing: Standing::Live });
    }

    /// When the lease was last confirmed, if it is held.
    pub fn confirmed_at(&self, lease: LeaseId) -> Option<Duration> {
        self.leases.get(&lease).map(|held| held.confirmed_at)
    }

    /// A heartbeat goes out. Gives its number and what it must say.
    pub fn handle_beat(&mut self, now: Duration) -> (u64, Vec<(LeaseId, Phase)>) {
        if planted::is(Bug::FenceFromSend) {
            self.leases.values_mut().for_each(|held| held.confirmed_at = now);
        }
        let statuses: Vec<_> = self.leases.iter().map(|(lease, held)| (*lease, held.phase)).collect();
        let sequence = self.heartbeats.send(now, statuses.iter().map(|(lease, _)| *lease).collect());
        (sequence, statuses)
    }

    /// A heartbeat was acknowledged: its leases live a full time on from when it was sent, but for those in `lost`.
    pub fn handle_ack(&mut self, sequence: u64, lost: &[LeaseId]) -> Vec<Action> {
        let Some((sent_at, named)) = self.heartbeats.acknowledge(sequence) else {
            return Vec::new();
        };
        for lease in named.iter().filter(|lease| !lost.contains(lease)) {
            if let Some(held) = self.leases.get_mut(lease) {
                held.confirmed_at = held.confirmed_at.max(sent_at);
            }
        }
        self.abandon(lost)
    }

    /// The controller wants the job stopped. Once is enough.
    pub fn handle_cancel(&mut self, lease: LeaseId, reason: String) -> Vec<Action> {
        match self.leases.get_mut(&lease) {
            Some(Held { standing: standing @ Standing::Live, .. }) => {
                *standing = Standing::Cancelled;
                vec![Action::Cancel { lease, reason }]
            }
            _ => Vec::new(),
        }
    }

    /// The attempt entered a phase.
    pub fn handle_phase(&mut self, lease: LeaseId, phase: Phase) {
        if let Some(held) = self.leases.get_mut(&lease) {
            held.phase = phase;
        }
    }

    /// The attempt is over: reported, or nobody wanted to know.
    pub fn handle_done(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
    }

    /// A refusal said that the lease is somebody else's.
    pub fn handle_stale(&mut self, lease: LeaseId) -> Vec<Action> {
        self.abandon(&[lease])
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        for (lease, held) in &mut self.leases {
            if held.fence_at().is_some_and(|at| at <= now) && !planted::is(Bug::FenceNever) {
                held.standing = Standing::Fenced;
                actions.push(Action::Fence { lease: *lease, silent_for: now.saturating_sub(held.confirmed_at) });
            }
        }
        actions
    }

    /// When [`Session::tick`] has something to do next.
    pub fn next_tick_at(&self) -> Option<Duration> {
        self.leases.values().filter_map(Held::fence_at).min()
    }

    /// How often to send heartbeats: as often as the controller asks, and often enough for the shortest lease.
    pub fn heartbeat_interval(&self, asked: Duration) -> Duration {
        self.leases.values().map(|held| held.ttl / HEARTBEATS_PER_LEASE).fold(asked, Duration::min)
    }

    /// How long the controller may be silent before another connection is tried, if it asks for heartbeats that often.
    pub fn patience(&self, asked: Duration) -> Duration {
        let usual = SILENCE_MIN.max(asked * SILENT_HEARTBEATS);
        self.leases.values().map(|held| held.ttl / SILENCE_PART).fold(usual, Duration::min)
    }

    /// Whether nothing is held.
    pub fn is_idle(&self) -> bool {
        self.leases.is_empty()
    }

    fn abandon(&mut self, lost: &[LeaseId]) -> Vec<Action> {
        lost.iter().filter(|lease| self.leases.remove(lease).is_some()).map(|lease| Action::Abandon(*lease)).collect()
    }
}

#[cfg(test)]
mod tests;
