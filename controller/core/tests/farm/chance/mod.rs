//! Random commands against the farm: what must never happen, and what must happen in the end.

mod action;
mod concrete;
mod world;

use action::{actions, moods};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};
use railyard_core::Farm;
use std::collections::BTreeSet;
use world::World;

/// Cases of a property: a few seconds on one core of a debug build.
const CASES: u32 = 2_000;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        // In a debug build ChaCha would take most of the time.
        rng_algorithm: RngAlgorithm::XorShift,
        // A failure's seed is kept beside this file, to be checked in with the correction.
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("seeds"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(CASES))]

    /// Whatever happens, the invariants hold after every event (see `common::audit`), a replay gives the same farm and the same
    /// decisions; and when the faults are over, every build ends.
    #[test]
    fn faults_break_nothing_and_every_build_ends(actions in actions(), moods in moods()) {
        let mut world = World::after(&actions);
        world.verify();
        world.calm_down(&moods);
    }

}

proptest! {
    #![proptest_config(config(CASES / 3))]

    /// Applying an event cannot fail: not to a farm that has missed some of those before it, and not in another world.
    #[test]
    fn an_event_that_names_what_is_not_there_changes_nothing(here in actions(), there in actions(), missed in any::<u64>()) {
        let (here, there) = (World::after(&here), World::after(&there));
        let mut farm = Farm::default();
        for (n, (ours, theirs)) in here.journal().zip(there.journal()).enumerate() {
            match missed.rotate_left(n as u32) & 3 {
                0 => farm.apply(&theirs),
                1 => {}
                _ => farm.apply(&ours),
            }
        }
        there.journal().for_each(|event| farm.apply(&event));
    }
}

/// The random worlds are worth their time: they reach every kind of event and refusal.
#[test]
fn chance_reaches_every_corner() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::XorShift);
    let mut runner = TestRunner::new_with_rng(config(1), rng);
    let mut seen = BTreeSet::new();
    for _ in 0..500 {
        let actions = actions().new_tree(&mut runner).expect("actions can be drawn").current();
        seen.extend(World::after(&actions).seen);
    }
    let wanted = [
        "attempt-ended cancelled",
        "attempt-ended failed",
        "attempt-ended lost",
        "attempt-ended refused",
        "attempt-ended succeeded",
        "attempt-ended timed-out",
        "build-accepted",
        "build-cancelled",
        "build-ended",
        "build-resumed",
        "controller-started",
        "job-leased",
        "job-uploading",
        "jobs-approved",
        "jobs-cancelled",
        "refused no-such-job",
        "refused not-held",
        "refused nothing-to-approve",
        "refused unknown-worker",
        "refused worker-retired",
        "worker-held",
        "worker-released",
        "worker-released by time",
        "refused build-ended",
        "refused build-exists",
        "refused build-runs",
        "refused build-succeeded",
        "refused bad-plan",
        "refused stale-lease",
        "worker-draining",
        "identity-revoked",
        "worker-offline",
        "worker-online",
    ];
    let missing: Vec<_> = wanted.iter().filter(|word| !seen.contains(**word)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}");
}
