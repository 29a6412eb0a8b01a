//! A step's image and artifact travel through the cache from one worker to another.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, files_below, job, list};
use railyard_tests::{image, unique};

/// `make` fits both workers and runs where it is told to; `use` needs two processors, which only the other worker has.
fn pipeline(image: &str) -> String {
    format!(
        r#"
name: handover
steps:
  - name: make
    image: {image}
    commit: true
    script: |
      echo from-the-image > /etc/made
      ln -s made /etc/linked
      touch /etc/kept /etc/removed
      dd if=/dev/zero of=big bs=1024 count=3000
      echo from-the-artifact > note.txt
      sha256sum big > big.sum
    outputs: [{{ path: big }}, {{ path: big.sum }}, {{ path: note.txt, publish: "notes/{{{{ version }}}}" }}]
    resources: {{ cpu: 1, memory: 64MiB, disk: 64MiB }}
  - name: change
    image: {{ step: make }}
    commit: true
    script: |
      rm /etc/removed
      echo more >> /etc/made
    resources: {{ cpu: 1, memory: 64MiB, disk: 64MiB }}
  - name: use
    image: {{ step: change }}
    inputs: [{{ step: make }}]
    script: |
      cat /etc/linked /inputs/make/note.txt > both.txt
      test ! -e /etc/removed && test -e /etc/kept
      cd /inputs/make && sha256sum -c big.sum
      ! touch /inputs/make/note.txt 2>/dev/null
    outputs: [both.txt]
    resources: {{ cpu: 2, memory: 64MiB, disk: 64MiB }}
"#
    )
}

#[test]
fn image_and_artifact_reach_another_worker_through_the_cache() {
    let (first, second) = (Engine::shared(), Engine::private());
    let farm = Farm::start();
    let base = format!("railyard-test-{}:1", unique());
    // The base is known to the first engine only: whatever the second runs came through the cache.
    image::busybox(&first, &base);
    let maker = farm.worker("maker", &first, "capacity = { cpu_millis = 1000, slots = 1 }");
    let path = farm.pipeline("handover", &pipeline(&base));
    let build = farm.submit(&path, &["--version", "1.0.0"]);
    let user = farm.worker("user", &second, "capacity = { cpu_millis = 2000, slots = 1 }");

    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let worker_of = |name: &str| job(&ended, name)["attempts"][0]["worker"].as_str().map(str::to_owned);
    assert_eq!(worker_of("make").as_deref(), Some(maker.name.as_str()));
    assert_eq!(worker_of("use").as_deref(), Some(user.name.as_str()));

    let out = farm.dir.path().join("fetched");
    let fetched = farm.cli(&["fetch", &build, "both.txt", "-o", &out.display().to_string()]);
    assert_eq!(fetched.code, 0, "{fetched:?}");
    assert_eq!(std::fs::read_to_string(out.join("both.txt")).unwrap(), "from-the-image\nmore\nfrom-the-artifact\n");
    let published = farm.dir.path().join("controller/cache/notes/1.0.0");
    assert_eq!(std::fs::read_to_string(published.join("note.txt")).unwrap(), "from-the-artifact\n");
    assert!(std::fs::read_to_string(published.join("SHA256SUMS")).unwrap().ends_with("  note.txt\n"));

    // Nothing is left behind: no container, no image of the build, no file of a job.
    for (engine, worker) in [(&first, &maker), (&second, &user)] {
        railyard_tests::wait::until("a clean worker", railyard_tests::farm::BUILD_LIMIT, || {
            let containers = engine.containers_of(&worker.name);
            let images = engine.query(&["images", "--quiet", "--filter", "reference=railyard.local/handover"]);
            let jobs = files_below(&worker.data.join("jobs"));
            let clean = containers.is_empty() && images.is_empty() && jobs.is_empty();
            if clean { Ok(()) } else { Err(format!("containers {containers:?}, images {images:?}, files {jobs:?}")) }
        });
    }
    assert!(list(&farm.json(&["workers", "-o", "json"])).iter().all(|worker| worker["connected"] == true));
    first.query(&["image", "rm", &base]);
}
