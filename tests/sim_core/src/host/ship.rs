//! The log's way to the controller: in order, each byte until it is durable there, over as many connections as it takes.

use super::Wrk;
use crate::net::{ConnId, Down, Line, Refused, Up};
use crate::pipelines::End;
use crate::queue::Ms;
use crate::world::World;
use railyard_common::id::LeaseId;

/// Most bytes of a batch.
const BATCH_BYTES: u64 = 64 * 1024;
/// Most bytes on their way.
const IN_FLIGHT_MAX_BYTES: u64 = 4 * BATCH_BYTES;
/// How long the controller may take to acknowledge a batch before the connection counts as dead.
const ACK_TIMEOUT: Ms = 30_000;
/// How often a running step writes.
const WRITES_EVERY: Ms = 6_000;

/// A log on its way.
#[derive(Debug, Default)]
pub struct Ship {
    /// Bytes in the spool.
    pub written: u64,
    /// No more will come.
    pub closed: bool,
    /// Everything that will ever be durable is: so much.
    pub whole: Option<u64>,
    durable: u64,
    sent: u64,
    line: ShipLine,
    tries: u32,
}

#[derive(Debug, Default)]
enum ShipLine {
    #[default]
    None,
    Open(ConnId),
    /// Another one will be opened.
    Waits,
}

impl Ship {
    /// Another process goes on with it, and asks again what is durable by sending all of it.
    pub fn reopen(&mut self) {
        let (written, closed) = (self.written, self.closed);
        *self = Self { written, closed, ..Self::default() };
    }

    /// Its open connection.
    pub fn conn(&self) -> Option<ConnId> {
        match self.line {
            ShipLine::Open(conn) => Some(conn),
            ShipLine::None | ShipLine::Waits => None,
        }
    }
}

impl World {
    /// Sends what can be sent.
    pub(super) fn ship(&mut self, host: usize, lease: LeaseId) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        let ship = &mut attempt.ship;
        if ship.whole.is_some() {
            return self.shipped(host, lease);
        }
        if ship.closed && ship.durable >= ship.written {
            ship.whole = Some(ship.durable);
            if let Some(conn) = ship.conn() {
                self.close_at_worker(conn);
            }
            return self.shipped(host, lease);
        }
        if matches!(ship.line, ShipLine::Waits) {
            return;
        }
        let conn = match ship.conn() {
            Some(conn) => conn,
            None if ship.written > ship.durable => {
                let Some(number) = self.hosts[host].process.as_ref().map(|process| process.number) else { return };
                let conn = self.connect(host, number, Line::Log(lease));
                let Some(attempt) = self.hosts[host].attempt(lease) else { return };
                attempt.ship.line = ShipLine::Open(conn);
                attempt.ship.sent = attempt.ship.durable;
                conn
            }
            None => return,
        };
        let mut batches = Vec::new();
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        let ship = &mut attempt.ship;
        while ship.sent < ship.written && ship.sent - ship.durable < IN_FLIGHT_MAX_BYTES {
            let bytes = BATCH_BYTES.min(ship.written - ship.sent);
            batches.push(Up::Log { lease, offset: ship.sent, bytes });
            ship.sent += bytes;
        }
        let durable = ship.durable;
        if !batches.is_empty() {
            batches.into_iter().for_each(|batch| self.send_up(conn, batch));
            self.later(host, ACK_TIMEOUT, Wrk::AckTimeout(lease, conn, durable));
        }
    }

    pub(super) fn log_grows(&mut self, host: usize, lease: LeaseId) {
        let runs = self.hosts[host].containers.get(&lease).is_some_and(|container| container.ended.is_none());
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        if !runs || attempt.fate.end == End::Silent {
            return self.ship(host, lease);
        }
        let share = attempt.fate.log_bytes / 4;
        attempt.ship.written = (attempt.ship.written + share).min(100 + attempt.fate.log_bytes);
        self.ship(host, lease);
        self.later(host, WRITES_EVERY, Wrk::LogGrows(lease));
    }

    pub(super) fn ack_timeout(&mut self, host: usize, lease: LeaseId, conn: ConnId, durable: u64) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        let stuck = attempt.ship.durable == durable && attempt.ship.sent > durable;
        if attempt.ship.conn() == Some(conn) && stuck {
            self.close_at_worker(conn);
            self.log_line_lost(host, lease, conn);
        }
    }

    pub(super) fn log_line_hears(&mut self, host: usize, lease: LeaseId, conn: ConnId, message: Down) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        let ship = &mut attempt.ship;
        if ship.conn() != Some(conn) {
            return;
        }
        match message {
            Down::LogAck(offset) => {
                let before = ship.durable;
                ship.durable = before.max(offset.min(ship.sent));
                if ship.durable > before {
                    ship.tries = 0;
                }
                self.ship(host, lease);
            }
            Down::LogRefused(refused) => {
                self.close_at_worker(conn);
                match refused {
                    Refused::Stale => return self.log_is_stale(host, lease),
                    Refused::Gap => {
                        if let Some(attempt) = self.hosts[host].attempt(lease) {
                            attempt.ship.durable = 0;
                        }
                    }
                    Refused::Passing | Refused::Final(_) => {}
                }
                self.log_line_lost(host, lease, conn);
            }
            Down::Close => {
                self.close_at_worker(conn);
                self.log_line_lost(host, lease, conn);
            }
            _ => {}
        }
    }

    pub(super) fn log_line_lost(&mut self, host: usize, lease: LeaseId, conn: ConnId) {
        let Some(attempt) = self.hosts[host].attempt(lease).filter(|attempt| attempt.ship.conn() == Some(conn)) else {
            return;
        };
        attempt.ship.tries += 1;
        attempt.ship.line = ShipLine::Waits;
        let tries = attempt.ship.tries;
        let wait = self.pause(tries);
        self.later(host, wait, Wrk::ShipAgain(lease));
    }

    pub(super) fn ship_again(&mut self, host: usize, lease: LeaseId) {
        if let Some(attempt) = self.hosts[host].attempt(lease) {
            attempt.ship.line = ShipLine::None;
        }
        self.ship(host, lease);
    }

    /// The lease is somebody else's.
    fn log_is_stale(&mut self, host: usize, lease: LeaseId) {
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        let actions = process.session.handle_stale(lease);
        if let Some(attempt) = process.attempts.get_mut(&lease) {
            attempt.ship.line = ShipLine::Waits;
        }
        self.act(host, actions);
        // Nothing is reported without its log: whatever it was doing, its end is told to nobody.
        if self.hosts[host].attempt(lease).is_some_and(|attempt| attempt.step == super::attempt::Step::Ship) {
            self.over(host, lease);
        }
    }
}
