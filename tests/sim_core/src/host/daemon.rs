//! The worker's process: its stream, its heartbeats, and what the session wants done.

use super::attempt::{Attempt, Stop};
use super::{Process, Standing, Wrk};
use crate::controller::HEARTBEAT;
use crate::net::{Caller, ConnId, Down, Line, ReportCall, Rpc, Up};
use crate::queue::Ms;
use crate::world::{Happening, World};
use railyard_common::id::{BootId, LeaseId};
use railyard_common::order::Order;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_core::Said;
use railyard_worker::session::{Action, Session, Verdict};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the controller may take to answer a hello.
const WELCOME_TIMEOUT: Ms = 30_000;
/// Without a word for so long the stream counts as dead.
const SILENCE: Ms = if HEARTBEAT * 4 > 10_000 { HEARTBEAT * 4 } else { 10_000 };
/// A worker that has ended is started again after so long.
const RESTART: Ms = 10_000;
/// How long running jobs may go on when the worker is told to stop.
const DRAIN_GRACE: Ms = 8_000;

impl World {
    /// The running process of that number.
    pub fn process(&self, host: usize, number: u32) -> Option<&Process> {
        self.hosts[host].process.as_ref().filter(|process| process.number == number)
    }

    fn proc(&mut self, host: usize) -> Option<&mut Process> {
        self.hosts[host].process.as_mut()
    }

    /// In `wait`, in the process that runs there now.
    pub(super) fn later(&mut self, host: usize, wait: Ms, what: Wrk) {
        let Some(number) = self.hosts[host].process.as_ref().map(|process| process.number) else { return };
        self.queue.put(self.now + wait, Happening::Worker(host, number, what));
    }

    /// A worker's process starts, on a host that is up from now on if it was not.
    pub fn worker_starts(&mut self, index: usize) {
        let now = self.now;
        let host = &mut self.hosts[index];
        if host.process.is_some() {
            return;
        }
        host.processes += 1;
        let number = host.processes;
        self.trace.say(now, || format!("w{index} starts as {number}"));
        host.process = Some(Process {
            number,
            boot_id: BootId(format!("w{index}-{number}")),
            session: Session::new(),
            standing: Standing::Cleaning,
            conn: None,
            welcomed: false,
            tries: 0,
            next_beat_at: Duration::ZERO,
            heard_at: now,
            attempts: BTreeMap::new(),
            wake: None,
        });
        self.take_up(index);
        self.later(index, 5, Wrk::Clean);
    }

    /// A worker's process dies, or the whole host.
    pub fn worker_dies(&mut self, index: usize, down: Ms, whole_host: bool) {
        let now = self.now;
        let host = &mut self.hosts[index];
        let conns: Vec<ConnId> = self.conns.iter().filter(|(_, conn)| conn.host == index).map(|(id, _)| *id).collect();
        // Whoever stood still has died like the others.
        host.paused_until = host.paused_until.min(now);
        if let Some(process) = host.process.take() {
            let session = &process.session;
            let known = |lease| session.confirmed_at(lease).unwrap_or_default();
            host.left.extend(process.attempts.into_iter().map(|(lease, attempt)| (lease, (attempt, known(lease)))));
        }
        if whole_host || !host.adopts {
            host.left.clear();
        }
        if whole_host {
            host.boots += 1;
            host.booted_at = now;
            host.containers.clear();
        } else {
            self.excuse(index);
        }
        if whole_host {
            self.forget_unsent(index);
        }
        for id in conns {
            if whole_host || self.net.chance(300) {
                // Nobody tells the controller. Keepalive does.
                let Some(conn) = self.conns.get_mut(&id) else { continue };
                conn.at_worker = false;
                let at = now + crate::net::KEEPALIVE;
                self.queue.put(at, Happening::Broken(id, crate::net::Way::Up));
            } else {
                self.close_at_worker(id);
            }
        }
        self.queue.put(now + down, Happening::WorkerStarts(index));
    }

