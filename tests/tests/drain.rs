//! A worker that is emptied while a container runs there.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm, files_below, job, list};
use railyard_tests::{image, unique, wait};

#[test]
fn at_the_deadline_of_a_drain_the_container_is_stopped_and_the_job_runs_elsewhere() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let farm = Farm::start();
    let first = farm.worker("first", &engine, "");
    let text = format!(
        "name: drain\nsteps:\n  - name: only\n    image: {base}\n    script: |\n      echo attempt $RAILYARD_ATTEMPT runs\n      \
         if test $RAILYARD_ATTEMPT = 1; then while true; do sleep 0.1; done; fi\n      echo done > it\n    outputs: [it]\n    \
         resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n"
    );
    let build = farm.submit(&farm.pipeline("drain", &text), &[]);
    farm.logged(&build, "only", "attempt 1 runs");
    assert_eq!(engine.containers_of(&first.name).len(), 1);
    let second = farm.worker("second", &engine, "");

    // It ends when nothing runs there any more.
    let drained = farm.cli(&["drain", &first.name, "--why", "a test", "--deadline", "2s", "--wait"]);
    assert_eq!(drained.code, 0, "{drained:?}");
    wait::until("an empty worker", BUILD_LIMIT, || {
        let (containers, files) = (engine.containers_of(&first.name), files_below(&first.data.join("jobs")));
        if containers.is_empty() && files.is_empty() { Ok(()) } else { Err(format!("{containers:?} {files:?}")) }
    });

    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let attempts = list(&job(&ended, "only")["attempts"]);
    assert_eq!(attempts.len(), 2, "{ended}");
    assert_eq!(attempts[0]["worker"], first.name.as_str(), "{ended}");
    let outcome = &attempts[0]["outcome"];
    assert_eq!((&outcome["kind"], &outcome["reason"]), (&"lost".into(), &"drained".into()), "{ended}");
    assert_eq!(attempts[1]["worker"], second.name.as_str(), "{ended}");
    engine.query(&["image", "rm", &base]);
}
