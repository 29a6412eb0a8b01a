//! The rounds that every change has to survive.

use railyard_faults::run::{CI_ROUNDS, CI_SEED, Settings, run};
use std::path::PathBuf;

#[test]
fn builds_survive_kills() {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_railyard-faults"));
    let result = run(&Settings { seed: CI_SEED, rounds: 1..=CI_ROUNDS, program });
    if let Err(error) = result {
        panic!("{error:#}");
    }
}
