//! A secret in a farm of real processes: its step has it, and whoever looks for it anywhere else finds nothing.

use railyard_common::redact::Masks;
use railyard_tests::collector::Collector;
use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm, files_below, job};
use railyard_tests::process::railyard;
use railyard_tests::scene::one_step;
use railyard_tests::{image, processes, unique, wait};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes it in every way that busybox knows, waits, and fails with it in its last line.
const STEP: &str = r#"    secrets: [key, { name: token, env: TOKEN }, 'nowhere?']
    lease_ttl: 10s
    outputs: [{ path: out.txt, optional: true }]
    script: |
      test "$(busybox sha256sum </run/secrets/key)" = "SUM  -" || exit 9
      cat /run/secrets/key
      echo "raw $TOKEN"; env | busybox grep TOKEN
      printf 'user:%s' "$TOKEN" | busybox base64
      busybox base64 </run/secrets/key
      printf %s "$TOKEN" | busybox xxd -p
      printf %s "$TOKEN" | busybox dd bs=1 2>/dev/null; echo
      echo begun
      while test ! -e go; do busybox sleep 0.1; done
      echo "last words: $TOKEN" >&2
      exit 3"#;

/// What is looked for.
struct Canary {
    key: String,
    token: String,
    masks: Masks,
    /// Of a bearer token, what nobody but its holder knows.
    bearer: String,
}

impl Canary {
    fn new() -> Self {
        let key = format!("-----BEGIN KEY-----\ncanary-key-{}\n{}\n-----END KEY-----\n", unique(), unique().repeat(8));
        let token = format!("canary-token-{}/\"q\"&{}", unique(), unique());
        let masks = Masks::new([key.as_bytes(), token.as_bytes()]);
        Self { key, token, masks, bearer: String::new() }
    }

    /// Has a token made, and shows it to the farm with a client that tells all that it does.
    fn show_token(&mut self, farm: &Farm) {
        let made = farm.cli(&["token", "create", "--bearer", "--role", "viewer", "--user", "dash"]);
        assert_eq!(made.code, 0, "{made:?}");
        let token = made.stdout.trim();
        self.bearer = token[30..70].to_owned();
        let mut client = Command::new(railyard());
        client.args(["builds", "--url", &farm.url(), "--ca"]).arg(farm.dir.path().join("controller/pki/ca.pem"));
        let shown = client.env("RAILYARD_TOKEN", token).env("RAILYARD_LOG", "trace").output().unwrap();
        assert!(shown.status.success(), "{shown:?}");
        assert!(String::from_utf8_lossy(&shown.stderr).contains("TRACE"), "{shown:?}");
        std::fs::write(farm.dir.path().join("client.log"), [shown.stdout, shown.stderr].concat()).unwrap();
    }

    /// Whether it is there in any form, or simply the word.
    fn is_in(&self, bytes: &[u8]) -> bool {
        let has = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
        let shown = !self.bearer.is_empty() && has(self.bearer.as_bytes());
        shown || has(b"canary-key") || has(b"canary-token") || self.masks.mask(bytes) != bytes
    }

    fn is_not_below(&self, dir: &Path) {
        let found = |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| self.is_in(&bytes));
        let found: Vec<PathBuf> = files_below(dir).into_iter().filter(|path| path.is_file()).filter(found).collect();
        assert_eq!(found, Vec::<PathBuf>::new(), "files with the secret");
    }
}

fn store(farm: &Farm, name: &str, value: &str, pipeline: &str) {
    // Not in the farm's directory, where the test looks for it.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), value).unwrap();
    let path = file.path().display().to_string();
    let stored = farm.cli(&["secret", "set", name, "--file", &path, "--pipeline", pipeline, "--step", "only"]);
    assert_eq!(stored.code, 0, "{stored:?}");
}

