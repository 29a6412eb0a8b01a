//! Approving, cancelling one job, priorities, superseding: what people ask for, and what they are told.

use crate::Controller;
use crate::place::{Place, err, exits, json, out};
use crate::worker::{Worker, hello};
use railyard_proto::v1::OutcomeKind;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

/// A step that goes to users, and one beside it.
const RELEASE: &str = "\
name: rel
platforms: [linux/amd64]
params: { branch: { default: \"\" } }
supersede: \"{{ branch }}\"
steps:
  - name: sign
    image: debian:bookworm
    script: sign
    approval: \"{{ version }} goes to users\"
    concurrency: signing
    pool: safe
    labels: { hsm: \"yes\" }
  - name: docs
    image: debian:bookworm
    script: docs
    resources: { disk: 40GiB }
  - name: announce
    image: debian:bookworm
    script: announce
    needs: [sign]
";

fn farm() -> (Place, Controller) {
    let place = Place::new();
    place.write("r.yaml", RELEASE);
    let controller = Controller::start(&place, "127.0.0.1:0");
    (place, controller)
}

#[test]
fn a_build_waits_for_its_approval_and_says_how_to_give_it() {
    let (place, _controller) = farm();
    let mut command = place.command(&["submit", "r.yaml", "--version", "1.0", "--wait"]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("submit starts");
    let mut lines = BufReader::new(waiting.stderr.take().expect("stderr is a pipe")).lines().map_while(Result::ok);
    let asked = "sign@linux/amd64 waits for approval (1.0 goes to users): railyard approve rel/1.0 sign@linux/amd64";
    assert!(lines.any(|line| line.ends_with(asked)));

    let show = place.run(&["show", "rel"]);
    exits(&show, 0);
    assert!(out(&show).contains("sign@linux/amd64      awaits-approval"), "{}", out(&show));
    assert!(out(&show).contains("railyard approve rel/1.0 sign@linux/amd64"), "{}", out(&show));
    let builds = place.run(&["builds"]);
    assert!(out(&builds).contains("0/3, 1 to approve"), "{}", out(&builds));

    // Somebody who may submit may not approve.
    exits(&place.run(&["controller", "cert", "submitter", "ci", "--data", "railyard-data", "--out", "ci"]), 0);
    let refused = place.run(&["approve", "rel", "--cert", "ci/ci.pem", "--key", "ci/ci.key"]);
    exits(&refused, 3);
    assert!(err(&refused).contains("submitter ci may not do this; it is the operator's"), "{}", err(&refused));

    let approved = place.run(&["approve", "rel/1.0"]);
    exits(&approved, 0);
    assert_eq!((out(&approved), err(&approved)), ("sign@linux/amd64\n", "1 job approved\n"));
    assert!(lines.any(|line| line.contains("sign@linux/amd64 approved by ")));
    let show = place.run(&["show", "rel"]);
    assert!(out(&show).contains("sign@linux/amd64 approved by "), "{}", out(&show));
    assert!(out(&show).contains("(1.0 goes to users)"), "{}", out(&show));
    let job = &json(&place.run(&["show", "rel", "-o", "json"]))["jobs"][0];
    assert_eq!((&job["state"], &job["approval"]["what"]), (&"queued".into(), &"1.0 goes to users".into()));
    assert!(job["approval"]["approved_at"].is_string());

    let again = place.run(&["approve", "rel/1.0", "sign", "-o", "json"]);
    exits(&again, 0);
    assert_eq!(json(&again), serde_json::json!({ "build": "rel/1.0", "jobs": [] }));
    let nothing = place.run(&["approve", "rel/1.0", "docs"]);
    exits(&nothing, 3);
    assert!(err(&nothing).contains("no job `docs` that is to be approved"), "{}", err(&nothing));

    exits(&place.run(&["cancel", "rel/1.0"]), 0);
    assert_eq!(waiting.wait().expect("an end").code(), Some(1));
}

#[test]
fn one_job_is_cancelled_and_the_build_goes_on() {
    let (place, _controller) = farm();
    let worker = Worker::connect(&place, hello("w1")).expect("a session");
    place.write("docs.yaml", &RELEASE.replace("disk: 40GiB", "disk: 4GiB"));
    exits(&place.run(&["submit", "docs.yaml", "--version", "1.0"]), 0);
    let order = worker.order();
    assert_eq!(order.job, "docs@linux/amd64");
    let cancelled = place.run(&["cancel", "rel/1.0", "docs", "--why", "not now"]);
    exits(&cancelled, 0);
    assert_eq!(out(&cancelled), "docs@linux/amd64\n");
    assert!(worker.cancel().reason.starts_with("not now (cancelled by "));
    let show = place.run(&["show", "rel"]);
    assert!(out(&show).contains("not now (cancelled by "), "{}", out(&show));
    worker.report(&order, OutcomeKind::Cancelled);

    let sign = place.run(&["cancel", "rel/1.0", "sign@linux/amd64", "-o", "json"]);
    exits(&sign, 0);
    assert_eq!(json(&sign)["jobs"], serde_json::json!(["sign@linux/amd64"]));
    let watched = place.run(&["watch", "rel/1.0"]);
    exits(&watched, 1);
    for line in ["docs@linux/amd64 cancelled: not now", "announce@linux/amd64 skipped: sign@linux/amd64 did not"] {
        assert!(err(&watched).contains(line), "{line}: {}", err(&watched));
    }
    let late = place.run(&["cancel", "rel/1.0", "docs"]);
    exits(&late, 3);
    assert!(err(&late).contains("has ended"), "{}", err(&late));
}

#[test]
fn priorities_and_newer_builds_are_shown() {
    let (place, _controller) = farm();
    let submit = |version: &str, more: &[&str]| {
        place.run(&[&["submit", "r.yaml", "--version", version, "--param", "branch=main"], more].concat())
    };
    exits(&submit("1", &["--priority", "change"]), 0);
    let show = place.run(&["show", "rel/1"]);
    assert!(out(&show).contains("priority   change\n"), "{}", out(&show));
    let newer = submit("2", &["--priority", "release"]);
    exits(&newer, 0);
    assert_eq!(out(&newer), "rel/2\n");
    assert!(err(&newer).contains("rel/1 is cancelled: this build takes its place"), "{}", err(&newer));
    let third = json(&submit("3", &["-o", "json"]));
    assert_eq!(third["superseded"], serde_json::json!([]), "a release is never superseded");
    let builds = json(&place.run(&["builds", "-o", "json"]));
    for (n, (build, priority)) in [("rel/3", "manual"), ("rel/2", "release"), ("rel/1", "change")].iter().enumerate() {
        assert_eq!((builds[n]["build"].as_str(), builds[n]["priority"].as_str()), (Some(*build), Some(*priority)));
    }
    let first = place.run(&["show", "rel/1"]);
    assert!(out(&first).contains("cancelled  superseded by rel/2\n"), "{}", out(&first));

    exits(&place.run(&["controller", "cert", "submitter", "ci", "--data", "railyard-data", "--out", "ci"]), 0);
    let refused = submit("4", &["--priority", "release", "--cert", "ci/ci.pem", "--key", "ci/ci.key"]);
    exits(&refused, 3);
    assert!(err(&refused).contains("may not submit with priority release"), "{}", err(&refused));
}

#[test]
fn a_key_is_for_one_request() {
    let (place, _controller) = farm();
    let submit = |more: &[&str]| place.run(&[&["submit", "r.yaml", "--idempotency-key", "k"], more].concat());
    let first = submit(&[]);
    exits(&first, 0);
    let again = submit(&[]);
    assert_eq!((out(&again), again.status.code()), (out(&first), Some(0)));
    let other = submit(&["--param", "branch=x"]);
    exits(&other, 3);
    assert!(err(&other).contains("was used before") && err(&other).contains("choose another key"), "{}", err(&other));
}

#[test]
fn plan_says_where_a_job_could_run_and_why_it_would_wait() {
    let (place, _controller) = farm();
    let _w1 = Worker::connect(&place, hello("w1")).expect("a session");
    let labels = [("hsm".to_owned(), "yes".to_owned())].into();
    let safe = railyard_proto::v1::Hello { labels, pool: "safe".to_owned(), ..hello("w2") };
    let _w2 = Worker::connect(&place, safe).expect("a session");
    let plan = place.run(&["plan", "r.yaml", "--version", "1.0"]);
    exits(&plan, 0);
    let rows: Vec<Vec<&str>> = out(&plan)
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(&rows[0][rows[0].len() - 6..], ["GROUP", "POOL", "LABELS", "APPROVAL", "WORKERS", "WHY"]);
    let row = |job: &str| rows.iter().find(|row| row[0] == job).unwrap_or_else(|| panic!("{}", out(&plan)));
    let sign = row("sign@linux/amd64");
    assert_eq!(&sign[sign.len() - 5..], ["signing (1)", "safe", "hsm=yes", "1.0 goes to users", "w2"]);
    let docs = row("docs@linux/amd64");
    assert_eq!(docs[docs.len() - 2], "none");
    assert!(docs[docs.len() - 1].contains("needs 40.0 GiB disk; w1 has 12.0 GiB"), "{docs:?}");
    assert_eq!(row("announce@linux/amd64").last(), Some(&"w1"));

    let plan = json(&place.run(&["plan", "r.yaml", "--version", "1.0", "-o", "json"]));
    let sign = plan["jobs"].as_array().expect("jobs").iter().find(|job| job["name"] == "sign@linux/amd64");
    let sign = sign.expect("the job");
    assert_eq!(sign["concurrency"], serde_json::json!({ "group": "signing", "limit": 1 }));
    assert_eq!((&sign["pool"], &sign["labels"]["hsm"]), (&"safe".into(), &"yes".into()));
    assert_eq!(sign["approval"]["what"], "1.0 goes to users");
}
