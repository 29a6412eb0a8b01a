//! What leaves the dispatcher, and the workers' streams.

use super::Waiter;
use crate::net::{ConnId, Down, Line, Up};
use crate::world::World;
use railyard_common::id::{LeaseId, WorkerName};
use railyard_core::{Beat, Input, Output, Phase, Refusal, Ticket};
use railyard_proto::v1;

impl World {
    pub(super) fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Decided { ticket, result } => self.decided(ticket, result),
                Output::Read { ticket } => self.may_read(ticket),
                Output::Welcome { ticket, worker, session, held, .. } => self.welcomed(ticket, worker, session, held),
                Output::TurnedAway { ticket, refusal } => self.turn_away(ticket, &refusal),
                Output::Cut { worker, session } => {
                    let conn = self.session_conn(&worker, session);
                    if let Some(conn) = conn {
                        self.close_at_controller(conn);
                        self.session_over(conn);
                    }
                }
                Output::Ack { worker, session, sequence, lost } => {
                    self.check_ack(&worker, sequence, &lost);
                    self.send_session(&worker, session, Down::Ack { sequence, lost });
                }
                Output::Order { worker, session, order } => {
                    self.order_leaves(&worker, &order);
                    self.send_session(&worker, session, Down::Order(order));
                }
                Output::Cancel { worker, session, lease, reason } => {
                    self.send_session(&worker, session, Down::Cancel { lease, reason });
                }
                Output::Finalize => self.notify_finalizer(),
                Output::LeaseEnded(_) | Output::JobEnded(_) | Output::BuildEnded(_) => {}
                Output::BuildOver { .. } | Output::BuildChanged(_) | Output::WorkersChanged => {}
                Output::IndexChanged(_) => {}
            }
        }
        let now = self.now;
        if now.is_multiple_of(16) {
            self.check_replay();
        }
    }

    fn send_session(&mut self, worker: &WorkerName, session: u64, message: Down) {
        if let Some(conn) = self.session_conn(worker, session) {
            self.send_down(conn, message);
        }
    }

    fn session_conn(&self, worker: &WorkerName, session: u64) -> Option<ConnId> {
        let process = self.controller.process.as_ref()?;
        let conn = process.sessions.iter().find(|(_, (name, number))| name == worker && *number == session);
        conn.map(|(conn, _)| *conn)
    }

    /// A hello is refused: for good, or because a later one has come.
    fn turn_away(&mut self, ticket: Ticket, refusal: &Refusal) {
        let Some(process) = self.process_mut() else { return };
        let Some(Waiter::Attach(conn)) = process.waiting.remove(&ticket) else { return };
        if matches!(refusal, Refusal::Retired { .. }) {
            self.send_down(conn, Down::Refused);
        }
        self.close_at_controller(conn);
    }

    fn welcomed(&mut self, ticket: Ticket, worker: WorkerName, session: u64, held: Vec<LeaseId>) {
        let Some(process) = self.process_mut() else { return };
        let Some(Waiter::Attach(conn)) = process.waiting.remove(&ticket) else { return };
        self.cut_session(&worker);
        let Some(process) = self.process_mut() else { return };
        process.sessions.insert(conn, (worker.clone(), session));
        // While nothing can be journaled, what a hello frees is decided later.
        let decided = self.controller.process.as_ref().is_some_and(|process| process.busy.is_none());
        self.check_welcome(&worker, conn, &held, decided);
        let now = self.now;
        self.ledger.heard(now, held.iter());
        self.send_down(conn, Down::Welcome { held });
        if self.conns.get(&conn).is_none_or(|conn| conn.at_controller.is_none()) {
            self.session_over(conn);
        }
    }

    /// A new session replaces the one before.
    fn cut_session(&mut self, worker: &WorkerName) {
        let Some(process) = self.process_mut() else { return };
        let old: Vec<ConnId> =
            process.sessions.iter().filter(|(_, (name, _))| name == worker).map(|(conn, _)| *conn).collect();
        for conn in old {
            self.close_at_controller(conn);
            self.session_over(conn);
        }
    }

    pub(super) fn cut_all_sessions(&mut self) {
        let Some(process) = self.process_mut() else { return };
        let old: Vec<ConnId> = process.sessions.keys().copied().collect();
        for conn in old {
            self.close_at_controller(conn);
            self.session_over(conn);
        }
    }

    pub(super) fn session_over(&mut self, conn: ConnId) {
        let Some(process) = self.process_mut() else { return };
        if let Some((worker, session)) = process.sessions.remove(&conn) {
            process.inbox.push(Input::Detach { worker, session });
        }
    }

    /// A message on a connection.
    pub fn controller_hears(&mut self, id: ConnId, message: Up) {
        let Some(host) = self.conns.get(&id).map(|conn| conn.host) else { return };
        let now = self.now;
        self.trace.say(now, || format!("controller < w{host} #{id}: {}", brief_up(&message)));
        match message {
            Up::Hello { offer, held, said } => {
                self.ledger.hello(id, &held);
                let said = Some(said);
                let builds = Vec::new();
                self.ask(Waiter::Attach(id), |ticket| Input::Attach { ticket, offer, held, builds, said, disk: None });
            }
            Up::Beat { sequence, leases, free_disk_bytes } => {
                let session = self.process_mut().and_then(|process| process.sessions.get(&id).cloned());
                if let Some((worker, session)) = session {
                    self.ledger.beat(&worker, sequence, leases.iter().map(|(lease, _)| *lease).collect());
                    self.ledger.heard(now, leases.iter().map(|(lease, _)| lease));
                    let leases = leases.into_iter().map(|(lease, phase)| (lease, phase_of(phase))).collect();
                    let free_disk_bytes = Some(free_disk_bytes);
                    let (disk, pressure) = (None, None);
                    self.tell(Input::Beat(Beat { worker, session, sequence, leases, free_disk_bytes, disk, pressure }));
                }
            }
            Up::Draining => {
                let session = self.process_mut().and_then(|process| process.sessions.get(&id).cloned());
                if let Some((worker, session)) = session {
                    self.tell(Input::Draining { worker, session });
                }
            }
            Up::Log { lease, offset, bytes } => self.log_arrives(id, lease, offset, bytes),
            Up::Close => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.at_controller = None;
                }
                self.controller_loses(id);
            }
        }
        self.pump();
    }

    /// A connection is gone.
    pub fn controller_loses(&mut self, id: ConnId) {
        match self.conns.get(&id).map(|conn| conn.line) {
            Some(Line::Session) => self.session_over(id),
            Some(Line::Log(_)) => self.log_line_over(id),
            None => {}
        }
        self.pump();
    }
}

fn phase_of(phase: v1::Phase) -> Option<Phase> {
    match phase {
        v1::Phase::Unspecified => None,
        v1::Phase::Fetch => Some(Phase::Fetch),
        v1::Phase::Run => Some(Phase::Run),
        v1::Phase::Upload => Some(Phase::Upload),
    }
}

fn brief_up(message: &Up) -> String {
    match message {
        Up::Hello { offer, held, said } => {
            format!("hello {} holding {held:?} said {}", offer.boot.0, said.uptime_millis)
        }
        Up::Beat { sequence, leases, .. } => format!("beat {sequence} {leases:?}"),
        other => format!("{other:?}"),
    }
}
