//! Untrusted builds from the command line.

use crate::place::{Place, err, exits, json, out};
use crate::{Controller, submit};

/// A step that publishes, and asks for a pool.
const PUBLISHES: &str = "\
name: os
steps:
  - name: image
    image: debian:bookworm
    script: make
    pool: signing
    outputs: [{ path: disk.raw, publish: images/stable }]
";

#[test]
fn an_untrusted_build_is_marked_wherever_it_is_seen() {
    let place = Place::with_pipeline();
    place.write("os.yaml", PUBLISHES);
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let left_out = [
        "warning: image@linux/amd64: disk.raw is not published at images/stable: the build is untrusted\n",
        "warning: image@linux/amd64: it runs on workers without a pool, not in pool signing: the build is untrusted\n",
    ];
    let planned = place.run(&["plan", "os.yaml", "--untrusted"]);
    exits(&planned, 0);
    assert!(left_out.iter().all(|line| err(&planned).contains(line)), "{}", err(&planned));
    assert!(err(&place.run(&["plan", "os.yaml"])).find("untrusted").is_none());

    exits(&place.run(&["submit", "os.yaml", "--version", "1.0"]), 0);
    let made = place.run(&["submit", "os.yaml", "--version", "1.0", "--untrusted"]);
    exits(&made, 0);
    assert_eq!(out(&made), "os/1.0.untrusted\n");
    assert!(left_out.iter().all(|line| err(&made).contains(line)), "{}", err(&made));

    let builds = place.run(&["builds"]);
    let rows: Vec<Vec<&str>> = out(&builds).lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows[0][3], &rows[1][..4]), ("TIER", &["os/1.0.untrusted", "running", "0/1", "untrusted"][..]));
    assert_eq!((rows[2][0], rows[2].contains(&"untrusted")), ("os/1.0", false));
    let marks = json(&place.run(&["builds", "-o", "json"]));
    assert_eq!((&marks[0]["untrusted"], &marks[1]["untrusted"]), (&true.into(), &false.into()));
    let show = place.run(&["show", "os/1.0.untrusted"]);
    assert!(out(&show).contains("tier       untrusted: nothing of it is published"), "{}", out(&show));
    assert!(!out(&show).contains("priority"), "change goes without saying: {}", out(&show));
    assert_eq!(json(&place.run(&["show", "os", "-o", "json"]))["build"], "os/1.0");

    let urgent = place.run(&["submit", "os.yaml", "--untrusted", "--priority", "manual"]);
    exits(&urgent, 2);
    assert!(err(&urgent).contains("has priority change at most"), "{}", err(&urgent));
    let posing = place.run(&["submit", "os.yaml", "--version", "2.untrusted"]);
    exits(&posing, 2);
    assert!(err(&posing).contains("submit it with --untrusted"), "{}", err(&posing));
}

#[test]
fn a_token_can_be_for_untrusted_builds_only() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    exits(&submit(&place, &["--version", "1"]), 0);
    let made = place.run(&["token", "create", "--role", "submitter", "--user", "ci-changes", "--untrusted"]);
    exits(&made, 0);
    let listed = place.run(&["token", "list"]);
    assert!(out(&listed).contains("submitter/ci-changes  untrusted builds  good"), "{}", out(&listed));
    assert_eq!(json(&place.run(&["token", "list", "-o", "json"]))[0]["untrusted"], true);

    let bot = Place::with_pipeline();
    let settings = std::fs::read_to_string(place.path("railyard-data/client.toml")).expect("client settings");
    let url = settings.lines().find_map(|line| line.strip_prefix("url = \"")?.strip_suffix('"')).expect("a URL");
    exits(&bot.run(&["login", url, out(&made).trim_end()]), 0);
    let pushed = submit(&bot, &["--version", "pr-7"]);
    exits(&pushed, 0);
    assert_eq!(out(&pushed), "mini/pr-7.untrusted\n");
    let words = "submitter ci-changes is limited to untrusted builds";
    assert!(err(&pushed).contains(&format!("warning: {words}: this one is untrusted")), "{}", err(&pushed));
    let refused = bot.run(&["cancel", "mini/1"]);
    exits(&refused, 3);
    assert!(err(&refused).contains(&format!("{words}, and mini/1 is none")), "{}", err(&refused));
    exits(&bot.run(&["cancel", "mini/pr-7.untrusted"]), 0);
    exits(&bot.run(&["retry", "mini/pr-7.untrusted"]), 0);
    // A fresh certificate has the same limits.
    exits(&bot.run(&["login", "--renew"]), 0);
    exits(&bot.run(&["cancel", "mini/1"]), 3);

    for role in ["viewer", "operator"] {
        exits(&place.run(&["token", "create", "--role", role, "--user", "x", "--untrusted"]), 2);
    }
    exits(&place.run(&["token", "create", "--worker", "w1", "--untrusted"]), 2);
}

#[test]
fn a_policy_that_gives_strangers_too_much_stops_the_start() {
    let place = Place::new();
    let rule = "\n[[policy]]\nname = \"changes\"\npipelines = [\"*\"]\nuntrusted = true\nallow = [\"privileged\"]\n";
    place.write("c.toml", &format!("data_dir = \"d\"\nlisten = \"127.0.0.1:0\"\n{rule}"));
    let output = place.run(&["controller", "--config", "c.toml"]);
    exits(&output, 2);
    let words = [
        "c.toml:4",
        "rule `changes` has `untrusted = true` and allows `privileged`",
        "could write what a release reads",
    ];
    assert!(words.iter().all(|word| err(&output).contains(word)), "{}", err(&output));
}
