//! What a seed draws: the farm, the builds, and what goes wrong when.

use crate::dice::Dice;
use crate::net::CONTROLLER;
use crate::script::Script;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Faults begin here at the earliest: workers have connected by then.
const QUIET_MILLIS: u64 = 1_000;
/// And end here at the latest.
const FAULTS_END_MILLIS: u64 = 50_000;
/// A clock goes wrong by a twentieth at most. A worker's that is slow and a controller's that is fast eat up a tenth of a lease
/// together; the worker stops a container when a quarter of it is left, and needs the rest for that.
const RATE_MAX_PPM: u64 = 50_000;
/// What a clock of a machine is usually wrong by, at most.
const RATE_USUAL_PPM: u64 = 200;
/// A wall clock that nobody has set.
const WALL_MAX_MILLIS: u64 = 3 * 24 * 3_600_000;
/// Clocks are drawn from numbers of their own.
const CLOCKS: u64 = 0x0c10_c450_0000_0000;

/// One simulation.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it was drawn from; also what the network draws its delays from.
    pub seed: u64,
    /// Hosts with a worker.
    pub workers: Vec<String>,
    /// People, each with a build.
    pub people: Vec<Submission>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// When everything is repaired.
    pub repaired_at: Duration,
    /// Hosts whose clocks are wrong.
    pub clocks: BTreeMap<String, Skew>,
    /// Something here is not as it is taken to be: to see that this is found.
    pub planted: Option<Planted>,
}

/// How a host's clocks are wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skew {
    /// They gain so many microseconds in a second, or lose them.
    pub rate_ppm: i64,
    /// And the wall clock is so far ahead, or behind.
    pub wall_millis: i64,
}

/// What this simulation can do wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A killed controller's disk has not kept the last events, though it said so.
    LossyDisk,
    /// Engines take a minute to end a container that they were told to stop.
    DeafEngine,
    /// Workers' clocks run at half the speed.
    SlowClock,
}

/// A build that somebody submits.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Their host, and the pipeline's name.
    pub person: String,
    /// When.
    pub at: Duration,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// A step without artifacts.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Steps that must have succeeded.
    pub needs: Vec<String>,
    /// What its container does.
    pub script: Script,
    /// How long its lease lives.
    pub ttl_secs: u64,
    /// How long it may run.
    pub timeout_secs: u64,
}

/// Something goes wrong for a while.
#[derive(Clone, Debug)]
pub struct Fault {
    /// From when.
    pub at: Duration,
    /// Until when.
    pub until: Duration,
    /// What.
    pub what: Trouble,
}

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing gets through between a host and the controller.
    Cut(String),
    /// Nothing of what the host says gets through.
    CutFrom(String),
    /// Nothing of what the controller says to the host gets through.
    CutTo(String),
    /// Everything is late: it arrives when this is over.
    Hold(String),
    /// The link is slow: so many milliseconds each way.
    Slow(String, u64),
    /// The controller's process is killed, and started again.
    ControllerKilled,
    /// A worker's process is killed, and started again.
    WorkerKilled(String),
    /// A worker's host loses its power: no connection is closed, nothing on it runs on.
    PowerLoss(String),
}

impl Scenario {
    /// Draws one.
    pub fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let workers: Vec<String> = (1..=dice.within(2..=5)).map(|n| format!("w{n}")).collect();
        let people: Vec<Submission> = (1..=dice.within(1..=3)).map(|n| submission(&mut dice, n)).collect();
        let mut faults = Vec::new();
        for worker in &workers {
            faults.extend(link_faults(&mut dice, worker, true));
        }
        for person in &people {
            faults.extend(link_faults(&mut dice, &person.person, false));
        }
        let mut at = dice.within(QUIET_MILLIS..=40_000);
        while dice.chance(60) && at < FAULTS_END_MILLIS {
            let until = at + dice.within(200..=12_000);
            faults.push(fault(at, until, Trouble::ControllerKilled));
            at = until + dice.within(500..=20_000);
        }
        faults.sort_by_key(|fault| fault.at);
        let repaired_at = faults.iter().map(|fault| fault.until).max().unwrap_or_default();
        let clocks = clocks(&mut Dice::new(seed ^ CLOCKS), &workers);
        Self { seed, workers, people, faults, repaired_at, clocks, planted: None }
    }

    /// A farm on which nothing goes wrong by itself, with one build, or none if it has no step.
    pub fn calm(workers: usize, steps: Vec<Step>) -> Self {
        let build = Submission { person: "p1".to_owned(), at: Duration::from_secs(1), steps };
        let people = Some(build).filter(|build| !build.steps.is_empty()).into_iter().collect();
        let workers = (1..=workers).map(|n| format!("w{n}")).collect();
        let (faults, clocks) = (Vec::new(), BTreeMap::new());
        Self { seed: 0, workers, people, faults, repaired_at: Duration::ZERO, clocks, planted: None }
    }
}

