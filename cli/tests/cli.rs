//! The command line without a farm: usage, checks, settings, and what a farm that is not there looks like.

mod place;

use place::{GOOD, Place, err, exits, json, out};
use std::path::Path;

#[test]
fn usage_errors_exit_2_and_say_why() {
    let place = Place::new();
    for (args, word) in [
        (&["frobnicate"][..], "frobnicate"),
        (&[], "Usage"),
        (&["submit"], "PIPELINE"),
        (&["submit", "x.yaml", "--param", "novalue"], "KEY=VALUE"),
        (&["submit", "x.yaml", "--platform", "linux/riscv64"], "linux/amd64 or linux/arm64"),
        (&["submit", "x.yaml", "--version", "not a version"], "version"),
        (&["builds", "-o", "xml"], "json"),
        (&["builds", "--limit", "0"], "0"),
        (&["logs", "mini", "--attempt", "1"], "JOB"),
        (&["logs", "mini", "a", "--attempt", "0"], "0"),
        (&["show", "mini", "--cert", "x.pem"], "--key"),
        (&["controller", "cert", "king", "w1", "--out", "x"], "worker"),
        (&["dev", "--slots", "0"], "0"),
        (&["submit", "x.yaml", "--priority", "urgent"], "release, manual, schedule, change"),
        (&["cancel", "mini/1", "No Step"], "step name"),
        (&["approve"], "BUILD"),
        (&["approve", "mini/1", "sign@linux/riscv64"], "linux/amd64 or linux/arm64"),
        (&["cordon", "W 1"], "worker name"),
        (&["cordon", "w1", "--for", "2"], "90s, 2h or"),
        (&["cordon", "w1", "--for", "0s"], "more than 0s"),
        (&["cordon", "w1", "--deadline", "1h"], "--deadline"),
        (&["drain", "w1", "--deadline", "soon"], "90s, 2h or"),
        (&["retire", "w1", "--for", "2h"], "--for"),
        (&["dev", "--cpu", "none"], "1.5"),
        (&["controller"], "--config"),
        (&["controller", "--config", "nowhere.toml"], "nowhere.toml"),
        (&["worker", "--config", "nowhere.toml"], "nowhere.toml"),
        (&["controller", "cert", "worker", "w1", "--out", "x"], "--data"),
        (&["controller", "cert", "worker", "w1", "--out", "x", "--data", "nowhere"], "nowhere"),
    ] {
        let output = place.run(args);
        exits(&output, 2);
        assert!(err(&output).contains(word), "{args:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{args:?}");
    }
}

#[test]
fn help_and_version_exit_0() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    exits(&help, 0);
    for word in ["submit", "workers", "railyard dev", "Exit codes", "RAILYARD_URL"] {
        assert!(out(&help).contains(word), "{word}");
    }
    let version = place.run(&["--version"]);
    exits(&version, 0);
    assert_eq!(out(&version), format!("railyard {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn check_says_in_a_line_that_a_file_is_good() {
    let place = Place::new();
    place.write("p/railyard.yaml", GOOD);
    place.write("p/steps/packages.sh", "echo packages\n");
    let output = place.run(&["check", "p/railyard.yaml"]);
    exits(&output, 0);
    assert_eq!(
        out(&output),
        "p/railyard.yaml: pipeline `mini` is good: 2 steps, 4 jobs for linux/amd64 and linux/arm64; \
         every build must give mirror\n"
    );
    assert_eq!(err(&output), "");

    let checked = place.run(&["check", "p/railyard.yaml", "-o", "json"]);
    exits(&checked, 0);
    let value = json(&checked);
    assert_eq!((&value["valid"], &value["name"], &value["jobs"]), (&true.into(), &"mini".into(), &4.into()));
}

#[test]
fn check_points_at_the_place() {
    let place = Place::new();
    place.write("r.yaml", &GOOD.replace("- name: image\n", "- name: image\n    needs: [pakages]\n"));
    place.write("steps/packages.sh", "echo packages\n");
    let output = place.run(&["check", "r.yaml"]);
    exits(&output, 2);
    let text = err(&output);
    assert!(text.starts_with("r.yaml:13:13: error: "), "{text}");
    assert!(text.contains("pakages"), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], "13 |     needs: [pakages]");
    assert_eq!(lines[2], "   |             ^");
    assert_eq!(out(&output), "");

    let checked = place.run(&["check", "r.yaml", "-o", "json"]);
    exits(&checked, 2);
    let value = json(&checked);
    assert_eq!(value["valid"], false);
    assert_eq!((&value["diagnostics"][0]["line"], &value["diagnostics"][0]["column"]), (&13.into(), &13.into()));
}

#[test]
fn a_script_that_is_missing_is_a_fault_of_the_file() {
    let place = Place::new();
    place.write("r.yaml", GOOD);
    let output = place.run(&["check", "r.yaml"]);
    exits(&output, 2);
    assert!(err(&output).starts_with("r.yaml:9:"), "{}", err(&output));
    assert!(err(&output).contains("steps/packages.sh"), "{}", err(&output));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let place = Place::new();
    place.write("binary.yaml", "");
    std::fs::write(place.path("binary.yaml"), b"\xff\xfe").expect("a file");
    for (file, word) in [("nowhere.yaml", "nowhere.yaml"), ("binary.yaml", "UTF-8"), (".", "directory")] {
        let output = place.run(&["check", file]);
        exits(&output, 2);
        assert!(err(&output).contains(word), "{}", err(&output));
    }
}

