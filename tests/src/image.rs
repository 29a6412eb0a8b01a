//! Small images for steps: busybox and nothing else.

use crate::engine::Engine;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Applets that the tests' scripts call.
const APPLETS: [&str; 28] = [
    "sh",
    "ash",
    "cat",
    "cp",
    "dd",
    "echo",
    "env",
    "find",
    "grep",
    "head",
    "id",
    "ls",
    "md5sum",
    "mkdir",
    "mv",
    "ps",
    "rm",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
    "test",
    "touch",
    "true",
    "uname",
    "wc",
];

/// Makes `reference` from the machine's own static busybox, for its own platform.
///
/// # Panics
/// With a sentence that says what to do, if there is no static busybox.
pub fn busybox(engine: &Engine, reference: &str) {
    let binary = Path::new("/bin/busybox");
    assert!(binary.exists(), "{} is missing; install the package busybox-static (tests/run.sh does)", binary.display());
    import(engine, reference, &std::fs::read(binary).expect("busybox can be read"), std::env::consts::ARCH);
}

/// The same without any shell at its usual place: the worker runs scripts of such an image as they are, with two outputs.
///
/// # Panics
/// As [`busybox`].
pub fn without_shell(engine: &Engine, reference: &str) {
    let binary = std::fs::read("/bin/busybox").expect("busybox can be read; install the package busybox-static");
    load(engine, reference, &root_tar(&binary, &[]), std::env::consts::ARCH);
}

/// Makes `reference` from a static busybox of the processor `arch` (`x86_64` or `aarch64`).
///
/// # Panics
/// If the engine refuses.
pub fn import(engine: &Engine, reference: &str, busybox: &[u8], arch: &str) {
    load(engine, reference, &root_tar(busybox, &APPLETS), arch);
}

fn load(engine: &Engine, reference: &str, layer: &[u8], arch: &str) {
    let arch = if arch == "aarch64" { "arm64" } else { "amd64" };
    let sum = sha256(layer);
    let config = serde_json::json!({
        "architecture": arch, "os": "linux", "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644);
    add(&mut archive, "config.json", config.to_string().as_bytes(), 0o644);
    add(&mut archive, "layer.tar", layer, 0o644);
    let archive = archive.into_inner().expect("a tar in memory");
    let mut client = Command::new("docker");
    client.arg("--host").arg(format!("unix://{}", engine.socket().display())).args(["load", "--quiet"]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("docker can be run");
    client.stdin.take().expect("a pipe").write_all(&archive).expect("docker reads the archive");
    assert!(client.wait().expect("docker ends").success(), "docker load of {reference}");
}

fn root_tar(busybox: &[u8], applets: &[&str]) -> Vec<u8> {
    let mut root = tar::Builder::new(Vec::new());
    for dir in ["bin/", "etc/", "tmp/", "root/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        root.append_data(&mut header, dir, std::io::empty()).expect("a tar in memory");
    }
    add(&mut root, "bin/busybox", busybox, 0o755);
    for applet in applets {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        root.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("a tar in memory");
    }
    root.into_inner().expect("a tar in memory")
}

fn add(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, path, bytes).expect("a tar in memory");
}

fn sha256(bytes: &[u8]) -> String {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils");
    sum.stdin.take().expect("a pipe").write_all(bytes).expect("sha256sum reads");
    let output = sum.wait_with_output().expect("sha256sum ends");
    String::from_utf8_lossy(&output.stdout).chars().take(64).collect()
}