/// Of most hosts the clocks are a little wrong, of some a lot.
fn clocks(dice: &mut Dice, workers: &[String]) -> BTreeMap<String, Skew> {
    let mut clocks = BTreeMap::new();
    for host in workers.iter().map(String::as_str).chain([CONTROLLER]) {
        let rate_max = if dice.chance(40) { RATE_MAX_PPM } else { RATE_USUAL_PPM };
        let mut either_way = |max: u64| dice.within(0..=2 * max).cast_signed() - max.cast_signed();
        let skew = Skew { rate_ppm: either_way(rate_max), wall_millis: either_way(WALL_MAX_MILLIS) };
        if dice.chance(80) {
            clocks.insert(host.to_owned(), skew);
        }
    }
    clocks
}

fn submission(dice: &mut Dice, n: u64) -> Submission {
    let mut steps: Vec<Step> = Vec::new();
    for index in 0..dice.within(1..=5) {
        let needs = steps.iter().filter(|_| dice.chance(35)).map(|step| step.name.clone()).collect();
        steps.push(step(dice, index, needs));
    }
    Submission { person: format!("p{n}"), at: Duration::from_millis(dice.within(100..=20_000)), steps }
}

fn step(dice: &mut Dice, index: u64, needs: Vec<String>) -> Step {
    let exit = match dice.within(0..=99) {
        0..=81 => Some(0),
        82..=92 => Some(i64::try_from(dice.within(1..=3)).unwrap_or(1)),
        _ => None,
    };
    let lines = u32::try_from(dice.within(0..=30)).unwrap_or_default();
    let width = usize::try_from(dice.within(0..=200)).unwrap_or_default();
    // Some seconds or half a minute: longer than a short lease lives without its worker.
    let script = Script { lines, width, every_millis: dice.within(20..=1_200), exit };
    Step { name: format!("s{index}"), needs, script, ttl_secs: *dice.pick(&[10, 10, 16, 24]), timeout_secs: 40 }
}

/// What goes wrong between a host and the controller, one thing after the other.
fn link_faults(dice: &mut Dice, host: &str, is_worker: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut at = dice.within(QUIET_MILLIS..=30_000);
    while dice.chance(65) && at < FAULTS_END_MILLIS {
        // Shorter than the shortest lease, or longer than most.
        let length = if dice.chance(60) { dice.within(100..=6_000) } else { dice.within(8_000..=40_000) };
        let host = host.to_owned();
        let what = match dice.within(0..=if is_worker { 8 } else { 5 }) {
            0 | 1 => Trouble::Cut(host),
            2 => Trouble::CutFrom(host),
            3 => Trouble::CutTo(host),
            4 => Trouble::Hold(host),
            5 => Trouble::Slow(host, dice.within(200..=2_500)),
            6 | 7 => Trouble::WorkerKilled(host),
            _ => Trouble::PowerLoss(host),
        };
        faults.push(fault(at, at + length, what));
        at += length + dice.within(200..=15_000);
    }
    faults
}

fn fault(at: u64, until: u64, what: Trouble) -> Fault {
    Fault { at: Duration::from_millis(at), until: Duration::from_millis(until), what }
}

impl Submission {
    /// The pipeline file.
    pub fn pipeline(&self) -> String {
        let mut text = format!("name: {}\nplatforms: [linux/amd64]\nsteps:\n", self.person);
        for step in &self.steps {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "  - name: {}\n    image: simulated\n    script: \"{}\"\n    needs: [{}]\n    lease_ttl: {}s\n    timeout: {}s\n",
                step.name,
                step.script.text(),
                step.needs.join(", "),
                step.ttl_secs,
                step.timeout_secs
            );
        }
        text
    }
}
