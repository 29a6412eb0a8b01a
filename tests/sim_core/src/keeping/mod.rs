//! Worlds about keeping: random histories of builds, pins, tags, promotions, failures, leases, uploads, sweeps, crashes and
//! restores, with the real farm and the real sweep, against a simple model of what must stay.
//!
//! Everything that takes time in reality is cut into steps, and the seed decides which step comes next: a sweep is in the middle
//! of a listing while a worker is told that the cache has a blob, and the controller dies between two deletes.

mod builds;
mod model;
mod people;
mod promoting;
mod store;
mod sweeping;

use crate::dice::{Dice, Purpose};
use builds::Work;
use bytesize::ByteSize;
use model::Model;
use promoting::Promotion;
use railyard_common::id::{BuildId, LeaseId};
use railyard_common::planted::Bug;
use railyard_common::retention::{Age, Copies, Keep, Policy, Releases, Rule};
use railyard_common::time::Millis;
use railyard_core::sweep::Claims;
use railyard_core::{Command, Event, Farm, Refusal, Snapshot};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use store::Store;
use sweeping::Sweep;

/// The mistakes that are found here.
pub const BUGS: [Bug; 6] = [
    Bug::SweepWithoutGrace,
    Bug::SweepIgnoresLeases,
    Bug::SweepShortVersion,
    Bug::SweepFirstPage,
    Bug::SweepPartial,
    Bug::ClaimForgotten,
];

/// How long what is not kept stays.
const GRACE: u64 = 60_000;
/// Sweeps that the end of a world may take: a tombstone, its grace, what lies under it, and failures between.
const LAST_SWEEPS: u32 = 60;

/// What came of a world.
pub struct Outcome {
    /// What is broken first.
    pub broken: Option<String>,
    /// What happened, if somebody listened.
    pub trace: String,
    /// Steps that were taken.
    pub steps: u64,
    /// Objects that were deleted.
    pub deleted: u64,
    /// Builds that were forgotten.
    pub forgotten: u64,
    /// Sweeps that stopped for want of a whole view.
    pub stopped: u64,
}

/// One world.
struct World {
    dice: Dice,
    now: Millis,
    farm: Farm,
    store: Store,
    claims: Claims,
    sweep: Option<Sweep>,
    promotion: Option<Promotion>,
    policy: Policy,
    works: BTreeMap<LeaseId, Work>,
    model: Model,
    backup: Option<(Snapshot, Model)>,
    next: u64,
    /// Things go wrong: requests fail, listings are cut short, the controller dies.
    trouble: bool,
    listens: bool,
    out: Outcome,
}

/// Runs the world of a seed.
pub fn run(seed: u64, listens: bool) -> Outcome {
    let mut world = World::new(seed, listens);
    let steps = world.dice.within(200, 1_500);
    for _ in 0..steps {
        if world.out.broken.is_some() {
            break;
        }
        world.step();
        world.out.steps += 1;
    }
    world.end();
    world.out
}

impl World {
    fn new(seed: u64, listens: bool) -> Self {
        let mut dice = Dice::new(seed, Purpose::Clients);
        let rule = Rule {
            keep_last: dice.within(0, 4) as u32,
            keep_failed: dice.within(0, 2) as u32,
            failed_max_age: Age { secs: dice.pick(&[0, 120, 100_000]) },
            keep_releases: dice.pick(&[Releases::All, Releases::All, Releases::Last(1)]),
            min_age: Age { secs: dice.pick(&[0, 0, 30]) },
            max_age: dice.pick(&[None, None, Some(Age { secs: 600 })]),
            max_bytes: dice.pick(&[None, None, Some(ByteSize(400))]),
            old: dice.pick(&[Keep::Nothing, Keep::Nothing, Keep::Manifest, Keep::Published]),
            old_last: dice.pick(&[None, Some(1)]),
            ..Rule::default()
        };
        let policy = Policy {
            rules: vec![rule],
            max_bytes: dice.pick(&[None, None, Some(ByteSize(900))]),
            low_bytes: None,
            copies: Copies::OfEncoded,
        };
        let trouble = dice.chance(700);
        let now = Millis(1_800_000_000_000);
        let mut world = Self {
            dice,
            now,
            farm: Farm::default(),
            store: Store::new(now),
            claims: Claims::default(),
            sweep: None,
            promotion: None,
            policy,
            works: BTreeMap::new(),
            model: Model::default(),
            backup: None,
            next: 0,
            trouble,
            listens,
            out: Outcome { broken: None, trace: String::new(), steps: 0, deleted: 0, forgotten: 0, stopped: 0 },
        };
        world.hello();
        world
    }

