//! Each target for a moment, always the same; `RAILYARD_FUZZ_SECS` makes it longer and `RAILYARD_FUZZ_SEED` another.

use railyard_fuzz::{Budget, TARGETS, run};
use std::time::Duration;

/// Inputs of each target: a second or two.
const INPUTS: u64 = 3_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("it is a number"))
}

fn feed(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("there is such a target");
    let budget =
        number("RAILYARD_FUZZ_SECS").map_or(Budget::Inputs(INPUTS), |secs| Budget::Time(Duration::from_secs(secs)));
    let report =
        run(target, number("RAILYARD_FUZZ_SEED").unwrap_or(1), budget).unwrap_or_else(|found| panic!("{found}"));
    assert!(report.inputs > 100 && report.said > 1, "{name} says always the same: {report:?}");
}

/// A test for each target, by name.
macro_rules! targets {
    ($($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                feed(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_a_test() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), tested);
        }
    };
}

targets!(
    pipeline,
    names,
    messages,
    token,
    cache,
    registry,
    archive,
    tarball,
    output,
    place,
    state,
    journal,
    config,
    redact,
    audit,
    manifest,
    lists,
    certificate
);
