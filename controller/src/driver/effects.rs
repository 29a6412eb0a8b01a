//! Carries out what a dispatcher lets out: answers, messages to workers, notices, spans.

use super::handle::Link;
use super::{Change, Driver};
use crate::trace;
use railyard_common::id::WorkerName;
use railyard_core::Output;
use railyard_proto::v1;
use railyard_proto::v1::controller_message::Kind;
use railyard_service::convert::{ToProto as _, all};
use std::collections::BTreeMap;

/// The streams of connected workers.
#[derive(Default)]
pub(super) struct Sessions(BTreeMap<WorkerName, Session>);

/// A worker's stream; it is cut when this is dropped.
struct Session {
    number: u64,
    link: Link,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.cut.cancel();
    }
}

impl Sessions {
    /// Another stream of the same worker is cut.
    fn begin(&mut self, worker: WorkerName, number: u64, link: Link) {
        self.0.insert(worker, Session { number, link });
    }

    /// A stream has ended; another one may have taken its place.
    pub(super) fn end(&mut self, worker: &WorkerName, number: u64) {
        if self.0.get(worker).is_some_and(|session| session.number == number) {
            self.0.remove(worker);
        }
    }

    /// Ends a stream; its worker will hear why when it comes back.
    fn cut(&self, worker: &WorkerName, number: u64) {
        if let Some(session) = self.0.get(worker).filter(|session| session.number == number) {
            session.link.cut.cancel();
        }
    }

    /// Sends without waiting. A worker that does not read its stream loses it: it will come back and ask. The session stays
    /// until its stream has ended, because that is when the farm is told that the worker is gone.
    fn send(&self, worker: &WorkerName, number: u64, kind: Kind) {
        let Some(session) = self.0.get(worker).filter(|session| session.number == number) else { return };
        let sent = session.link.messages.try_send(v1::ControllerMessage { kind: Some(kind) });
        if sent.is_err() && !session.link.cut.is_cancelled() {
            tracing::warn!(%worker, "the worker does not take its messages; its stream is cut");
            session.link.cut.cancel();
        }
    }
}

impl Driver {
    pub(super) fn carry_out(&mut self, output: Output) {
        match output {
            // A caller that went away does not want its answer any more.
            Output::Decided { ticket, result } => {
                if let Some(reply) = self.waiting.commands.remove(&ticket) {
                    drop(reply.send(result.map_err(Into::into)));
                }
            }
            Output::Read { ticket } => {
                if let Some(read) = self.waiting.reads.remove(&ticket) {
                    read(self.dispatcher.farm(), self.dispatcher.live());
                }
            }
            Output::Welcome { ticket, worker, session, held, builds_over } => {
                let Some(greeting) = self.waiting.greetings.remove(&ticket) else { return };
                let builds_over = builds_over.iter().map(ToString::to_string).collect();
                let welcome = v1::Welcome { held: all(&held), builds_over, ..greeting.welcome };
                self.sessions.begin(worker.clone(), session, greeting.link);
                self.sessions.send(&worker, session, Kind::Welcome(welcome));
                // Whoever asked may have gone; then the stream's end is noticed soon.
                let _ = greeting.reply.send(Ok(session));
            }
            Output::TurnedAway { ticket, refusal } => {
                if let Some(greeting) = self.waiting.greetings.remove(&ticket) {
                    // Whoever asked may have gone.
                    let _ = greeting.reply.send(Err(refusal.into()));
                }
            }
            Output::Cut { worker, session } => self.sessions.cut(&worker, session),
            Output::Ack { worker, session, sequence, lost } => {
                let ack = v1::HeartbeatAck { sequence, lost: all(&lost) };
                self.sessions.send(&worker, session, Kind::HeartbeatAck(ack));
            }
            Output::Order { worker, session, mut order } => {
                order.traceparent = trace::job_traceparent(self.dispatcher.farm(), order.lease.job);
                self.sessions.send(&worker, session, Kind::Lease(order.to_proto()));
            }
            Output::Cancel { worker, session, lease, reason } => {
                let cancel = v1::CancelLease { lease: Some(lease.to_proto()), reason };
                self.sessions.send(&worker, session, Kind::Cancel(cancel));
            }
            Output::BuildOver { worker, session, build } => {
                let over = v1::BuildOver { build: build.to_string() };
                self.sessions.send(&worker, session, Kind::BuildOver(over));
            }
            Output::BuildChanged(build) => self.changed(Change::Build(build)),
            Output::WorkersChanged => self.changed(Change::Workers),
            // Those who listen are gone only when the controller is.
            Output::LeaseEnded(lease) => self.notices.ended.iter().for_each(|ended| {
                // Who does not listen any more goes down with the driver.
                let _ = ended.send(lease);
            }),
            Output::IndexChanged(pipeline) => self.notices.listed.iter().for_each(|listed| {
                let _ = listed.send(pipeline.clone());
            }),
            Output::JobEnded(job) => trace::record_job(self.dispatcher.farm(), job),
            Output::BuildEnded(build) => trace::record_build(self.dispatcher.farm(), &build),
            Output::Finalize => self.notices.finalize.notify_one(),
        }
    }

    fn changed(&self, what: Change) {
        // Nobody may be listening: that is fine.
        let _ = self.notices.changed.send(what);
    }
}
