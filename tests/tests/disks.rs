//! A worker and its engine on one small disk: what is kept makes way, whatever it is; what a running job uses stays; and a disk that a
//! step has filled to the last byte is cleaned.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm, job, list};
use railyard_tests::process::Process;
use railyard_tests::{image, unique, wait};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A small ext4 file system in a file, gone with the value.
struct Loop {
    at: TempDir,
    _image: tempfile::NamedTempFile,
}

impl Loop {
    fn mount(bytes: u64) -> Self {
        let (at, image) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        image.as_file().set_len(bytes).unwrap();
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {said}; this test needs root, loop devices and mkfs.ext4");
        };
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image.path()));
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(at.path()));
        Self { at, _image: image }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.at.path()).status();
    }
}

/// A farm whose worker and engine have one small disk.
struct Small {
    process: Option<Process>,
    worker: String,
    image: String,
    farm: Farm,
    engine: Engine,
    disk: Loop,
}

impl Small {
    fn start(settings: &str) -> Self {
        let disk = Loop::mount(2048 * MIB);
        let engine = Engine::private_on(disk.at.path());
        let image = format!("railyard-test-{}:1", unique());
        image::busybox(&engine, &image);
        let farm = Farm::start();
        let worker = farm.worker("small", &engine, settings);
        // The same worker, with its data on the small disk, and with room for images of builds that are over.
        drop(worker.process);
        let config = farm.dir.path().join(format!("{}.toml", worker.name));
        let text = std::fs::read_to_string(&config).unwrap();
        let old = format!("data_dir = \"{}\"", worker.data.display());
        let new = format!("data_dir = \"{}\"", disk.at.path().join("worker").display());
        let text = text.replace(&old, &new).replace("image_cache = '0B'", "image_cache = '1GiB'");
        std::fs::write(&config, text.replace("disk = { high = '100%', low = '100%' }", MARKS)).unwrap();
        let process = Some(farm.start_worker(&worker.name));
        Self { process, worker: worker.name, image, farm, engine, disk }
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.disk.at.path().join(path)
    }

    /// A build whose first step makes an image with so much in it, and whose second runs `script` in that.
    fn submit(&self, name: &str, mib: u64, script: &str) -> String {
        let resources = "resources: { cpu: 0.2, memory: 64MiB, disk: 100MiB }";
        let text = format!(
            "name: {name}\nsteps:\n  - name: make\n    image: {}\n    commit: true\n    network: none\n    \
             script: dd if=/dev/urandom of=/big bs=1048576 count={mib}\n    {resources}\n  - name: only\n    \
             image: {{ step: make }}\n    network: none\n    script: |\n      {script}\n    {resources}\n",
            self.image
        );
        self.farm.submit(&self.farm.pipeline(name, &text), &[])
    }

    fn succeeds(&self, name: &str, mib: u64) -> String {
        let build = self.submit(name, mib, "wc -c /big");
        let ended = self.farm.ended(&build);
        assert_eq!(ended["state"], "succeeded", "{ended}");
        build
    }

    fn disk(&self) -> Value {
        let workers = self.farm.json(&["workers", "-o", "json"]);
        let found = list(&workers).iter().find(|worker| worker["name"] == self.worker.as_str());
        found.map(|worker| worker["disk"].clone()).unwrap_or_default()
    }

    /// Waits until the worker says that of its disk.
    fn until(&self, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        wait::until(what, BUILD_LIMIT, || {
            let disk = self.disk();
            if seen(&disk) { Ok(disk) } else { Err(disk.to_string()) }
        })
    }

    /// The worker's images in the engine, by their builds' pipelines.
    fn images(&self) -> Vec<String> {
        let names = self.engine.query(&["image", "ls", "--format", "{{.Repository}}"]);
        let ours = names.lines().filter(|name| name.starts_with("railyard.local/"));
        let mut pipelines: Vec<String> = ours.filter_map(|name| name.rsplit('/').next()).map(str::to_owned).collect();
        pipelines.sort();
        pipelines.dedup();
        pipelines
    }
}

fn used(disk: &Value) -> u64 {
    disk["file_systems"][0]["used_bytes"].as_u64().unwrap_or(u64::MAX)
}

fn kind(disk: &Value, kind: &str) -> u64 {
    disk["kinds"][kind]["bytes"].as_u64().unwrap_or_default()
}

