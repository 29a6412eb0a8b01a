//! What bad input and bad luck get: a clear error, and nothing lost.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Answer, BUILD_LIMIT, Farm, files_below, job, list};
use railyard_tests::scene::Scene;
use railyard_tests::{image, unique, wait};
use serde_json::Value;
use std::process::Command;

/// Submits with `--wait`; gives the answer and the build as it then is.
fn submit_and_wait(scene: &Scene, path: &str) -> (Answer, Value) {
    let answer = scene.farm.cli(&["submit", path, "--wait"]);
    (answer, scene.farm.show("bad"))
}

fn outcome_of(build: &Value) -> &Value {
    &job(build, "only")["attempts"][0]["outcome"]
}

#[test]
fn a_malformed_pipeline_is_refused_with_its_place() {
    let farm = Farm::start();
    let path =
        farm.pipeline("bad", "name: bad\nsteps:\n  - name: a\n    image: x\n    script: 'true'\n    needs: [b]\n");
    for verb in ["check", "plan", "submit"] {
        let answer = farm.cli(&[verb, &path]);
        assert_eq!(answer.code, 2, "{verb}: {answer:?}");
        assert!(answer.stderr.contains("bad.yaml:6:13") && answer.stderr.contains("`b`"), "{verb}: {answer:?}");
    }
    assert!(list(&farm.json(&["builds", "-o", "json"])).is_empty());
}

#[test]
fn a_failing_script_shows_its_code_its_last_lines_and_the_way_to_the_rest() {
    let scene = Scene::default();
    let path = scene.one_step(
        "bad",
        "    script: |\n      for n in $(seq 100); do echo line $n; done\n      echo the reason >&2\n      exit 7",
    );
    let (answer, build) = submit_and_wait(&scene, &path);
    assert_eq!(answer.code, 1, "{answer:?}");
    for text in ["code 7", "the reason", "line 100", "railyard logs bad/"] {
        assert!(answer.stderr.contains(text), "{text}: {answer:?}");
    }
    let outcome = outcome_of(&build);
    assert_eq!(
        (&outcome["kind"], &outcome["reason"], &outcome["exit_code"]),
        (&"failed".into(), &"exit-code".into(), &7.into())
    );
    let log = scene.farm.cli(&["logs", "bad", "only"]).stdout;
    assert!(log.contains("line 1\n") && log.contains("the reason\n"), "{log}");
    scene.is_clean();
}

#[test]
fn a_missing_output_is_named_with_what_is_there() {
    let scene = Scene::default();
    let path = scene.one_step("bad", "    script: echo x > image.img\n    outputs: ['*.raw']");
    let (answer, build) = submit_and_wait(&scene, &path);
    assert_eq!(answer.code, 1);
    let outcome = outcome_of(&build);
    assert_eq!(outcome["reason"], "output-missing", "{build}");
    let message = outcome["message"].as_str().unwrap();
    assert!(message.contains("*.raw") && message.contains("image.img"), "{message}");
    scene.is_clean();
}

#[test]
fn a_step_that_eats_its_memory_is_killed_and_that_is_said() {
    let scene = Scene::default();
    let path = scene.one_step(
        "bad",
        "    script: |\n      x=$(dd if=/dev/zero bs=1048576 count=200 | tr '\\0' x)\n      echo ${#x}",
    );
    // tr is not among the image's applets, but busybox itself is there.
    let text = std::fs::read_to_string(&path).unwrap().replace("| tr", "| busybox tr");
    std::fs::write(&path, text).unwrap();
    let (answer, build) = submit_and_wait(&scene, &path);
    assert_eq!(answer.code, 1);
    let outcome = outcome_of(&build);
    assert_eq!(outcome["reason"], "oom", "{build}");
    assert!(outcome["message"].as_str().unwrap().contains("memory"), "{outcome}");
    scene.is_clean();
}

#[test]
fn a_step_that_runs_out_of_time_keeps_its_log() {
    let scene = Scene::default();
    let path = scene.one_step("bad", "    timeout: 3s\n    script: |\n      echo before the end\n      sleep 600");
    let (answer, build) = submit_and_wait(&scene, &path);
    assert_eq!(answer.code, 1);
    let outcome = outcome_of(&build);
    assert_eq!((&outcome["kind"], &outcome["reason"]), (&"timed-out".into(), &"wall-clock".into()), "{build}");
    let log = scene.farm.cli(&["logs", "bad", "only"]).stdout;
    assert!(log.contains("before the end\n"), "{log}");
    scene.is_clean();
}

