//! Outages that a running step does not notice: its engine is restarted, or its worker is cut off for less than a lease's time.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm};
use railyard_tests::proxy::Proxy;
use railyard_tests::scene::one_step;
use railyard_tests::{image, unique, wait};
use std::path::Path;

/// Says line after line, each at once in its output and in the file `said`. While the file `pause` is there it stops, in the
/// middle of a line if `half` is there too, and makes the file `paused`.
const PAUSING: &str = r#"
      say() { printf "$@" >> said; printf "$@"; }
      n=0
      while test ! -e go; do
        n=$((n + 1)); say 'line %d\n' $n
        if test -e pause; then
          test ! -e half || say 'half of line %d' $n
          touch paused
          while test -e pause; do sleep 0.05; done
          say ' and its rest\n'
        fi
        sleep 0.05
      done
      say 'the end of it'
"#;

fn submit(farm: &Farm, image: &str) -> String {
    let more = format!("    lease_ttl: 60s\n    outputs: [said]\n    script: |{PAUSING}");
    farm.submit(&one_step(farm, "outage", image, &more), &[])
}

fn lines(work: &Path) -> usize {
    std::fs::read_to_string(work.join("said")).unwrap_or_default().lines().count()
}

/// Waits until the script has said so many lines more.
fn says(work: &Path, more: usize) {
    let want = lines(work) + more;
    wait::until("the script's lines", BUILD_LIMIT, || {
        let have = lines(work);
        if have >= want { Ok(()) } else { Err(format!("{have} of {want} lines")) }
    });
}

fn appears(file: &Path) {
    wait::until(
        &format!("{}", file.display()),
        BUILD_LIMIT,
        || if file.exists() { Ok(()) } else { Err(String::new()) },
    );
}

/// The build ended well with one attempt, and its log is what the script said.
fn ended_whole(farm: &Farm, build: &str) {
    farm.succeeded_at_once(build);
    let (output, said) = (farm.output(build), farm.artifact(build, "said"));
    let differs = output.lines().zip(said.lines()).position(|(got, want)| got != want);
    assert!(
        output == said,
        "they differ in line {differs:?} of {}, {} bytes and {}",
        said.lines().count(),
        output.len(),
        said.len()
    );
}

#[test]
fn a_step_runs_on_while_its_engine_is_restarted() {
    let mut engine = Engine::private_with_live_restore();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let farm = Farm::start();
    let worker = farm.worker("w", &engine, "");
    let build = submit(&farm, &base);
    farm.logged(&build, "only", "line 12");
    let (work, containers) = (worker.work(), engine.containers_of(&worker.name));
    assert_eq!(containers.len(), 1);
    for (end, half) in [(Engine::kill as fn(&mut Engine), true), (Engine::stop, false)] {
        if half {
            std::fs::write(work.join("half"), "").unwrap();
        }
        std::fs::write(work.join("pause"), "").unwrap();
        appears(&work.join("paused"));
        if half {
            // The engine has told it to the worker, and has not written it down.
            farm.logged(&build, "only", "\nhalf of line ");
            std::fs::remove_file(work.join("half")).unwrap();
        }
        end(&mut engine);
        std::fs::remove_file(work.join("paused")).unwrap();
        std::fs::remove_file(work.join("pause")).unwrap();
        says(&work, 20);
        engine.start_again();
        assert_eq!(engine.containers_of(&worker.name), containers);
        says(&work, 40);
    }
    std::fs::write(work.join("go"), "").unwrap();
    ended_whole(&farm, &build);
    assert!(engine.containers_of(&worker.name).is_empty());
}

#[test]
fn a_cut_network_costs_nothing_while_the_lease_lives() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let farm = Farm::start();
    let network = Proxy::to(farm.port());
    let worker = farm.worker_by(&format!("https://127.0.0.1:{}", network.port()), "w", &engine, "");
    let build = submit(&farm, &base);
    farm.logged(&build, "only", "line 12");
    let (work, containers) = (worker.work(), engine.containers_of(&worker.name));
    network.hold();
    // Longer than either side believes in a connection that is silent.
    says(&work, 400);
    network.go_on();
    let last = format!("line {}\n", lines(&work));
    farm.logged(&build, "only", &last);
    assert_eq!(engine.containers_of(&worker.name), containers);
    std::fs::write(work.join("go"), "").unwrap();
    ended_whole(&farm, &build);
    engine.query(&["image", "rm", &base]);
}
