//! The rounds that every change has to survive.

use railyard_faults::run::{CI_ROUNDS, Settings, random_seed, run};
use std::path::PathBuf;

/// With other plans every time: what fails says by which command it is replayed.
#[test]
fn builds_survive_kills() {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_railyard-faults"));
    let result = run(&Settings { seed: random_seed(), rounds: 1..=CI_ROUNDS, program });
    if let Err(error) = result {
        panic!("{error:#}");
    }
}
