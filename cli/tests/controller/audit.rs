//! Who did what: shown, checked, and still there after the worst.

use crate::place::{Place, err, exits, json, out};
use crate::{Controller, free_address, submit};
use std::io::{BufRead as _, BufReader};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Records, one JSON document a line.
fn records(output: &Output) -> Vec<serde_json::Value> {
    exits(output, 0);
    out(output).lines().map(|line| serde_json::from_str(line).expect("a record is JSON")).collect()
}

/// The files of the audit in `place`, in order.
fn files(place: &Place) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(place.path("railyard-data/audit")).expect("the audit is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    files
}

#[test]
fn who_did_what_is_shown() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    exits(&submit(&place, &["--version", "1.0"]), 0);
    exits(&place.run(&["cancel", "mini/1.0", "--why", "wrong"]), 0);
    exits(&place.run(&["cancel", "mini/9.9"]), 3);
    exits(&place.run(&["controller", "cert", "viewer", "ann", "--data", "railyard-data", "--out", "ann"]), 0);
    let as_ann = |args: &[&str]| place.run(&[args, &["--cert", "ann/ann.pem", "--key", "ann/ann.key"]].concat());
    exits(&as_ann(&["cancel", "mini/1.0"]), 3);
    let refused = as_ann(&["audit", "show"]);
    exits(&refused, 3);
    assert!(err(&refused).contains("viewer ann may not do this"), "{}", err(&refused));
    exits(&as_ann(&["audit", "verify"]), 3);

    let shown = place.run(&["audit", "show"]);
    exits(&shown, 0);
    let lines: Vec<&str> = out(&shown).lines().collect();
    let columns = ["SEQ", "TIME", "BY", "WHAT", "OUTCOME", "TARGET", "MORE"];
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), columns);
    for (words, more) in [
        ("controller         start    done", "version="),
        ("operator/operator  submit   done     mini/1.0", "from 127.0.0.1:"),
        ("operator/operator  cancel   done     mini/1.0", "why=wrong"),
        ("operator/operator  cancel   refused  mini/9.9", "mini/9.9"),
        ("viewer/ann         cancel   refused  /railyard.v1.ClientService/Cancel", "viewer ann may not do this"),
        ("viewer/ann         refused  refused  /railyard.v1.AdminService/ShowAudit", "it is the operator's"),
    ] {
        assert!(lines.iter().any(|line| line.contains(words) && line.contains(more)), "{words}:\n{}", out(&shown));
    }

    let by_ann = records(&place.run(&["audit", "show", "--by", "ann", "-o", "json"]));
    assert_eq!(by_ann.iter().map(|record| &record["outcome"]).collect::<Vec<_>>(), ["refused"; 3]);
    let cancels = records(&place.run(&["audit", "show", "--what", "cancel", "--limit", "2", "-o", "json"]));
    assert_eq!((&cancels[0]["target"], &cancels[1]["by"]), (&"mini/9.9".into(), &"viewer/ann".into()));
    let of_build = records(&place.run(&["audit", "show", "--target", "mini/1", "--since", "1h", "-o", "json"]));
    assert_eq!(of_build.iter().map(|record| &record["what"]).collect::<Vec<_>>(), ["submit", "cancel"]);
    assert_eq!(of_build[1]["details"]["why"], "wrong");
    let none = place.run(&["audit", "show", "--until", "1h"]);
    exits(&none, 0);
    assert_eq!((out(&none), err(&none)), ("", "nothing of that is recorded\n"));
    exits(&place.run(&["audit", "show", "--what", "dance"]), 2);
    exits(&place.run(&["audit", "show", "--since", "yesterday"]), 2);
}

#[test]
fn what_comes_is_followed() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let mut command = place.command(&["audit", "show", "-f", "-n", "1", "-o", "json"]);
    let mut follower = command.stdout(Stdio::piped()).spawn().expect("the follower starts");
    let mut lines = BufReader::new(follower.stdout.take().expect("stdout is a pipe")).lines();
    let mut next = || -> serde_json::Value {
        serde_json::from_str(&lines.next().expect("a line").expect("UTF-8")).expect("a record is JSON")
    };
    assert_eq!(next()["what"], "start");
    exits(&submit(&place, &["--version", "1.0"]), 0);
    assert_eq!(next()["target"], "mini/1.0");
    follower.kill().expect("it follows");
    follower.wait().expect("it ended");
}

