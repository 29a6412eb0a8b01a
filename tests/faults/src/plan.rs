//! What a round does, all of it from a seed: the build, who is killed, when, and for how long.

use crate::dice::Dice;
use crate::pipeline::Step;
use std::fmt;
use std::time::Duration;

/// The lease of every step: the shortest that a pipeline may ask for.
pub const LEASE_TTL: Duration = Duration::from_secs(10);

/// A pause beyond the lease's TTL, once in so many rounds: those rounds take longest.
const LONG_PAUSE_ONCE_IN: u64 = 6;

/// Instead of the engine's daemon its containerd, once in so many rounds in which that is possible.
const CONTAINERD_ONCE_IN: u64 = 4;

/// Who can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The controller.
    Controller,
    /// The first worker.
    WorkerA,
    /// The second worker.
    WorkerB,
    /// The engine of both.
    Engine,
    /// The S3 service.
    Store,
}

impl Part {
    /// Everybody.
    pub const ALL: [Self; 5] = [Self::Controller, Self::WorkerA, Self::WorkerB, Self::Engine, Self::Store];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Controller => "controller",
            Self::WorkerA => "worker-a",
            Self::WorkerB => "worker-b",
            Self::Engine => "engine",
            Self::Store => "s3",
        })
    }
}

/// What is killed of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Its process.
    Process,
    /// Of the engine only its containerd, which the daemon starts again by itself.
    Containerd,
}

/// One `kill -9`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Of whom.
    pub part: Part,
    /// Of what of it.
    pub aim: Aim,
    /// When, counted from the submit.
    pub at: Duration,
    /// How long until it is started again, as a service manager does.
    pub pause: Duration,
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_secs_f32();
        match self.aim {
            Aim::Process => write!(f, "{} at {at:.1} s for {:.1} s", self.part, self.pause.as_secs_f32()),
            Aim::Containerd => write!(f, "containerd at {at:.1} s"),
        }
    }
}

/// A round.
#[derive(Clone, Debug)]
pub struct Round {
    /// From 0, which is the calm one.
    pub number: u64,
    /// In order of time. None in the calm round.
    pub kills: Vec<Kill>,
    /// What is built.
    pub steps: Vec<Step>,
}

impl Round {
    /// The plan of round `number` of a run with that seed.
    ///
    /// The pairs of victims come in a random order, but each of them within as many rounds as there are pairs. A job
    /// may be lost five times: two kills do not lose it more often, because an engine, which loses what it is given while it
    /// is away, is never away for long.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let steps = Step::draw(&mut dice);
        let mut kills: Vec<Kill> = if number == 0 {
            Vec::new()
        } else {
            let (first, second) = pair(seed, number);
            draw_kills(&mut dice, first, second)
        };
        kills.sort_by_key(|kill| kill.at);
        Self { number, kills, steps }
    }

    /// The version of its build.
    pub fn version(&self) -> String {
        format!("1.0.{}", self.number)
    }

    /// Whether the engine's daemon is killed, and not only its containerd.
    pub fn restarts_engine(&self) -> bool {
        self.kills.iter().any(|kill| kill.part == Part::Engine && kill.aim == Aim::Process)
    }

    /// Whether one of those is killed.
    pub fn kills_any(&self, parts: &[Part]) -> bool {
        self.kills.iter().any(|kill| parts.contains(&kill.part))
    }
}

fn pair(seed: u64, number: u64) -> (Part, Part) {
    let mut pairs = Vec::new();
    for (at, first) in Part::ALL.iter().enumerate() {
        pairs.extend(Part::ALL[at + 1..].iter().map(|second| (*first, *second)));
    }
    let count = pairs.len() as u64;
    let (turn, place) = ((number - 1) / count, (number - 1) % count);
    let mut dice = Dice::new(seed.wrapping_add(turn));
    dice.shuffle(&mut pairs);
    let (first, second) = pairs[usize::try_from(place).unwrap_or(0)];
    if dice.once_in(2) { (first, second) } else { (second, first) }
}

fn draw_kills(dice: &mut Dice, first: Part, second: Part) -> Vec<Kill> {
    let mut kills: Vec<Kill> = [first, second]
        .into_iter()
        .map(|part| {
            let (at, pause) = (dice.millis(200, 5_000), dice.millis(50, 1_200));
            Kill { part, aim: Aim::Process, at, pause }
        })
        .collect();
    // The daemon takes ten seconds to notice that its containerd is gone and to start another.
    let containerd = dice.once_in(CONTAINERD_ONCE_IN);
    let long = dice.once_in(LONG_PAUSE_ONCE_IN);
    let worker = kills.iter().any(|kill| matches!(kill.part, Part::WorkerA | Part::WorkerB));
    match kills.iter().position(|kill| kill.part == Part::Engine) {
        Some(engine) if containerd && !worker => kills[engine].aim = Aim::Containerd,
        Some(_) => {}
        None if long => kills[0].pause = LEASE_TTL + dice.millis(1_000, 2_500),
        None => {}
    }
    kills
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_gives_the_same_plan_and_another_seed_another() {
        let text = |seed, number| format!("{:?}", Round::new(seed, number));
        assert_eq!(text(7, 3), text(7, 3));
        assert_ne!(text(7, 3), text(8, 3));
        assert_ne!(text(7, 3), text(7, 4));
    }

    #[test]
    fn every_pair_comes_in_ten_rounds_and_nobody_is_paired_with_itself() {
        for seed in 0..20 {
            let pairs: BTreeSet<Vec<Part>> = (11..=20)
                .map(|number| {
                    let mut pair: Vec<Part> = Round::new(seed, number).kills.iter().map(|kill| kill.part).collect();
                    pair.sort();
                    pair
                })
                .collect();
            assert_eq!(pairs.len(), 10, "seed {seed}: {pairs:?}");
            assert!(pairs.iter().all(|pair| pair.len() == 2 && pair[0] != pair[1]));
        }
        assert!(Round::new(1, 0).kills.is_empty());
    }

    #[test]
    fn some_pauses_outlast_a_lease_but_never_the_engine_s() {
        let kills: Vec<Kill> = (1..200).flat_map(|number| Round::new(5, number).kills).collect();
        assert!(kills.iter().any(|kill| kill.pause > LEASE_TTL));
        assert!(kills.iter().any(|kill| kill.aim == Aim::Containerd));
        assert!(kills.iter().filter(|kill| kill.part == Part::Engine).all(|kill| kill.pause.as_secs() < 2));
        assert!(kills.iter().any(|kill| kill.part == Part::Engine && kill.aim == Aim::Process));
    }
}
