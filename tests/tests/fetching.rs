//! `railyard fetch` that is killed: the next one goes on where it was.

use railyard_tests::engine::Engine;
use railyard_tests::farm::files_below;
use railyard_tests::ground::Ground;
use railyard_tests::{image, unique, wait};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::Duration;

/// Of the file that is fetched, and what must have landed before the kill.
const BYTES: u64 = 256 << 20;
const LANDED_BYTES: u64 = BYTES / 3;
/// What a kill may cost: a chunk of each stream.
const LOST_BYTES: u64 = 4 * (16 << 20);
/// Kills that may come too late.
const TRIES: usize = 5;

#[test]
fn a_fetch_that_was_killed_goes_on_where_it_was() {
    let (ground, engine) = (Ground::s3(), Engine::shared());
    let (farm, store) = (&ground.farm, ground.store().unwrap());
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let _worker = farm.worker("w1", &engine, "");
    let text = format!(
        "name: big\nsteps:\n  - name: only\n    image: {base}\n    script: |\n      dd if=/dev/urandom of=big bs=1048576 count={}\n      \
         sha256sum < big\n    outputs: [big]\n    resources: {{ disk: 2GiB }}\n",
        BYTES >> 20
    );
    let build = farm.submit(&farm.pipeline("big", &text), &[]);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");

    for round in 1.. {
        let out = farm.dir.path().join(format!("out-{round}"));
        let args = ["fetch", &build, "big", "-o", &out.display().to_string()];
        let mut fetch = farm.spawn_cli(&args);
        let landed =
            || files_below(&out).iter().map(|file| file.metadata().map_or(0, |m| m.blocks() * 512)).sum::<u64>();
        wait::until("a third of the file", Duration::from_secs(60), || match landed() {
            bytes if bytes >= LANDED_BYTES => Ok(()),
            bytes => Err(format!("{bytes} bytes are here; {}", fetch.log())),
        });
        fetch.kill();
        if out.join("big").exists() {
            assert!(round < TRIES, "no kill came in time");
            continue;
        }
        let before = store.seen().read_bytes.len();
        let fetched = farm.cli(&args);
        assert_eq!(fetched.code, 0, "{fetched:?}");
        let again: u64 = store.seen().read_bytes[before..].iter().sum();
        println!("{again} of {BYTES} bytes were fetched after the kill");
        assert!((1..=BYTES - LANDED_BYTES + LOST_BYTES).contains(&again), "{again} bytes of {BYTES}");
        let sum = Command::new("sh").args(["-c", "sha256sum < big"]).current_dir(&out).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&sum.stdout).trim(), farm.output(&build).lines().last().unwrap());
        assert_eq!(files_below(&out), [out.join("big")], "nothing else is left");
        break;
    }
    engine.query(&["image", "rm", &base]);
}
