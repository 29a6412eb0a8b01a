//! What must be true, judged from outside: by what became durable, what left, what containers did and what the store holds.
//!
//! The ledger keeps a farm of its own, made only of durable events, and books of its own beside it. It is written against the
//! promises of the farm, not against its code.

mod durable;
mod place;
mod told;

use crate::net::ConnId;
use crate::pipelines::End;
use crate::queue::Ms;
use railyard_common::id::{BuildId, GroupName, JobId, LeaseId, WorkerName};
use railyard_core::{Farm, Input};
use std::collections::{BTreeMap, BTreeSet};

/// An invariant is broken.
#[derive(Clone, Debug)]
pub struct Broken {
    /// When.
    pub at: Ms,
    /// Which.
    pub invariant: &'static str,
    /// How, for people.
    pub why: String,
}

/// The books.
#[derive(Default)]
pub struct Ledger {
    /// The first that was broken.
    pub broken: Option<Broken>,
    /// What the durable events make.
    pub durable: Farm,
    /// How many there were.
    pub events: u64,
    /// Attempts that workers began.
    pub attempts: u64,
    /// The build that each key was acked with.
    keys: BTreeMap<String, BuildId>,
    /// Builds whose submit was acked.
    acked: BTreeSet<BuildId>,
    /// Every lease that was ever granted, and when.
    granted: BTreeMap<LeaseId, Ms>,
    ended: BTreeSet<LeaseId>,
    /// Orders that left.
    ordered: BTreeMap<LeaseId, WorkerName>,
    /// Attempts that were begun, and where.
    begun: BTreeMap<LeaseId, usize>,
    /// Containers that were started, and how they would end.
    contained: BTreeMap<LeaseId, Option<End>>,
    /// Successes of each job since it was last submitted or resumed.
    successes: BTreeMap<JobId, u32>,
    /// Lost attempts and failed ones of each job since then.
    spent: BTreeMap<JobId, (u32, u32)>,
    /// Builds that were told to stop and not resumed since.
    cancelled: BTreeSet<BuildId>,
    /// Jobs that were told to stop and not resumed since.
    stopped: BTreeSet<JobId>,
    approved: BTreeSet<JobId>,
    /// Attempts whose container is known to have ended.
    uploading: BTreeSet<LeaseId>,
    /// Jobs of each group that wait, in the order in which they became ready.
    groups: BTreeMap<GroupName, Vec<JobId>>,
    /// Bytes of each log that were acked.
    log_acked: BTreeMap<LeaseId, u64>,
    /// When the controller last heard of each lease.
    heard: BTreeMap<LeaseId, Ms>,
    /// When the controller last took up a heartbeat that named it; it may have waited for a slow flush.
    taken: BTreeMap<LeaseId, Ms>,
    controller_started: Ms,
    /// What each heartbeat named, until it is acked.
    beats: BTreeMap<(WorkerName, u64), Vec<LeaseId>>,
    /// What each hello named.
    hellos: BTreeMap<ConnId, Vec<LeaseId>>,
}

impl Ledger {
    /// An invariant is broken; the first one counts.
    pub fn breaks(&mut self, at: Ms, invariant: &'static str, why: String) {
        self.broken.get_or_insert(Broken { at, invariant, why });
    }

    /// The controller has heard of these leases.
    pub fn heard<'a>(&mut self, now: Ms, leases: impl Iterator<Item = &'a LeaseId>) {
        self.heard.extend(leases.map(|lease| (*lease, now)));
    }

    /// The controller takes up what waited for it.
    pub fn taken(&mut self, now: Ms, inputs: &[Input]) {
        for input in inputs {
            if let Input::Beat(beat) = input {
                self.taken.extend(beat.leases.iter().map(|(lease, _)| (*lease, now)));
            }
        }
    }

    /// A heartbeat came.
    pub fn beat(&mut self, worker: &WorkerName, sequence: u64, leases: Vec<LeaseId>) {
        self.beats.insert((worker.clone(), sequence), leases);
    }

    /// A hello came.
    pub fn hello(&mut self, conn: ConnId, held: &[LeaseId]) {
        self.hellos.insert(conn, held.to_vec());
    }

    /// A controller begins to listen: every lease may live a full time to live from now.
    pub fn controller_started(&mut self, now: Ms) {
        self.controller_started = now;
    }

    /// So many bytes of a log were acked.
    pub fn log_acked(&mut self, lease: LeaseId, bytes: u64) {
        let acked = self.log_acked.entry(lease).or_default();
        *acked = (*acked).max(bytes);
    }
}
