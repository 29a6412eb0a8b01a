//! A host joins with a token, renews its certificate under a running container, and is shut out.

use railyard_common::time::Millis;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::tls;
use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm, job, list};
use railyard_tests::process::{Process, railyard};
use railyard_tests::scene::one_step;
use railyard_tests::{image, unique, wait};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// Certificates of so many seconds are renewed after two thirds of that.
const CERTIFICATE_SECS: u64 = 9;

fn mode(file: &Path) -> u32 {
    std::fs::metadata(file).expect("it is there").permissions().mode() & 0o777
}

/// Waits until the farm knows the worker.
fn is_connected(farm: &Farm, name: &str, worker: &Process) {
    wait::until("the worker's hello", BUILD_LIMIT, || {
        let workers = farm.json(&["workers", "-o", "json"]);
        let found = list(&workers).iter().any(|worker| worker["name"] == name && worker["connected"] == true);
        if found { Ok(()) } else { Err(worker.log()) }
    });
}

/// As the page for operators has it, letter by letter: a token for one platform and one pool, and on the host that and the URL.
#[test]
fn a_host_joins_with_nothing_but_a_token_and_works_within_it() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let (farm, name) = (Farm::start(), format!("joined-{}", unique()));
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let platform = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    let args = ["token", "create", "--worker", &name, "--platform", platform, "--pool", "signing", "--ttl", "15m"];
    let made = farm.cli(&args);
    assert_eq!(made.code, 0, "{made:?}");
    let start = |log: &str, args: &[&str]| {
        let mut command = Command::new(railyard());
        command.env("RAILYARD_LOG", "info").arg("worker").args(args).arg("--data-dir").arg(&data);
        Process::start(command, &dir.path().join(log))
    };
    let mut worker = start("worker.log", &["--join", made.stdout.trim(), &farm.url()]);
    is_connected(&farm, &name, &worker);
    assert_eq!([mode(&data.join("pki/worker.key")), mode(&data.join("pki/worker.pem"))], [0o600; 2]);
    let workers = farm.json(&["workers", "-o", "json"]);
    assert_eq!(workers[0]["pool"], "signing", "{workers}");
    assert_eq!(workers[0]["platforms"].as_array().map(Vec::len), Some(1), "{workers}");

    // From then on it needs neither.
    worker.kill();
    let mut worker = start("again.log", &[]);
    is_connected(&farm, &name, &worker);
    let build = farm.submit(&one_step(&farm, "signed", &base, "    pool: signing\n    script: echo signed"), &[]);
    farm.succeeded_at_once(&build);
    assert_eq!(farm.output(&build), "signed");
    worker.kill();
    engine.query(&["image", "rm", &base]);
}

