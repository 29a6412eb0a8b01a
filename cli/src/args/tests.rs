use super::access::parse_ttl;
use super::pipeline::parse_param;
use super::services::parse_cpus;
use super::workers::parse_duration;
use super::*;
use clap::CommandFactory as _;
use std::time::Duration;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_and_flag_is_documented() {
    let root = Cli::command();
    for verb in root.get_subcommands() {
        assert!(verb.get_about().is_some(), "{} has no description", verb.get_name());
        for arg in verb.get_arguments() {
            assert!(arg.get_help().is_some(), "{} {} has no help", verb.get_name(), arg.get_id());
        }
    }
}

fn fetch(args: &[&str]) -> FetchArgs {
    match Cli::try_parse_from([&["railyard", "fetch", "mini"], args].concat()).unwrap().verb {
        Verb::Fetch(fetch) => fetch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn fetch_tells_a_directory_from_a_format() {
    let plain = fetch(&[]);
    assert_eq!((plain.dir(), plain.format()), (PathBuf::from("."), Format::Table));
    let both = fetch(&["-o", "out", "-o", "json"]);
    assert_eq!((both.dir(), both.format()), (PathBuf::from("out"), Format::Json));
    assert_eq!(fetch(&["-o", "./json"]).dir(), PathBuf::from("./json"));
    assert_eq!(fetch(&["--output", "json"]).format(), Format::Json);
}

#[test]
fn processors_can_be_split() {
    assert_eq!([parse_cpus("2"), parse_cpus("1.5")], [Ok(2000), Ok(1500)]);
    for bad in ["0", "-1", "nan", "inf", "two", ""] {
        assert!(parse_cpus(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_parameter_keeps_further_equals_signs() {
    assert_eq!(parse_param("url=http://x/?a=b"), Ok(("url".to_owned(), "http://x/?a=b".to_owned())));
    assert_eq!(parse_param("empty="), Ok(("empty".to_owned(), String::new())));
    assert!(parse_param("novalue").is_err());
    assert!(parse_param("=x").is_err());
}

#[test]
fn a_token_is_good_for_some_time() {
    assert_eq!(parse_ttl("1s"), Ok(Duration::from_secs(1)));
    for bad in ["0s", "0days", "500ms", "", "7"] {
        assert!(parse_ttl(bad).unwrap_err().ends_with("366days for a --bearer token"), "{bad}");
    }
    let create = ["railyard", "token", "create", "--worker", "w", "--ttl", "0s"];
    let refused = Cli::try_parse_from(create).unwrap_err().to_string();
    assert!(refused.contains("more than 0s is expected"), "{refused}");
}

#[test]
fn durations_are_of_whole_seconds_and_have_units() {
    for (text, secs) in [("90s", 90), ("2h", 7200), ("1day 6h", 108_000), ("0s", 0)] {
        assert_eq!(parse_duration(text).map(|duration| duration.as_secs()), Ok(secs), "{text}");
    }
    for bad in ["", "2", "-1h", "1.5s", "500ms", "soon"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
}
