//! Hundreds of drawn scenarios. `RAILYARD_SIM_NET_SEEDS=N` for more, or `cargo run -p railyard-sim-net -- --seeds N`.

use railyard_service::clock::{Clock as _, SystemClock};
use railyard_sim_net::run::run;
use railyard_sim_net::scenario::{Planted, Scenario};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

/// What the gRPC library does with streams that were reset depends on whether a second has passed, and that is a real one:
/// runs that take longer may take another course.
const QUICK: Duration = Duration::from_millis(900);

#[test]
fn the_same_seed_gives_the_same_trace() {
    let mut compared = 0;
    for seed in 1..=20 {
        let started = SystemClock.monotonic();
        let first = run(&Scenario::draw(seed)).unwrap();
        let between = SystemClock.monotonic();
        let second = run(&Scenario::draw(seed)).unwrap();
        let took = (between - started).max(SystemClock.monotonic() - between);
        if took < QUICK {
            compared += 1;
            assert!(first.trace == second.trace, "seed {seed}, two courses:\n{}\n----\n{}", first.trace, second.trace);
        }
        if compared == 6 {
            return;
        }
    }
    assert!(compared > 0, "this machine is too busy to tell: every run took longer than {QUICK:?}");
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
