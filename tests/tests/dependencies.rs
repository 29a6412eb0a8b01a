//! The bans that matter, on the real dependency graph: one TLS provider, one of each protocol crate, and pure crates that stay pure.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Every crate that `cargo tree` lists for `args`, with its versions.
fn tree(args: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--locked", "--prefix", "none", "--format", "{p}", "--target", "all"])
        .args(args)
        .output()
        .expect("cargo tree can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut crates: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            crates.entry(name.to_owned()).or_default().insert(version.to_owned());
        }
    }
    crates
}

#[test]
fn there_is_one_tls_provider_and_one_of_each_protocol_crate() {
    let crates = tree(&["--workspace", "--edges", "normal,build"]);
    assert!(crates.contains_key("ring"), "ring is the provider");
    for banned in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"] {
        assert!(!crates.contains_key(banned), "{banned} must not be linked; see deny.toml");
    }
    for single in ["tonic", "prost", "rustls", "hyper", "h2", "http", "opentelemetry", "axum"] {
        let versions = &crates[single];
        assert_eq!(versions.len(), 1, "{single} is there in several versions: {versions:?}");
    }
}

#[test]
fn the_core_and_the_domain_are_pure() {
    for pure in ["railyard-core", "railyard-common"] {
        let crates = tree(&["--package", pure, "--edges", "normal"]);
        for banned in ["tokio", "tonic", "sled", "bollard", "object_store", "async-std", "rand", "getrandom", "hyper"] {
            assert!(!crates.contains_key(banned), "{pure} must not depend on {banned}");
        }
    }
}
