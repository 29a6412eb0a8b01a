//! Settings that are read again while the controller runs.

use crate::place::{Place, err, exits, out};
use crate::{Controller, signal};
use std::time::{Duration, Instant};

/// Longest wait for anything that should happen at once.
const LIMIT: Duration = Duration::from_secs(30);

const PIPELINE: &str = "\
name: os
steps:
  - name: work
    image: debian:bookworm
    script: work
    privileged: true
";

/// Waits until the audit has changes of these parts, in this order.
pub fn changes(place: &Place, parts: &[&str]) {
    #[expect(clippy::disallowed_methods, reason = "the program under test runs by the same clock")]
    let now = Instant::now;
    let until = now() + LIMIT;
    loop {
        let shown = place.run(&["audit", "show", "--what", "policy-change", "-o", "json"]);
        exits(&shown, 0);
        let records = out(&shown).lines().map(|line| serde_json::from_str(line).expect("a record is JSON"));
        let records: Vec<serde_json::Value> = records.collect();
        if records.iter().map(|record| &record["target"]).eq(parts) {
            return;
        }
        assert!(now() < until && records.len() <= parts.len(), "{parts:?}: {records:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_is_allowed_and_kept_is_read_again_at_sighup_and_recorded() {
    let place = Place::new();
    place.write("os.yaml", PIPELINE);
    let mut controller = Controller::start(&place, "127.0.0.1:0");
    let refused = place.run(&["submit", "os.yaml", "--version", "1"]);
    exits(&refused, 3);
    assert!(err(&refused).contains("no rule is for pipeline os"), "{}", err(&refused));

    let settings = std::fs::read_to_string(place.path("controller.toml")).expect("the settings");
    let policy = "[[policy]]\nname = \"images\"\npipelines = [\"os\"]\nallow = [\"privileged\"]\n";
    place.write("controller.toml", &format!("{settings}{policy}"));
    signal("HUP", &controller.child);
    changes(&place, &["policy"]);
    exits(&place.run(&["submit", "os.yaml", "--version", "1"]), 0);

    // What needs a restart is neither taken nor recorded before.
    let more = format!(
        "{settings}person_certificate_secs = 77\n{policy}[[retention]]\nkeep_last = 7\n[sweep]\ngrace = \"7h\"\n"
    );
    place.write("controller.toml", &more);
    signal("HUP", &controller.child);
    changes(&place, &["policy", "retention", "sweep"]);

    // With the settings of the beginning: what had held in between is known.
    controller.kill();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    changes(&place, &["policy", "retention", "sweep", "policy", "retention", "sweep"]);
    exits(&place.run(&["submit", "os.yaml", "--version", "2"]), 3);
}

/// Every sweep of its own has a record, and the same task answers who asks for a plan.
#[test]
fn sweeps_that_are_switched_on_do_not_begin_at_once() {
    let place = Place::new();
    let controller = Controller::start(&place, "127.0.0.1:0");
    let settings = std::fs::read_to_string(place.path("controller.toml")).expect("the settings");
    for (every, parts) in [("0s", &["sweep"][..]), ("1h", &["sweep", "sweep"])] {
        place.write("controller.toml", &format!("{settings}[sweep]\nevery = \"{every}\"\n"));
        signal("HUP", &controller.child);
        changes(&place, parts);
    }
    for _ in 0..3 {
        exits(&place.run(&["gc", "plan"]), 0);
    }
    let swept = place.run(&["audit", "show", "--what", "sweep", "-o", "json"]);
    exits(&swept, 0);
    assert_eq!(out(&swept), "");
}
