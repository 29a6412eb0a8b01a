//! Emulated arm64: the worker offers it where binfmt does it, and its jobs really run arm64 containers.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, job, list};
use railyard_tests::{image, unique};
use std::path::Path;
use std::process::Command;

/// Debian's static busybox for arm64, through the machine's own apt sources, without touching its package database.
fn arm64_busybox(dir: &Path) -> Vec<u8> {
    let script = r#"
        set -eu
        mkdir -p state/lists/partial cache/archives/partial
        apt="apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State=$PWD/state -o Dir::Cache=$PWD/cache
             -o Dir::State::status=/dev/null -o APT::Sandbox::User=root"
        $apt update
        $apt download busybox-static
        dpkg-deb --fsys-tarfile busybox-static_*_arm64.deb | tar -xf - --wildcards --transform 's,.*/,,' '*bin/busybox'
    "#;
    let output = Command::new("sh").args(["-c", script]).current_dir(dir).output().expect("a shell");
    assert!(
        output.status.success(),
        "cannot get busybox for arm64 from apt: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::read(dir.join("busybox")).expect("busybox was unpacked")
}

#[test]
fn arm64_jobs_run_arm64_containers() {
    let engine = Engine::shared();
    let native = std::env::consts::ARCH == "aarch64";
    let registered = std::fs::read_to_string("/proc/sys/fs/binfmt_misc/qemu-aarch64").unwrap_or_default();
    assert!(
        native || registered.starts_with("enabled"),
        "this machine cannot run arm64 programs; install qemu-user-static and binfmt-support (tests/run.sh does, as root)"
    );
    let dir = tempfile::tempdir().unwrap();
    let base = format!("railyard-test-{}:arm64", unique());
    image::import(&engine, &base, &arm64_busybox(dir.path()), "aarch64");

    let farm = Farm::start();
    let worker = farm.worker("w", &engine, "");
    let workers = farm.json(&["workers", "-o", "json"]);
    let offered =
        list(&list(&workers)[0]["platforms"]).iter().find(|offer| offer["platform"] == "linux/arm64").cloned();
    assert_eq!(offered.expect("arm64 is offered")["emulated"], !native, "{workers}");

    let text = format!(
        "name: arm\nplatforms: [linux/arm64]\nsteps:\n  - name: ask\n    image: {base}\n    commit: true\n    script: |\n      \
         uname -m > machine.txt\n      cp machine.txt /etc/machine\n    outputs: [machine.txt]\n    resources: {{ cpu: 0.5, memory: 128MiB, disk: 64MiB }}\n  \
         - name: again\n    image: {{ step: ask }}\n    script: cat /etc/machine\n    resources: {{ cpu: 0.5, memory: 128MiB, disk: 64MiB }}\n"
    );
    let build = farm.submit(&farm.pipeline("arm", &text), &[]);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}; {}", worker.process.log());
    assert_eq!(job(&ended, "ask")["name"], "ask@linux/arm64");
    let log = farm.cli(&["logs", &build, "again"]).stdout;
    assert!(log.lines().any(|line| line == "aarch64"), "{log}");
    engine.query(&["image", "rm", &base]);
}
