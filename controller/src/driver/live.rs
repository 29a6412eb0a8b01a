//! What is true only while the controller runs: sessions, heartbeats, phases. Lost on a restart, and rebuilt by the workers.

use super::Link;
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::time::Millis;
use railyard_core::Leases;
use railyard_proto::v1;
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Soft state beside the farm.
#[derive(Default)]
pub struct Live {
    pub(super) leases: Leases,
    sessions: BTreeMap<WorkerName, Session>,
    phases: BTreeMap<LeaseId, v1::Phase>,
    last_seen: BTreeMap<WorkerName, Millis>,
    finalize_errors: BTreeMap<BuildId, String>,
    next_session: u64,
}

/// A worker's stream; it is cut when this is dropped.
struct Session {
    number: u64,
    messages: mpsc::Sender<v1::ControllerMessage>,
    cut: CancellationToken,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

impl Live {
    /// Where an attempt stands, as its worker last said.
    pub fn phase(&self, lease: LeaseId) -> v1::Phase {
        self.phases.get(&lease).copied().unwrap_or_default()
    }

    /// When a worker was last heard.
    pub fn last_seen(&self, worker: &WorkerName) -> Option<Millis> {
        self.last_seen.get(worker).copied()
    }

    /// Why a build could not be finalized yet.
    pub fn finalize_error(&self, build: &BuildId) -> Option<&str> {
        self.finalize_errors.get(build).map(String::as_str)
    }

    pub(super) fn note_finalize_error(&mut self, build: BuildId, why: String) {
        self.finalize_errors.insert(build, why);
    }

    pub(super) fn forget_finalize_error(&mut self, build: &BuildId) {
        self.finalize_errors.remove(build);
    }

    pub(super) fn attach(&mut self, worker: WorkerName, link: Link) -> u64 {
        self.next_session += 1;
        let session = Session { number: self.next_session, messages: link.messages, cut: link.cut };
        self.sessions.insert(worker, session);
        self.next_session
    }

    /// Ends the session that a new one is about to replace, so that its end is not taken for the worker's.
    pub(super) fn replace(&mut self, worker: &WorkerName) {
        self.sessions.remove(worker);
    }

    /// Ends a session; `false` if a later one has taken its place.
    pub(super) fn detach(&mut self, worker: &WorkerName, session: u64) -> bool {
        let current = self.sessions.get(worker).is_some_and(|current| current.number == session);
        if current {
            self.sessions.remove(worker);
        }
        current
    }

    pub(super) fn seen(&mut self, worker: &WorkerName, now: Millis) {
        self.last_seen.insert(worker.clone(), now);
    }

    /// Returns whether that is news.
    pub(super) fn set_phase(&mut self, lease: LeaseId, phase: v1::Phase) -> bool {
        self.phases.insert(lease, phase) != Some(phase)
    }

    pub(super) fn end(&mut self, lease: LeaseId) {
        self.leases.end(lease);
        self.phases.remove(&lease);
    }

    /// Sends without waiting. A worker that does not read its stream loses it: it will come back and ask. The session stays
    /// until its stream has ended, because that is when the farm is told that the worker is gone.
    pub(super) fn send_to(&mut self, worker: &WorkerName, session: Option<u64>, kind: v1::controller_message::Kind) {
        let Some(current) = self.sessions.get(worker) else { return };
        if session.is_some_and(|session| session != current.number) {
            return;
        }
        let sent = current.messages.try_send(v1::ControllerMessage { kind: Some(kind) });
        if sent.is_err() && !current.cut.is_cancelled() {
            tracing::warn!(%worker, "the worker does not take its messages; its stream is cut");
            current.cut.cancel();
        }
    }

    pub(super) fn send_to_all(&mut self, kind: v1::controller_message::Kind) {
        let names: Vec<WorkerName> = self.sessions.keys().cloned().collect();
        names.iter().for_each(|name| self.send_to(name, None, kind.clone()));
    }
}
