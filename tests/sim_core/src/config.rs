//! The size and shape of one world: drawn from the seed, unless it is set. What is set is how a failing seed is shrunk.

use crate::dice::{Dice, Purpose};
use anyhow::{Context as _, bail};
use std::collections::BTreeSet;
use std::fmt;

/// One world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything random comes from here.
    pub seed: u64,
    /// Hosts with a worker.
    pub workers: usize,
    /// Those who submit.
    pub clients: usize,
    /// Builds in all.
    pub builds: usize,
    /// Most steps of a pipeline.
    pub steps: usize,
    /// How long things break.
    pub chaos_secs: u64,
    /// Things that break at a certain time.
    pub faults: usize,
    /// Those of them that are left out, by number.
    pub skip: BTreeSet<usize>,
    /// Sorts of trouble that there are none of.
    pub off: BTreeSet<Trouble>,
}

/// Trouble that comes at any time, at a rate of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Calls and answers that get lost.
    Drop,
    /// Calls that arrive twice.
    Duplicate,
    /// Messages that take seconds.
    Delay,
    /// Connections that break.
    Reset,
    /// Clocks that run fast or slow.
    Skew,
    /// The object store refuses now and then.
    Store,
    /// The journal refuses now and then.
    Journal,
    /// The engine refuses now and then.
    Engine,
    /// Steps fail.
    Steps,
    /// People cancel and retry.
    People,
}

impl Trouble {
    /// Every sort, with its word.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Drop, "drop"),
        (Self::Duplicate, "duplicate"),
        (Self::Delay, "delay"),
        (Self::Reset, "reset"),
        (Self::Skew, "skew"),
        (Self::Store, "store"),
        (Self::Journal, "journal"),
        (Self::Engine, "engine"),
        (Self::Steps, "steps"),
        (Self::People, "people"),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(trouble, _)| *trouble == self).map_or("", |(_, word)| word)
    }
}

impl Config {
    /// The world of a seed.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed, Purpose::Shape);
        // Mostly small: two workers and one build have most of the races, and thousands of them run in a minute.
        let workers = match dice.below(100) {
            0 => dice.within(17, 64),
            1..=9 => dice.within(6, 16),
            10..=29 => 1,
            _ => dice.within(2, 5),
        };
        let builds = dice.within(1, if workers > 5 { 6 } else { 4 }) as usize;
        Self {
            seed,
            workers: workers as usize,
            clients: dice.within(1, 3) as usize,
            builds,
            steps: dice.pick(&[1, 2, 3, 3, 4, 5, 6, 8, 12]),
            chaos_secs: dice.within(20, 240),
            faults: dice.pick(&[0, 1, 2, 3, 4, 6, 8, 12]),
            skip: BTreeSet::new(),
            off: BTreeSet::new(),
        }
    }

    /// Sets one thing, as `--set` writes it: `workers=2`, `skip=1,4`, `off=drop,skew`.
    ///
    /// # Errors
    /// If the text is none of these.
    pub fn set(&mut self, text: &str) -> anyhow::Result<()> {
        let (key, value) = text.split_once('=').context("a setting is written KEY=VALUE")?;
        let number = || value.parse::<usize>().with_context(|| format!("{key} is a number, not {value:?}"));
        match key {
            "workers" => self.workers = number()?.clamp(1, 64),
            "clients" => self.clients = number()?.max(1),
            "builds" => self.builds = number()?,
            "steps" => self.steps = number()?.max(1),
            "chaos" => self.chaos_secs = number()? as u64,
            "faults" => self.faults = number()?,
            "skip" => {
                for part in value.split(',') {
                    self.skip.insert(part.parse().with_context(|| format!("no number of a fault: {part:?}"))?);
                }
            }
            "off" => {
                for part in value.split(',') {
                    let known = Trouble::ALL.iter().find(|(_, word)| *word == part);
                    self.off.insert(known.with_context(|| format!("no sort of trouble: {part:?}"))?.0);
                }
            }
            _ => bail!("no such setting: {key}; there are workers, clients, builds, steps, chaos, faults, skip, off"),
        }
        Ok(())
    }

    /// Whether some jobs are for a pool, which is the second worker's.
    pub fn has_pool(&self) -> bool {
        self.workers >= 2 && Dice::new(self.seed ^ 5, Purpose::Shape).chance(300)
    }

    /// The rate of a sort of trouble, out of a thousand. In many worlds there is none of it.
    pub fn rate(&self, trouble: Trouble, most: u64) -> u64 {
        let mut dice = Dice::new(self.seed ^ (trouble as u64 + 77), Purpose::Shape);
        if self.off.contains(&trouble) || dice.chance(500) { 0 } else { dice.within(1, most) }
    }
}

/// As arguments that give this world again.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--seed {}", self.seed)?;
        let drawn = Self::of(self.seed);
        let numbers = [
            ("workers", self.workers, drawn.workers),
            ("clients", self.clients, drawn.clients),
            ("builds", self.builds, drawn.builds),
            ("steps", self.steps, drawn.steps),
            ("chaos", self.chaos_secs as usize, drawn.chaos_secs as usize),
            ("faults", self.faults, drawn.faults),
        ];
        for (key, is, was) in numbers {
            if is != was {
                write!(f, " --set {key}={is}")?;
            }
        }
        let skipped: Vec<String> = self.skip.iter().map(ToString::to_string).collect();
        if !skipped.is_empty() {
            write!(f, " --set skip={}", skipped.join(","))?;
        }
        let off: Vec<&str> = self.off.iter().map(|trouble| trouble.word()).collect();
        if !off.is_empty() {
            write!(f, " --set off={}", off.join(","))?;
        }
        Ok(())
    }
}
