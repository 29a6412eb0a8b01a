//! Pins, tags, promotions and deletion, as people say and see them.

use crate::place::{Place, err, exits, json, out};
use crate::worker::{Worker, hello};
use crate::{Controller, signal};
use railyard_proto::v1::OutcomeKind;

const OS: &str = "\
name: os
platforms: [linux/amd64]
steps:
  - name: image
    image: debian:bookworm
    script: make
";

/// A pipeline of which two builds have succeeded.
fn farm() -> (Place, Controller) {
    let place = Place::new();
    place.write("os.yaml", OS);
    let controller = Controller::start(&place, "127.0.0.1:0");
    let worker = Worker::connect(&place, hello("w1")).unwrap();
    for version in ["1", "2"] {
        exits(&place.run(&["submit", "os.yaml", "--version", version]), 0);
        worker.report(&worker.order(), OutcomeKind::Succeeded);
        exits(&place.run(&["watch", &format!("os/{version}")]), 0);
    }
    (place, controller)
}

#[test]
fn builds_are_pinned_and_everybody_sees_why() {
    let (place, _controller) = farm();
    let pinned = json(&place.run(&["pin", "os/1", "--why", "in the lab", "--for", "30d", "-o", "json"]));
    let name = pinned["pin"]["name"].as_str().unwrap().to_owned();
    assert_eq!((&pinned["build"], &pinned["pin"]["by"]), (&"os/1".into(), &format!("operator/{name}").into()));
    let more = place.run(&["pin", "os/1", "--why", "a case", "--name", "case-4711"]);
    assert_eq!(
        out(&more),
        "os/1 is pinned as case-4711 until somebody takes it back: railyard unpin os/1 --name case-4711\n"
    );
    let shown = place.run(&["show", "os/1"]);
    assert!(out(&shown).contains(&format!("pin        case-4711: a case (operator/{name})\n")), "{}", out(&shown));
    assert!(
        out(&shown).contains(&format!("pin        {name}: in the lab (operator/{name}, ends in ")),
        "{}",
        out(&shown)
    );
    assert_eq!(json(&place.run(&["show", "os/1", "-o", "json"]))["pins"][0]["why"], "a case");
    let builds = place.run(&["builds"]);
    let rows: Vec<Vec<&str>> = out(&builds).lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows[0][3], rows[2][3], rows[1].contains(&"pinned")), ("KEPT", "pinned", false));

    assert_eq!(out(&place.run(&["unpin", "os/1"])), format!("os/1 is no longer pinned by {name}\n"));
    exits(&place.run(&["unpin", "os/1", "--all"]), 0);
    let none = place.run(&["unpin", "os/1", "--all"]);
    exits(&none, 3);
    assert!(err(&none).contains("has no pin"), "{}", err(&none));
    for bad in [
        vec!["pin", "os/1"],
        vec!["pin", "os/1", "--why", ""],
        vec!["pin", "os/1", "--why", "x", "--until", "soon"],
        vec!["pin", "os/1", "--why", "x", "--until", "2126-01-01", "--for", "1d"],
        vec!["unpin", "os/1", "--all", "--name", "x"],
    ] {
        exits(&place.run(&bad), 2);
    }
}

#[test]
fn a_tag_stands_wherever_a_build_is_named() {
    let (place, _controller) = farm();
    assert_eq!(out(&place.run(&["tag", "os/1", "golden"])), "os/1 is os/golden\n");
    assert_eq!(json(&place.run(&["show", "os/golden", "-o", "json"]))["build"], "os/1");
    assert_eq!(out(&place.run(&["tag", "os", "golden"])), "os/2 is os/golden, which was os/1 before\n");
    assert!(out(&place.run(&["show", "os/2"])).contains("tags       golden\n"));
    assert_eq!(json(&place.run(&["builds", "-o", "json"]))[0]["tags"][0], "golden");
    let untagged = json(&place.run(&["untag", "os", "golden", "-o", "json"]));
    assert_eq!(untagged, serde_json::json!({ "build": "os/2", "tag": "golden" }));
    let gone = place.run(&["show", "os/golden"]);
    exits(&gone, 3);
    assert!(err(&gone).contains("there is no build `os/golden`"), "{}", err(&gone));
}