    fn refused(&mut self, host: usize) {
        let Some(process) = self.proc(host) else { return };
        (process.conn, process.welcomed) = (None, false);
        process.standing = Standing::Leaving(RESTART);
        self.later(host, 1, Wrk::StopAll);
        self.settle(host);
    }

    /// Somebody tells a worker to stop.
    pub fn worker_stops(&mut self, host: usize, down: Ms) {
        let Some(process) = self.proc(host) else { return };
        if process.standing != Standing::Working {
            return;
        }
        process.standing = Standing::Leaving(down);
        if let Some(conn) = process.conn.filter(|_| process.welcomed) {
            self.send_up(conn, Up::Draining);
        }
        self.later(host, DRAIN_GRACE, Wrk::StopAll);
        self.settle(host);
    }

    /// Something in a worker's process.
    pub fn worker_event(&mut self, host: usize, number: u32, what: Wrk) {
        if self.process(host, number).is_none() {
            return;
        }
        if self.hosts[host].paused_until > self.now {
            let at = self.hosts[host].paused_until;
            return self.queue.put(at, Happening::Worker(host, number, what));
        }
        // Whoever stood still looks at the clock before anything else.
        self.settle(host);
        if self.process(host, number).is_none() {
            return;
        }
        match what {
            Wrk::Wake => {
                if let Some(process) = self.proc(host) {
                    process.wake = None;
                }
            }
            Wrk::Clean => self.clean(host),
            Wrk::Open => self.open_session(host),
            Wrk::WelcomeTimeout(conn) => {
                let waits = |process: &mut Process| process.conn == Some(conn) && !process.welcomed;
                if self.proc(host).is_some_and(waits) {
                    self.close_at_worker(conn);
                    self.session_lost(host);
                }
            }
            Wrk::Silence(conn) => self.look_for_silence(host, conn),
            Wrk::Step(lease, serial) => self.attempt_steps(host, lease, serial),
            Wrk::LogGrows(lease) => self.log_grows(host, lease),
            Wrk::ShipAgain(lease) => self.ship_again(host, lease),
            Wrk::AckTimeout(lease, conn, durable) => self.ack_timeout(host, lease, conn, durable),
            Wrk::CallAgain(lease, serial) => self.call_again(host, lease, serial),
            Wrk::StopAll => {
                let leases: Vec<LeaseId> =
                    self.proc(host).map(|process| process.attempts.keys().copied().collect()).unwrap_or_default();
                leases.into_iter().for_each(|lease| self.stop_attempt_softly(host, lease));
            }
        }
        self.settle(host);
    }

    /// What an earlier process left goes before anything else is begun.
    fn clean(&mut self, host: usize) {
        let own = |lease: &LeaseId| self.process_has(host, *lease);
        let left: Vec<LeaseId> = self.hosts[host].containers.keys().filter(|lease| !own(lease)).copied().collect();
        // What is gone on with may have little time left, and is not kept waiting for what the engine does not let go.
        let some_own = self.hosts[host].process.as_ref().is_some_and(|process| !process.attempts.is_empty());
        if left.is_empty() || (some_own && left.iter().all(|lease| self.hosts[host].containers[lease].going)) {
            let Some(process) = self.proc(host) else { return };
            process.standing = Standing::Working;
            return self.later(host, 1, Wrk::Open);
        }
        for lease in left {
            if !self.hosts[host].containers[&lease].going {
                let wait = self.engine.within(5, 300);
                self.remove_container(host, lease, wait);
            }
        }
        self.later(host, 400, Wrk::Clean);
    }

    fn process_has(&self, host: usize, lease: LeaseId) -> bool {
        self.hosts[host].process.as_ref().is_some_and(|process| process.attempts.contains_key(&lease))
    }

