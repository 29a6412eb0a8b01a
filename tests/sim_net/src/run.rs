//! Runs a scenario to its end.

use crate::farm::Farm;
use crate::net::CONTROLLER;
use crate::people::{Person, Sights};
use crate::scenario::{Fault, Planted, Scenario, Trouble};
use crate::truth::stepped_to;
use crate::verdict;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};
use turmoil::Sim;

/// Simulated time moves in such steps; a message takes at least one.
pub const TICK: Duration = Duration::from_millis(25);
/// No link is slower unless a fault makes it so.
const LATENCY_MAX: Duration = Duration::from_millis(80);
/// After the faults, how long the farm has to end every build: the longest backoffs and leases, several times over.
const LIVENESS: Duration = Duration::from_secs(400);
/// And after that, until nothing is left lying about.
const SETTLING: Duration = Duration::from_secs(60);

/// How a simulation went.
#[derive(Clone, Debug)]
pub struct Report {
    /// What happened, a line each.
    pub trace: String,
    /// What should not have; nothing if all is well.
    pub broken: Vec<String>,
    /// Simulated time.
    pub took: Duration,
    /// Attempts that were leased.
    pub attempts: usize,
}

/// Runs it.
///
/// # Errors
/// If there is no place for its files.
pub fn run(scenario: &Scenario) -> anyhow::Result<Report> {
    Ok(Stage::open(scenario.clone())?.finish())
}

/// An empty network.
pub fn network<'a>(seed: u64) -> Sim<'a> {
    turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .epoch(SystemTime::UNIX_EPOCH)
        .simulation_duration(Duration::MAX)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(LATENCY_MAX)
        // Segments that wait to be read; a listener's backlog as well.
        .tcp_capacity(1024)
        .build()
}

/// A simulation on its way.
pub struct Stage<'a> {
    /// What it is about.
    pub scenario: Scenario,
    /// What the hosts share.
    pub farm: Farm,
    /// The hosts.
    pub sim: Sim<'a>,
    /// What everybody saw in the end.
    pub sights: Sights,
    acts: VecDeque<Act>,
    /// Everybody has seen what they waited for.
    all_seen: bool,
    failed: bool,
}

/// A fault begins or ends.
struct Act {
    at: Duration,
    begins: bool,
    what: Trouble,
}

