//! Sixty builds of a pipeline with the shape of the demo's under `keep_last = 50`: fifty stay, each whole, and the disk does not grow.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, files_below, list};
use railyard_tests::{image, unique, wait};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

const KEPT: usize = 50;
const BUILDS: usize = 60;
/// Builds that run at a time.
const TOGETHER: usize = 5;
/// How long the sweeps may take to come to rest.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// An SDK image, a disk that is made in it, and two forms of that, as the demo has them; every build has bytes of its own.
const PIPELINE: &str = r#"
name: mini
steps:
  - name: sdk
    image: IMAGE
    script: mkdir -p /opt && echo "tools $RAILYARD_VERSION" > /opt/tools
    commit: true
    resources: { cpu: 0.2, memory: 32MiB, disk: 16MiB }
  - name: image
    image: { step: sdk }
    script: |
      cat /opt/tools
      dd if=/dev/urandom of=disk.raw bs=65536 count=2
    outputs: [{ path: disk.raw, publish: "images/{{ version }}" }]
    resources: { cpu: 0.2, memory: 32MiB, disk: 16MiB }
  - name: vms
    matrix: { format: [qcow2, vmdk] }
    image: IMAGE
    inputs: [{ step: image }]
    script: |
      { echo {{ matrix.format }}; cat /inputs/image/disk.raw; } > disk.{{ matrix.format }}
    outputs: [{ path: "disk.{{ matrix.format }}", publish: "images/{{ version }}" }]
    resources: { cpu: 0.2, memory: 32MiB, disk: 16MiB }
"#;

/// What the cache takes on the disk; a file with two names counts once.
fn used(cache: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let files = files_below(cache).into_iter().filter_map(|path| std::fs::symlink_metadata(path).ok());
    files.filter(|file| file.is_file() && seen.insert(file.ino())).map(|file| file.blocks() * 512).sum()
}

/// Waits until no sweep has anything left to do.
fn settled(farm: &Farm) {
    wait::until("the end of the sweeps", SETTLE_LIMIT, || {
        let plan = farm.json(&["gc", "plan", "-o", "json"]);
        let reduces = list(&plan["builds"]).iter().any(|build| build["now"] != build["keep"]);
        let waits = list(&plan["builds"]).iter().any(|build| build["now"] == "nothing");
        let deletes = list(&plan["gone"]).iter().any(|gone| gone["objects"] != 0);
        if reduces || waits || deletes { Err(plan.to_string()) } else { Ok(()) }
    });
}

#[test]
fn of_sixty_builds_fifty_stay_whole_and_the_disk_comes_back_to_where_it_was() {
    let engine = Engine::shared();
    // Nothing is read while it goes, so it may go at once.
    let farm =
        Farm::start_with(&format!("sweep = {{ every = '2s', grace = '0s' }}\n[[retention]]\nkeep_last = {KEPT}"), &[]);
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let _worker = farm.worker("w1", &engine, "");
    let path = farm.pipeline("mini", &PIPELINE.replace("IMAGE", &base));
    let cache = farm.dir.path().join("controller/cache");

    let build = |from: usize, to: usize| {
        let numbers: Vec<usize> = (from..to).collect();
        for together in numbers.chunks(TOGETHER) {
            let builds: Vec<String> =
                together.iter().map(|n| farm.submit(&path, &["--version", &format!("1.{n}.0")])).collect();
            for build in builds {
                let ended = farm.ended(&build);
                assert_eq!(ended["state"], "succeeded", "{ended}");
            }
        }
    };
    build(0, KEPT);
    settled(&farm);
    let plateau = used(&cache);
    build(KEPT, BUILDS);
    settled(&farm);

    let builds = farm.json(&["builds", "mini", "--limit", "100", "-o", "json"]);
    let versions: Vec<String> = list(&builds).iter().map(|build| build["build"].to_string()).collect();
    let wanted: Vec<String> = (BUILDS - KEPT..BUILDS).rev().map(|n| format!("\"mini/1.{n}.0\"")).collect();
    assert_eq!(versions, wanted, "newest first");
    let out = farm.dir.path().join("out");
    for n in BUILDS - KEPT..BUILDS {
        // Every byte is held against its digest on the way.
        let fetched =
            farm.cli(&["fetch", &format!("mini/1.{n}.0"), "-o", &out.join(n.to_string()).display().to_string()]);
        assert_eq!(fetched.code, 0, "{fetched:?}");
        let disk = std::fs::read(cache.join(format!("images/1.{n}.0/disk.raw"))).unwrap();
        let vmdk = std::fs::read(cache.join(format!("images/1.{n}.0/disk.vmdk"))).unwrap();
        assert_eq!(vmdk, [b"vmdk\n".as_slice(), &disk].concat(), "mini/1.{n}.0");
    }
    for n in 0..BUILDS - KEPT {
        for gone in ["images", "builds/mini", "logs/mini"] {
            assert!(!cache.join(gone).join(format!("1.{n}.0")).exists(), "{gone} of 1.{n}.0");
        }
    }
    let now = used(&cache);
    let text = "the lists grow by a few lines for the tombstones";
    assert!(now <= plateau + plateau / 50, "{plateau} bytes became {now}; {text}");
    let sweeps = farm.json(&["audit", "verify", "-o", "json"]);
    assert_eq!(sweeps["faults"].as_array().map(Vec::len), Some(0), "{sweeps}");
}
