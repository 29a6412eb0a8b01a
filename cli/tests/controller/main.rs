//! The command line against a real controller. Its workers, where a test needs one, speak the protocol and run nothing.

mod access;
mod audit;
mod channels;
mod keep;
mod operate;
#[path = "../place/mod.rs"]
mod place;
mod reload;
mod secrets;
mod tiers;
mod worker;
mod workers;

use place::{Place, err, exits, json, out};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

/// A controller of its own in `place`, killed at the end of the test.
struct Controller {
    child: Child,
}

impl Controller {
    /// Starts it at `listen`, and waits until it says that it listens.
    fn start(place: &Place, listen: &str) -> Self {
        place.write("controller.toml", &format!("data_dir = \"railyard-data\"\nlisten = \"{listen}\"\n"));
        let mut command = place.command(&["controller", "--config", "controller.toml"]);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the controller starts");
        wait_for(&mut child, "the controller listens");
        Self { child }
    }

    fn kill(&mut self) {
        self.child.kill().expect("the controller runs");
        self.child.wait().expect("the controller ended");
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the child's stderr until a line has `words`. The rest is read and thrown away, so that the child never blocks.
fn wait_for(child: &mut Child, words: &str) {
    let mut lines = BufReader::new(child.stderr.take().expect("stderr is a pipe")).lines();
    let mut seen = Vec::new();
    loop {
        match lines.next() {
            Some(Ok(line)) if line.contains(words) => break,
            Some(Ok(line)) => seen.push(line),
            other => panic!("`{words}` was never said ({other:?}), but:\n{}", seen.join("\n")),
        }
    }
    std::thread::spawn(move || lines.count());
}

fn signal(name: &str, child: &Child) {
    let kill = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().expect("kill runs");
    assert!(kill.success());
}

/// An address where nobody listened a moment ago.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

fn submit(place: &Place, more: &[&str]) -> Output {
    place.run(&[&["submit", "r.yaml", "--param", "mirror=x"], more].concat())
}

#[test]
fn a_build_from_submit_to_retry() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");

    let first = submit(&place, &["--version", "1.0"]);
    exits(&first, 0);
    assert_eq!(out(&first), "mini/1.0\n");
    assert!(err(&first).contains("warning: no worker is connected"), "{}", err(&first));

    let taken = submit(&place, &["--version", "1.0"]);
    exits(&taken, 3);
    assert!(err(&taken).contains("`mini/1.0` exists"), "{}", err(&taken));

    let keyed = json(&submit(&place, &["--idempotency-key", "k", "-o", "json", "--platform", "linux/arm64"]));
    let again = json(&submit(&place, &["--idempotency-key", "k", "-o", "json", "--platform", "linux/arm64"]));
    assert_eq!((&keyed["existing"], &again["existing"]), (&false.into(), &true.into()));
    assert_eq!(keyed["build"], again["build"]);
    assert_eq!(keyed["trace_id"].as_str().map(str::len), Some(32));

    let builds = json(&place.run(&["builds", "mini", "-o", "json"]));
    assert_eq!((&builds[0]["build"], &builds[1]["build"]), (&keyed["build"], &"mini/1.0".into()));

    let show = place.run(&["show", "mini/1.0", "--graph"]);
    exits(&show, 0);
    for line in [
        "build      mini/1.0\n",
        "params     mirror=x suite=bookworm\n",
        "packages@linux/amd64  queued",
        "└─ image@linux/amd64  blocked\n",
    ] {
        assert!(out(&show).contains(line), "{line}: {}", out(&show));
    }

    let waiting = place.run(&["logs", "mini/1.0", "packages@linux/amd64"]);
    exits(&waiting, 0);
    assert_eq!(
        (out(&waiting), err(&waiting)),
        ("", "packages@linux/amd64 has not run, it is queued: no worker is connected\n")
    );

    exits(&place.run(&["cancel", "mini/1.0", "--why", "wrong"]), 0);
    let watched = place.run(&["watch", "mini/1.0"]);
    exits(&watched, 1);
    assert!(
        err(&watched).contains("packages@linux/amd64 cancelled") && err(&watched).contains("mini/1.0 cancelled after"),
        "{}",
        err(&watched)
    );
    assert_eq!(json(&place.run(&["show", "mini/1.0", "-o", "json"]))["state"], "cancelled");

    let retried = place.run(&["retry", "mini/1.0"]);
    exits(&retried, 0);
    assert_eq!(out(&retried).lines().count(), 4);
    assert_eq!(json(&place.run(&["show", "mini/1.0", "-o", "json"]))["state"], "running");
}

#[test]
fn what_is_not_there_is_named() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    exits(&submit(&place, &["--version", "1.0"]), 0);
    for (args, code, words) in [
        (&["show", "other"][..], 3, "railyard builds"),
        (&["show", "mini/2.0"], 3, "`mini/2.0`"),
        (&["show", "Mini"], 2, "pipeline name"),
        (&["logs", "mini", "packagez"], 3, "`packagez`; `railyard show mini/1.0`"),
        (&["logs", "mini", "Packages"], 2, "step name"),
        (&["retry", "mini/1.0"], 3, "has not ended"),
        (&["fetch", "mini", "*.iso"], 3, "*.iso"),
    ] {
        let output = place.run(args);
        exits(&output, code);
        assert!(err(&output).contains(words), "{args:?}: {}", err(&output));
    }
}

