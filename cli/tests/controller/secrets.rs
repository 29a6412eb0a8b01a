//! Secrets from the command line.

use crate::Controller;
use crate::place::{Place, err, exits, json, out};
use std::io::Write as _;
use std::process::Stdio;

#[test]
fn an_operator_stores_lists_and_removes_secrets() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let none = place.run(&["secret", "list"]);
    exits(&none, 0);
    assert!(err(&none).contains("there are no secrets"), "{}", err(&none));

    place.write("key", "canary-11aa22\nsecond line\n");
    let set = place.run(&["secret", "set", "signing-key", "--file", "key", "--pipeline", "mini", "--step", "sign"]);
    exits(&set, 0);
    assert_eq!(out(&set), "secret signing-key is stored; a step asks for it with `secrets: [signing-key]`\n");
    // By standard input, and in the place of the other.
    let wider = ["secret", "set", "signing-key", "--file", "-", "--pipeline", "mini", "-o", "json"];
    place.write("other", "canary-55cc66");
    let refused = place.run(&["secret", "set", "signing-key", "--file", "other", "--pipeline", "mini"]);
    exits(&refused, 3);
    assert!(err(&refused).contains("there is a secret signing-key for mini: sign"), "{}", err(&refused));
    let mut piped = place.command(&[&wider[..], &["--replace"]].concat());
    let mut child = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("railyard starts");
    child.stdin.take().expect("a pipe").write_all(b"canary-33bb44").expect("it reads");
    let said = json(&child.wait_with_output().expect("it ends"));
    assert_eq!((said["name"].as_str(), said["replaced"].as_bool()), (Some("signing-key"), Some(true)));

    let listed = place.run(&["secret", "list"]);
    exits(&listed, 0);
    let text = out(&listed);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["SECRET", "PIPELINES", "STEPS", "STORED", "BY", "STATE"]);
    assert_eq!(lines[1][..3], ["signing-key", "mini", "all"]);
    let as_json = json(&place.run(&["secret", "list", "-o", "json"]));
    assert_eq!(as_json[0]["pipelines"], serde_json::json!(["mini"]));
    assert!(as_json[0]["fault"].is_null() && as_json[0]["set_by"] == "operator/operator", "{as_json}");
    let shown = place.run(&["audit", "show", "--what", "secret-set"]);
    let audit = out(&shown);
    for told in [text, &as_json.to_string(), audit] {
        assert!(!told.contains("canary"), "{told}");
    }
    assert!(audit.contains("secret:signing-key"), "{audit}");

    exits(&place.run(&["secret", "remove", "signing-key"]), 0);
    let gone = place.run(&["secret", "remove", "signing-key"]);
    exits(&gone, 3);
    assert!(err(&gone).contains("there is no secret signing-key"), "{}", err(&gone));
}

#[test]
fn what_cannot_be_a_secret_is_told_before_it_travels() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    place.write("short", "1234\n");
    place.write("long", &"x".repeat(65_537));
    for (args, code, word) in [
        (&["set", "key", "--file", "none", "--pipeline", "mini"][..], 2, "cannot read the secret from none"),
        (&["set", "key", "--file", "long", "--pipeline", "mini"], 2, "has more than 65536 bytes"),
        (&["set", "key", "--file", "short", "--pipeline", "mini"], 2, "at least 8 are needed"),
        (&["set", "key", "--file", "short"], 2, "--pipeline"),
        (&["set", "../key", "--file", "short", "--pipeline", "mini"], 2, "is not a secret name"),
        (&["set", "key", "--pipeline", "mini"], 2, "--file"),
    ] {
        let refused = place.run(&[&["secret"], args].concat());
        exits(&refused, code);
        assert!(err(&refused).contains(word), "{args:?}: {}", err(&refused));
    }
}
