//! What leaves the controller, and what workers begin: whether it may.

use crate::host::STOP_GRACE;
use crate::net::{ConnId, Reply};
use crate::world::{Happening, World};
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::order::Order;
use railyard_core::{BuildState, Event};

/// After a cancel has arrived, a container is gone within its grace and this.
const CANCEL_SLACK: u64 = 5_000;

impl World {
    /// A command is about to be answered: its events are durable.
    pub fn check_told(&mut self, events: &[Event]) {
        for event in events {
            let farm = &self.ledger.durable;
            let there = match event {
                Event::BuildAccepted { plan, .. } => farm.build(&plan.build).is_some(),
                Event::AttemptEnded { lease, .. } => self.ledger.ended.contains(lease),
                Event::BuildCancelled { build, .. } => {
                    farm.build(build).is_some_and(|build| !matches!(build.state, BuildState::Running))
                }
                _ => true,
            };
            if !there {
                return self.breaks("told-is-durable", format!("{event:?} is told and not durable"));
            }
        }
    }

    /// An order is about to leave: its lease is durable, and it goes to nobody else.
    pub fn order_leaves(&mut self, worker: &WorkerName, order: &Order) {
        let lease = order.lease;
        if self.ledger.durable.holder(lease) != Some(worker) {
            return self.breaks("told-is-durable", format!("{lease} is ordered from {worker}, who does not hold it"));
        }
        if let Some(other) = self.ledger.ordered.insert(lease, worker.clone()) {
            self.breaks("one-order-per-lease", format!("{lease} is ordered from {worker} after {other}"));
        }
    }

    /// A worker is about to be welcomed: what it holds is what it named and holds.
    pub fn check_welcome(&mut self, worker: &WorkerName, conn: ConnId, held: &[LeaseId], decided: bool) {
        let named = self.ledger.hellos.remove(&conn).unwrap_or_default();
        let farm = &self.ledger.durable;
        if let Some(lease) = held.iter().find(|lease| farm.holder(**lease) != Some(worker)) {
            return self
                .breaks("welcome-names-held", format!("{worker} is welcomed with {lease}, which it does not hold"));
        }
        let now = self.now;
        let holds = farm.worker(worker).map(|worker| worker.leases.clone()).unwrap_or_default();
        if let Some(lease) = holds
            .iter()
            .filter(|_| decided)
            .find(|lease| !named.contains(lease) && self.ledger.granted.get(lease).is_some_and(|at| *at < now))
        {
            let why = format!("{worker} came without {lease}, and it is not free");
            self.breaks("hello-frees", why);
        }
    }

    /// A heartbeat is about to be answered: the worker hears of all that it does not hold.
    pub fn check_ack(&mut self, worker: &WorkerName, sequence: u64, lost: &[LeaseId]) {
        let named = self.ledger.beats.remove(&(worker.clone(), sequence)).unwrap_or_default();
        let farm = &self.ledger.durable;
        let untold = named.iter().find(|lease| farm.holder(**lease) != Some(worker) && !lost.contains(lease));
        if let Some(lease) = untold {
            self.breaks("ack-tells-lost", format!("{worker} names {lease}, does not hold it, and is not told"));
        }
    }

    /// An attempt begins.
    pub fn check_begun(&mut self, host: usize, lease: LeaseId) {
        if let Some(before) = self.ledger.begun.insert(lease, host) {
            self.breaks("one-run-per-attempt", format!("{lease} begins on w{host} and had begun on w{before}"));
        }
    }

    /// A container starts: no other of the same job runs that could still be accepted.
    pub fn check_container(&mut self, host: usize, lease: LeaseId) {
        let fate = self.hosts[host].fate_of(lease);
        if self.ledger.contained.insert(lease, fate).is_some() {
            return self.breaks("one-run-per-attempt", format!("{lease} has a second container"));
        }
        let others = self.hosts.iter().flat_map(|host| host.containers.keys().filter(|other| host.runs(**other)));
        let other = others.copied().find(|other| other.job == lease.job && *other != lease);
        if let Some(other) = other {
            self.breaks("one-container-per-job", format!("{lease} starts on w{host} while {other} runs"));
        }
    }

    /// A worker has heard a cancel: its container goes soon.
    pub fn check_cancelled(&mut self, host: usize, lease: LeaseId) {
        let at = self.now + STOP_GRACE + CANCEL_SLACK;
        self.queue.put(at, Happening::MustBeGone(host, lease));
    }

    /// A container had so long to go.
    pub fn must_be_gone(&mut self, host: usize, lease: LeaseId) {
        if self.hosts[host].runs(lease) {
            self.breaks("cancel-stops", format!("the container of {lease} still runs on w{host} after its cancel"));
        }
    }

    /// A client was told that its submit is accepted.
    pub fn check_submitted(&mut self, key: Option<String>, name: Option<BuildId>, build: BuildId) {
        if self.ledger.durable.build(&build).is_none() {
            return self.breaks("told-is-durable", format!("{build} is acked and not durable"));
        }
        if name.is_some_and(|name| name != build) {
            return self.breaks("same-key-same-build", format!("{build} is not the build that was asked for"));
        }
        if let Some(key) = key {
            let first = self.ledger.keys.entry(key.clone()).or_insert_with(|| build.clone()).clone();
            if first != build {
                return self.breaks("same-key-same-build", format!("{key:?} was {first} and is {build} now"));
            }
        }
        self.ledger.acked.insert(build);
    }

    /// A client was told that its cancel is accepted.
    pub fn check_cancel_acked(&mut self, build: &BuildId) {
        let known = self.ledger.durable.build(build);
        if known.is_none_or(|build| matches!(build.state, BuildState::Running)) {
            self.breaks("told-is-durable", format!("the cancel of {build} is acked and not durable"));
        }
    }

    /// A worker was told that its report is taken.
    pub fn check_reported(&mut self, host: usize, lease: LeaseId, _: &Reply) {
        if !self.ledger.ended.contains(&lease) {
            self.breaks("told-is-durable", format!("w{host}'s report of {lease} is acked and not durable"));
        }
    }

    /// An upload is granted: only to whom holds the lease.
    pub fn check_grant(&mut self, lease: LeaseId, host: usize) {
        if self.ledger.durable.holder(lease) != Some(&self.hosts[host].name) {
            self.breaks("uploads-are-fenced", format!("w{host} may send for {lease}, which it does not hold"));
        }
    }

    /// Log bytes are taken: only from whom holds the lease, in order, without gaps.
    pub fn check_append(&mut self, lease: LeaseId, host: usize, offset: u64, bytes: u64) {
        if self.ledger.durable.holder(lease) != Some(&self.hosts[host].name) {
            return self
                .breaks("logs-are-fenced", format!("w{host} writes to the log of {lease}, which it does not hold"));
        }
        let have = self.controller.logs.get(&lease).copied().unwrap_or(0);
        if offset > have {
            self.breaks("log-has-no-gap", format!("{bytes} bytes of {lease} at {offset} follow on {have}"));
        }
    }
}