#[test]
fn a_secret_is_seen_by_its_step_and_by_nobody_else() {
    let (collector, mut canary) = (Collector::start(), Canary::new());
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("RAILYARD_LOG", "trace"),
    ];
    let mut farm = Farm::start_with("", &env);
    let mut worker = farm.worker("w", &engine, "");
    store(&farm, "key", &canary.key, "signed");
    store(&farm, "token", &canary.token, "signed");
    let sum = railyard_common::digest::Digest::of(canary.key.as_bytes()).hex();
    let build = farm.submit(&one_step(&farm, "signed", &base, &STEP.replace("SUM", &sum)), &[]);
    let other =
        "    script: |\n      test ! -e /run/secrets\n      echo here; while test ! -e go; do busybox sleep 0.1; done";
    let other = farm.submit(&one_step(&farm, "other", &base, other), &[]);
    farm.logged(&build, "only", "begun");
    farm.logged(&other, "only", "here");

    canary.show_token(&farm);

    // While it runs: no file, no command line, no container's settings.
    canary.is_not_below(farm.dir.path());
    assert!(processes::all().iter().all(|process| !canary.is_in(process.command.as_bytes())));
    let containers = engine.containers_of(&worker.name);
    assert_eq!(containers.len(), 2);
    for container in &containers {
        assert!(!canary.is_in(engine.query(&["inspect", container]).as_bytes()));
    }
    for pid in [worker.process.id(), farm.controller().id()] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["1", "1"], "{core}");
    }

    // Both crash, with whatever they write then; what they were at goes on.
    for pid in [worker.process.id(), farm.controller().id()] {
        assert!(Command::new("kill").args(["-ABRT", &pid.to_string()]).status().unwrap().success());
    }
    wait::until("two crashes", BUILD_LIMIT, || {
        let ended = worker.process.has_ended() && farm.controller().has_ended();
        if ended { Ok(()) } else { Err("one of them runs".to_owned()) }
    });
    canary.is_not_below(farm.dir.path());
    farm.start_controller();
    worker.process = farm.start_worker(&worker.name);
    for work in files_below(&worker.data.join("jobs")).into_iter().filter(|path| path.ends_with("work")) {
        std::fs::write(work.join("go"), "").unwrap();
    }
    let ended = farm.ended(&build);
    let attempt = &job(&ended, "only")["attempts"];
    assert_eq!(attempt[0]["outcome"]["reason"], "exit-code", "{ended}");
    assert_eq!(attempt.as_array().map(Vec::len), Some(1), "it was gone on with: {ended}");
    assert_eq!(farm.ended(&other)["state"], "succeeded");

    let log = farm.cli(&["logs", &build, "only"]).stdout;
    let stars = "*".repeat(canary.token.len());
    for line in [format!("raw {stars}\n"), format!("TOKEN={stars}\n"), format!("last words: {stars}\n")] {
        assert!(log.contains(&line), "{line:?} is not in {log}");
    }
    let told = [
        log,
        ended.to_string(),
        farm.cli(&["show", &build]).stdout,
        farm.cli(&["audit", "show", "-o", "json", "--limit", "1000"]).stdout,
        farm.cli(&["secret", "list", "-o", "json"]).stdout,
        farm.cli(&["token", "list", "-o", "json"]).stdout,
        farm.cli(&["workers", "-o", "json"]).stdout,
    ];
    for text in &told {
        assert!(!canary.is_in(text.as_bytes()), "{text}");
    }
    wait::until("the attempt's span", BUILD_LIMIT, || {
        let spans = collector.spans();
        let attempts = spans.iter().filter(|(_, span)| span.name == "attempt").count();
        if attempts > 0 { Ok(()) } else { Err(format!("{} spans", spans.len())) }
    });
    assert!(collector.spans().iter().all(|span| !canary.is_in(format!("{span:?}").as_bytes())));
    canary.is_not_below(farm.dir.path());
    wait::until("the end of the secrets on the worker", BUILD_LIMIT, || {
        let left: Vec<PathBuf> = ["/run", "/dev/shm"].iter().flat_map(|dir| files_below(Path::new(dir))).collect();
        let left: Vec<&PathBuf> =
            left.iter().filter(|path| path.display().to_string().contains(&worker.name)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    let told = farm.cli(&["audit", "show", "--what", "secret-give"]).stdout;
    assert!(told.contains(&format!("worker/{}", worker.name)) && told.contains("signed/"), "{told}");
    engine.query(&["image", "rm", &base]);
}

/// Writes a file that is called like its secret.
const TELLTALE: &str = r#"    secrets: [{ name: NAME, env: TOKEN }]
    outputs: ['out/*']
    script: |
      busybox mkdir out; echo x >"out/$TOKEN"
      echo begun; while test ! -e go; do busybox sleep 0.1; done"#;

/// A host goes down when its steps have done what they had to, and what lay in memory is gone. Nothing can hide the secrets in
/// what is told of them after that, so little is.
#[test]
fn what_is_told_of_a_step_after_its_host_went_down_names_no_secret() {
    let token = format!("canary-token-{}", unique());
    let canary = Canary { masks: Masks::new([token.as_bytes()]), token, ..Canary::new() };
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let mut farm = Farm::start();
    let mut worker = farm.worker("w", &engine, "");
    let builds = ["good", "bad"].map(|pipeline| {
        store(&farm, pipeline, &canary.token, pipeline);
        let build = farm.submit(&one_step(&farm, pipeline, &base, &TELLTALE.replace("NAME", pipeline)), &[]);
        farm.logged(&build, "only", "begun");
        build
    });
    let jobs = || files_below(&worker.data.join("jobs"));
    farm.controller().hold();
    for work in jobs().into_iter().filter(|path| path.ends_with("work")) {
        std::fs::write(work.join("go"), "").unwrap();
    }
    wait::until("two that wait for the controller", BUILD_LIMIT, || {
        let states = jobs().into_iter().filter(|path| path.ends_with("state.json"));
        let states: Vec<String> = states.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect();
        let waiting = states.iter().filter(|state| state.contains("\"stage\": \"upload\"")).count();
        if waiting == 2 { Ok(()) } else { Err(format!("{states:?}")) }
    });
    worker.process.kill();
    let of_worker = |path: &PathBuf| path.to_string_lossy().contains(&worker.name);
    let lost: Vec<PathBuf> =
        files_below(Path::new("/run")).into_iter().filter(|path| of_worker(path) && path.is_file()).collect();
    assert_eq!(lost.len(), 2, "{lost:?}");
    lost.iter().for_each(|path| std::fs::remove_dir_all(path.parent().unwrap()).unwrap());
    // What the second wrote has become something that cannot be an artifact.
    let mut outputs: Vec<PathBuf> = jobs().into_iter().filter(|path| path.ends_with(&canary.token)).collect();
    outputs.sort();
    assert_eq!(outputs.len(), 2, "{outputs:?}");
    let bad = &outputs[1];
    std::fs::remove_file(bad).unwrap();
    assert!(Command::new("mkfifo").arg(bad).status().unwrap().success());

    farm.controller().go_on();
    worker.process = farm.start_worker(&worker.name);
    let [good, bad] = builds.map(|build| (farm.ended(&build), build));
    assert_eq!(good.0["state"], "succeeded", "{}", good.0);
    let attempts = &job(&bad.0, "only")["attempts"];
    assert_eq!(attempts.as_array().map(Vec::len), Some(1), "{attempts}");
    assert_eq!(attempts[0]["outcome"]["reason"], "output-bad", "{attempts}");
    let message = attempts[0]["outcome"]["message"].as_str().unwrap();
    assert!(message.contains("its secrets are gone"), "{message}");
    for text in [bad.0.to_string(), farm.cli(&["logs", &bad.1, "only"]).stdout, farm.cli(&["show", &bad.1]).stdout] {
        assert!(!canary.is_in(text.as_bytes()), "{text}");
    }
    engine.query(&["image", "rm", &base]);
}
