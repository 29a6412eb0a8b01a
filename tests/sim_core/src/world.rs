//! Everything there is, and the loop in which it happens.

use crate::client::Client;
use crate::config::{Config, Trouble};
use crate::controller::{Controller, Ctl};
use crate::dice::{Dice, Purpose};
use crate::faults::Fault;
use crate::host::{Eng, Host, Wrk};
use crate::ledger::{Broken, Ledger};
use crate::net::{CallId, Caller, Conn, ConnId, Refused, Reply, ReportCall, Rpc, Way};
use crate::queue::{Ms, Queue};
use crate::store::Store;
use crate::trace::{Listen, Trace};
use std::collections::BTreeMap;

/// When nothing breaks any more, everything that was submitted ends within this time: the longest chain of jobs with every
/// attempt at its timeout, and the longest backoffs between them.
const SETTLE: Ms = 4 * 3_600_000;

/// One thing that happens.
pub enum Happening {
    /// A message of a connection may arrive.
    Arrives(ConnId, Way),
    /// The end to which `Way` leads notices that a connection is gone.
    Broken(ConnId, Way),
    /// A call reaches the controller.
    Called(CallId, Rpc),
    /// An answer reaches its caller.
    Answered(CallId, Result<Reply, Refused>),
    /// A worker reports again what it did not begin.
    GiveBack { host: usize, process: u32, report: Box<ReportCall>, tries: u32 },
    /// Something in the controller's process of that number.
    Controller(u32, Ctl),
    /// Something on a host since its boot of that number.
    Engine(usize, u32, Eng),
    /// Something in a worker's process of that number.
    Worker(usize, u32, Wrk),
    /// A client goes on.
    Client(usize),
    /// Something breaks.
    Fault(usize),
    /// The controller's process starts.
    ControllerStarts,
    /// A host's worker starts; with the whole host if it was down.
    WorkerStarts(usize),
    /// A container of that lease must be gone by now.
    MustBeGone(usize, railyard_common::id::LeaseId),
    /// Nothing breaks from now on.
    Calm,
}

/// How often each sort of trouble comes, out of a thousand.
pub struct Rates {
    pub drop: u64,
    pub duplicate: u64,
    pub delay: u64,
    pub reset: u64,
    pub store: u64,
    pub journal: u64,
    pub engine: u64,
}

/// Everything.
pub struct World {
    pub config: Config,
    pub now: Ms,
    pub queue: Queue<Happening>,
    pub trace: Trace,
    pub rates: Rates,
    pub net: Dice,
    pub engine: Dice,
    pub disks: Dice,
    pub conns: BTreeMap<ConnId, Conn>,
    pub last_conn: ConnId,
    pub calls: BTreeMap<CallId, Caller>,
    pub last_call: CallId,
    pub controller: Controller,
    pub store: Store,
    pub hosts: Vec<Host>,
    pub clients: Vec<Client>,
    pub faults: Vec<(Ms, Fault)>,
    pub ledger: Ledger,
    chaos_end: Ms,
    happenings: u64,
}

/// What came of a world.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first broken invariant.
    pub broken: Option<Broken>,
    /// Hash and length of the trace, if one was asked for.
    pub trace: (u64, u64),
    /// How much happened.
    pub happenings: u64,
    /// Farm events that became durable.
    pub events: u64,
    /// Attempts that were begun.
    pub attempts: u64,
}

/// Runs the world of `config` to its end.
pub fn run(config: &Config, listen: Listen) -> Outcome {
    World::new(config.clone(), listen).run()
}

