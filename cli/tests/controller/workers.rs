//! Holding workers back, and giving them jobs again.

use crate::place::{Place, err, exits, json, out};
use crate::worker::{Worker, hello};
use crate::{Controller, signal};
use railyard_proto::v1::OutcomeKind;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

const ONE: &str = "\
name: one
platforms: [linux/amd64]
steps:
  - { name: work, image: debian:bookworm, script: work }
";

fn farm() -> (Place, Controller) {
    let place = Place::new();
    place.write("one.yaml", ONE);
    let controller = Controller::start(&place, "127.0.0.1:0");
    (place, controller)
}

/// Starts `railyard`, and gives what it writes to stderr, line by line.
fn start(place: &Place, args: &[&str]) -> (Child, impl Iterator<Item = String>) {
    let mut child = place.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("railyard starts");
    let lines = BufReader::new(child.stderr.take().expect("stderr is a pipe")).lines().map_while(Result::ok);
    (child, lines)
}

#[test]
fn a_cordon_is_shown_with_its_reason_and_ends_by_uncordon() {
    let (place, _controller) = farm();
    let labels = [("kvm".to_owned(), "yes".to_owned())].into();
    let w1 = railyard_proto::v1::Hello { labels, ..hello("w1") };
    let worker = Worker::connect(&place, w1).expect("a session");
    let table = place.run(&["workers"]);
    exits(&table, 0);
    for word in ["w1      online", "kvm=yes", "LABELS"] {
        assert!(out(&table).contains(word), "{word}: {}", out(&table));
    }
    let cordoned = place.run(&["cordon", "w1", "--why", "new disk", "--for", "2h"]);
    exits(&cordoned, 0);
    assert!(out(&cordoned).starts_with("w1 is cordoned by "), "{}", out(&cordoned));
    assert!(out(&cordoned).contains(": new disk; ends in 1h 59m; nothing runs there"), "{}", out(&cordoned));
    let table = place.run(&["workers"]);
    assert!(out(&table).contains("cordoned") && out(&table).contains("new disk; ends in 1h 59m"), "{}", out(&table));
    let listed = json(&place.run(&["workers", "-o", "json"]));
    let w1 = &listed[0];
    assert_eq!((&w1["state"], &w1["connected"]), (&"cordoned".into(), &true.into()));
    assert_eq!((&w1["hold"]["kind"], &w1["hold"]["why"]), (&"cordon".into(), &"new disk".into()));
    assert!(w1["hold"]["until"].is_string() && w1["hold"]["stop_at"].is_null());

    let submitted = place.run(&["submit", "one.yaml", "--version", "1"]);
    let why = "every connected worker is held back: w1 is cordoned by ";
    assert!(err(&submitted).contains(why), "{}", err(&submitted));
    let show = place.run(&["show", "one"]);
    assert!(out(&show).contains(why), "{}", out(&show));

    let back = place.run(&["uncordon", "w1"]);
    exits(&back, 0);
    assert_eq!(out(&back), "w1 gets jobs again\n");
    worker.report(&worker.order(), OutcomeKind::Succeeded);
    exits(&place.run(&["watch", "one/1"]), 0);
    let again = place.run(&["uncordon", "w1"]);
    exits(&again, 3);
    assert!(err(&again).contains("`w1` is not held back"), "{}", err(&again));
}

#[test]
fn drain_waits_until_nothing_runs_there() {
    let (place, _controller) = farm();
    let worker = Worker::connect(&place, hello("w1")).expect("a session");
    exits(&place.run(&["submit", "one.yaml", "--version", "1"]), 0);
    let order = worker.order();

    // Ctrl-C ends the waiting and not the drain.
    let (mut impatient, mut lines) = start(&place, &["drain", "w1", "--wait"]);
    assert!(lines.any(|line| line == "w1 still runs one/1 work@linux/amd64"));
    signal("INT", &impatient);
    assert!(lines.any(|line| line.contains("`railyard uncordon w1` takes it back")));
    assert_eq!(impatient.wait().expect("an end").code(), Some(130));
    assert_eq!(json(&place.run(&["workers", "-o", "json"]))[0]["state"], "draining");

    let (waiting, mut lines) = start(&place, &["drain", "w1", "--why", "move", "--deadline", "1h", "--wait"]);
    assert!(lines.any(|line| line == "w1 still runs one/1 work@linux/amd64"));
    let table = place.run(&["workers"]);
    assert!(out(&table).contains("move; stops what runs in 59m"), "{}", out(&table));
    worker.report(&order, OutcomeKind::Succeeded);
    let ended = waiting.wait_with_output().expect("an end");
    exits(&ended, 0);
    assert!(
        out(&ended).starts_with("w1 is drained by ") && out(&ended).contains("nothing runs there"),
        "{}",
        out(&ended)
    );
}

#[test]
fn a_drain_that_is_taken_back_ends_the_waiting() {
    let (place, _controller) = farm();
    let worker = Worker::connect(&place, hello("w1")).expect("a session");
    exits(&place.run(&["submit", "one.yaml", "--version", "1"]), 0);
    let _order = worker.order();
    let (waiting, mut lines) = start(&place, &["drain", "w1", "--wait"]);
    assert!(lines.any(|line| line.starts_with("w1 still runs")));
    exits(&place.run(&["uncordon", "w1"]), 0);
    assert!(lines.any(|line| line.contains("nothing holds w1 back any more")));
    exits(&waiting.wait_with_output().expect("an end"), 1);
}

#[test]
fn a_retired_worker_is_sent_away_and_told_why() {
    let (place, _controller) = farm();
    let worker = Worker::connect(&place, hello("w1")).expect("a session");
    let retired = json(&place.run(&["retire", "w1", "--why", "sold", "--wait", "-o", "json"]));
    assert_eq!((&retired["state"], &retired["hold"]["kind"]), (&"retired".into(), &"retire".into()));
    worker.closed();
    let refused = Worker::connect(&place, hello("w1")).map(drop).expect_err("it is not taken back");
    assert!(refused.message().contains("(sold); `railyard uncordon w1` takes it back"), "{}", refused.message());

    let unknown = place.run(&["drain", "w9"]);
    exits(&unknown, 3);
    assert!(err(&unknown).contains("there is no worker `w9`"), "{}", err(&unknown));
    exits(&place.run(&["uncordon", "w1"]), 0);
    Worker::connect(&place, hello("w1")).expect("a session");
}
