//! The table of CONTRIBUTING.md that says which test stands against which fault of other farms: what it names is there.

use railyard_tests::farm::files_below;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

/// The rows of the table, each with what its last column names in backticks and the word before each.
fn rows() -> Vec<Vec<(String, String)>> {
    let text = std::fs::read_to_string(repository().join("CONTRIBUTING.md")).expect("CONTRIBUTING.md can be read");
    let (_, table) = text.split_once("## What went wrong elsewhere").expect("the table has its heading");
    let lines = table.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let column = line.trim_end_matches(['|', ' ']).rsplit(" | ").next().unwrap_or_default();
            let parts: Vec<&str> = column.split('`').collect();
            parts.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
        })
        .collect()
}

/// The text of all Rust files of a crate of this name.
fn sources(name: &str) -> String {
    let dir = match name {
        "railyard-controller" => "controller",
        "railyard-core" => "controller/core",
        "railyard-worker" => "worker",
        "railyard-transfer" => "common/transfer",
        "railyard-faults" => "tests/faults",
        "railyard-sim" => "tests/sim_core",
        "railyard-sim-net" => "tests/sim_net",
        "railyard-tests" => "tests",
        other => panic!("no crate {other} is known here"),
    };
    let files = ["src", "tests"].into_iter().flat_map(|below| files_below(&repository().join(dir).join(below)));
    let rust = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| std::fs::read_to_string(path).expect("a source file is text")).collect()
}

/// What is wrong with something that a row names; `before` is the text in front of it.
fn missing(before: &str, name: &str) -> Option<String> {
    if before.trim_end().ends_with("transcript") {
        let script = repository().join(format!("controller/core/tests/transcripts/{name}.txt"));
        return (!script.is_file()).then(|| format!("there is no transcript {name}"));
    }
    if let Some((target, test)) = name.split_once(' ').filter(|(target, _)| target.starts_with("railyard-")) {
        let function = test.rsplit("::").next().unwrap_or(test);
        let source = sources(target.split("::").next().unwrap_or(target));
        return (!source.contains(&format!("fn {function}("))).then(|| format!("{target} has no test {test}"));
    }
    if name.starts_with("cargo ") {
        return None;
    }
    let planted = std::fs::read_to_string(repository().join("common/src/planted.rs")).expect("planted.rs is text");
    (!planted.contains(&format!("\"{name}\""))).then(|| format!("no mistake {name} can be planted"))
}

#[test]
fn every_fault_of_other_farms_has_a_test_that_is_there() {
    let rows = rows();
    assert!(rows.len() > 30, "the table has {} rows", rows.len());
    for row in &rows {
        assert!(!row.is_empty(), "a row names no test");
        let missing: Vec<String> = row.iter().filter_map(|(before, name)| missing(before, name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
    assert!(missing(", ", "railyard-controller::shell leases::nothing_of_the_kind").is_some());
    assert!(missing("transcript ", "nothing_of_the_kind").is_some() && missing("planted ", "nothing").is_some());
}
