//! Tokens, logins and revocations from the command line.

use crate::Controller;
use crate::place::{Place, err, exits, json, out};
use std::os::unix::fs::PermissionsExt as _;

/// The controller's URL, as its client settings have it.
fn url(place: &Place) -> String {
    let settings = std::fs::read_to_string(place.path("railyard-data/client.toml")).expect("client settings");
    let url = settings.lines().find_map(|line| line.strip_prefix("url = \"")?.strip_suffix('"'));
    url.expect("the settings name the controller").to_owned()
}

/// A token, as `token create` prints it.
fn token(place: &Place, args: &[&str]) -> String {
    let made = place.run(&[&["token", "create"], args].concat());
    exits(&made, 0);
    assert!(err(&made).contains("good"), "{}", err(&made));
    out(&made).trim_end().to_owned()
}

#[test]
fn a_person_logs_in_with_a_token_and_is_shut_out() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let url = url(&place);
    let made = token(&place, &["--role", "submitter", "--user", "ana", "--pipeline", "mini"]);
    assert!(made.starts_with("railyard-join-") && !made.contains('\n'));
    place.write("token", &made);

    // Somewhere else, with nothing but the token.
    let ana = Place::with_pipeline();
    ana.write("token", &format!("{made}\n"));
    let said = json(&ana.run(&["login", &url, "@token", "-o", "json"]));
    assert_eq!((said["identity"].as_str(), said["url"].as_str()), (Some("submitter/ana"), Some(url.as_str())));
    let config = ana.path(".config/railyard/config.toml");
    let host = url.trim_start_matches("https://").replace(':', "-");
    let key = config.with_file_name(format!("{host}.key"));
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&key), 0o600);
    exits(&ana.run(&["submit", "r.yaml", "--param", "mirror=x", "--version", "1"]), 0);
    assert_eq!(json(&place.run(&["builds", "-o", "json"]))[0]["submitted_by"], "ana");
    let approve = ana.run(&["approve", "mini/1"]);
    exits(&approve, 3);
    assert!(err(&approve).contains("may not do this; it is the operator's"), "{}", err(&approve));

    // The same token and key once more, as after a lost answer; and a fresh certificate for the old one.
    exits(&ana.run(&["login", &url, "@token"]), 0);
    let before = std::fs::read(config.with_file_name(format!("{host}.pem"))).expect("a certificate");
    exits(&ana.run(&["login", "--renew"]), 0);
    assert_ne!(std::fs::read(config.with_file_name(format!("{host}.pem"))).expect("a certificate"), before);
    exits(&ana.run(&["builds"]), 0);
    // Another one's key.
    let used = Place::new().run(&["login", &url, &made]);
    exits(&used, 3);
    assert!(err(&used).contains("was used already"), "{}", err(&used));

    let revoked = place.run(&["revoke", "--role", "submitter", "--user", "ana", "--why", "left"]);
    exits(&revoked, 0);
    assert_eq!(out(&revoked), "submitter/ana is shut out; 1 token went with it\n");
    assert_eq!(err(&revoked), "");
    // It may be a slip of the pen.
    let nobody = place.run(&["revoke", "--role", "viewer", "--user", "anna"]);
    exits(&nobody, 0);
    assert!(err(&nobody).contains("neither a token nor a worker for viewer/anna"), "{}", err(&nobody));
    let refused = ana.run(&["builds"]);
    exits(&refused, 3);
    assert!(err(&refused).contains("was revoked"), "{}", err(&refused));
}

/// As from the machine that is left when another one with the same name was stolen.
#[test]
fn who_shuts_himself_out_hears_that_it_is_done() {
    let (place, there) = (Place::new(), Place::new());
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let made = token(&place, &["--role", "operator", "--user", "otto"]);
    exits(&there.run(&["login", &url(&place), &made]), 0);
    let revoked = there.run(&["revoke", "--role", "operator", "--user", "otto", "--why", "stolen"]);
    exits(&revoked, 0);
    assert!(out(&revoked).starts_with("operator/otto is shut out"), "{}", out(&revoked));
    assert!(err(&revoked).contains("operator/otto is who you are"), "{}", err(&revoked));
    exits(&there.run(&["builds"]), 3);
}

