//! Log bytes: one batch of a connection at a time, one writer of a log at a time, acked when durable.

use super::{Ctl, Waiter};
use crate::net::{ConnId, Down, Refused};
use crate::world::World;
use railyard_common::id::LeaseId;
use railyard_common::planted::{self, Bug};
use railyard_core::{Act, Input};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Log connections, and the turns of writers.
#[derive(Default)]
pub struct LogLines {
    lines: BTreeMap<ConnId, Line>,
    /// Logs that somebody writes to.
    taken: BTreeSet<LeaseId>,
    waiting: VecDeque<(LeaseId, ConnId)>,
}

#[derive(Default)]
struct Line {
    batches: VecDeque<(LeaseId, u64, u64)>,
    working: bool,
    writing: Option<(LeaseId, u64)>,
}

impl World {
    pub(super) fn log_arrives(&mut self, conn: ConnId, lease: LeaseId, offset: u64, bytes: u64) {
        let Some(process) = self.process_mut() else { return };
        process.log_lines.lines.entry(conn).or_default().batches.push_back((lease, offset, bytes));
        self.next_batch(conn);
    }

    fn next_batch(&mut self, conn: ConnId) {
        let Some(line) = self.process_mut().and_then(|process| process.log_lines.lines.get_mut(&conn)) else { return };
        if !line.working && !line.batches.is_empty() {
            line.working = true;
            self.ask(Waiter::LookLog { conn, second: false }, |ticket| Input::Read { ticket });
        }
    }

    /// The lease is looked at when the batch comes, and again when its turn has come.
    pub(super) fn look_log(&mut self, conn: ConnId, second: bool) {
        let line = self.process_mut().and_then(|process| process.log_lines.lines.get(&conn));
        let Some((lease, offset, bytes)) = line.and_then(|line| line.batches.front().copied()) else { return };
        let Some(host) = self.conns.get(&conn).map(|conn| conn.host) else {
            return self.give_turn(lease, second);
        };
        if let Err(refused) = self.allow(Act::Log, lease, host) {
            self.refuse_log(conn, refused);
            return self.give_turn(lease, second);
        }
        if !second {
            let Some(process) = self.process_mut() else { return };
            if process.log_lines.taken.insert(lease) {
                self.ask(Waiter::LookLog { conn, second: true }, |ticket| Input::Read { ticket });
            } else {
                process.log_lines.waiting.push_back((lease, conn));
            }
            return;
        }
        let have = self.controller.logs.get(&lease).copied().unwrap_or(0);
        if offset > have && !planted::is(Bug::LogGap) {
            self.refuse_log(conn, Refused::Gap);
            return self.give_turn(lease, true);
        }
        let end = have.max(offset + bytes);
        self.check_append(lease, host, offset, bytes);
        if let Some(line) = self.process_mut().and_then(|process| process.log_lines.lines.get_mut(&conn)) {
            line.writing = Some((lease, end));
        }
        // Written before it is synced: a crash in between may leave it or not.
        if self.disks.chance(500) {
            self.controller.logs.insert(lease, end);
        }
        let slow = self.controller.journal.slow_until > self.now;
        let wait = if slow { self.disks.within(50, 5_000) } else { self.disks.within(0, 6) };
        self.after(wait, Ctl::LogWritten(conn));
    }

    pub(super) fn log_written(&mut self, conn: ConnId) {
        let line = self.process_mut().and_then(|process| process.log_lines.lines.get_mut(&conn));
        let Some((lease, end)) = line.and_then(|line| {
            line.working = false;
            line.batches.pop_front();
            line.writing.take()
        }) else {
            return;
        };
        self.controller.logs.insert(lease, end);
        self.ledger.log_acked(lease, end);
        self.send_down(conn, Down::LogAck(end));
        self.give_turn(lease, true);
        self.next_batch(conn);
        self.drop_line(conn);
    }

    /// The writer of a log is done; the next one has its turn.
    fn give_turn(&mut self, lease: LeaseId, had_it: bool) {
        let Some(process) = self.process_mut() else { return };
        if !had_it {
            return;
        }
        match process.log_lines.waiting.iter().position(|(other, _)| *other == lease) {
            Some(place) => {
                let next = process.log_lines.waiting.remove(place);
                if let Some((_, conn)) = next {
                    self.ask(Waiter::LookLog { conn, second: true }, |ticket| Input::Read { ticket });
                }
            }
            None => drop(process.log_lines.taken.remove(&lease)),
        }
    }

    fn refuse_log(&mut self, conn: ConnId, refused: Refused) {
        self.send_down(conn, Down::LogRefused(refused));
        self.close_at_controller(conn);
        if let Some(process) = self.process_mut() {
            process.log_lines.lines.remove(&conn);
        }
    }

    /// The connection is gone. A batch that is being written is written to its end.
    pub(super) fn log_line_over(&mut self, conn: ConnId) {
        if let Some(line) = self.process_mut().and_then(|process| process.log_lines.lines.get_mut(&conn)) {
            line.batches.truncate(usize::from(line.working));
        }
        self.drop_line(conn);
    }

    fn drop_line(&mut self, conn: ConnId) {
        let open = self.conns.get(&conn).is_some_and(|conn| conn.at_controller.is_some());
        let Some(process) = self.process_mut() else { return };
        if !open && process.log_lines.lines.get(&conn).is_some_and(|line| !line.working) {
            process.log_lines.lines.remove(&conn);
        }
    }
}
