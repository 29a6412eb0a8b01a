//! kill -9 of a worker process, in every phase of a job: the next process goes on with it, under the same lease.

use railyard_tests::farm::{BUILD_LIMIT, files_below, job, list};
use railyard_tests::{image, scene, unique, wait};
use std::net::TcpListener;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

/// Says line after line until the file `go` is there, each at once in its output and in the file `said`; now and then a line
/// that is longer than what an engine takes for one, and at the end one that does not end.
const TALKING: &str = r#"
      say() { printf "$@" >> said; printf "$@"; }
      long=0123456789abcdef
      for n in 1 2 3 4 5 6 7 8 9 10; do long="$long$long"; done
      n=0
      while test ! -e go; do
        n=$((n + 1)); say 'line %d\n' $n
        if test $((n % 10)) = 0; then say 'long %d %s%s%s\n' $n $long $long x; say '\n'; say '%s\n' $long; fi
        sleep 0.05
      done
      say 'the end of it'
"#;

/// A scene whose worker is killed again and again.
struct Scene(scene::Scene);

impl Deref for Scene {
    type Target = scene::Scene;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Scene {
    fn new() -> Self {
        Self(scene::Scene::default())
    }

    /// Submits a pipeline of one step with this script and `more` lines.
    fn submit(&self, script: &str, more: &str) -> String {
        self.farm.submit(&self.one_step("adopt", &format!("{more}\n    script: |{script}")), &[])
    }

    fn work(&self) -> PathBuf {
        self.worker.work()
    }

    fn go(&self) {
        std::fs::write(self.work().join("go"), "").unwrap();
    }

    /// Waits until the script has said so many lines.
    fn said(&self, lines: usize) {
        let said = self.work().join("said");
        wait::until("the script's lines", BUILD_LIMIT, || {
            let have = std::fs::read_to_string(&said).unwrap_or_default().lines().count();
            if have >= lines { Ok(()) } else { Err(format!("{have} lines")) }
        });
    }

    /// How many lines the script has said.
    fn lines_said(&self) -> usize {
        std::fs::read_to_string(self.work().join("said")).unwrap_or_default().lines().count()
    }

    /// Waits until the worker's record of its job is at that stage.
    fn at_stage(&self, stage: &str) {
        wait::until(&format!("stage {stage}"), BUILD_LIMIT, || {
            let files = files_below(&self.worker.data.join("jobs"));
            let state = files.iter().find(|path| path.ends_with("state.json")).ok_or("no record")?;
            let text = std::fs::read_to_string(state).map_err(|error| error.to_string())?;
            if text.contains(&format!("\"stage\": \"{stage}\"")) { Ok(()) } else { Err(text) }
        });
    }

    fn restart_worker(&mut self) {
        self.worker.process = self.farm.start_worker(&self.worker.name);
    }

    fn container(&self) -> String {
        let containers = self.engine.containers_of(&self.worker.name);
        assert_eq!(containers.len(), 1, "{containers:?}");
        containers[0].clone()
    }
}

/// The first difference, with what is around it: whole logs are too long to print.
#[track_caller]
fn assert_same(got: &str, want: &str) {
    let Some(at) = got.bytes().zip(want.bytes()).position(|(a, b)| a != b) else {
        return assert_eq!(got.len(), want.len(), "one is the beginning of the other");
    };
    let around = |text: &str| {
        let bytes = &text.as_bytes()[at.saturating_sub(80)..(at + 80).min(text.len())];
        String::from_utf8_lossy(bytes).into_owned()
    };
    panic!("they differ at byte {at}: {:?} is not {:?}", around(got), around(want));
}

#[test]
fn a_killed_worker_goes_on_with_its_container_and_the_log_is_whole() {
    let mut scene = Scene::new();
    let build = scene.submit(TALKING, "    outputs: [said]");
    scene.farm.logged(&build, "only", "line 12");
    let container = scene.container();

    // More than once: what one new process does, the next must understand.
    for _ in 0..3 {
        scene.worker.process.kill();
        let lines = scene.lines_said();
        scene.said(lines + 40);
        scene.restart_worker();
        assert_eq!(scene.container(), container, "the container runs on, it was not started again");
        let lines = scene.lines_said();
        scene.said(lines + 20);
    }
    scene.go();
    scene.farm.succeeded_at_once(&build);
    let said = scene.farm.artifact(&build, "said");
    assert!(said.ends_with("the end of it") && said.lines().count() > 200, "{} bytes", said.len());
    assert_same(&scene.farm.output(&build), &said);
    scene.is_clean();
}

#[test]
fn a_killed_worker_takes_up_both_outputs_of_an_image_without_a_shell() {
    let image = format!("railyard-test-{}:1", unique());
    let mut scene = Scene(scene::Scene::with(image, image::without_shell));
    let script = r#"
      #!/bin/busybox sh
      n=0
      while ! /bin/busybox test -e go; do
        n=$((n + 1)); printf '%d\n' $n; printf 'E' >&2
        if /bin/busybox test $((n % 7)) = 0; then printf '\n' >&2; fi
        echo $n > count; printf 'x\n' >> said
        /bin/busybox sleep 0.05
      done
      printf 'LAST' >&2
"#;
    let build = scene.submit(script, "    outputs: [count]");
    scene.farm.logged(&build, "only", "\n12");
    let container = scene.container();
    scene.worker.process.kill();
    let lines = scene.lines_said();
    scene.said(lines + 40);
    scene.restart_worker();
    assert_eq!(scene.container(), container);
    let lines = scene.lines_said();
    scene.said(lines + 20);
    scene.go();
    scene.farm.succeeded_at_once(&build);
    let count: usize = scene.farm.artifact(&build, "count").trim().parse().unwrap();
    let output = scene.farm.output(&build);
    // The two come as they like; each of them must be whole.
    let of = |keep: fn(&char) -> bool| output.chars().filter(keep).collect::<String>();
    let numbers: String = (1..=count).map(|n| n.to_string()).collect();
    assert_same(&of(char::is_ascii_digit), &numbers);
    assert_same(&of(char::is_ascii_uppercase), &format!("{}LAST", "E".repeat(count)));
    let newlines = output.matches('\n').count();
    assert!((count + count / 7..=count + count / 7 + 1).contains(&newlines), "{newlines} of {count}");
}

#[test]
fn what_ended_while_the_worker_was_dead_is_reported_as_it_was() {
    let mut scene = Scene::new();
    for (exit, kind) in [(0, "succeeded"), (3, "failed")] {
        let script = format!("{TALKING}      say '\\nand out'\n      exit {exit}\n");
        let build = scene.submit(&script, "    outputs: [said]");
        scene.farm.logged(&build, "only", "line 12");
        let container = scene.container();
        scene.worker.process.kill();
        scene.go();
        let state = || scene.engine.query(&["inspect", "--format", "{{.State.Status}}", &container]);
        wait::until("the end of the container", BUILD_LIMIT, || match state().as_str() {
            "exited" => Ok(()),
            other => Err(other.to_owned()),
        });
        let said = std::fs::read_to_string(scene.work().join("said")).unwrap();
        scene.restart_worker();
        let ended = scene.farm.ended(&build);
        let attempts = list(&job(&ended, "only")["attempts"]);
        assert_eq!((attempts.len(), &attempts[0]["outcome"]["kind"]), (1, &kind.into()), "{ended}");
        assert_same(&scene.farm.output(&build), &said);
        if exit == 0 {
            assert_same(&scene.farm.artifact(&build, "said"), &said);
        } else {
            assert_eq!(attempts[0]["outcome"]["exit_code"], exit, "{ended}");
        }
        scene.is_clean();
    }
}

#[test]
fn a_worker_that_was_killed_while_it_fetched_fetches_again() {
    let mut scene = Scene::new();
    // A registry that does not answer: the pull hangs.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let spare = std::mem::replace(
        &mut scene.image,
        format!("127.0.0.1:{}/railyard-test-{}:1", registry.local_addr().unwrap().port(), unique()),
    );
    scene.engine.query(&["image", "rm", &spare]);
    let build = scene.submit("\n      echo fine > said\n", "    outputs: [said]");
    scene.farm.logged(&build, "only", "pulling image");
    scene.worker.process.kill();
    image::busybox(&scene.engine, &scene.image);
    drop(registry);
    scene.restart_worker();
    scene.farm.succeeded_at_once(&build);
    assert_eq!(scene.farm.artifact(&build, "said"), "fine\n");
    let log = scene.farm.cli(&["logs", &build, "only"]).stdout;
    assert!(log.contains("was restarted; beginning again"), "{log}");
    scene.is_clean();
}

