//! A file of more than 5 GiB, most of it holes, from a step through the cache to the next step and to a person.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, TELL_PARTS, files_below, job};
use railyard_tests::{image, unique};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

const BYTES: u64 = 6 << 30;
/// What a copy of it may take on the disk: the few bytes that are not zero, and what the file system needs.
const DISK_MAX_BYTES: u64 = 64 << 20;

/// Some bytes at the beginning, behind 5 GiB, and at the very end.
const PIPELINE: &str = r#"
name: sparse
steps:
  - name: make
    image: IMAGE
    script: |
      echo first | dd of=disk.img bs=1 conv=notrunc
      echo second | dd of=disk.img bs=1048576 seek=5500 conv=notrunc
      echo last | dd of=disk.img bs=1 seek=6442450939 conv=notrunc
      ls -l disk.img
    outputs: [{ path: disk.img, publish: "images/{{ version }}" }]
    resources: { cpu: 1, memory: 64MiB, disk: 64MiB }
  - name: use
    image: IMAGE
    inputs: [{ step: make }]
    script: |
      cd /inputs/make
      test $(ls -l disk.img | sed 's/  */ /g' | head -c 200 | grep -c 6442450944) = 1
      dd if=disk.img bs=1 count=6 2>/dev/null
      dd if=disk.img bs=1048576 skip=5500 count=1 2>/dev/null | head -c 7
      tail -c 5 disk.img
    resources: { cpu: 1, memory: 64MiB, disk: 64MiB }
"#;

fn is_sparse_copy(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), BYTES, "{}", path.display());
    for (at, text) in [(0, "first\n"), (5500 << 20, "second\n"), (BYTES - 5, "last\n")] {
        let mut bytes = vec![0; text.len()];
        file.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), text, "{} at {at}", path.display());
    }
    let taken = metadata.blocks() * 512;
    assert!(taken <= DISK_MAX_BYTES, "{} takes {taken} bytes", path.display());
}

#[test]
fn six_gibibytes_of_holes_travel_and_stay_holes() {
    let engine = Engine::shared();
    let farm = Farm::start_with("", &[TELL_PARTS]);
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let _worker = farm.worker("w1", &engine, "");
    let path = farm.pipeline("sparse", &PIPELINE.replace("IMAGE", &base));
    let build = farm.submit(&path, &["--version", "1.0.0"]);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended} {}", farm.cli(&["logs", &build, "use"]).stdout);
    let blob = &job(&ended, "make")["artifacts"][0];
    assert_eq!(blob["size_bytes"], BYTES, "{blob}");

    // In the cache, once, under two names.
    let published = farm.dir.path().join("controller/cache/images/1.0.0/disk.img");
    is_sparse_copy(&published);
    assert_eq!(std::fs::metadata(&published).unwrap().nlink(), 2);

    // To a person.
    let out = farm.dir.path().join("out");
    let fetched = farm.cli(&["fetch", &build, "disk.img", "-o", &out.display().to_string()]);
    assert_eq!(fetched.code, 0, "{fetched:?}");
    is_sparse_copy(&out.join("disk.img"));
    std::fs::remove_file(out.join("disk.img")).unwrap();

    // The same bytes again: not one of them is sent.
    let arrived = || farm.parts().len();
    let before = arrived();
    assert!(before > 300, "{before} parts");
    let again = farm.submit(&path, &["--version", "1.0.1"]);
    assert_eq!(farm.ended(&again)["state"], "succeeded");
    assert_eq!(arrived(), before);
    let staged = files_below(&farm.dir.path().join("controller/cache/uploads"));
    assert_eq!(staged, Vec::<std::path::PathBuf>::new(), "nothing is left of uploads");
}