#[test]
fn a_changed_or_cut_audit_is_found() {
    let place = Place::with_pipeline();
    let mut controller = Controller::start(&place, "127.0.0.1:0");
    for version in ["1", "2", "3"] {
        exits(&submit(&place, &["--version", version]), 0);
    }
    let good = place.run(&["audit", "verify"]);
    exits(&good, 0);
    let head = out(&good).lines().find_map(|line| line.strip_prefix("head ")).expect("a head").to_owned();
    assert!(out(&good).starts_with("good: 4 records in 1 file\n") && head.starts_with("4:"), "{}", out(&good));
    assert_eq!(json(&place.run(&["audit", "verify", "--expect", &head, "-o", "json"]))["good"], true);
    controller.kill();

    let offline = ["audit", "verify", "--dir", "railyard-data/audit"];
    let found = place.run(&offline);
    exits(&found, 0);
    assert_eq!(out(&found), out(&good));
    let path = &files(&place)[0];
    let whole = std::fs::read_to_string(path).expect("it is text");
    let name = path.file_name().expect("a name").to_str().expect("UTF-8");
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    for (text, place_and_words) in [
        (whole.replace("mini/2", "mini/7"), format!("{name}:3: record 3 was changed")),
        ([lines[0], lines[2], lines[3]].concat(), format!("{name}:2: record 2 is missing")),
        ([lines[0], lines[1], lines[3], lines[2]].concat(), format!("{name}:4: record 3 stands behind record 4")),
        ([lines[0], lines[1], lines[1], lines[2], lines[3]].concat(), format!("{name}:3: record 2 stands behind")),
        ([lines[0], lines[1], lines[2]].concat(), format!("{name}:4: record 4 was cut off at the end")),
        (whole[..whole.len() - 1].to_owned(), format!("{name}:4: the line has no end")),
        (String::new(), format!("{name}:1: records 1 to 4 were cut off at the end")),
    ] {
        std::fs::write(path, text).expect("written");
        let found = place.run(&offline);
        exits(&found, 1);
        assert!(out(&found).contains(&place_and_words), "{place_and_words}: {}", out(&found));
        assert!(err(&found).contains("the audit is not what was written"), "{}", err(&found));
    }
    exits(&place.run(&["audit", "verify", "--dir", "mistyped"]), 1);

    // A controller that starts on it says so for good, and goes on.
    std::fs::write(path, whole.replace("mini/2", "mini/7")).expect("written");
    let _controller = Controller::start(&place, "127.0.0.1:0");
    exits(&submit(&place, &["--version", "4"]), 0);
    let found = json(&place.run(&["audit", "verify", "-o", "json"]));
    assert_eq!((&found["good"], &found["records"], &found["files"]), (&false.into(), &7.into(), &2.into()));
    assert_eq!((&found["faults"][0]["file"], &found["faults"][0]["line"]), (&name.into(), &3.into()));
    let records = records(&place.run(&["audit", "show", "-n", "3", "-o", "json"]));
    assert_eq!(records.iter().map(|record| &record["what"]).collect::<Vec<_>>(), ["break", "start", "submit"]);
}

#[test]
fn what_was_acknowledged_is_recorded_whenever_the_controller_is_killed() {
    let place = Place::with_pipeline();
    let listen = free_address();
    let mut controller = Controller::start(&place, &listen);
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let is_over = AtomicBool::new(false);
        let mut given = Vec::new();
        std::thread::scope(|scope| {
            let submitters: Vec<_> = (0..3)
                .map(|who| {
                    let (place, is_over) = (&place, &is_over);
                    scope.spawn(move || {
                        let mut given = Vec::new();
                        for n in 0.. {
                            let version = format!("{round}.{who}.{n}");
                            if submit(place, &["--version", &version]).status.success() {
                                given.push(format!("mini/{version}"));
                            }
                            if is_over.load(Ordering::Relaxed) {
                                break;
                            }
                        }
                        given
                    })
                })
                .collect();
            // In the middle of it: a few are there, others are on their way.
            while records(&place.run(&["audit", "show", "--target", &format!("mini/{round}"), "-o", "json"])).len() < 4
            {
            }
            controller.kill();
            is_over.store(true, Ordering::Relaxed);
            // Who waits for an answer asks again, and gets it from the next one.
            controller = Controller::start(&place, &listen);
            given.extend(submitters.into_iter().flat_map(|thread| thread.join().expect("it ends")));
        });
        assert!(!given.is_empty());
        acknowledged.append(&mut given);
        let verified = place.run(&["audit", "verify"]);
        exits(&verified, 0);
    }
    let recorded = records(&place.run(&["audit", "show", "--what", "submit", "-n", "10000", "-o", "json"]));
    for build in &acknowledged {
        assert!(recorded.iter().any(|record| record["target"] == build.as_str()), "{build} is not recorded");
    }
}
