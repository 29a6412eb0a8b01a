//! Outages that a running step does not notice: its engine is restarted, or its worker is cut off for less than a lease's time.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm, Worker};
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

/// A farm with a worker on that engine, the image there, and the build, which has got on a little.
fn running(engine: &Engine) -> (Farm, Worker, String, String) {
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(engine, &base);
    let farm = Farm::start();
    let worker = farm.worker("w", engine, "");
    let build = submit(&farm, &base);
    farm.logged(&build, "only", "line 12");
    (farm, worker, base, build)
}

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

/// What the worker says where something of the output may be missing.
const MISSING: &str =
    "==> railyard: the engine was restarted while the step ran; what it wrote just then may be missing here\n";

/// The build ended well with one attempt. Gives what its log has of the output, and what the script said.
fn ended(farm: &Farm, build: &str) -> (String, String) {
    farm.succeeded_at_once(build);
    (farm.output(build), farm.artifact(build, "said"))
}

#[track_caller]
fn same(output: &str, said: &str) {
    let differs = output.lines().zip(said.lines()).position(|(got, want)| got != want);
    let (lines, got, want) = (said.lines().count(), output.len(), said.len());
    assert!(output == said, "they differ in line {differs:?} of {lines}, {got} bytes and {want}: {output}");
}

#[test]
fn a_step_runs_on_while_its_engine_is_restarted() {
    let mut engine = Engine::private_with_live_restore();
    let (farm, worker, _, build) = running(&engine);
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
    let (output, said) = ended(&farm, &build);
    // What the engine had heard and not written down could be lost. Here it had told it, or there was nothing.
    assert_eq!(output.matches(MISSING).count(), 2, "{output}");
    let output = output.replacen(&format!("\n{MISSING}"), "", 1).replacen(MISSING, "", 1);
    same(&output, &said);
    assert!(engine.containers_of(&worker.name).is_empty());
}

/// Who is killed first, and who is back first, is one turn; in the last one the step ends meanwhile.
#[test]
fn a_log_is_whole_or_says_where_not_when_engine_and_worker_were_away() {
    let mut engine = Engine::private_with_live_restore();
    let (farm, mut worker, _, build) = running(&engine);
    let (work, containers) = (worker.work(), engine.containers_of(&worker.name));
    for turn in 0..4 {
        match turn {
            0 => {
                engine.kill();
                worker.process.kill();
            }
            // Nobody tells the worker that the engine was away: it is back before.
            _ => {
                worker.process.kill();
                says(&work, 5);
                engine.kill();
            }
        }
        says(&work, 10);
        if turn == 3 {
            std::fs::write(work.join("go"), "").unwrap();
            wait::until("the last words", BUILD_LIMIT, || {
                let said = std::fs::read_to_string(work.join("said")).unwrap_or_default();
                if said.ends_with("the end of it") { Ok(()) } else { Err(said) }
            });
        }
        engine.start_again();
        worker.process = farm.start_worker(&worker.name);
        if turn < 3 {
            assert_eq!(engine.containers_of(&worker.name), containers);
            farm.logged(&build, "only", &format!("line {}\n", lines(&work) + 5));
        }
        if turn == 1 {
            // The same engine: there is nothing to be said.
            worker.process.kill();
            says(&work, 10);
            worker.process = farm.start_worker(&worker.name);
            farm.logged(&build, "only", &format!("line {}\n", lines(&work) + 5));
        }
    }
    let (output, said) = ended(&farm, &build);
    // A note may be the last line.
    let output = output + "\n";
    assert_eq!(output.matches(MISSING).count(), 4, "once for each restart of the engine: {output}");
    let total = said.lines().filter(|line| line.starts_with("line ")).count();
    let mut next = 1;
    for (notes, part) in output.split(MISSING).enumerate() {
        let numbers = part.lines().filter_map(|line| line.strip_prefix("line ")?.parse::<usize>().ok());
        let mut jumps = 0;
        for number in numbers {
            assert!(number >= next, "line {number} comes again: {output}");
            jumps += usize::from(number > next);
            next = number + 1;
        }
        assert!(jumps <= notes.min(1), "lines are missing where nothing says so: {output}");
    }
    assert!(next <= total + 1, "{next} of {total}");
}

/// Its daemon runs on, and takes ten seconds to start another; it never hears of what ended meanwhile.
#[test]
fn an_engine_whose_containerd_is_killed_costs_time_and_no_attempt() {
    let engine = Engine::private_with_live_restore();
    let (farm, worker, base, build) = running(&engine);
    let work = worker.work();
    engine.kill_containerd();
    std::fs::write(work.join("go"), "").unwrap();
    // This one finds nobody who would start its container.
    let text = format!(
        "name: next\nsteps:\n  - name: only\n    image: {base}\n    script: echo fine\n    \
         resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n"
    );
    let next = farm.submit(&farm.pipeline("next", &text), &[]);
    let (output, said) = ended(&farm, &build);
    same(&output, &said);
    farm.succeeded_at_once(&next);
    wait::until("a clean engine", BUILD_LIMIT, || match engine.containers_of(&worker.name) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
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
    let (output, said) = ended(&farm, &build);
    same(&output, &said);
    engine.query(&["image", "rm", &base]);
}