#[test]
fn a_worker_joins_renews_under_a_running_container_and_is_shut_out_at_once() {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let farm = Farm::start_with(&format!("worker_certificate_secs = {CERTIFICATE_SECS}\n"), &[]);
    let name = format!("joined-{}", unique());
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");

    // The host: settings without any keys, and a token in a file.
    let config = dir.path().join("worker.toml");
    let text = format!(
        "controller = \"{}\"\nname = \"{name}\"\ndata_dir = \"{}\"\ndocker_socket = \"{}\"\n\
         capacity = {{ disk_reserve = \"0B\" }}\npressure = {{ memory_percent = 0, io_percent = 0 }}\n",
        farm.url(),
        data.display(),
        engine.socket().display()
    );
    std::fs::write(&config, text).expect("the settings can be written");
    let made = farm.cli(&["token", "create", "--worker", &name]);
    assert_eq!(made.code, 0, "{made:?}");
    let token = dir.path().join("token");
    std::fs::write(&token, &made.stdout).expect("the token can be written");
    let start = |log: &str| {
        let mut command = Command::new(railyard());
        command.env("RAILYARD_LOG", "info").args(["worker", "--join", &format!("@{}", token.display()), &farm.url()]);
        command.arg("--config").arg(&config);
        Process::start(command, &dir.path().join(log))
    };
    let mut worker = start("worker.log");
    is_connected(&farm, &name, &worker);
    let key = data.join("pki/worker.key");
    assert_eq!([mode(&key), mode(&data.join("pki/worker.pem"))], [0o600; 2]);

    let text = format!(
        "name: joining\nsteps:\n  - name: only\n    image: {base}\n    script: |\n      echo attempt $RAILYARD_ATTEMPT runs\n      \
         if test $RAILYARD_ATTEMPT = 1; then while true; do sleep 0.1; done; fi\n      echo done > it\n    outputs: [it]\n    \
         resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n"
    );
    let build = farm.submit(&farm.pipeline("joining", &text), &[]);
    farm.logged(&build, "only", "attempt 1 runs");
    let (certificate, secret) = (data.join("pki/worker.pem"), std::fs::read(&key).expect("a key"));
    let first = std::fs::read(&certificate).expect("a certificate");
    let renewed = |times: usize, worker: &Process| {
        wait::until("a fresh certificate", BUILD_LIMIT, || {
            let log = worker.log();
            if log.matches("the certificate is renewed").count() >= times { Ok(()) } else { Err(log) }
        });
    };
    // Longer than one lasts.
    renewed(2, &worker);
    assert_ne!(std::fs::read(&certificate).expect("a certificate"), first);
    assert_eq!(mode(&certificate), 0o600);
    assert_eq!(std::fs::read(&key).expect("a key"), secret);
    assert!(!worker.log().contains("no stream to the controller"), "{}", worker.log());
    let running = farm.show(&build);
    assert_eq!(list(&job(&running, "only")["attempts"]).len(), 1, "{running}");

    // The same command again, as after a restart of the host: the token is used up, and not needed.
    worker.kill();
    let mut worker = start("again.log");
    is_connected(&farm, &name, &worker);
    renewed(1, &worker);
    let running = farm.show(&build);
    assert_eq!(list(&job(&running, "only")["attempts"]).len(), 1, "its container ran on: {running}");

    // Shut out: its container goes, the job runs elsewhere, and the process says why it ends.
    let other = farm.worker("other", &engine, "");
    let revoked = farm.cli(&["revoke", &name, "--why", "a test"]);
    assert_eq!((revoked.code, revoked.stdout.contains("1 job run")), (0, true), "{revoked:?}");
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let attempts = list(&job(&ended, "only")["attempts"]);
    assert_eq!((attempts.len(), &attempts[1]["worker"]), (2, &other.name.as_str().into()), "{ended}");
    wait::until("the end of the worker", BUILD_LIMIT, || if worker.has_ended() { Ok(()) } else { Err(worker.log()) });
    assert!(worker.log().contains("was revoked"), "{}", worker.log());
    assert!(engine.containers_of(&name).is_empty());
    engine.query(&["image", "rm", &base]);
}

/// As with a host that was suspended for a day.
#[test]
fn a_worker_whose_certificate_has_run_out_goes_on_when_its_host_joins_again() {
    let farm = Farm::start_with(&format!("worker_certificate_secs = {CERTIFICATE_SECS}\n"), &[]);
    let name = format!("joined-{}", unique());
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let join = |log: &str| {
        let made = farm.cli(&["token", "create", "--worker", &name]);
        assert_eq!(made.code, 0, "{made:?}");
        let mut command = Command::new(railyard());
        command.env("RAILYARD_LOG", "info").args(["worker", "--join", made.stdout.trim(), &farm.url(), "--data-dir"]);
        command.arg(&data);
        Process::start(command, &dir.path().join(log))
    };
    let mut worker = join("worker.log");
    is_connected(&farm, &name, &worker);
    worker.hold();
    let certificate = data.join("pki/worker.pem");
    wait::until("the certificate's end", BUILD_LIMIT, || {
        let pem = std::fs::read_to_string(&certificate).expect("a certificate");
        // Whole seconds are told; two of them ago it was over already.
        let before = Millis(SystemClock.now().0 - 2_000);
        let left = tls::secs_left(&pem, before).expect("it can be read");
        if left == 0 { Ok(()) } else { Err(format!("{left} s are left")) }
    });
    worker.go_on();
    wait::until("the advice", BUILD_LIMIT, || {
        let log = worker.log();
        if log.contains("join the farm again with a token") { Ok(()) } else { Err(log) }
    });
    // It runs, so the second one only joins.
    let mut second = join("second.log");
    wait::until("the second one's end", BUILD_LIMIT, || if second.has_ended() { Ok(()) } else { Err(second.log()) });
    assert!(second.log().contains("joined the farm"), "{}", second.log());
    wait::until("the new certificate in use", BUILD_LIMIT, || {
        let log = worker.log();
        if log.contains("somebody has joined again") { Ok(()) } else { Err(log) }
    });
    is_connected(&farm, &name, &worker);
    worker.kill();
}
