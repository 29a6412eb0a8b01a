//! A build's image and its compressed artifact, taken by the tools that a developer has.

use railyard_tests::engine::Engine;
use railyard_tests::farm::{Farm, job};
use railyard_tests::s3::Store;
use railyard_tests::{image, unique};
use std::path::Path;
use std::process::Command;

fn pipeline(image: &str) -> String {
    format!(
        r#"
name: tools
steps:
  - name: sdk
    image: {image}
    commit: true
    script: |
      mkdir -p /opt/sdk && seq 200000 > /opt/sdk/version && ln -s version /opt/sdk/link
      cp /opt/sdk/version numbers.txt
    outputs: [{{ path: numbers.txt, compress: xz, publish: "tools/{{{{ version }}}}" }}]
    resources: {{ cpu: 1, memory: 128MiB, disk: 64MiB }}
  - name: use
    image: {image}
    inputs: [{{ step: sdk, artifacts: [numbers.txt.xz] }}]
    script: ls -l /inputs/sdk/numbers.txt.xz
    resources: {{ cpu: 1, memory: 64MiB, disk: 64MiB }}
"#
    )
}

fn run(command: &mut Command) -> String {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The certificates of the farm's operator, as docker, podman and skopeo want them.
fn certificates(pki: &Path, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for (from, to) in [("ca.pem", "ca.crt"), ("operator.pem", "client.cert"), ("operator.key", "client.key")] {
        std::fs::copy(pki.join(from), dir.join(to)).unwrap();
    }
}

#[test]
fn an_image_is_one_command_away_and_a_compressed_file_is_what_it_says() {
    let farm = Farm::start();
    let objects = farm.dir.path().join("controller/cache");
    taken_by_tools(&farm, &objects);
}

/// The bytes come from the service, by signed URLs; the tools have no key of it.
#[test]
fn so_they_are_when_the_cache_is_in_s3() {
    let store = Store::start();
    taken_by_tools(&Farm::start_with(&store.config(), &[]), &store.bucket());
}

fn taken_by_tools(farm: &Farm, objects: &Path) {
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let _worker = farm.worker("maker", &engine, "capacity = { cpu_millis = 2000 }");
    let path = farm.pipeline("tools", &pipeline(&base));
    let build = farm.submit(&path, &["--version", "1.0.0+x"]);
    let ended = farm.ended(&build);
    assert_eq!(ended["state"], "succeeded", "{ended}");

    // The image, by the name that the farm gives it.
    let reference = job(&ended, "sdk")["image_reference"].as_str().unwrap().to_owned();
    assert!(reference.ends_with("/tools/sdk:1.0.0_x"), "{reference}");
    let shown = farm.cli(&["show", &build]);
    assert!(shown.stdout.contains(&format!("image: {reference}\n")), "{}", shown.stdout);
    let certs = farm.dir.path().join("certs");
    certificates(&farm.dir.path().join("controller/pki"), &certs);
    let tag = format!("railyard-test-pulled-{}:1", unique());
    let skopeo = |args: &[&str]| run(Command::new("skopeo").args(["--insecure-policy", "copy"]).args(args));
    let (certs, plain) = (certs.display().to_string(), format!("dir:{}", farm.dir.path().join("plain").display()));
    // Docker's own form of an image knows no zstd: unpacked first.
    skopeo(&["--src-cert-dir", &certs, "--dest-decompress", &format!("docker://{reference}"), &plain]);
    skopeo(&[&plain, &format!("docker-daemon:{tag}")]);
    let said = engine.query(&["run", "--rm", "--network", "none", &tag, "tail", "-n", "1", "/opt/sdk/link"]);
    engine.query(&["image", "rm", &tag]);
    assert_eq!(said.trim(), "200000");

    // The file, by its published path.
    let published = objects.join("tools/1.0.0+x/numbers.txt.xz");
    run(Command::new("xz").arg("-t").arg(&published));
    let plain = run(Command::new("xz").args(["-d", "-c"]).arg(&published));
    assert!(plain.starts_with("1\n2\n") && plain.ends_with("\n200000\n"));
    let sums = published.with_file_name("SHA256SUMS");
    run(Command::new("sha256sum").arg("-c").arg(&sums).current_dir(sums.parent().unwrap()));
    engine.query(&["image", "rm", &base]);
}