#[test]
fn a_step_gets_the_processors_that_it_reserves_and_leaves_the_others_to_the_worker() {
    let scene = Scene::default();
    // The first are of cgroups version 1, the last is of version 2.
    let path = scene.one_step(
        "bad",
        "    script: |\n      cd /sys/fs/cgroup\n      cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us || cat cpu.max",
    );
    let (answer, _) = submit_and_wait(&scene, &path);
    assert_eq!(answer.code, 0, "{answer:?}");
    let log = scene.farm.cli(&["logs", "bad", "only"]).stdout;
    let said: Vec<&str> = log.lines().filter(|line| !line.starts_with("==>")).flat_map(str::split_whitespace).collect();
    assert_eq!(said, ["50000", "100000"], "{log}");
    scene.is_clean();
}

#[test]
fn a_missing_image_is_named() {
    let scene = Scene::default();
    let path = scene.farm.pipeline(
        "bad",
        "name: bad\nsteps:\n  - name: only\n    image: 127.0.0.1:1/nobody/nothing:1\n    script: 'true'\n",
    );
    let build = scene.farm.submit(&path, &[]);
    let outcome = wait::until("the first outcome", BUILD_LIMIT, || {
        let shown = scene.farm.show(&build);
        let outcome = outcome_of(&shown).clone();
        if outcome.is_object() { Ok(outcome) } else { Err(shown.to_string()) }
    });
    assert_eq!(outcome["reason"], "image-missing", "{outcome}");
    assert!(outcome["message"].as_str().unwrap().contains("127.0.0.1:1/nobody/nothing:1"), "{outcome}");
    assert_eq!(scene.farm.cli(&["cancel", &build]).code, 0);
    assert_eq!(scene.farm.ended(&build)["state"], "cancelled");
    scene.is_clean();
}

#[test]
fn an_unknown_step_or_build_is_named() {
    let scene = Scene::default();
    let path = scene.one_step("bad", "    script: 'true'");
    let (answer, _) = submit_and_wait(&scene, &path);
    assert_eq!(answer.code, 0, "{answer:?}");
    let answer = scene.farm.cli(&["logs", "bad", "nosuch"]);
    assert_eq!(answer.code, 3, "{answer:?}");
    assert!(answer.stderr.contains("nosuch") && answer.stderr.contains("railyard show"), "{answer:?}");
    let answer = scene.farm.cli(&["show", "bad/9.9.9"]);
    assert_eq!(answer.code, 3, "{answer:?}");
    assert!(answer.stderr.contains("bad/9.9.9"), "{answer:?}");
}

