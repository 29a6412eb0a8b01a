//! Worlds about keeping, in which nothing that is needed may go and everything else must; and planted mistakes that must be found.

use railyard_common::planted::{Bug, plant};
use railyard_sim::keeping::{BUGS, run};

/// Seeds of the run in CI.
const SEEDS: u64 = 1_500;
/// A planted mistake must be found within so many seeds.
const BUG_SEEDS: u64 = 1_500;

#[test]
fn what_is_needed_stays_and_the_rest_goes() {
    let (mut failed, mut deleted, mut forgotten, mut stopped) = (Vec::new(), 0, 0, 0);
    for seed in 1..=SEEDS {
        let outcome = run(seed, false);
        failed.extend(outcome.broken.map(|why| format!("seed {seed}: {why}")));
        deleted += outcome.deleted;
        forgotten += outcome.forgotten;
        stopped += outcome.stopped;
    }
    println!("{SEEDS} worlds: {deleted} objects deleted, {forgotten} builds forgotten, {stopped} sweeps stopped");
    assert!(failed.is_empty(), "{} of {SEEDS} seeds failed:\n{}", failed.len(), failed.join("\n"));
    assert!(deleted > SEEDS && forgotten > SEEDS && stopped > SEEDS / 10, "too little happens to say anything");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 1..=20 {
        let (first, again) = (run(seed, true).trace, run(seed, true).trace);
        assert!(first.lines().count() > 20 && first == again, "seed {seed}");
    }
}

#[test]
fn every_planted_mistake_is_found() {
    let mut missed = Vec::new();
    for bug in BUGS {
        plant(Some(bug));
        match (1..=BUG_SEEDS).find_map(|seed| Some((seed, run(seed, false).broken?))) {
            Some((seed, why)) => println!("{:<24} seed {seed:>4}  {why}", bug.name()),
            None => missed.push(bug.name()),
        }
    }
    plant(None::<Bug>);
    assert!(missed.is_empty(), "not found in {BUG_SEEDS} seeds: {missed:?}");
}
