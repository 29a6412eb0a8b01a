//! A nasty file system through the cache, from one engine to another: what is there is what was here.
//!
//! Looked at from outside, in the directory where each engine has mounted the container's root.

// What lists a tree is the packer's own tests', and so are the nasty trees.
#[path = "../../worker/tests/pack/listing.rs"]
#[allow(dead_code, reason = "those need more of it")]
mod listing;
#[path = "../../worker/tests/pack/tree.rs"]
#[allow(dead_code, reason = "those need more of it")]
mod tree;

use listing::{Listing, list};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm, Worker, job};
use railyard_tests::{image, unique, wait};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Random trees in the image.
const TREES: usize = 12;

/// What the engines put there themselves, each its own: mount points and what they need to be there.
const ENGINES: [&str; 12] = [
    ".dockerenv",
    "dev",
    "etc",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc",
    "railyard",
    "sbin",
    "sys",
    "work",
];

/// Steps that wait to be looked at.
fn pipeline(base: &str) -> String {
    let wait = "touch /work/ready; while ! test -e /work/go; do sleep 0.1; done";
    let common = "resources: { cpu: 0.5, memory: 64MiB, disk: 64MiB }";
    format!(
        "name: nasty\nsteps:\n\
         - {{ name: below, pool: maker, image: \"{base}\", commit: true, {common}, script: '{BELOW}' }}\n\
         - {{ name: make, pool: maker, image: {{ step: below }}, commit: true, {common}, script: '{wait}' }}\n\
         - {{ name: look, pool: user, image: {{ step: make }}, {common}, script: '{wait}' }}\n"
    )
}

/// What the nasty layer stands on.
const BELOW: &str = "mkdir -p /old/dir/deep /old/opaque; cd /old; for n in removed replaced changed moved dir/kept dir/deep/file \
                     opaque/hidden; do echo $n >$n; done; seq 10000 >big";

/// Waits until the job's script waits, and gives the root of its container.
fn root_of(engine: &Engine, worker: &Worker) -> PathBuf {
    wait::until("a step that waits", BUILD_LIMIT, || {
        let jobs = railyard_tests::farm::files_below(&worker.data.join("jobs"));
        if jobs.iter().any(|path| path.ends_with("work/ready")) { Ok(()) } else { Err(format!("{jobs:?}")) }
    });
    let containers = engine.containers_of(&worker.name);
    let merged = engine.query(&["inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", &containers[0]]);
    PathBuf::from(merged)
}

fn go_on(worker: &Worker) {
    fs::write(worker.work().join("go"), "").unwrap();
}

/// Random trees, and everything that can happen to a file of the layer below.
fn make_nasty(root: &Path) {
    let mut runner = TestRunner::deterministic();
    for n in 0..TREES {
        let dir = root.join(format!("nasty/{n}"));
        fs::create_dir_all(&dir).unwrap();
        tree::any().new_tree(&mut runner).unwrap().current().for_engines().make(&dir);
    }
    let old = root.join("old");
    fs::remove_file(old.join("removed")).unwrap();
    fs::remove_file(old.join("replaced")).unwrap();
    fs::create_dir(old.join("replaced")).unwrap();
    fs::write(old.join("replaced/by"), "a directory").unwrap();
    fs::set_permissions(old.join("changed"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::rename(old.join("moved"), old.join("dir/moved")).unwrap();
    fs::remove_dir_all(old.join("opaque")).unwrap();
    fs::create_dir(old.join("opaque")).unwrap();
    fs::write(old.join("opaque/new"), "new").unwrap();
    fs::hard_link(old.join("big"), root.join("nasty/big")).unwrap();
    xattr::set(old.join("dir/deep/file"), "user.note", b"changed").unwrap();
    tree::set_time(&old.join("dir/deep"), 1_234_567_890, 123_456_789);
}

fn seen(root: &Path) -> Listing {
    let mut seen = list(root);
    seen.files.retain(|path, _| {
        let path = String::from_utf8_lossy(path);
        let below = |own: &&str| {
            path == **own || (!own.starts_with("etc") && *own != "sbin" && path.starts_with(&format!("{own}/")))
        };
        !ENGINES.iter().any(below) && path != "sbin/docker-init"
    });
    seen
}

#[test]
fn a_nasty_file_system_is_the_same_on_another_engine() {
    let (first, second) = (Engine::shared(), Engine::private());
    let farm = Farm::start();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&first, &base);
    let maker = farm.worker("maker", &first, "pool = 'maker'");
    let user = farm.worker("user", &second, "pool = 'user'");
    let build = farm.submit(&farm.pipeline("nasty", &pipeline(&base)), &[]);

    let root = root_of(&first, &maker);
    make_nasty(&root);
    let want = seen(&root);
    assert!(want.files.len() > 50 && !want.links.is_empty(), "{want:?}");
    assert!(!want.files.contains_key(b"old/opaque/hidden".as_slice()));
    go_on(&maker);
    let got = seen(&root_of(&second, &user));
    go_on(&user);
    let paths: BTreeSet<_> = want.files.keys().chain(got.files.keys()).collect();
    let different = paths.into_iter().filter(|path| want.files.get(*path) != got.files.get(*path));
    let shown = different.map(|path| {
        let shown = String::from_utf8_lossy(path);
        format!("{shown:?}: made was {:?}, found is {:?}\n", want.files.get(path), got.files.get(path))
    });
    assert_eq!(shown.collect::<String>(), "");
    assert_eq!(got.links, want.links);

    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(job(&ended, "look")["attempts"][0]["worker"].as_str(), Some(user.name.as_str()));
    let log = farm.cli(&["logs", &build, "make"]).stdout;
    assert!(log.contains("packed what the script has changed"), "{log}");
    first.query(&["image", "rm", &base]);
}
