//! Steps that want too much or do harm, in a farm of real processes.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, job, list};
use railyard_tests::scene::{Scene, one_step};
use railyard_tests::{image, unique};
use std::process::Command;

/// More processes than it may have, each of which makes two more, until its time is over.
const BOMB: &str = "    timeout: 15s
    lease_ttl: 10s
    script: |
      printf '#!/bin/sh\\n/tmp/bomb & /tmp/bomb & exec sleep 600' > /tmp/bomb
      busybox chmod 755 /tmp/bomb
      echo begun
      exec busybox awk 'BEGIN { while (1) system(\"/tmp/bomb 2>/dev/null &\") }'";

#[test]
fn a_fork_bomb_costs_its_step_and_neither_the_worker_nor_its_lease() {
    let scene = Scene::default();
    let path = scene.one_step("bomb", BOMB);
    let build = scene.farm.submit(&path, &[]);
    scene.farm.logged(&build, "only", "begun");
    let ended = scene.farm.ended(&build);
    let attempts = list(&job(&ended, "only")["attempts"]);
    // A worker that had not been heard for ten seconds would have lost it, and it would have begun again.
    assert_eq!(attempts.len(), 1, "{ended}");
    let kind = attempts[0]["outcome"]["kind"].as_str().unwrap();
    assert!(["failed", "timed-out"].contains(&kind), "{ended}");
    scene.is_clean();
    let after = scene.one_step("after", "    script: 'true'");
    let after = scene.farm.submit(&after, &[]);
    scene.farm.succeeded_at_once(&after);
}

#[test]
fn an_engine_with_a_network_of_its_own_has_the_rules_there() {
    let engine = Engine::private();
    let image = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &image);
    let farm = Farm::start();
    let _worker = farm.worker("w", &engine, "");
    let build = farm.submit(&one_step(&farm, "net", &image, "    script: 'true'"), &[]);
    farm.succeeded_at_once(&build);
    let pid = std::fs::read_to_string(engine.dir().unwrap().join("dockerd.pid")).unwrap();
    let mut rules = Command::new("nsenter");
    rules.arg(format!("--net=/proc/{}/ns/net", pid.trim())).args(["iptables", "--wait", "10", "-t", "mangle", "-S"]);
    let rules = String::from_utf8(rules.output().unwrap().stdout).unwrap();
    for line in ["-A PREROUTING -i ry-", "--dst-type LOCAL -j DROP", "-d 169.254.0.0/16 -j DROP"] {
        assert!(rules.contains(line), "{line} is not in {rules}");
    }
}

#[test]
fn what_the_policy_does_not_allow_is_refused_with_its_rule_and_what_it_allows_runs() {
    let engine = Engine::shared();
    let image = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &image);
    let rule = "[[policy]]\nname = \"tunnels\"\npipelines = [\"net-*\"]\nallow = [\"devices:/dev/net/tun\"]";
    let farm = Farm::start_with(rule, &[]);
    let _worker = farm.worker("w", &engine, "allow = [\"devices:/dev/net/*\"]");
    for (name, more, words) in [
        ("net-x", "    privileged: true", "rule `tunnels` allows only devices:/dev/net/tun"),
        ("other", "    devices: [/dev/net/tun]", "no rule is for pipeline other"),
        ("net-x", "    host_paths: [/etc]", "\"host-paths:/etc\""),
    ] {
        let path = one_step(&farm, name, &image, &format!("{more}\n    script: 'true'"));
        for verb in ["submit", "plan"] {
            let answer = farm.cli(&[verb, &path]);
            assert_eq!(answer.code, 3, "{answer:?}");
            assert!(answer.stderr.contains(words), "{answer:?}");
        }
    }
    let path = one_step(&farm, "net-x", &image, "    devices: [/dev/net/tun]\n    script: test -c /dev/net/tun");
    let build = farm.submit(&path, &[]);
    farm.succeeded_at_once(&build);
    let path = one_step(&farm, "other", &image, "    devices: ['/dev/net/tun?']\n    script: test ! -e /dev/net/tun");
    let submitted = farm.cli(&["submit", &path]);
    assert!(submitted.stderr.contains("does without `devices:/dev/net/tun`"), "{submitted:?}");
    farm.succeeded_at_once("other");
    engine.query(&["image", "rm", &image]);
}