const SETTINGS: &str = "capacity = { disk = '1GiB', disk_reserve = '16MiB', slots = 4 }\nenforce_disk = false";
const MARKS: &str = "disk = { high = '600MiB', low = '400MiB' }";

#[test]
fn images_and_layers_make_way_by_age_and_a_running_job_keeps_its_image() {
    let small = Small::start(SETTINGS);
    let first = small.succeeds("first", 80);
    let disk = small.until("the image is counted", |disk| kind(disk, "images") >= 80 * MIB);
    assert_eq!(disk["file_systems"].as_array().map(Vec::len), Some(1), "{disk}");
    assert_eq!(disk["file_systems"][0]["high_bytes"], 600 * MIB, "{disk}");
    assert!(kind(&disk, "layers") >= 80 * MIB, "the packed layer is kept, too: {disk}");
    assert!(disk["counted_at"].is_string() && disk["room_bytes"].as_u64() > Some(1024 * MIB), "{disk}");

    // It uses its image while others come and go.
    let held = small.submit("held", 80, "wc -c /big; echo running; while ! test -e go; do sleep 0.1; done; wc -c /big");
    small.farm.logged(&held, "only", "running");
    // Packed layers go first: the engine has them by then. Then it is the images' turn.
    for name in ["b", "c", "d", "e", "f"] {
        small.succeeds(name, 80);
    }
    let disk =
        small.until("room was made", |disk| used(disk) <= 600 * MIB && !small.images().contains(&"first".to_owned()));
    let images = small.images();
    assert!(images.contains(&"held".to_owned()) && images.contains(&"f".to_owned()), "{images:?} {disk}");
    let work = railyard_tests::farm::files_below(&small.at("worker/jobs"));
    let work = work.into_iter().find(|path| path.is_dir() && path.ends_with("work")).expect("a job runs");
    std::fs::write(work.join("go"), "").unwrap();
    let ended = small.farm.ended(&held);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let table = small.farm.cli(&["workers", "--disk"]).stdout;
    assert!(table.contains("LAYERS") && table.contains(&small.worker), "{table}");
    // What has gone can be had again.
    let again = small.farm.cli(&["show", &first]);
    assert_eq!(again.code, 0, "{again:?}");
}

#[test]
fn a_disk_filled_to_the_last_byte_is_cleaned_and_the_others_go_on() {
    let mut small = Small::start(SETTINGS);
    small.succeeds("kept", 80);
    let held = small.submit("held", 20, "echo running; while ! test -e go; do sleep 0.1; done; wc -c /big");
    small.farm.logged(&held, "only", "running");
    let go = |root: &Path| {
        let all = railyard_tests::farm::files_below(root);
        all.into_iter().find(|path| path.is_dir() && path.ends_with("work")).expect("a job runs").join("go")
    };
    let go = go(&small.at("worker/jobs"));

    let text = format!(
        "name: greedy\nsteps:\n  - name: only\n    image: {}\n    network: none\n    script: dd if=/dev/zero of=big bs=1048576\n    \
         resources: {{ cpu: 0.2, memory: 64MiB, disk: 64MiB }}\n",
        small.image
    );
    let build = small.farm.submit(&small.farm.pipeline("greedy", &text), &[]);
    let outcome = wait::until("the first outcome", BUILD_LIMIT, || {
        let shown = small.farm.show(&build);
        let attempts = list(&job(&shown, "only")["attempts"]);
        let outcome = attempts.first().map(|attempt| attempt["outcome"].clone()).unwrap_or_default();
        if outcome.is_object() { Ok(outcome) } else { Err(shown.to_string()) }
    });
    assert_eq!((&outcome["kind"], &outcome["reason"]), (&"lost".into(), &"disk-full".into()), "{outcome}");
    assert_eq!(small.farm.cli(&["cancel", &build]).code, 0);
    assert_eq!(small.farm.ended(&build)["state"], "cancelled");
    let process = small.process.as_mut().unwrap();
    assert!(!process.has_ended(), "{}", process.log());
    small.until("there is room again", |disk| used(disk) <= 600 * MIB);
    std::fs::write(&go, "").unwrap();
    let ended = small.farm.ended(&held);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    small.succeeds("next", 20);
}