#[test]
fn a_login_does_not_replace_another_farm_s_settings_unasked() {
    let (place, other) = (Place::new(), Place::new());
    let (_one, _two) = (Controller::start(&place, "127.0.0.1:0"), Controller::start(&other, "127.0.0.1:0"));
    let home = Place::new();
    let viewer = ["--role", "viewer", "--user", "ana"];
    exits(&home.run(&["login", &url(&place), &token(&place, &viewer)]), 0);
    let second = token(&other, &viewer);
    let refused = home.run(&["login", &url(&other), &second]);
    exits(&refused, 2);
    assert!(err(&refused).contains("--force"), "{}", err(&refused));
    exits(&home.run(&["login", &url(&other), &second, "--config", "other.toml"]), 0);
    exits(&home.run(&["builds", "--config", "other.toml"]), 0);
    exits(&home.run(&["builds"]), 0);
    let foreign = home.run(&["login", &url(&place), &second, "--force"]);
    exits(&foreign, 3);
    assert!(err(&foreign).contains("is not the farm that this token is for"), "{}", err(&foreign));
    for (bad, why) in
        [("x", "not a token of Railyard"), (&second[..40], "the token is damaged"), ("@none", "cannot read")]
    {
        let refused = home.run(&["login", &url(&place), bad]);
        exits(&refused, 2);
        assert!(err(&refused).contains(why), "{bad}: {}", err(&refused));
    }
}

#[test]
fn a_script_shows_its_token() {
    let place = Place::with_pipeline();
    let _controller = Controller::start(&place, "127.0.0.1:0");
    let bearer = token(&place, &["--bearer", "--role", "viewer", "--user", "dashboard", "--ttl", "1day"]);
    let ca = place.path("railyard-data/pki/ca.pem").display().to_string();
    let script = Place::with_pipeline();
    let url = url(&place);
    let run = |args: &[&str]| {
        let mut command = script.command(args);
        command.env("RAILYARD_URL", &url).env("RAILYARD_CA", &ca).env("RAILYARD_TOKEN", &bearer);
        command.output().expect("railyard starts")
    };
    exits(&run(&["builds"]), 0);
    let refused = run(&["submit", "r.yaml", "--param", "mirror=x"]);
    exits(&refused, 3);
    assert!(err(&refused).contains("viewer dashboard may not do this"), "{}", err(&refused));
    // From a file.
    script.write("secret", &bearer);
    script.write("farm.toml", &format!("url = \"{url}\"\nca = \"{ca}\"\ntoken_file = \"secret\"\n"));
    exits(&script.run(&["builds", "--config", "farm.toml"]), 0);

    let listed = json(&place.run(&["token", "list", "-o", "json"]));
    let one = &listed[0];
    assert_eq!(
        (one["kind"].as_str(), one["role"].as_str(), one["name"].as_str()),
        (Some("bearer"), Some("viewer"), Some("dashboard"))
    );
    assert!(!listed.to_string().contains(&bearer[20..40]));
    let table = place.run(&["token", "list"]);
    assert!(out(&table).contains("bearer  viewer/dashboard  good"), "{}", out(&table));
    exits(&place.run(&["token", "revoke", one["id"].as_str().expect("an id")]), 0);
    let over = run(&["builds"]);
    exits(&over, 3);
    assert!(err(&over).contains("is not known here"), "{}", err(&over));
    exits(&place.run(&["token", "revoke", one["id"].as_str().expect("an id")]), 3);
    assert!(out(&place.run(&["token", "list"])).is_empty());
}

#[test]
fn tokens_that_make_no_sense_are_refused_before_the_farm_is_asked() {
    let place = Place::new();
    for args in [
        &["--role", "viewer"][..],
        &["--worker", "w1", "--role", "viewer", "--user", "x"],
        &["--worker", "w1", "--pipeline", "mini"],
        &["--worker", "w1", "--bearer"],
        &["--worker", "W!"],
        &["--role", "operator", "--user", "o", "--pipeline", "mini"],
        &["--role", "viewer", "--user", "a b"],
        &[],
    ] {
        exits(&place.run(&[&["token", "create"], args].concat()), 2);
    }
    exits(&place.run(&["revoke"]), 2);
    exits(&place.run(&["token", "revoke", "xyz"]), 2);
    exits(&place.run(&["worker", "--join", "railyard-join-x"]), 2);
}