    fn open_session(&mut self, host: usize) {
        if self.proc(host).is_none_or(|process| process.conn.is_some()) {
            return;
        }
        let (now, mono) = (self.now, self.hosts[host].mono(self.now));
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        let (number, boot) = (process.number, process.boot_id.clone());
        let held = process.session.handle_hello(mono);
        process.welcomed = false;
        process.heard_at = now;
        let conn = self.connect(host, number, Line::Session);
        if let Some(process) = self.proc(host) {
            process.conn = Some(conn);
        }
        let offer = self.hosts[host].offer(&boot);
        let said =
            Said { host_boot: format!("w{host}-{}", self.hosts[host].boots), uptime_millis: mono.as_millis() as u64 };
        self.send_up(conn, Up::Hello { offer, held, said });
        self.later(host, WELCOME_TIMEOUT, Wrk::WelcomeTimeout(conn));
    }

    fn look_for_silence(&mut self, host: usize, conn: ConnId) {
        let now = self.now;
        let Some(process) = self.proc(host) else { return };
        if process.conn != Some(conn) {
            return;
        }
        let left = (process.heard_at + SILENCE).saturating_sub(now);
        if left == 0 {
            self.close_at_worker(conn);
            self.session_lost(host);
        } else {
            self.later(host, left, Wrk::Silence(conn));
        }
    }

    fn session_lost(&mut self, host: usize) {
        let Some(process) = self.proc(host) else { return };
        process.tries = if process.welcomed { 1 } else { process.tries + 1 };
        process.conn = None;
        process.welcomed = false;
        let tries = process.tries;
        let wait = self.pause(tries);
        self.later(host, wait, Wrk::Open);
    }

    /// The controller says something.
    pub fn worker_hears(&mut self, host: usize, id: ConnId, message: Down) {
        let now = self.now;
        self.trace.say(now, || format!("w{host} < #{id}: {}", brief(&message)));
        if let Some(Line::Log(lease)) = self.conns.get(&id).map(|conn| conn.line) {
            self.log_line_hears(host, lease, id, message);
            return self.settle(host);
        }
        let mono = self.hosts[host].mono(now);
        let Some(process) = self.hosts[host].process.as_mut().filter(|process| process.conn == Some(id)) else {
            return;
        };
        process.heard_at = now;
        let actions = match message {
            Down::Welcome { held } => {
                process.welcomed = true;
                process.next_beat_at = mono;
                let leaving = process.standing != Standing::Working;
                let actions = process.session.handle_welcome(&held.iter().copied().collect());
                let session = &process.session;
                let mut kept = process.attempts.keys().copied();
                let kept = kept.find(|lease| !held.contains(lease) && session.confirmed_at(*lease).is_some());
                if let Some(lease) = kept {
                    let why = format!("w{host} keeps {lease}, which its welcome does not name");
                    return self.breaks("welcome-is-heard", why);
                }
                if leaving {
                    self.send_up(id, Up::Draining);
                }
                self.later(host, SILENCE, Wrk::Silence(id));
                actions
            }
            Down::Ack { sequence, lost } => process.session.handle_ack(sequence, &lost),
            Down::Cancel { lease, reason } => process.session.handle_cancel(lease, reason),
            Down::Order(order) => return self.take_order(host, *order),
            Down::Refused => {
                // Nobody wants it: it stops, and whoever looks after the host starts it again.
                self.close_at_worker(id);
                return self.refused(host);
            }
            Down::Close => {
                self.close_at_worker(id);
                return self.session_lost(host);
            }
            Down::LogAck(_) | Down::LogRefused(_) => Vec::new(),
        };
        self.act(host, actions);
        self.settle(host);
    }

    /// A connection is gone.
    pub fn worker_loses(&mut self, host: usize, id: ConnId) {
        match self.conns.get(&id).map(|conn| conn.line) {
            Some(Line::Log(lease)) => self.log_line_lost(host, lease, id),
            Some(Line::Session) if self.proc(host).is_some_and(|process| process.conn == Some(id)) => {
                self.session_lost(host);
            }
            _ => {}
        }
        self.settle(host);
    }