#[test]
fn plan_tells_who_could_run_what() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let plan = json(&place.run(&["plan", "r.yaml", "--param", "mirror=x", "--platform", "linux/arm64", "-o", "json"]));
    assert_eq!(plan["jobs"][1]["name"], "image@linux/arm64");
    assert_eq!(plan["jobs"][1]["needs"], serde_json::json!(["packages@linux/arm64"]));
    assert_eq!(
        (&plan["jobs"][0]["workers"], &plan["jobs"][0]["why"]),
        (&serde_json::json!([]), &"no worker is connected".into())
    );
}

#[test]
fn a_watch_outlives_the_controller() {
    let place = Place::with_pipeline();
    let listen = free_address();
    let mut controller = Controller::start(&place, &listen);
    exits(&submit(&place, &["--version", "1.0"]), 0);

    let mut watch = place.command(&["watch", "mini", "-o", "json"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("watch starts");
    let mut looks = BufReader::new(watch.stdout.take().expect("stdout is a pipe")).lines();
    let first = looks.next().expect("a look").expect("UTF-8");
    assert!(first.contains("\"state\":\"running\""), "{first}");

    controller.kill();
    let _controller = Controller::start(&place, &listen);
    exits(&place.run(&["cancel", "mini/1.0"]), 0);

    let last = looks.map_while(Result::ok).last().expect("another look");
    assert!(last.contains("\"state\":\"cancelled\""), "{last}");
    let ended = watch.wait_with_output().expect("watch ends");
    exits(&ended, 1);
    assert!(err(&ended).contains("is lost (") && err(&ended).contains("connected again"), "{}", err(&ended));
}

#[test]
fn ctrl_c_ends_the_waiting_and_not_the_build() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let mut command = place.command(&["submit", "r.yaml", "--param", "mirror=x", "--version", "1.0", "--wait"]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("submit starts");
    let mut lines = BufReader::new(waiting.stderr.take().expect("stderr is a pipe")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("packages@linux/amd64 waits: ")));
    signal("INT", &waiting);
    assert!(lines.any(|line| line.contains("the build goes on; `railyard watch mini/1.0`")));
    assert_eq!(waiting.wait().expect("an end").code(), Some(130));
    assert_eq!(json(&place.run(&["show", "mini", "-o", "json"]))["state"], "running");
}

#[test]
fn certificates_carry_their_role() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let issued = place.run(&[
        "controller",
        "--config",
        "controller.toml",
        "cert",
        "viewer",
        "ann",
        "--out",
        "ann",
        "-o",
        "json",
    ]);
    exits(&issued, 0);
    let issued = json(&issued);
    assert_eq!((&issued["identity"], &issued["key"]), (&"viewer/ann".into(), &"ann/ann.key".into()));

    let as_ann = |args: &[&str]| place.run(&[args, &["--cert", "ann/ann.pem", "--key", "ann/ann.key"]].concat());
    exits(&as_ann(&["builds"]), 0);
    let refused = as_ann(&["submit", "r.yaml", "--param", "mirror=x"]);
    exits(&refused, 3);
    assert!(err(&refused).contains("does not allow it"), "{}", err(&refused));

    // Of another farm: the same name, another authority.
    let other = Place::new();
    let _stranger = Controller::start(&other, "127.0.0.1:0");
    let ca = other.path("railyard-data/pki/ca.pem");
    let strange = place.run(&["builds", "--ca", ca.to_str().expect("UTF-8")]);
    exits(&strange, 3);
    assert!(err(&strange).contains("is that the farm's CA certificate"), "{}", err(&strange));
}

