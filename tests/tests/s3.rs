//! A build whose cache is an S3 service: bytes go between worker and service by presigned URLs, the keys stay in the controller.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, job};
use railyard_tests::s3::{KEYS, SECRET, Store};
use railyard_tests::{image, unique};
use std::path::{Path, PathBuf};

/// Whether any file below `dir` holds `text`.
fn holds(dir: &Path, text: &str) -> Option<PathBuf> {
    let files = railyard_tests::farm::files_below(dir);
    files.into_iter().find(|path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[test]
fn a_build_goes_through_s3_with_keys_in_a_file() {
    let store = Store::start();
    a_build_goes_through(&store, &Farm::start_with(&store.config(), &[]));
}

#[test]
fn a_build_goes_through_s3_with_keys_in_the_environment() {
    let store = Store::start();
    a_build_goes_through(&store, &Farm::start_with(&store.place(), &KEYS));
}

fn a_build_goes_through(store: &Store, farm: &Farm) {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let worker = farm.worker("w", &engine, "");
    let text = format!(
        "name: stored\nsteps:\n  - name: make\n    image: {base}\n    commit: true\n    script: |\n      \
         dd if=/dev/zero of=big bs=1048576 count=40\n      echo made > /etc/made; env\n    \
         outputs: [{{ path: big, publish: \"images/{{{{ version }}}}\" }}]\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n  \
         - name: use\n    image: {{ step: make }}\n    inputs: [{{ step: make }}]\n    \
         script: |\n      test $(wc -c < /inputs/make/big) = 41943040\n      cat /etc/made\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n"
    );
    let build = farm.submit(&farm.pipeline("stored", &text), &["--version", "1.0"]);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}; {}", worker.process.log());
    assert_eq!(job(&ended, "use")["attempts"][0]["attempt"], 1);

    let bucket = store.bucket();
    assert_eq!(std::fs::metadata(bucket.join("images/1.0/big")).unwrap().len(), 40 << 20);
    assert!(bucket.join("images/1.0/SHA256SUMS").exists());
    assert!(bucket.join("builds/stored/1.0/build.json").exists());
    let out = farm.dir.path().join("fetched");
    let fetched = farm.cli(&["fetch", &build, "big", "-o", &out.display().to_string()]);
    assert_eq!(fetched.code, 0, "{fetched:?}");
    assert_eq!(std::fs::metadata(out.join("big")).unwrap().len(), 40 << 20);
    // The store's secret has reached no file of the farm: not the worker's, not a log, not the journal.
    assert_eq!(holds(farm.dir.path(), SECRET), None);
    engine.query(&["image", "rm", &base]);
}
