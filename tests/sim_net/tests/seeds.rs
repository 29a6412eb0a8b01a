//! Hundreds of drawn scenarios. `RAILYARD_SIM_NET_SEEDS=N` for more, or `cargo run -p railyard-sim-net -- --seeds N`.

use railyard_sim_net::run::run;
use railyard_sim_net::scenario::{Planted, Scenario};
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that every change has to pass.
const SEEDS: u64 = 300;

#[test]
fn whatever_goes_wrong_every_build_ends_and_nothing_is_done_twice_or_left_behind() {
    let seeds = std::env::var("RAILYARD_SIM_NET_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let next = AtomicU64::new(1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed > seeds {
                            return failed;
                        }
                        let report = run(&Scenario::draw(seed)).unwrap();
                        if let Some(first) = report.broken.first() {
                            let again = format!("cargo run -p railyard-sim-net -- --seed {seed}");
                            failed.push(format!("seed {seed}: {first}\n  again: {again}"));
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} of {seeds} seeds fail:\n{}", failed.len(), failed.join("\n"));
}

/// Two libraries look at the real clock now and then, so that a run on a busy machine may be shifted by a step; see
/// CONTRIBUTING.md. What depends on chance beyond the seed, as the order of a hash map does, never comes twice.
const TRIES: usize = 4;

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..=6 {
        let trace = || run(&Scenario::draw(seed)).unwrap().trace;
        let mut seen = vec![trace()];
        let came_again = (1..TRIES).any(|_| {
            let next = trace();
            seen.contains(&next) || {
                seen.push(next);
                false
            }
        });
        assert!(came_again, "seed {seed}, as many courses as runs:\n{}", seen.join("\n----\n"));
    }
}

#[test]
fn a_disk_that_lies_and_an_engine_that_does_not_obey_are_found_out() {
    for planted in [Planted::LossyDisk, Planted::DeafEngine] {
        let finds =
            |seed: &u64| !run(&Scenario { planted: Some(planted), ..Scenario::draw(*seed) }).unwrap().broken.is_empty();
        let found = (1..=40).find(finds);
        assert!(found.is_some(), "{planted:?} is not found");
    }
}
