//! Each script in `tests/transcripts` beside its golden transcript.

use crate::script::transcript;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

macro_rules! scripts {
    ($($name:ident)*) => {
        const SCRIPTS: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            play(stringify!($name));
        })*
    };
}

scripts! {
    mini_pipeline
    matrix_fan_out
    two_platforms
    orders
    fencing
    worker_expires
    worker_reboots
    controller_restarts
    step_fails
    step_fails_and_retries
    lost_budget
    worker_refuses
    secret_missing
    cancel_running
    cancel_race
    retry_failed
    retry_step
    submit_again
    bad_plans
    no_worker_for_platform
    capacity
    emulated_or_native
    drain
    finalize_error
    longest_path_first
    approval
    groups
    order_of_jobs
    fair_share
    large_job
    disk
    pools_and_labels
    holds
    quarantine
    quarantine_image
    quarantine_ended
    pressure
    supersede
    tiers
    uses
    keep
    claims
    cancel_jobs
    idempotent_submit
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

fn play(name: &str) {
    let path = directory().join(name).with_extension("txt");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(directory());
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, transcript(&text)));
}

#[test]
fn every_script_is_played() {
    let entries = std::fs::read_dir(directory()).expect("the scripts are there");
    let paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
    let stems = |extension: &str| -> BTreeSet<String> {
        let of_kind = paths.iter().filter(|path| path.extension().is_some_and(|is| is == extension));
        of_kind.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    };
    let played: BTreeSet<String> = SCRIPTS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(stems("txt"), played, "scripts in the directory, scripts that are played");
    assert_eq!(stems("snap"), played, "a transcript without its script");
}