#[test]
fn a_file_cannot_write_to_the_terminal_of_who_checks_it() {
    let place = Place::new();
    place.write("r.yaml", "name: \"\u{1b}]0;pwned\u{7}x\"\nsteps: []\n");
    let output = place.run(&["check", "r.yaml"]);
    exits(&output, 2);
    assert!(!err(&output).contains(['\u{1b}', '\u{7}']), "{:?}", err(&output));
}

#[test]
fn submit_refuses_a_bad_request_before_it_looks_for_a_farm() {
    let place = Place::with_pipeline();
    for (args, word) in [
        (&["submit", "r.yaml"][..], "mirror"),
        (&["submit", "r.yaml", "-p", "mirror=x", "-p", "mirror=y"], "twice"),
        (&["submit", "r.yaml", "-p", "mirror=x", "-p", "miror=y"], "miror"),
        (&["plan", "r.yaml"], "mirror"),
    ] {
        let output = place.run(args);
        exits(&output, 2);
        assert!(err(&output).contains(word), "{args:?}: {}", err(&output));
    }
}

#[test]
fn without_a_farm_it_says_what_to_do() {
    let place = Place::new();
    let output = place.run(&["builds"]);
    exits(&output, 2);
    assert!(err(&output).contains("railyard dev") && err(&output).contains("RAILYARD_URL"), "{}", err(&output));
    assert!(err(&output).contains(".config/railyard/config.toml"), "{}", err(&output));

    let half = place.command(&["builds"]).env("RAILYARD_URL", "https://127.0.0.1:1").output().expect("railyard starts");
    exits(&half, 2);
    assert!(err(&half).contains("RAILYARD_CA"), "{}", err(&half));
}

/// A farm's CA, and the settings of a farm that nobody runs.
fn dead_farm(place: &Place) -> String {
    let pki = place.path("pki");
    let authority = railyard_service::tls::Authority::open_or_create(Path::new(&pki), "test").expect("an authority");
    assert!(authority.ca_pem().contains("BEGIN CERTIFICATE"));
    // A port that was free a moment ago; nobody listens there now.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("https://{}", listener.local_addr().expect("an address"))
}

#[test]
fn an_unreachable_farm_exits_3() {
    let place = Place::with_pipeline();
    let url = dead_farm(&place);
    place.write("railyard-data/client.toml", &format!("url = \"{url}\"\nca = \"../pki/ca.pem\"\n"));
    for args in [
        &["builds"][..],
        &["show", "mini"],
        &["watch", "mini"],
        &["logs", "mini", "packages", "-f"],
        &["artifacts", "mini"],
        &["fetch", "mini", "-o", "there"],
        &["cancel", "mini"],
        &["retry", "mini", "packages"],
        &["approve", "mini"],
        &["cordon", "w1"],
        &["drain", "w1", "--wait"],
        &["retire", "w1"],
        &["uncordon", "w1"],
        &["workers", "-o", "json"],
        &["plan", "r.yaml", "--param", "mirror=x"],
        &["submit", "r.yaml", "--param", "mirror=x", "--wait"],
    ] {
        let output = place.run(args);
        exits(&output, 3);
        let text = err(&output);
        assert!(text.contains(&format!("cannot reach the controller at {url}: ")), "{args:?}: {text}");
        assert!(text.contains("refused") && text.contains("is `railyard dev` running?"), "{args:?}: {text}");
        assert_eq!(out(&output), "", "{args:?}");
    }
}

#[test]
fn settings_that_cannot_work_exit_2() {
    let place = Place::new();
    place.write("bad.toml", "url = \"https://127.0.0.1:1\"\nca_file = \"x\"\n");
    place.write("notpem.toml", "url = \"https://127.0.0.1:1\"\nca = \"notpem.toml\"\n");
    place.write("gone.toml", "url = \"https://127.0.0.1:1\"\nca = \"gone.pem\"\n");
    for (file, word) in
        [("bad.toml", "bad.toml:2:1"), ("notpem.toml", "CA"), ("gone.toml", "gone.pem"), ("no.toml", "no.toml")]
    {
        let output = place.run(&["builds", "--config", file]);
        exits(&output, 2);
        assert!(err(&output).contains(word), "{file}: {}", err(&output));
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = place.run(&["completions", shell]);
        exits(&output, 0);
        assert!(out(&output).contains("idempotency-key"), "{shell}");
    }
    let output = place.run(&["man", "man1"]);
    exits(&output, 0);
    let page = std::fs::read_to_string(place.path("man1/railyard-submit.1")).expect("a page");
    assert!(page.contains("idempotency") && page.contains("exits 0 when the build succeeded"), "{page}");
    assert!(place.path("man1/railyard.1").is_file());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let mut child = place
        .command(&["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("railyard starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("an end");
    exits(&output, 0);
    assert_eq!(err(&output), "");
}