#[test]
fn a_worker_certificate_needs_a_worker_name() {
    let place = Place::new();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let bad = place.run(&["controller", "cert", "worker", "W 1", "--data", "railyard-data", "--out", "w"]);
    exits(&bad, 2);
    assert!(err(&bad).contains("worker name"), "{}", err(&bad));
    assert!(!place.path("w").exists());
}

#[test]
fn a_controller_stops_when_it_is_told_to() {
    let place = Place::new();
    let mut controller = Controller::start(&place, "127.0.0.1:0");
    signal("TERM", &controller.child);
    assert_eq!(controller.child.wait().expect("an end").code(), Some(0));
}

#[test]
fn a_controller_that_cannot_start_says_why() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("an address");
    place.write("c.toml", &format!("data_dir = \"d\"\nlisten = \"{listen}\"\n"));
    let output = place.run(&["controller", "--config", "c.toml"]);
    exits(&output, 1);
    assert!(err(&output).contains(&listen.to_string()), "{}", err(&output));
    place.write("c.toml", "data_dir = \"d\"\nlissen = \"x\"\n");
    let output = place.run(&["controller", "--config", "c.toml"]);
    exits(&output, 2);
    assert!(err(&output).contains("c.toml:2:1"), "{}", err(&output));
}

#[test]
fn a_controller_is_backed_up_while_it_runs_and_comes_back() {
    let place = Place::with_pipeline();
    let listen = free_address();
    let mut controller = Controller::start(&place, &listen);
    exits(&submit(&place, &["--version", "1.0"]), 0);
    let config = ["controller", "--config", "controller.toml"];
    let made = place.run(&[&config[..], &["backup", "--to", "farm.backup", "-o", "json"]].concat());
    exits(&made, 0);
    assert_eq!(json(&made)["builds"], 1);
    exits(&submit(&place, &["--version", "2.0"]), 0);

    let restore = ["controller", "restore", "--from", "farm.backup", "--data-dir", "railyard-data"];
    let running = place.run(&[&restore[..], &["--force"]].concat());
    exits(&running, 1);
    assert!(err(&running).contains("stop it first"), "{}", err(&running));
    controller.kill();
    let full = place.run(&restore);
    exits(&full, 2);
    assert!(err(&full).contains("--force"), "{}", err(&full));
    let offline = place.run(&[&config[..], &["backup", "--to", "offline.backup", "-o", "json"]].concat());
    exits(&offline, 0);
    assert_eq!(json(&offline)["builds"], 2);

    let back = place.run(&[&restore[..], &["--force"]].concat());
    exits(&back, 0);
    assert!(out(&back).contains("controller.toml") && err(&back).contains("before-restore-"), "{}", out(&back));
    let _controller = Controller::start(&place, &listen);
    let builds = json(&place.run(&["builds", "-o", "json"]));
    assert_eq!((builds.as_array().map(Vec::len), &builds[0]["build"]), (Some(1), &"mini/1.0".into()));

    let nowhere = place.run(&["controller", "backup", "--to", "x"]);
    exits(&nowhere, 2);
    let mistyped = place.run(&["controller", "backup", "--data-dir", "mistyped", "--to", "x"]);
    exits(&mistyped, 2);
    assert!(!place.path("mistyped").exists() && !place.path("x").exists());
}