#[test]
fn a_worker_that_was_killed_while_it_saved_saves_again() {
    let mut scene = Scene::new();
    let next = "
  - name: next
    image: { step: only }
    inputs: [{ step: only }]
    resources: { cpu: 0.5, memory: 64MiB, disk: 64MiB }
    outputs: [both]
    script: cat /etc/made /inputs/only/said > both
";
    let script = format!("{TALKING}      echo in the image > /etc/made\n{next}");
    let build = scene.submit(&script, "    commit: true\n    outputs: [said]");
    scene.farm.logged(&build, "only", "line 12");
    scene.farm.controller().hold();
    scene.go();
    scene.at_stage("upload");
    scene.worker.process.kill();
    scene.farm.controller().go_on();
    scene.restart_worker();
    scene.farm.succeeded_at_once(&build);
    let said = scene.farm.artifact(&build, "said");
    assert_same(&scene.farm.output(&build), &said);
    assert_same(&scene.farm.artifact(&build, "both"), &format!("in the image\n{said}"));
    let log = scene.farm.cli(&["logs", &build, "only"]).stdout;
    assert_eq!(log.matches("packed what the script has changed").count(), 1, "{log}");
    scene.is_clean();
}

#[test]
fn a_worker_that_was_killed_before_its_report_was_heard_reports_it() {
    let mut scene = Scene::new();
    let build = scene.submit(&format!("{TALKING}      exit 3\n"), "");
    scene.farm.logged(&build, "only", "line 12");
    scene.farm.controller().hold();
    scene.go();
    scene.at_stage("report");
    scene.worker.process.kill();
    scene.farm.controller().go_on();
    scene.restart_worker();
    let ended = scene.farm.ended(&build);
    let attempts = list(&job(&ended, "only")["attempts"]);
    assert_eq!((attempts.len(), &attempts[0]["outcome"]["exit_code"]), (1, &3.into()), "{ended}");
    let output = scene.farm.output(&build);
    assert!(output.ends_with("the end of it"), "{output}");
    scene.is_clean();
}

