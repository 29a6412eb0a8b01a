//! kill -9 of a controller and of a worker in the middle of a build.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, files_below, job, list};
use railyard_tests::{image, unique};

/// `wait` runs until the test has put the file `go` into the input directory that it can reach: its own work directory.
fn pipeline(image: &str, ttl: &str) -> String {
    format!(
        r#"
name: kills
steps:
  - name: first
    image: {image}
    script: echo one > one.txt
    outputs: [one.txt]
    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}
  - name: wait
    image: {image}
    inputs: [{{ step: first }}]
    lease_ttl: {ttl}
    script: |
      echo "attempt $RAILYARD_ATTEMPT waits"
      n=0
      while test ! -e go; do n=$((n + 1)); echo "tick $n"; sleep 0.2; done
      echo done > two.txt
    outputs: [two.txt]
    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}
  - name: last
    image: {image}
    inputs: [{{ step: wait }}]
    script: cat /inputs/wait/two.txt
    resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}
"#
    )
}

/// Lets the waiting job of a worker go on.
fn release(data: &std::path::Path) {
    let works: Vec<_> =
        files_below(&data.join("jobs")).into_iter().filter(|path| path.is_dir() && path.ends_with("work")).collect();
    assert!(!works.is_empty(), "no job runs below {}", data.display());
    works.iter().for_each(|work| std::fs::write(work.join("go"), "").unwrap());
}

#[test]
fn a_killed_controller_comes_back_and_the_build_ends_well() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let mut farm = Farm::start();
    let worker = farm.worker("w", &engine, "");
    let path = farm.pipeline("kills", &pipeline(&base, "60s"));
    let build = farm.submit(&path, &["--idempotency-key", "once"]);
    farm.logged(&build, "wait", "tick 3");
    let containers = engine.containers_of(&worker.name);
    assert_eq!(containers.len(), 1, "{containers:?}");

    farm.kill_controller();
    farm.start_controller();
    assert_eq!(
        farm.submit(&path, &["--idempotency-key", "once"]),
        build,
        "the same key is the same build, also after a crash"
    );
    farm.logged(&build, "wait", "tick 20");
    assert_eq!(engine.containers_of(&worker.name), containers, "the container runs on, it was not started again");

    release(&worker.data);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    for job in list(&ended["jobs"]) {
        assert_eq!(list(&job["attempts"]).len(), 1, "{job}");
    }
    let log = farm.cli(&["logs", &build, "wait"]).stdout;
    let ticks: Vec<u32> = log.lines().filter_map(|line| line.strip_prefix("tick ")?.parse().ok()).collect();
    assert_eq!(ticks, (1..=ticks.len() as u32).collect::<Vec<_>>(), "the log has every line once, in order");
    engine.query(&["image", "rm", &base]);
}

#[test]
fn the_job_of_a_killed_worker_runs_again_elsewhere_once() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let farm = Farm::start();
    let mut first = farm.worker("first", &engine, "");
    let path = farm.pipeline("kills", &pipeline(&base, "10s"));
    let build = farm.submit(&path, &[]);
    farm.logged(&build, "wait", "tick 3");
    let second = farm.worker("second", &engine, "");
    first.process.kill();

    farm.logged(&build, "wait", "attempt 2 waits");
    release(&second.data);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let attempts = list(&job(&ended, "wait")["attempts"]);
    assert_eq!(attempts.len(), 2, "{ended}");
    assert_eq!(attempts[0]["worker"], first.name.as_str());
    assert_eq!(attempts[0]["outcome"]["kind"], "lost", "{ended}");
    assert_eq!(attempts[0]["outcome"]["reason"], "worker-gone", "{ended}");
    assert_eq!(attempts[1]["worker"], second.name.as_str());
    assert_eq!(attempts[1]["outcome"]["kind"], "succeeded", "{ended}");

    // The worker that comes back clears away what it left.
    let _again = farm.start_worker(&first.name);
    railyard_tests::wait::until("the end of the orphan", railyard_tests::farm::BUILD_LIMIT, || {
        let (containers, files) = (engine.containers_of(&first.name), files_below(&first.data.join("jobs")));
        if containers.is_empty() && files.is_empty() { Ok(()) } else { Err(format!("{containers:?} {files:?}")) }
    });
    engine.query(&["image", "rm", &base]);
}