#[test]
fn a_build_is_promoted_by_its_name_and_told_from_where() {
    let (place, _controller) = farm();
    let newest = place.run(&["promote", "os", "beta"]);
    exits(&newest, 2);
    assert!(err(&newest).contains("name the one to promote"), "{}", err(&newest));
    exits(&place.run(&["promote", "os/1", "a/b"]), 2);
    let promoted = place.run(&["promote", "os/1", "beta"]);
    assert_eq!(out(&promoted), "os/1 is in channel beta now, and not in default any more\n");
    assert_eq!(out(&place.run(&["promote", "os/1", "beta"])), "os/1 is in channel beta already\n");
    let shown = place.run(&["show", "os/1"]);
    assert!(out(&shown).contains("promoted   to beta by operator/"), "{}", out(&shown));
    let back = json(&place.run(&["promote", "os/1", "default", "-o", "json"]));
    assert_eq!((&back["from"], &back["channel"]), (&"beta".into(), &"default".into()));
    assert_eq!(back["promotion"]["paths"], serde_json::json!([]));
    let needed = place.run(&["delete", "os/1", "--yes"]);
    exits(&needed, 3);
    assert!(err(&needed).contains("it was promoted to default"), "{}", err(&needed));
}

#[test]
fn a_build_is_deleted_by_who_says_so_twice() {
    let (place, _controller) = farm();
    let unasked = place.run(&["delete", "os/1"]);
    exits(&unasked, 2);
    assert!(err(&unasked).contains("there is no terminal to ask on; give --yes"), "{}", err(&unasked));
    let newest = place.run(&["delete", "os", "--yes"]);
    exits(&newest, 2);
    assert!(err(&newest).contains("name the one to delete"), "{}", err(&newest));

    let latest = place.run(&["delete", "os/latest", "--yes"]);
    exits(&latest, 2);
    assert!(err(&latest).contains("os/2 just now; name the one to delete"), "{}", err(&latest));

    exits(&place.run(&["tag", "os/1", "golden"]), 0);
    let needed = place.run(&["delete", "os/1", "--yes"]);
    exits(&needed, 3);
    assert!(err(&needed).contains("it is tagged golden") && err(&needed).contains("--force"), "{}", err(&needed));
    let nothing = place.run(&["builds", "--deleted"]);
    assert!(err(&nothing).contains("nothing was deleted"), "{}", err(&nothing));
    let deleted = place.run(&["delete", "os/golden", "--force", "--yes", "--why", "wrong key", "-o", "json"]);
    assert_eq!(json(&deleted), serde_json::json!({ "build": "os/1", "deleted": true }));
    let gone = place.run(&["show", "os/1"]);
    exits(&gone, 3);
    assert!(err(&gone).contains("was deleted"), "{}", err(&gone));

    assert_eq!(json(&place.run(&["builds", "-o", "json"])).as_array().unwrap().len(), 1);
    let listed = json(&place.run(&["builds", "--deleted", "-o", "json"]));
    assert_eq!((&listed[0]["build"], &listed[0]["keep"]), (&"os/1".into(), &"nothing".into()));
    assert_eq!(listed[0]["reduced"]["why"], "wrong key");
    let table = place.run(&["builds", "--deleted"]);
    assert!(out(&table).lines().nth(1).is_some_and(|row| row.ends_with("wrong key")), "{}", out(&table));
}

#[test]
fn what_others_wrote_does_nothing_to_the_terminal_when_it_stands_in_an_error() {
    let (place, _controller) = farm();
    exits(&place.run(&["pin", "os/1", "--name", "nl", "--why", "a\u{1b}]0;title\u{7}b\u{1b}[2Jc"]), 0);
    let needed = place.run(&["delete", "os/1", "--yes"]);
    exits(&needed, 3);
    assert!(err(&needed).contains("pinned by nl: abc;"), "{:?}", err(&needed));
    assert!(!err(&needed).contains(['\u{1b}', '\u{7}']), "{:?}", err(&needed));
}

#[test]
fn whoever_fetches_from_a_build_of_which_little_is_left_is_told_so() {
    let (place, controller) = farm();
    let settings = std::fs::read_to_string(place.path("controller.toml")).unwrap();
    place.write("controller.toml", &format!("{settings}[[retention]]\nkeep_last = 1\nold = \"manifest\"\n"));
    signal("HUP", &controller.child);
    crate::reload::changes(&place, &["retention"]);
    exits(&place.run(&["gc", "run", "--yes"]), 0);
    let left = place.run(&["fetch", "os/1"]);
    exits(&left, 1);
    assert!(err(&left).contains("retention has kept only the manifest and the logs of os/1"), "{}", err(&left));
    let named = place.run(&["fetch", "os/1", "*.iso"]);
    exits(&named, 3);
    assert!(err(&named).contains("nothing that is left of os/1 matches *.iso"), "{}", err(&named));
    let whole = place.run(&["fetch", "os/2"]);
    exits(&whole, 1);
    assert!(err(&whole).contains("os/2 has no artifacts; `railyard show os/2` tells how far it is"), "{}", err(&whole));
}
