//! A worker that is killed over a push of a gigabyte, or while it packs what it will push: its next process goes on where it was.

use fastrand::Rng;
use railyard_tests::engine::Engine;
use railyard_tests::farm::{files_below, job};
use railyard_tests::ground::Ground;
use railyard_tests::{image, unique, wait};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Builds, each of a gigabyte of its own, and kills in each: twenty rounds.
const BUILDS: usize = 5;
const KILLS: usize = 4;
/// Of that output.
const PARTS: usize = 64;
/// Streams of one file, as the worker has them by default: a kill interrupts so many parts.
const STREAMS: usize = 4;
/// How long a part may take to come.
const PART_LIMIT: Duration = Duration::from_secs(120);

/// How often each part of an upload has arrived; by upload.
fn arrived(ground: &Ground) -> BTreeMap<String, BTreeMap<u32, usize>> {
    let mut uploads: BTreeMap<String, BTreeMap<u32, usize>> = BTreeMap::new();
    for (upload, part) in ground.parts() {
        *uploads.entry(upload).or_default().entry(part).or_default() += 1;
    }
    uploads
}

/// Waits until so many parts have arrived, in all uploads.
fn until_arrived(ground: &Ground, at: usize, build: &str) {
    wait::until(&format!("part {at}"), PART_LIMIT, || match ground.parts().len() {
        arrived if arrived >= at => Ok(()),
        arrived => Err(format!("{arrived} have arrived; {}", ground.farm.show(build))),
    });
}

#[test]
fn a_kill_costs_at_most_a_part_for_each_stream_into_the_embedded_cache() {
    kills_cost_at_most_a_part_for_each_stream(&Ground::embedded());
}

#[test]
fn a_kill_costs_at_most_a_part_for_each_stream_into_s3() {
    kills_cost_at_most_a_part_for_each_stream(&Ground::s3());
}

fn kills_cost_at_most_a_part_for_each_stream(ground: &Ground) {
    let (engine, farm, seed) = (Engine::shared(), &ground.farm, fastrand::u64(..));
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let mut worker = farm.worker("w1", &engine, "");
    for build in 0..BUILDS {
        let pipeline = farm.pipeline(
            &format!("big-{build}"),
            &format!(
                "name: big-{build}\nsteps:\n  - name: make\n    image: {base}\n    script: dd if=/dev/urandom of=big bs=1048576 count=1024\n    outputs: [big]\n    resources: {{ disk: 2GiB }}\n"
            ),
        );
        let before = ground.parts().len();
        let name = farm.submit(&pipeline, &[]);
        // Anywhere, with parts left for those that come after.
        let mut points: Vec<usize> = (0..KILLS).map(|_| random.usize(1..PARTS - STREAMS)).collect();
        points.sort_unstable();
        println!("build {build}: kills at {points:?}");
        for at in points {
            until_arrived(ground, before + at, &name);
            worker.process.kill();
            worker.process = farm.start_worker(&worker.name);
        }
        let ended = farm.ended(&name);
        assert_eq!(ended["state"], "succeeded", "{ended}");
        let attempts = job(&ended, "make")["attempts"].as_array().unwrap().len();
        assert_eq!(attempts, 1, "the script ran once: {ended}");
        let sent = ground.parts().len() - before;
        println!("build {build}: {sent} parts sent for {PARTS}, {KILLS} kills");
        assert!(sent <= PARTS + KILLS * STREAMS, "{sent} parts were sent for {PARTS}: {:?}", arrived(ground));
    }
    assert_eq!(arrived(ground).len(), BUILDS, "each build had one upload");
    engine.query(&["image", "rm", &base]);
}

/// MiB that do not compress, and as many that do, by turns.
const NOISE_MIB: usize = 160;
/// Of the packed output.
const PACKED_PARTS: usize = 11;
/// Most of them: who began at the beginning again would send more than a kill may cost.
const MOST_PARTS: usize = 6;

/// Waits until the worker is in the middle of packing: its file has begun, and has not `full` bytes.
fn until_packing(data: &Path, full: u64) {
    wait::until("the packing", PART_LIMIT, || {
        let files =
            files_below(&data.join("jobs")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "zst"));
        let lengths: Vec<u64> = files.filter_map(|path| Some(path.metadata().ok()?.len())).collect();
        match lengths[..] {
            [length] if length > 1 << 20 && length < full => Ok(()),
            _ => Err(format!("{lengths:?} bytes, of {full}")),
        }
    });
}

/// The worker packs what stays in the farm by itself, or because the step wants it so.
#[test]
fn a_kill_while_it_packs_costs_no_part() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let ground = Ground::embedded();
    let farm = &ground.farm;
    let mut worker = farm.worker("w1", &engine, "");
    for (build, (compress, artifact)) in [("auto", "big"), ("zstd, level: 6", "big.zst")].into_iter().enumerate() {
        let text = format!(
            "name: packed-{build}\nsteps:\n  - name: only\n    image: {base}\n    script: |\n      \
             for i in $(seq {NOISE_MIB}); do head -c 1048576 /dev/urandom; head -c 1048576 /dev/zero; done > big\n      \
             sha256sum < big\n    outputs: [{{ path: big, compress: {compress} }}]\n"
        );
        let before = ground.parts().len();
        let name = farm.submit(&farm.pipeline(&format!("packed-{build}"), &text), &[]);
        // While it packs, while it sends, and while it packs again what it has begun to send.
        let full = (NOISE_MIB << 20) as u64;
        until_packing(&worker.data, full);
        worker.process.kill();
        assert_eq!(ground.parts().len(), before, "{compress}: it was sending by then");
        worker.process = farm.start_worker(&worker.name);
        until_arrived(&ground, before + MOST_PARTS, &name);
        worker.process.kill();
        worker.process = farm.spawn_worker(&worker.name);
        until_packing(&worker.data, full);
        worker.process.kill();
        worker.process = farm.start_worker(&worker.name);

        let ended = farm.ended(&name);
        assert_eq!(ended["state"], "succeeded", "{ended}");
        let attempts = job(&ended, "only")["attempts"].as_array().unwrap().len();
        assert_eq!(attempts, 1, "{compress}: the script ran once: {ended}");
        let sent = ground.parts().len() - before;
        println!("{compress}: {sent} parts sent for {PACKED_PARTS}");
        assert!((PACKED_PARTS..=PACKED_PARTS + STREAMS).contains(&sent), "{compress}: {sent}: {:?}", arrived(&ground));
        assert_eq!(arrived(&ground).len(), build + 1, "each build had one upload: {:?}", arrived(&ground));
        let out = farm.dir.path().join("fetched");
        let fetched = farm.cli(&["fetch", &name, artifact, "-o", &out.display().to_string()]);
        assert_eq!(fetched.code, 0, "{fetched:?}");
        let unpack = if artifact == "big" { "cat" } else { "zstd -dc" };
        let sum =
            Command::new("sh").args(["-c", &format!("{unpack} {artifact} | sha256sum")]).current_dir(&out).output();
        assert_eq!(String::from_utf8_lossy(&sum.unwrap().stdout).trim(), farm.output(&name).trim(), "{compress}");
    }
    engine.query(&["image", "rm", &base]);
}
