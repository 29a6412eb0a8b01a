//! Channels, as people name and see them.

use crate::Controller;
use crate::place::{Place, err, exits, json, out};

const OS: &str = "\
name: os
platforms: [linux/amd64]
channel: nightly
steps:
  - name: image
    image: debian:bookworm
    script: make
";

#[test]
fn a_build_is_for_a_channel_and_everybody_is_told() {
    let place = Place::new();
    place.write("os.yaml", OS);
    let _controller = Controller::start(&place, "127.0.0.1:0");
    exits(&place.run(&["submit", "os.yaml", "--version", "1"]), 0);
    exits(&place.run(&["submit", "os.yaml", "--version", "2", "--channel", "default"]), 0);

    let builds = place.run(&["builds"]);
    let rows: Vec<Vec<&str>> = out(&builds).lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows[0][3], rows[1].contains(&"default"), rows[2][3]), ("CHANNEL", false, "nightly"));
    let listed = json(&place.run(&["builds", "-o", "json"]));
    assert_eq!((&listed[0]["channel"], &listed[1]["channel"]), (&"default".into(), &"nightly".into()));
    assert!(out(&place.run(&["show", "os/1"])).contains("channel    nightly\n"));
    let planned = json(&place.run(&["plan", "os.yaml", "--channel", "beta", "-o", "json"]));
    assert_eq!(planned["channel"], "beta");

    let bad = place.run(&["submit", "os.yaml", "--channel", "Not/One"]);
    exits(&bad, 2);
    assert!(err(&bad).contains("`Not/One` is not a channel name"), "{}", err(&bad));
}