    fn take_order(&mut self, host: usize, order: Order) {
        let mono = self.hosts[host].mono(self.now);
        let lease = order.lease;
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        let verdict = process.session.handle_order(mono, lease, Duration::from_millis(order.ttl_millis.into()));
        match verdict {
            Verdict::Known => {}
            Verdict::Late => {
                let outcome = Outcome::new(OutcomeKind::Lost, Reason::WorkerGone, "the order took too long");
                let (artifacts, uploads) = (Vec::new(), Vec::new());
                let report = ReportCall { lease, outcome, artifacts, image: None, uploads, log_bytes: 0 };
                let process = process.number;
                self.give_back(host, process, Box::new(report), 1);
            }
            Verdict::Start if process.attempts.contains_key(&lease) => process.session.handle_done(lease),
            Verdict::Start => {
                let leaving = process.standing != Standing::Working;
                process.attempts.insert(lease, Attempt::new(&self.config, order));
                self.begin_attempt(host, lease);
                if leaving {
                    self.stop_attempt_softly(host, lease);
                }
            }
        }
        self.settle(host);
    }

    /// An order that was not begun is reported at once, or its lease would have to expire.
    pub fn give_back(&mut self, host: usize, process: u32, report: Box<ReportCall>, tries: u32) {
        if self.process(host, process).is_some() {
            let caller = Caller::GiveBack { host, process, report: report.clone(), tries };
            self.call(caller, Rpc::Report { host, report });
        }
    }

    /// What the session wants done.
    pub fn act(&mut self, host: usize, actions: Vec<Action>) {
        for action in actions {
            let now = self.now;
            self.trace.say(now, || format!("w{host} session: {action:?}"));
            match action {
                Action::Cancel { lease, reason } => {
                    self.check_cancelled(host, lease);
                    self.stop_attempt(host, lease, Stop::Cancelled(reason));
                }
                Action::Fence { lease, silent_for } => self.stop_attempt(host, lease, Stop::Fenced { silent_for }),
                Action::Abandon(lease) => self.stop_attempt(host, lease, Stop::Abandoned),
            }
        }
    }

    /// After anything has happened to a process: what is due by the clock, and the next alarm.
    pub fn settle(&mut self, host: usize) {
        let (now, mono) = (self.now, self.hosts[host].mono(self.now));
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        let actions = process.session.tick(mono);
        self.act(host, actions);
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        if let Standing::Leaving(down) = process.standing
            && process.attempts.is_empty()
        {
            return self.worker_leaves(host, down);
        }
        if let Some(conn) = process.conn.filter(|_| process.welcomed && mono >= process.next_beat_at) {
            let (sequence, leases) = process.session.handle_beat(mono);
            process.next_beat_at = mono + process.session.heartbeat_interval(Duration::from_millis(HEARTBEAT));
            let full = self.disk_is_full(host);
            let free_disk_bytes = if full { 0 } else { self.hosts[host].capacity.disk_bytes };
            self.send_up(conn, Up::Beat { sequence, leases, free_disk_bytes });
        }
        let Some(process) = self.hosts[host].process.as_ref() else { return };
        let beat = process.welcomed.then_some(process.next_beat_at);
        let next = [process.session.next_tick_at(), beat].into_iter().flatten().min();
        let Some(at) = next.map(|next| self.hosts[host].when(next).max(now + 1)) else { return };
        if process.wake.is_none_or(|wake| wake > at) {
            let number = process.number;
            if let Some(process) = self.proc(host) {
                process.wake = Some(at);
            }
            self.queue.put(at, Happening::Worker(host, number, Wrk::Wake));
        }
    }

    /// Everything is reported: the process ends by itself.
    fn worker_leaves(&mut self, host: usize, down: Ms) {
        let now = self.now;
        self.trace.say(now, || format!("w{host} stops"));
        let Some(process) = self.hosts[host].process.take() else { return };
        if let Some(conn) = process.conn {
            self.close_at_worker(conn);
        }
        self.queue.put(now + down, Happening::WorkerStarts(host));
    }
}

fn brief(message: &Down) -> String {
    match message {
        Down::Order(order) => format!("order {} {}", order.lease, order.job),
        other => format!("{other:?}"),
    }
}