impl Stage<'_> {
    /// All hosts, before the first moment.
    ///
    /// # Errors
    /// If there is no place for their files.
    pub fn open(scenario: Scenario) -> anyhow::Result<Self> {
        // What waits for a disk is done in place: no other thread has a say in the order of things.
        railyard_service::task::block_in_place();
        let farm = Farm::new(&scenario)?;
        let mut sim = network(scenario.seed);
        farm.add_controller(&mut sim);
        for worker in &scenario.workers {
            farm.add_worker(&mut sim, worker, worker);
        }
        let sights = Sights::default();
        for submission in &scenario.people {
            let (submission, truth, sights) = (submission.clone(), farm.truth.clone(), sights.clone());
            let name = submission.person.clone();
            sim.client(name.clone(), async move { Person::new(&name, truth)?.live(submission, sights).await });
        }
        let act = |at, begins, fault: &Fault| Act { at, begins, what: fault.what.clone() };
        let mut acts: Vec<Act> = Vec::new();
        for fault in &scenario.faults {
            acts.extend([act(fault.at, true, fault), act(fault.until, false, fault)]);
        }
        acts.sort_by_key(|act| act.at);
        Ok(Self { scenario, farm, sim, sights, acts: acts.into(), all_seen: false, failed: false })
    }

    /// Until every build has ended and nothing is left lying about; then judges.
    pub fn finish(mut self) -> Report {
        let deadline = self.sim.elapsed().max(self.scenario.repaired_at) + LIVENESS;
        if !self.run_until(deadline, |stage| stage.all_seen) {
            self.farm.truth.lock().broken(format!("the builds have not ended {LIVENESS:?} after the last fault"));
        }
        self.run_until(self.sim.elapsed() + SETTLING, |stage| verdict::is_settled(&stage.farm, &stage.scenario));
        let Self { scenario, farm, sim, sights, .. } = self;
        let took = sim.elapsed();
        drop(sim);
        let judged = verdict::judge(&farm, &scenario, &sights);
        let mut known = farm.truth.lock();
        judged.into_iter().for_each(|what| known.broken(what));
        let attempts = known.executions.len();
        Report { trace: std::mem::take(&mut known.trace), broken: std::mem::take(&mut known.broken), took, attempts }
    }

    /// Goes on for so long.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.sim.elapsed() + time, |_| false);
    }

    /// Goes on until `done`; `false` if that is not by `deadline`.
    pub fn run_until(&mut self, deadline: Duration, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            if self.sim.elapsed() >= deadline || self.failed {
                return false;
            }
            self.step();
        }
        true
    }

    fn step(&mut self) {
        stepped_to(self.sim.elapsed());
        while let Some(act) = self.acts.pop_front_if(|act| act.at <= self.sim.elapsed()) {
            self.farm.truth.note(&format!("{:?} {}", act.what, if act.begins { "begins" } else { "ends" }));
            if act.begins { self.begin(&act.what) } else { self.end(&act.what) }
        }
        match self.sim.step() {
            Ok(seen) => self.all_seen = seen,
            Err(error) => {
                self.failed = true;
                self.farm.truth.lock().broken(format!("a process ended: {error}"));
            }
        }
    }

    /// Something goes wrong from now on.
    pub fn begin(&mut self, what: &Trouble) {
        match what {
            Trouble::Cut(host) => self.sim.partition(host.as_str(), CONTROLLER),
            Trouble::CutFrom(host) => self.sim.partition_oneway(host.as_str(), CONTROLLER),
            Trouble::CutTo(host) => self.sim.partition_oneway(CONTROLLER, host.as_str()),
            Trouble::Hold(host) => self.sim.hold(host.as_str(), CONTROLLER),
            Trouble::Slow(host, millis) => {
                self.sim.set_link_latency(host.as_str(), CONTROLLER, Duration::from_millis(*millis));
            }
            Trouble::ControllerKilled => {
                self.sim.crash(CONTROLLER);
                if self.scenario.planted == Some(Planted::LossyDisk) {
                    self.farm.journal.lose(3);
                }
            }
            Trouble::WorkerKilled(host) => self.kill_worker(host),
            Trouble::PowerLoss(host) => {
                // First the link: a host without power closes no connection.
                self.sim.partition(host.as_str(), CONTROLLER);
                self.kill_worker(host);
                self.farm.truth.lock().power_off(host);
                self.farm.forget_boot(host);
            }
        }
    }

    fn kill_worker(&mut self, host: &str) {
        self.farm.truth.lock().worker_down(host);
        self.sim.crash(host);
    }

    /// It is over.
    pub fn end(&mut self, what: &Trouble) {
        match what {
            Trouble::Cut(host) => self.sim.repair(host.as_str(), CONTROLLER),
            Trouble::CutFrom(host) => self.sim.repair_oneway(host.as_str(), CONTROLLER),
            Trouble::CutTo(host) => self.sim.repair_oneway(CONTROLLER, host.as_str()),
            Trouble::Hold(host) => self.sim.release(host.as_str(), CONTROLLER),
            Trouble::Slow(host, _) => {
                self.sim.set_link_latency(host.as_str(), CONTROLLER, Duration::from_millis(5));
            }
            Trouble::ControllerKilled => self.sim.bounce(CONTROLLER),
            Trouble::WorkerKilled(host) => self.sim.bounce(host.as_str()),
            Trouble::PowerLoss(host) => {
                self.sim.repair(host.as_str(), CONTROLLER);
                self.sim.bounce(host.as_str());
            }
        }
    }
}
