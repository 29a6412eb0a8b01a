//! A worker that is killed over a push of a gigabyte: its next process goes on where it was.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, job};
use railyard_tests::{image, unique, wait};
use std::collections::BTreeMap;
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

/// How often each part of an upload has arrived, as the controller's log tells; by upload.
fn arrived(farm: &Farm) -> BTreeMap<String, BTreeMap<u32, usize>> {
    let log = std::fs::read_to_string(farm.dir.path().join("controller.log")).unwrap_or_default();
    let mut uploads: BTreeMap<String, BTreeMap<u32, usize>> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("a part has arrived")) {
        let field = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}="))?;
            Some(rest.split(' ').next()?.trim_matches('"').to_owned())
        };
        let (Some(upload), Some(part)) = (field("upload"), field("part").and_then(|part| part.parse().ok())) else {
            panic!("{line}")
        };
        *uploads.entry(upload).or_default().entry(part).or_default() += 1;
    }
    uploads
}

fn total(farm: &Farm) -> usize {
    arrived(farm).values().flat_map(BTreeMap::values).sum()
}

#[test]
fn a_kill_costs_at_most_a_part_for_each_stream() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let farm = Farm::start_with("", &[("RAILYARD_LOG", "info,railyard_controller::cache=debug")]);
    let mut worker = farm.worker("w1", &engine, "");
    for build in 0..BUILDS {
        let pipeline = farm.pipeline(
            &format!("big-{build}"),
            &format!(
                "name: big-{build}\nsteps:\n  - name: make\n    image: {base}\n    script: dd if=/dev/urandom of=big bs=1048576 count=1024\n    outputs: [big]\n"
            ),
        );
        let before = total(&farm);
        let name = farm.submit(&pipeline, &[]);
        for kill in 1..=KILLS {
            // Somewhere within the parts that are left: another place each time.
            let at = before + kill * PARTS / (KILLS + 1) + (build * 7 + kill * 3) % 5;
            wait::until(&format!("part {at}"), PART_LIMIT, || match total(&farm) {
                arrived if arrived >= at => Ok(()),
                arrived => Err(format!("{arrived} have arrived; {}", farm.show(&name))),
            });
            worker.process.kill();
            worker.process = farm.start_worker(&worker.name);
        }
        let ended = farm.ended(&name);
        assert_eq!(ended["state"], "succeeded", "{ended}");
        let attempts = job(&ended, "make")["attempts"].as_array().unwrap().len();
        assert_eq!(attempts, 1, "the script ran once: {ended}");
        let sent = total(&farm) - before;
        println!("build {build}: {sent} parts sent for {PARTS}, {KILLS} kills");
        assert!(sent <= PARTS + KILLS * STREAMS, "{sent} parts were sent for {PARTS}: {:?}", arrived(&farm));
    }
    assert_eq!(arrived(&farm).len(), BUILDS, "each build had one upload");
}
