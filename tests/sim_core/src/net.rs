//! The network: connections in which order holds, calls in which nothing does, and cuts.
//!
//! A connection is TCP as a program sees it: bytes arrive in order or the connection breaks. A cut holds them back; when it
//! is over they are sent again, unless keepalive has given up. Different connections overtake one another.

use crate::queue::Ms;
use crate::world::{Happening, World};
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::id::{BuildId, JobSelector, LeaseId};
use railyard_common::order::Order;
use railyard_common::outcome::Outcome;
use railyard_core::{HoldKind, Said, WorkerOffer};
use railyard_proto::v1::Phase;
use std::collections::VecDeque;

/// How long a worker waits for an answer.
const ANSWER_TIMEOUT: Ms = 120_000;
/// How long a person's command line waits for an answer.
const CLIENT_TIMEOUT: Ms = 10_000;
/// Keepalive gives a connection up when nothing came through for so long.
pub const KEEPALIVE: Ms = 30_000;

/// A connection.
pub type ConnId = u64;
/// One try of a call.
pub type CallId = u64;

/// From a worker to the controller, on a connection.
#[derive(Clone, Debug)]
pub enum Up {
    /// The first message of a session.
    Hello { offer: Box<WorkerOffer>, held: Vec<LeaseId>, said: Said },
    /// A heartbeat.
    Beat { sequence: u64, leases: Vec<(LeaseId, Phase)>, free_disk_bytes: u64 },
    /// No more orders, please.
    Draining,
    /// Bytes of a log.
    Log { lease: LeaseId, offset: u64, bytes: u64 },
    /// The end of the connection.
    Close,
}

/// From the controller to a worker, on a connection.
#[derive(Clone, Debug)]
pub enum Down {
    /// The answer to the hello.
    Welcome { held: Vec<LeaseId> },
    /// The answer to a heartbeat.
    Ack { sequence: u64, lost: Vec<LeaseId> },
    /// Run this.
    Order(Box<Order>),
    /// Stop that.
    Cancel { lease: LeaseId, reason: String },
    /// So many bytes of the log are durable.
    LogAck(u64),
    /// No log bytes are taken on this connection.
    LogRefused(Refused),
    /// The worker is not wanted.
    Refused,
    /// The end of the connection.
    Close,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A worker's session.
    Session,
    /// The log of an attempt.
    Log(LeaseId),
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the controller.
    Up,
    /// To the worker.
    Down,
}

/// What is on its way, in order.
#[derive(Debug)]
struct Pipe<T> {
    waiting: VecDeque<(Ms, T)>,
    last_at: Ms,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), last_at: 0 }
    }
}

/// A connection between a worker's process and the controller's.
#[derive(Debug)]
pub struct Conn {
    /// The worker's host.
    pub host: usize,
    /// The worker's process.
    pub process: u32,
    /// What it is for.
    pub line: Line,
    up: Pipe<Up>,
    down: Pipe<Down>,
    /// Whether the worker still has it open.
    pub at_worker: bool,
    /// The controller's process that has it open; `None` if it was closed there.
    pub at_controller: Option<u32>,
}

/// A call.
#[derive(Clone, Debug)]
pub enum Rpc {
    /// A worker's report.
    Report { host: usize, report: Box<ReportCall> },
    /// What does the cache lack?
    PrepareUpload { host: usize, lease: LeaseId, blobs: Vec<Blob> },
    /// Where are my inputs?
    PrepareDownload { host: usize, lease: LeaseId },
    /// Run a pipeline: build number `number`, as `name` or as the next free version.
    Submit { number: usize, name: Option<BuildId>, key: Option<String> },
    /// Stop a build.
    Cancel { build: BuildId },
    /// Stop some jobs of it.
    CancelJobs { build: BuildId, jobs: JobSelector },
    /// Let go on what waits for that.
    Approve { build: BuildId },
    /// Hold a worker back.
    Hold { host: usize, kind: HoldKind, stop_in: Option<Ms>, ends_in: Option<Ms> },
    /// Take it back.
    Release { host: usize },
    /// Run it again.
    Retry { build: BuildId, step: Option<JobSelector> },
}

/// What a report says.
#[derive(Clone, Debug)]
pub struct ReportCall {
    pub lease: LeaseId,
    pub outcome: Outcome,
    pub artifacts: Vec<Artifact>,
    pub image: Option<Image>,
    pub uploads: Vec<(u64, Blob)>,
    pub log_bytes: u64,
}

/// Why a call was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The lease is over.
    Stale,
    /// An outage: it passes.
    Passing,
    /// Log bytes do not follow on those that are known.
    Gap,
    /// The same call is refused again.
    Final(String),
}

/// A call's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// For each blob: the upload to send it in, or nothing to do.
    Tickets(Vec<Option<u64>>),
    /// This build.
    Build(BuildId),
}

