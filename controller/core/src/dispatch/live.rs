//! What is true only while the controller runs: sessions, heartbeats, phases. Lost on a restart, and rebuilt by the workers.

use super::{Phase, Said};
use crate::leases::Leases;
use railyard_common::disk::DiskReport;
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Soft state beside the farm.
#[derive(Debug, Default)]
pub struct Live {
    pub(super) leases: Leases,
    /// The number of each worker's open session.
    sessions: BTreeMap<WorkerName, u64>,
    phases: BTreeMap<LeaseId, Phase>,
    seen: BTreeMap<WorkerName, Seen>,
    finalize_errors: BTreeMap<BuildId, String>,
    /// When each worker last said hello.
    said: BTreeMap<WorkerName, Said>,
    last_session: u64,
}

/// When a worker was last heard, and what it said of its disk then.
#[derive(Clone, Debug)]
struct Seen {
    at: Millis,
    free_disk_bytes: Option<u64>,
    disk: Option<Arc<DiskReport>>,
}

impl Live {
    /// Nothing, but that numbers of sessions go on: the end of an old one must not be taken for that of a new one. And hellos
    /// that are under way still arrive.
    pub(super) fn restarted(&self) -> Self {
        Self { last_session: self.last_session, said: self.said.clone(), ..Self::default() }
    }

    /// How far an attempt is, as its worker last said.
    pub fn phase(&self, lease: LeaseId) -> Option<Phase> {
        self.phases.get(&lease).copied()
    }

    /// When a worker was last heard.
    pub fn last_seen(&self, worker: &WorkerName) -> Option<Millis> {
        self.seen.get(worker).map(|seen| seen.at)
    }

    /// What a worker's last heartbeat said of its disk.
    pub fn free_disk_bytes(&self, worker: &WorkerName) -> Option<u64> {
        self.seen.get(worker).and_then(|seen| seen.free_disk_bytes)
    }

    /// What a worker last said of its disks.
    pub fn disk(&self, worker: &WorkerName) -> Option<&DiskReport> {
        self.seen.get(worker).and_then(|seen| seen.disk.as_deref())
    }

    /// Why a build could not be finalized yet.
    pub fn finalize_error(&self, build: &BuildId) -> Option<&str> {
        self.finalize_errors.get(build).map(String::as_str)
    }

    /// The number of a worker's open session.
    pub fn session(&self, worker: &WorkerName) -> Option<u64> {
        self.sessions.get(worker).copied()
    }

    /// Every open session.
    pub fn sessions(&self) -> impl Iterator<Item = (&WorkerName, u64)> {
        self.sessions.iter().map(|(worker, session)| (worker, *session))
    }

    pub(super) fn note_finalize_error(&mut self, build: BuildId, why: String) {
        self.finalize_errors.insert(build, why);
    }

    pub(super) fn forget_finalize_error(&mut self, build: &BuildId) {
        self.finalize_errors.remove(build);
    }

    /// A worker says hello. Returns whether a later hello of it has come before.
    pub(super) fn is_late(&mut self, worker: &WorkerName, said: Said) -> bool {
        let later = |known: &&Said| known.host_boot == said.host_boot && known.uptime_millis > said.uptime_millis;
        let late = self.said.get(worker).filter(later).is_some();
        if !late {
            self.said.insert(worker.clone(), said);
        }
        late
    }

    pub(super) fn attach(&mut self, worker: WorkerName) -> u64 {
        self.last_session += 1;
        self.sessions.insert(worker, self.last_session);
        self.last_session
    }

    /// Ends the session that a new one is about to replace.
    pub(super) fn replace(&mut self, worker: &WorkerName) {
        self.sessions.remove(worker);
    }

    /// Ends a session; `false` if a later one has taken its place.
    pub(super) fn detach(&mut self, worker: &WorkerName, session: u64) -> bool {
        let current = self.session(worker) == Some(session) || planted::is(Bug::StaleDetach);
        if current {
            self.sessions.remove(worker);
        }
        current
    }

    pub(super) fn seen(
        &mut self,
        worker: &WorkerName,
        at: Millis,
        free_disk_bytes: Option<u64>,
        disk: Option<Arc<DiskReport>>,
    ) {
        self.seen.insert(worker.clone(), Seen { at, free_disk_bytes, disk });
    }

    pub(super) fn forget(&mut self, worker: &WorkerName) {
        self.seen.remove(worker);
        self.said.remove(worker);
    }

    /// Returns whether that is news.
    pub(super) fn set_phase(&mut self, lease: LeaseId, phase: Phase) -> bool {
        self.phases.insert(lease, phase) != Some(phase)
    }

    pub(super) fn end(&mut self, lease: LeaseId) {
        self.leases.end(lease);
        self.phases.remove(&lease);
    }
}