#[test]
fn no_worker_for_a_platform_is_said_at_submit_and_in_show() {
    let engine = Engine::shared();
    let farm = Farm::start();
    let _worker = farm.worker("w", &engine, "platforms = [{ platform = \"linux/amd64\", emulated = false }]");
    let text =
        "name: bad\nplatforms: [linux/amd64, linux/arm64]\nsteps:\n  - name: only\n    image: x\n    script: 'true'\n";
    let path = farm.pipeline("bad", text);
    let answer = farm.cli(&["submit", &path, "--platform", "linux/arm64"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let said = "no connected worker offers linux/arm64";
    assert!(answer.stderr.contains(said), "{answer:?}");
    assert!(job(&farm.show("bad"), "only")["why"].as_str().unwrap().contains(said));
    let planned = farm.cli(&["plan", &path, "--platform", "linux/arm64"]);
    assert!(planned.stdout.contains(said) || planned.stderr.contains(said), "{planned:?}");
}

#[test]
fn a_job_larger_than_every_worker_says_so() {
    let scene = Scene::default();
    let text =
        "name: bad\nsteps:\n  - name: only\n    image: x\n    script: 'true'\n    resources: { memory: 64TiB }\n";
    let path = scene.farm.pipeline("bad", text);
    let answer = scene.farm.cli(&["submit", &path]);
    assert!(answer.stderr.contains("memory") && answer.stderr.contains(&scene.worker.name), "{answer:?}");
}

#[test]
fn an_engine_that_ends_its_containers_when_it_is_restarted_loses_the_attempt_and_the_job_runs_elsewhere() {
    let (mut private, shared) = (Engine::private(), Engine::shared());
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&private, &base);
    image::busybox(&shared, &base);
    let farm = Farm::start();
    let first = farm.worker("first", &private, "");
    let text = format!(
        "name: bad\nsteps:\n  - name: only\n    image: {base}\n    script: |\n      echo attempt $RAILYARD_ATTEMPT\n      \
         if test $RAILYARD_ATTEMPT = 1; then sleep 600; fi\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n"
    );
    let build = farm.submit(&farm.pipeline("bad", &text), &[]);
    // Not the worker's own line, which comes before.
    farm.logged(&build, "only", "script\nattempt 1\n");
    let second = farm.worker("second", &shared, "");
    private.kill();
    private.start_again();
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let attempts = list(&job(&ended, "only")["attempts"]);
    let lost = attempts.iter().find(|attempt| attempt["worker"] == first.name.as_str()).unwrap();
    assert_eq!((&lost["outcome"]["kind"], &lost["outcome"]["reason"]), (&"lost".into(), &"engine".into()), "{ended}");
    assert_eq!(attempts.last().unwrap()["worker"], second.name.as_str(), "{ended}");
    shared.query(&["image", "rm", &base]);
}

/// A small file system of its own, so that it can be filled.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "this test mounts a tmpfs and needs root for it");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_on_the_worker_is_the_farm_s_fault_and_is_named() {
    let engine = Engine::shared();
    let image = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &image);
    let disk = SmallDisk::mount("24m");
    let farm = Farm::start();
    let data = disk.0.path().join("data");
    let worker =
        farm.worker("small", &engine, "capacity = { disk = \"1GiB\", disk_reserve = \"0B\" }\nenforce_disk = false");
    // The same worker, with its data on the small disk.
    drop(worker.process);
    let config = farm.dir.path().join(format!("{}.toml", worker.name));
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text
        .replace(&format!("data_dir = \"{}\"", worker.data.display()), &format!("data_dir = \"{}\"", data.display()));
    std::fs::write(&config, text).unwrap();
    let _process = farm.start_worker(&worker.name);

    let text = format!(
        "name: bad\nsteps:\n  - name: only\n    image: {image}\n    script: dd if=/dev/zero of=big bs=1048576 count=64\n    \
         outputs: [big]\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 8MiB }}\n"
    );
    let build = farm.submit(&farm.pipeline("bad", &text), &[]);
    let outcome = wait::until("the first outcome", BUILD_LIMIT, || {
        let shown = farm.show(&build);
        let outcome = outcome_of(&shown).clone();
        if outcome.is_object() { Ok(outcome) } else { Err(shown.to_string()) }
    });
    assert_eq!((&outcome["kind"], &outcome["reason"]), (&"lost".into(), &"disk-full".into()), "{outcome}");
    assert_eq!(farm.cli(&["cancel", &build]).code, 0);
    assert_eq!(farm.ended(&build)["state"], "cancelled");
    wait::until("an empty job directory", BUILD_LIMIT, || {
        let files = files_below(&data.join("jobs"));
        if files.is_empty() { Ok(()) } else { Err(format!("{files:?}")) }
    });
    engine.query(&["image", "rm", &image]);
}

#[test]
fn a_controller_that_cannot_be_reached_is_said_and_exits_with_3() {
    let mut farm = Farm::start();
    farm.kill_controller();
    for verb in [vec!["builds"], vec!["show", "x/1"], vec!["workers"]] {
        let answer = farm.cli(&verb);
        assert_eq!(answer.code, 3, "{answer:?}");
        assert!(answer.stderr.contains(&farm.url()) && answer.stderr.contains("railyard dev"), "{answer:?}");
    }
}

#[test]
fn a_cancelled_build_leaves_nothing_and_a_retry_keeps_what_succeeded() {
    let scene = Scene::default();
    let text = format!(
        "name: bad\nsteps:\n  - name: first\n    image: {0}\n    script: echo x > x\n    outputs: [x]\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n  \
         - name: only\n    image: {0}\n    inputs: [{{ step: first }}]\n    script: |\n      echo attempt $RAILYARD_ATTEMPT\n      \
         if test $RAILYARD_ATTEMPT = 1; then sleep 600; fi\n    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n",
        scene.image
    );
    let build = scene.farm.submit(&scene.farm.pipeline("bad", &text), &[]);
    scene.farm.logged(&build, "only", "attempt 1");
    assert_eq!(scene.farm.cli(&["cancel", &build, "--reason", "a test"]).code, 0);
    let cancelled = scene.farm.ended(&build);
    assert_eq!(
        (&cancelled["state"], &cancelled["cancel_reason"]),
        (&"cancelled".into(), &"a test (cancelled by operator)".into())
    );
    scene.is_clean();
    let retried = scene.farm.cli(&["retry", &build]);
    assert_eq!(retried.code, 0, "{retried:?}");
    let ended = wait::until("the success of the retry", BUILD_LIMIT, || {
        let shown = scene.farm.show(&build);
        if shown["state"] == "succeeded" { Ok(shown) } else { Err(shown.to_string()) }
    });
    assert_eq!(list(&job(&ended, "first")["attempts"]).len(), 1, "{ended}");
    assert_eq!(list(&job(&ended, "only")["attempts"]).len(), 2, "{ended}");
}