/// Who called.
#[derive(Clone, Debug)]
pub enum Caller {
    /// An attempt.
    Attempt { host: usize, process: u32, lease: LeaseId },
    /// A worker that did not begin an order.
    GiveBack { host: usize, process: u32, report: Box<ReportCall>, tries: u32 },
    /// A client.
    Client(usize),
}

impl Caller {
    fn host(&self) -> Option<usize> {
        match self {
            Self::Attempt { host, .. } | Self::GiveBack { host, .. } => Some(*host),
            Self::Client(_) => None,
        }
    }
}

impl World {
    /// Opens a connection.
    pub fn connect(&mut self, host: usize, process: u32, line: Line) -> ConnId {
        self.last_conn += 1;
        let at_controller = self.controller.epoch();
        let (up, down) = (Pipe::default(), Pipe::default());
        let conn = Conn { host, process, line, up, down, at_worker: true, at_controller };
        self.conns.insert(self.last_conn, conn);
        if at_controller.is_none() {
            let at = self.now + self.delay();
            self.queue.put(at, Happening::Broken(self.last_conn, Way::Down));
        }
        self.last_conn
    }

    /// Sends to the controller.
    pub fn send_up(&mut self, id: ConnId, message: Up) {
        let delay = self.delay();
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.at_worker) else { return };
        conn.up.last_at = conn.up.last_at.max(now + delay);
        conn.up.waiting.push_back((conn.up.last_at, message));
        if conn.up.waiting.len() == 1 {
            self.queue.put(conn.up.last_at, Happening::Arrives(id, Way::Up));
        }
        self.maybe_reset(id);
    }

    /// Sends to the worker.
    pub fn send_down(&mut self, id: ConnId, message: Down) {
        let delay = self.delay();
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.at_controller.is_some()) else { return };
        conn.down.last_at = conn.down.last_at.max(now + delay);
        conn.down.waiting.push_back((conn.down.last_at, message));
        if conn.down.waiting.len() == 1 {
            self.queue.put(conn.down.last_at, Happening::Arrives(id, Way::Down));
        }
        self.maybe_reset(id);
    }

    fn maybe_reset(&mut self, id: ConnId) {
        if self.chaos() && self.net.chance(self.rates.reset) {
            self.reset(id);
        }
    }

    /// The connection breaks. Each end notices by itself.
    pub fn reset(&mut self, id: ConnId) {
        for way in [Way::Up, Way::Down] {
            let at = self.now + self.net.within(1, 2_000);
            self.queue.put(at, Happening::Broken(id, way));
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.up.waiting.clear();
            conn.down.waiting.clear();
        }
    }

    /// A host has lost power: what it had not got through is gone with it.
    pub fn forget_unsent(&mut self, host: usize) {
        self.conns.values_mut().filter(|conn| conn.host == host).for_each(|conn| conn.up.waiting.clear());
    }

    /// The worker closes a connection. What is on its way to the controller still arrives.
    pub fn close_at_worker(&mut self, id: ConnId) {
        self.send_up(id, Up::Close);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.at_worker = false;
        }
        self.forget_conn(id);
    }

    /// The controller closes a connection.
    pub fn close_at_controller(&mut self, id: ConnId) {
        self.send_down(id, Down::Close);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.at_controller = None;
        }
        self.forget_conn(id);
    }

    fn forget_conn(&mut self, id: ConnId) {
        let gone = |conn: &Conn| {
            let quiet = conn.up.waiting.is_empty() && conn.down.waiting.is_empty();
            !conn.at_worker && conn.at_controller.is_none() && quiet
        };
        if self.conns.get(&id).is_some_and(gone) {
            self.conns.remove(&id);
        }
    }

    /// The next message of a connection may have arrived.
    pub fn arrives(&mut self, id: ConnId, way: Way) {
        let now = self.now;
        let Some(conn) = self.conns.get(&id) else { return };
        let host = conn.host;
        let held = match way {
            Way::Up => self.hosts[host].cut.up_until.max(self.controller.paused_until),
            Way::Down => self.hosts[host].cut.down_until.max(self.hosts[host].paused_until),
        };
        if held > now {
            let at = held + self.net.within(1, 400);
            return self.queue.put(at, Happening::Arrives(id, way));
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let process = conn.process;
        match way {
            Way::Up => {
                let Some((_, message)) = conn.up.waiting.pop_front() else { return };
                if let Some((at, _)) = conn.up.waiting.front() {
                    self.queue.put((*at).max(now), Happening::Arrives(id, Way::Up));
                }
                let open = conn.at_controller.is_some_and(|epoch| self.controller.epoch() == Some(epoch));
                if open {
                    self.controller_hears(id, message);
                }
            }
            Way::Down => {
                let Some((_, message)) = conn.down.waiting.pop_front() else { return };
                if let Some((at, _)) = conn.down.waiting.front() {
                    self.queue.put((*at).max(now), Happening::Arrives(id, Way::Down));
                }
                if conn.at_worker && self.process(host, process).is_some() {
                    self.worker_hears(host, id, message);
                }
            }
        }
        self.forget_conn(id);
    }

    /// One end notices that the connection is gone.
    pub fn broken(&mut self, id: ConnId, way: Way) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match way {
            Way::Up => {
                let open = conn.at_controller.take().is_some_and(|epoch| self.controller.epoch() == Some(epoch));
                if open {
                    self.controller_loses(id);
                }
            }
            Way::Down => {
                let (host, process) = (conn.host, conn.process);
                if std::mem::take(&mut conn.at_worker) && self.process(host, process).is_some() {
                    self.worker_loses(host, id);
                }
            }
        }
        self.forget_conn(id);
    }

    /// How long a message takes.
    pub fn delay(&mut self) -> Ms {
        let slow = self.chaos() && self.net.chance(self.rates.delay);
        if slow { self.net.within(200, 6_000) } else { self.net.within(1, 12) }
    }

    /// Calls; the answer comes to the caller, whatever happens.
    pub fn call(&mut self, caller: Caller, rpc: Rpc) -> CallId {
        self.last_call += 1;
        let id = self.last_call;
        let host = caller.host();
        let timeout = if host.is_some() { ANSWER_TIMEOUT } else { CLIENT_TIMEOUT };
        self.calls.insert(id, caller);
        self.queue.put(self.now + timeout, Happening::Answered(id, Err(Refused::Passing)));
        let cut = host.is_some_and(|host| self.hosts[host].cut.up_until > self.now);
        let dropped = self.chaos() && self.net.chance(self.rates.drop);
        if cut || dropped {
            self.fail_call(id);
            // What was dropped may be an answer only: the call has been carried out.
            if cut || self.net.chance(700) {
                return id;
            }
        }
        let copies = 1 + u64::from(self.chaos() && self.net.chance(self.rates.duplicate));
        for _ in 0..copies {
            let at = self.now + self.delay();
            self.queue.put(at, Happening::Called(id, rpc.clone()));
        }
        id
    }

    fn fail_call(&mut self, id: CallId) {
        let at = self.now + self.net.within(20, KEEPALIVE);
        self.queue.put(at, Happening::Answered(id, Err(Refused::Passing)));
    }

    /// A call reaches the controller.
    pub fn called(&mut self, id: CallId, rpc: Rpc) {
        if self.controller.paused_until > self.now {
            let at = self.controller.paused_until;
            return self.queue.put(at, Happening::Called(id, rpc));
        }
        if self.controller.epoch().is_none() {
            return self.answer(id, Err(Refused::Passing));
        }
        self.controller_takes(id, rpc);
    }

    /// The controller answers a call.
    pub fn answer(&mut self, id: CallId, answer: Result<Reply, Refused>) {
        let Some(caller) = self.calls.get(&id) else { return };
        let cut = caller.host().is_some_and(|host| self.hosts[host].cut.down_until > self.now);
        if cut || (self.chaos() && self.net.chance(self.rates.drop)) {
            return self.fail_call(id);
        }
        let at = self.now + self.delay();
        self.queue.put(at, Happening::Answered(id, answer));
    }

    /// An answer reaches its caller.
    pub fn answered(&mut self, id: CallId, answer: Result<Reply, Refused>) {
        let Some(caller) = self.calls.get(&id) else { return };
        if let Some(until) = caller.host().map(|host| self.hosts[host].paused_until).filter(|until| *until > self.now) {
            return self.queue.put(until, Happening::Answered(id, answer));
        }
        let Some(caller) = self.calls.remove(&id) else { return };
        match caller {
            Caller::Attempt { host, process, lease } => {
                if self.process(host, process).is_some() {
                    self.attempt_answered(host, lease, id, answer);
                    self.settle(host);
                }
            }
            Caller::GiveBack { host, process, report, tries } => {
                if self.process(host, process).is_some() && answer == Err(Refused::Passing) {
                    let at = self.now + self.pause(tries);
                    self.queue.put(at, Happening::GiveBack { host, process, report, tries: tries + 1 });
                }
            }
            Caller::Client(client) => self.client_answered(client, answer),
        }
    }

    /// The controller's process is gone: whoever waits for it notices.
    pub fn break_calls(&mut self) {
        let ids: Vec<CallId> = self.calls.keys().copied().collect();
        for id in ids {
            let at = self.now + self.net.within(10, 3_000);
            self.queue.put(at, Happening::Answered(id, Err(Refused::Passing)));
        }
    }

    /// The wait before try `n`, as the worker's own.
    pub fn pause(&mut self, n: u32) -> Ms {
        let noise = self.net.any();
        railyard_worker::uplink::RETRY.jittered_millis(n.max(1), noise)
    }
}