#[test]
fn controller_and_worker_are_killed_together_and_nothing_is_lost() {
    let mut scene = Scene::new();
    let build = scene.submit(TALKING, "    outputs: [said]");
    scene.farm.logged(&build, "only", "line 12");
    let container = scene.container();
    scene.farm.kill_controller();
    scene.worker.process.kill();
    let lines = scene.lines_said();
    scene.said(lines + 30);
    scene.farm.start_controller();
    scene.restart_worker();
    assert_eq!(scene.container(), container);
    scene.go();
    scene.farm.succeeded_at_once(&build);
    assert_same(&scene.farm.output(&build), &scene.farm.artifact(&build, "said"));
    scene.is_clean();
}

#[test]
fn a_worker_that_comes_back_too_late_stops_what_it_ran() {
    let mut scene = Scene::new();
    let build = scene.submit(TALKING, "    outputs: [said]\n    lease_ttl: 10s");
    scene.farm.logged(&build, "only", "line 12");
    let container = scene.container();
    scene.worker.process.kill();
    wait::until("the end of the lease", BUILD_LIMIT, || {
        let shown = scene.farm.show(&build);
        let attempts = list(&job(&shown, "only")["attempts"]);
        if attempts[0]["outcome"]["kind"] == "lost" { Ok(()) } else { Err(shown.to_string()) }
    });
    assert_eq!(scene.container(), container, "nobody was there to stop it");
    scene.restart_worker();
    wait::until("the end of the orphan", BUILD_LIMIT, || {
        let containers = scene.engine.containers_of(&scene.worker.name);
        if containers.contains(&container) { Err(format!("{containers:?}")) } else { Ok(()) }
    });
    scene.farm.logged(&build, "only", "attempt 2 on worker");
    scene.farm.logged(&build, "only", "line 3");
    scene.go();
    let ended = scene.farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(list(&job(&ended, "only")["attempts"]).len(), 2, "{ended}");
    scene.is_clean();
}