    /// The next thing that happens.
    fn step(&mut self) {
        self.now = self.now.plus(self.dice.pick(&[0, 1, 10, 500, 3_000, 20_000]));
        match self.dice.below(100) {
            0..=7 => self.submit(),
            8..=15 => self.place(),
            16..=49 => self.work_on(),
            50..=55 => self.finalize(),
            56..=60 => self.somebody_wants_something(),
            61 | 66..=70 => self.promote_on(),
            62 => self.now = self.now.plus(self.dice.within(0, 2 * GRACE)),
            63 if self.trouble => self.crash(),
            64 if self.trouble && self.dice.chance(150) => self.back_up(),
            65 if self.trouble && self.dice.chance(150) => self.restore(),
            _ => self.sweep_on(),
        }
        if let Some(broken) = self.farm.check().into_iter().next() {
            self.breaks(format!("the farm is broken: {broken}"));
        }
    }

    /// Asks the farm, as the driver does.
    fn decide(&mut self, command: &Command) -> Result<Vec<Event>, Refusal> {
        let events = self.farm.decide(self.now, command)?;
        for event in &events {
            self.say(|| format!("{event:?}"));
            if let Some(why) = self.model.judge(self.now, event, &self.policy) {
                self.breaks(why);
            }
            self.farm.apply(event);
            self.model.note(self.now, event);
        }
        Ok(events)
    }

    /// The controller dies and comes back: what is not in the farm's state is forgotten.
    fn crash(&mut self) {
        self.say(|| "crash".to_owned());
        self.claims = Claims::default();
        (self.sweep, self.promotion) = (None, None);
        self.works.values_mut().for_each(Work::call_broke);
        let text = serde_json::to_string(&self.farm.snapshot()).expect("a snapshot is JSON");
        self.farm = Farm::restore(serde_json::from_str::<Parts>(&text).expect("it is read again").into());
        let started = self.decide(&Command::Started);
        debug_assert!(started.is_ok());
        self.hello();
    }

    fn back_up(&mut self) {
        self.say(|| "backup".to_owned());
        self.backup = Some((self.farm.snapshot(), self.model.clone()));
    }

    /// The journal is lost, and the last backup takes its place.
    fn restore(&mut self) {
        let Some((snapshot, model)) = self.backup.clone() else { return };
        self.crash();
        self.say(|| "restore".to_owned());
        self.farm = Farm::restore(snapshot);
        self.works.clear();
        let now = std::mem::replace(&mut self.model, model);
        self.model.restored(&now, &self.store);
        let restored = Event::ControllerRestored { at: self.now };
        self.farm.apply(&restored);
        let started = self.decide(&Command::Started);
        debug_assert!(started.is_ok());
        self.hello();
    }

    /// Everything stops but the sweeps: what nobody needs goes, and what somebody needs is there.
    fn end(&mut self) {
        self.trouble = false;
        self.finish_works();
        while self.promotion.is_some() || self.farm.promoting().next().is_some() {
            self.promote_on();
        }
        let mut quiet = 0;
        for _ in 0..LAST_SWEEPS {
            if self.out.broken.is_some() || quiet == 3 {
                break;
            }
            self.now = self.now.plus(GRACE);
            let before = (self.out.deleted, self.model.clone());
            self.sweep_to_its_end();
            quiet = if before == (self.out.deleted, self.model.clone()) { quiet + 1 } else { 0 };
        }
        if self.out.broken.is_none()
            && let Some(why) = self.model.at_the_end(self.now, &self.store, &self.policy)
        {
            self.breaks(why);
        }
    }

    fn breaks(&mut self, why: String) {
        self.say(|| format!("BROKEN {why}"));
        self.out.broken.get_or_insert(why);
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if self.listens {
            // Writing to a string cannot fail.
            let _ = writeln!(self.out.trace, "{:>10} {}", self.now.0 - 1_800_000_000_000, what());
        }
    }

    /// One of the builds that the model knows.
    fn some_build(&mut self) -> Option<BuildId> {
        let count = self.model.builds.len();
        (count > 0).then(|| self.dice.below(count)).and_then(|n| self.model.builds.keys().nth(n)).cloned()
    }
}

/// A snapshot as it is read: in its two parts.
#[derive(serde::Deserialize)]
struct Parts {
    #[serde(flatten)]
    rest: railyard_core::SnapshotRest,
    #[serde(flatten)]
    jobs: railyard_core::SnapshotJobs,
}

impl From<Parts> for Snapshot {
    fn from(parts: Parts) -> Self {
        Self::join(parts.rest, parts.jobs)
    }
}