impl World {
    fn new(config: Config, listen: Listen) -> Self {
        let seed = config.seed;
        let rates = Rates {
            drop: config.rate(Trouble::Drop, 100),
            duplicate: config.rate(Trouble::Duplicate, 100),
            delay: config.rate(Trouble::Delay, 60),
            reset: config.rate(Trouble::Reset, 15),
            store: config.rate(Trouble::Store, 150),
            journal: config.rate(Trouble::Journal, 30),
            engine: config.rate(Trouble::Engine, 300),
        };
        let chaos_end = config.chaos_secs * 1000;
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            trace: Trace::new(listen),
            rates,
            net: Dice::new(seed, Purpose::Net),
            engine: Dice::new(seed, Purpose::Engine),
            disks: Dice::new(seed, Purpose::Disks),
            conns: BTreeMap::new(),
            last_conn: 0,
            calls: BTreeMap::new(),
            last_call: 0,
            controller: Controller::new(&config),
            store: Store::default(),
            hosts: crate::host::hosts(&config),
            clients: crate::client::clients(&config),
            faults: crate::faults::schedule(&config),
            ledger: Ledger::default(),
            chaos_end,
            happenings: 0,
            config,
        };
        world.queue.put(0, Happening::ControllerStarts);
        for host in 0..world.hosts.len() {
            world.queue.put(host as Ms % 7, Happening::WorkerStarts(host));
        }
        for client in 0..world.clients.len() {
            world.queue.put(50, Happening::Client(client));
        }
        for (index, (at, _)) in world.faults.iter().enumerate() {
            if !world.config.skip.contains(&index) {
                world.queue.put(*at, Happening::Fault(index));
            }
        }
        world.queue.put(chaos_end, Happening::Calm);
        world
    }

    /// Whether things still break.
    pub fn chaos(&self) -> bool {
        self.now < self.chaos_end
    }

    fn run(mut self) -> Outcome {
        while let Some((at, what)) = self.queue.take() {
            self.now = self.now.max(at);
            self.happenings += 1;
            self.happen(what);
            if self.ledger.broken.is_some() {
                break;
            }
            if !self.chaos() && self.is_quiet() {
                self.check_end();
                break;
            }
            if self.now > self.chaos_end + SETTLE {
                let why = self.unfinished();
                self.breaks("everything-ends", format!("{} s after the last fault: {why}", SETTLE / 1000));
                break;
            }
        }
        Outcome {
            broken: self.ledger.broken.take(),
            trace: self.trace.hash(),
            happenings: self.happenings,
            events: self.ledger.events,
            attempts: self.ledger.attempts,
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Arrives(conn, way) => self.arrives(conn, way),
            Happening::Broken(conn, way) => self.broken(conn, way),
            Happening::Called(call, rpc) => self.called(call, rpc),
            Happening::Answered(call, answer) => self.answered(call, answer),
            Happening::GiveBack { host, process, report, tries } => self.give_back(host, process, report, tries),
            Happening::Controller(epoch, what) => self.controller_event(epoch, what),
            Happening::Engine(host, boot, what) => self.engine_event(host, boot, what),
            Happening::Worker(host, process, what) => self.worker_event(host, process, what),
            Happening::Client(client) => self.client_goes_on(client),
            Happening::Fault(index) => self.fault(index),
            Happening::ControllerStarts => self.controller_starts(),
            Happening::WorkerStarts(host) => self.worker_starts(host),
            Happening::MustBeGone(host, lease) => self.must_be_gone(host, lease),
            Happening::Calm => self.calm(),
        }
    }

    /// An invariant is broken.
    pub fn breaks(&mut self, invariant: &'static str, why: String) {
        let now = self.now;
        self.trace.say(now, || format!("BROKEN {invariant}: {why}"));
        self.ledger.breaks(now, invariant, why);
    }

    fn is_quiet(&self) -> bool {
        self.clients.iter().all(Client::is_done)
            && self.ledger.durable.builds().all(|build| build.is_ended())
            && self.hosts.iter().all(Host::is_quiet)
            && self.controller.epoch().is_some()
            && self.ledger.durable.live_leases().next().is_none()
    }

    /// For people: why it is not quiet.
    fn unfinished(&self) -> String {
        let mut why = Vec::new();
        for build in self.ledger.durable.builds().filter(|build| !build.is_ended()) {
            why.push(format!("{} is {:?}", build.id(), build.state));
            for id in build.jobs() {
                if let Some(job) = self.ledger.durable.job(id).filter(|job| !job.is_terminal()) {
                    why.push(format!("{id} is {:?}", job.state));
                }
            }
        }
        why.extend(self.ledger.durable.live_leases().map(|lease| format!("{lease} is live")));
        why.extend(self.clients.iter().filter(|client| !client.is_done()).map(Client::to_string));
        why.extend(self.hosts.iter().filter(|host| !host.is_quiet()).map(Host::to_string));
        why.join("; ")
    }

    fn check_end(&mut self) {
        for host in &self.hosts {
            let worker = self.ledger.durable.worker(&host.name);
            let open = host.session_conn().and_then(|conn| self.conns.get(&conn)).and_then(|conn| conn.at_controller);
            let connected = open.is_some() && open == self.controller.epoch() && self.controller.is_idle();
            if connected && host.is_working() && worker.is_some_and(|worker| worker.draining) {
                let why = format!("{} works, and the farm takes it for leaving", host.name);
                return self.breaks("working-is-not-draining", why);
            }
            if connected && !worker.is_some_and(|worker| worker.online) {
                let why = format!("{} is connected, and the farm takes it for gone", host.name);
                return self.breaks("connected-is-online", why);
            }
        }
        let manifests = &self.store.manifests;
        let without = self.ledger.durable.builds().find(|build| !manifests.contains_key(build.id()));
        if let Some(why) = without.map(|build| format!("{} has ended without its manifest", build.id())) {
            return self.breaks("manifest", why);
        }
        self.check_replay();
    }
}
