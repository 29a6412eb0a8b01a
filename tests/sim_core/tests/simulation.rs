//! Worlds in which nothing may break, and planted mistakes that must be found.

use railyard_common::planted::{Bug, plant};
use railyard_sim::shrink::shrink;
use railyard_sim::{Config, Listen, crowd, run};

/// Seeds of the run in CI.
const SEEDS: u64 = 2_000;
/// A planted mistake must be found within so many seeds.
const BUG_SEEDS: u64 = 4_000;
/// In so many of them it is looked for, so that a single lucky seed is not taken for an answer.
const FINDS: usize = 2;

#[test]
fn nothing_breaks() {
    let (mut done, mut failed) = (0, Vec::new());
    crowd::crowd(crowd::threads(), None, (1..=SEEDS).map(Config::of), |config, outcome| {
        done += 1;
        failed.extend(outcome.broken.map(|broken| {
            let invariant = broken.invariant;
            format!("{invariant}: {}\n  cargo run -p railyard-sim -- {config} --shrink", broken.why)
        }));
        true
    });
    assert_eq!(done, SEEDS);
    assert!(failed.is_empty(), "{} of {SEEDS} seeds failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 1..=60 {
        let config = Config::of(seed);
        let (first, again) = (run(&config, Listen::Hash), run(&config, Listen::Hash));
        assert_eq!(first.trace, again.trace, "seed {seed}");
        assert!(first.trace.1 > 10, "seed {seed} says nothing");
        seen.insert(first.trace);
    }
    assert_eq!(seen.len(), 60, "different seeds are different worlds");
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    println!("{:<24} {:>6} {:>6} {:>9}  broken", "planted", "first", "median", "found in");
    // Those of the sweep are looked for where there is a whole one.
    let elsewhere = |bug: &Bug| railyard_sim::keeping::BUGS.contains(bug);
    for (bug, name, _) in Bug::ALL.into_iter().filter(|(bug, _, _)| !elsewhere(bug)) {
        let (mut tried, mut found) = (0, Vec::new());
        crowd::crowd(crowd::threads(), Some(bug), (1..=BUG_SEEDS).map(Config::of), |config, outcome| {
            tried += 1;
            found.extend(outcome.broken.map(|broken| (config.seed, broken.invariant)));
            found.len() < FINDS
        });
        found.sort_unstable();
        let Some((first, invariant)) = found.first() else {
            missed.push(name);
            continue;
        };
        let median = found[found.len() / 2].0;
        println!("{name:<24} {first:>6} {median:>6} {:>3}/{tried:<5}  {invariant}", found.len());
    }
    assert!(missed.is_empty(), "not found in {BUG_SEEDS} seeds: {missed:?}");
}

#[test]
fn a_failing_world_shrinks_to_a_smaller_one_that_fails_alike() {
    plant(Some(Bug::FenceNever));
    let failing = (1..=BUG_SEEDS).map(Config::of).find_map(|config| {
        let broken = run(&config, Listen::No).broken?;
        Some((config, broken.invariant))
    });
    let (config, invariant) = failing.unwrap();
    let small = shrink(&config, invariant);
    let broken = run(&small, Listen::No).broken;
    assert_eq!(broken.map(|broken| broken.invariant), Some(invariant), "{small}");
    assert!(small.faults - small.skip.len() <= config.faults, "{small}");
    assert!(small.workers <= config.workers && small.builds <= config.builds && small.steps <= config.steps);
    // What is printed gives the same world again.
    let mut again = Config::of(small.seed);
    let text = small.to_string();
    for set in text.split(" --set ").skip(1) {
        again.set(set).unwrap();
    }
    assert_eq!(again, small);
    plant(None);
}
